//! Request journals, routing, submission, the token pump, cancel.
//!
//! A response hands a [`Job`] to [`Dispatch::generate`] and reads a [`Generation`]. In between
//! stands one [`Journal`](journal::Journal) per sequence, written by the model's pump and read
//! through a cursor. This crate knows nothing of HTTP and nothing of MLX.

mod admission;
mod crash;
mod dispatch;
mod job;
pub mod journal;
mod link;
mod metrics;
mod models;
mod pace;
pub mod route;

pub use admission::{KeepAlive, Lifetime, MemoryKeeping, MemoryLimits};
pub use crash::CrashFolder;
pub use dispatch::{CatalogEntry, Dispatch, Readiness, Standing};
pub use job::{EmbedJob, Generation, Job, Tenant};
pub use journal::{End, Entry, Failure};
pub use metrics::Metrics;
pub use mlxd_supervisor::EventLog;
pub use models::{
    DispatchLimits, FoundModel, GenerationDefaults, ListedModel, ModelFault, ModelSource,
    ModelText, OpenModel, StandsFor,
};
pub use pace::Pace;
