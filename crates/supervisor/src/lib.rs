//! Worker life cycle: spawn, handshake, load, drain, restart, backoff.
//!
//! [`life`] is the state machine, pure; [`Worker`] is the shell around one model's: a task that
//! owns the process, its control channel and the state, and tells what happens through
//! [`Notice`]s. It knows processes and segments and nothing of requests.
//!
//! A [`Worker`]'s task must run on a runtime whose threads live as long as the front.

mod crash;
mod events;
mod gate;
pub mod life;
mod log;
mod logs;
mod spawn;
mod task;

pub use events::EventLog;
pub use gate::{Gate, OpenGate};
pub use life::LifeLimits;
pub use log::WorkerLog;
pub use logs::{BoundedFile, LogFolder};
pub use mlxd_ring::{Reader, SegmentSpec, Writer, leftovers};
pub use task::{Down, Notice, Worker, WorkerView};

use mlxd_protocol::{LoadSpec, ModelId};
use std::path::PathBuf;

/// Everything needed to run one model's worker.
#[derive(Debug, Clone)]
pub struct WorkerSpec {
    /// Which model, for log lines.
    pub model: ModelId,
    /// The worker program.
    pub program: PathBuf,
    /// Variables added to the worker's environment.
    pub env: Vec<(String, String)>,
    /// What it loads.
    pub load: LoadSpec,
    /// Waits and limits of its life.
    pub limits: LifeLimits,
    /// Sizes of its rings.
    pub segment: SegmentSpec,
    /// Where its standard error goes.
    pub log: WorkerLog,
    /// Folder where segments in use are recorded.
    pub leftovers_folder: PathBuf,
}
