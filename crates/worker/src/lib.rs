//! The worker process around one engine: attach, load, then ring ↔ scheduler ↔ engine.
//!
//! `mlxd-worker` is this loop with the MLX engine. Another program may run the same loop with
//! another engine by handing [`run`] another [`Loader`]; tests do.
//!
//! | thread | does | ends |
//! |---|---|---|
//! | main | owns the engine and everything in it; serves | with the process |
//! | `control` | blocks on the front's messages; the front's going ends the process here | with the process |
//! | `signals` | waits for SIGTERM and for the parent's death | with the process |
//! | `parent` (macOS) | waits for the parent's death | with the process |
//!
//! Only the main thread touches the engine. The others may end the process at any moment, also
//! while the engine hangs, and otherwise only put events into the main
//! thread's inbox.

mod arguments;
mod connection;
mod control;
mod embed;
mod inbox;
mod loader;
mod log;
mod page;
mod run;
mod serve;
mod signals;
mod sink;

#[cfg(target_os = "linux")]
#[path = "linux.rs"]
mod os;
#[cfg(target_os = "macos")]
#[path = "macos.rs"]
mod os;

pub use loader::Loader;
pub use run::{Program, run};

/// To be called first in the process: has the system's allocator give freed buffers back at once,
/// so that the worker's footprint follows what it holds.
pub fn give_back_freed() {
    os::give_back_freed();
}
