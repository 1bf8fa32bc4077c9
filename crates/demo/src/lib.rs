//! The built-in model, `mlxd-demo`: a small language model of our own that knows mlxd, so that
//! the first minute works without a network.
//!
//! This crate carries the model's files inside the program and writes them out where a worker
//! can load them. It runs no model and knows nothing of processes. How the model was made, and
//! how its answers are scored, is in `README.md` beside this crate.

mod files;
mod materialise;

pub use files::{FILES, File, REVISION, fingerprint};
pub use materialise::{DemoError, materialise};

/// The name a request gives it. It answers only to this name.
pub const NAME: &str = "mlxd-demo";
