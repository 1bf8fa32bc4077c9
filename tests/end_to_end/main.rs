//! The whole program from outside.

mod bench;
mod cache;
mod chaos;
mod curl;
mod demo_answers;
mod deterministic;
mod disconnect;
mod draft;
mod embeddings;
mod fixture;
mod http_errors;
mod leftovers;
mod managed;
mod memory;
mod mlxctl;
mod openai_client;
mod processes;
mod pull;
mod replay;
mod replay_bounds;
mod replay_mlx;
mod resume;
mod routing;
#[cfg(target_os = "linux")]
mod systemd;
mod turns;
mod two_instances;
