//! Who is asked before a process is made, and told of each.

use mlxd_protocol::ModelId;

/// Decides whether there is memory for a worker's process. Called on the workers' tasks: it must
/// not block.
pub trait Gate: Send + Sync + 'static {
    /// Whether a process may be made now.
    ///
    /// # Errors
    /// Why not, in words. The worker is in BACKOFF with these words, and asks again.
    fn may_spawn(&self, model: &ModelId) -> Result<(), String>;

    /// A process was made and has not been told yet what to load.
    fn spawned(&self, model: &ModelId, pid: u32);

    /// The process is gone.
    fn gone(&self, model: &ModelId, pid: u32);
}

/// Lets everything through.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenGate;

impl Gate for OpenGate {
    fn may_spawn(&self, _model: &ModelId) -> Result<(), String> {
        Ok(())
    }

    fn spawned(&self, _model: &ModelId, _pid: u32) {}

    fn gone(&self, _model: &ModelId, _pid: u32) {}
}
