//! What crosses a process boundary, and nothing else.
//!
//! The front (`mlxd`) and a worker (`mlxd-worker`) meet in three places:
//!
//! | place | carries | defined in |
//! |---|---|---|
//! | commands ring, front → worker | [`Command`] | [`command`] |
//! | tokens ring, worker → front | frames of [`TokenRecord`]s and [`Report`]s | [`report`] |
//! | `ipc-channel` | [`Bootstrap`], then [`ToWorker`] and [`FromWorker`] | [`control`] |
//!
//! The progress page needs no message; the meaning of its phase is [`Phase`].
//! A change to anything here that an older peer would misread raises [`PROTOCOL_VERSION`].
//! This crate does no I/O and links neither MLX nor a runtime.

pub mod admin;
mod bootstrap;
mod bytes;
pub mod command;
pub mod control;
pub mod embed;
mod ids;
pub mod measure;
mod phase;
pub mod report;
mod wire;

pub use bootstrap::{Bootstrap, arguments, exit_code};
pub use bytes::bytes_in_short;
pub use command::{Command, Priority, Sampling, Submit};
pub use control::{
    BenchLeg, BenchSpec, Cleared, DeviceChoice, DraftSpec, FromWorker, Hello, KvQuantization,
    LoadFault, LoadFaultKind, LoadSpec, ModelInfo, PrefixDisk, ToWorker, parameters_in_short,
};
pub use embed::{Embed, Embedded};
pub use ids::{Incarnation, ModelId, ModelIdError, RequestId, TokenId};
pub use phase::Phase;
pub use report::{
    Ended, Refusal, RefusalCode, Report, Started, TokenFlags, TokenRecord, TopLogprobs,
};
pub use wire::{WireError, kind};

/// Raised with every change that an older peer would misread. A handshake between
/// different versions is refused and names both.
pub const PROTOCOL_VERSION: u32 = 5;
