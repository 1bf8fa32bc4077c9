//! Where a worker's engine comes from.

use mlxd_engine::Engine;
use mlxd_protocol::{LoadFault, LoadSpec};

/// Makes engines of one kind. Called on the thread that will own the engine.
pub trait Loader {
    /// What it makes.
    type Engine: Engine;

    /// Loads and warms up a model. `progress(done, total)` is a sign of life for the front: call
    /// it at least every few seconds.
    ///
    /// # Errors
    /// A fault that names the file, tensor or key.
    fn load(
        &mut self,
        spec: &LoadSpec,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self::Engine, LoadFault>;
}
