//! The scheduler and the [`Engine`] trait. No MLX, no processes, no clocks of its own.
//!
//! [`Engine`] is what a model can do; `models` implements it on MLX and `testkit` with a script.

mod engine;

pub use engine::{Engine, EngineFault, MemoryFigures, SeqId, SeqSpec, StepToken};
