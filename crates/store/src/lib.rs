//! Model folders: where a model's files are, and what they say of themselves.
//!
//! [`Store::resolve`] turns the name in a request into a [`ModelFolder`], [`Store::list`] gives
//! what `/v1/models` shows, [`Store::incomplete`] what lacks files for that, [`weight_summary`]
//! reads safetensors headers. Nothing here reads weights, and nothing is cached: a model that was
//! downloaded a moment ago is found.
//!
//! A name is looked for in this order, and nothing else stands in for one that is not found:
//!
//! 1. configured names ([`StorePaths::named`]),
//! 2. a path, when it looks like one and paths are allowed,
//! 3. the Hugging Face cache,
//! 4. the other folders, in their order.
//!
//! This crate knows nothing of `mlxd.toml`; it takes plain values. It blocks on the file system:
//! call it off the event loop.

mod describe;
mod error;
mod folder;
mod hub;
mod name;
mod pull;
mod remove;
mod store;
mod weights;

pub use describe::{Description, describe};
pub use error::StoreError;
pub use folder::{ModelConfigHead, read_config_head};
pub use name::nearest as nearest_name;
pub use pull::{
    HubAccess, Pull, PullCancel, PullError, PullFile, PullLimits, PullPhase, PullProgress,
    PullRetry, PullState, Pulled, STANDARD_ENDPOINT,
};
pub use remove::{Removal, cached_folder, remove};
pub use store::{IncompleteModel, ModelEntry, ModelFolder, NamedFolder, Source, Store, StorePaths};
pub use weights::{WeightSummary, weight_summary};
