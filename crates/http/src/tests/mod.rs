//! The routes over real sockets, with a scripted backend in place of workers.

mod admin;
mod answers;
mod client;
mod embeddings;
mod errors;
mod fake;
mod kept;
mod shelf;
mod streams;
mod turns;
mod validation;
