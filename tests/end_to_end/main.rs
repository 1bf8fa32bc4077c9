//! The whole program from outside.

mod curl;
mod demo_answers;
mod disconnect;
mod fixture;
mod http_errors;
mod leftovers;
mod mid_stream_death;
mod openai_client;
mod processes;
mod two_instances;
