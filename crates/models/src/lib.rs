//! Models on MLX: loading, architectures, KV arrays, sampling. Implements [`mlxd_engine::Engine`].
//!
//! The only crate that links MLX, and [`sys`] is its only file with raw mlx-c calls. One thread
//! calls [`load`], drives the [`MlxEngine`] and drops it; nothing of MLX leaves that thread.
//!
//! | module | does |
//! |---|---|
//! | `config` | `config.json` in, checked numbers out |
//! | `weights` | headers and the plan checked before MLX sees a file, then the reading |
//! | `arch` | the dense decoder of Llama, Mistral, Qwen2 and Qwen3 |
//! | `kv` | keys and values of one layer and one sequence |
//! | `sample` | the choice of a token, on the device |
//! | `engine` | sequences and the pipeline of steps |
//! | `load` | from a folder to a warm engine |
//! | `bench` | the engine in a bare loop |
//!
//! On the CPU every weight becomes dense float32 at load: MLX's CPU backend is many times slower
//! on packed or half-precision weights, and less exact. On a GPU weights stay as stored.

mod arch;
mod bench;
mod config;
mod device;
mod engine;
mod fault;
mod kv;
mod load;
mod sample;
mod sys;
mod weights;

pub use arch::Layout;
pub use bench::bench_direct;
pub use engine::MlxEngine;
pub use load::{Summary, check, load, load_with_layout};
pub use sample::probe;
