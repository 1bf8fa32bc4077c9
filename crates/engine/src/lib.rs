//! The scheduler and the [`Engine`] trait. No MLX, no processes, no clocks of its own.
//!
//! [`Engine`] is what a model can do; `models` implements it on MLX and `testkit` with a script.
//! [`Scheduler`] turns [`Command`](mlxd_protocol::Command)s into calls of an engine and an
//! engine's tokens into what a [`Sink`] publishes.

mod admission;
mod check;
mod direct;
mod embedding;
mod engine;
pub mod prefix;
mod row;
mod scheduler;
mod shares;
mod waiting;

pub use direct::{BenchError, bench_direct};
pub use embedding::EmbedQueue;
pub use engine::{
    CacheFigures, DiskFigures, EmbedText, Engine, EngineFault, GuessFigures, MemoryFigures, Opened,
    SeqId, SeqSpec, StepToken,
};
pub use scheduler::{Counts, Limits, Scheduler, Sink};
