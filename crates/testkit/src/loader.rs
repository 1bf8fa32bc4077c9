//! Loads a [`ScriptedEngine`] as its [`Script`] says: slowly, with ballast, or not at all.

use crate::fault::Faults;
use crate::script::{Script, When};
use crate::scripted::ScriptedEngine;
use mlxd_protocol::{LoadFault, LoadFaultKind, LoadSpec};
use mlxd_worker::Loader;
use std::time::Duration;

/// The environment variable that makes `mlxd-scripted-worker` claim another protocol version.
pub const PROTOCOL_VARIABLE: &str = "SCRIPTED_PROTOCOL";

/// Reads the script that belongs to a model folder.
#[derive(Debug, Clone, Copy, Default)]
pub struct ScriptedLoader;

impl Loader for ScriptedLoader {
    type Engine = ScriptedEngine;

    fn load(
        &mut self,
        spec: &LoadSpec,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<ScriptedEngine, LoadFault> {
        let fault = |kind, message: String| LoadFault { kind, message };
        let mut script = Script::find(&spec.folder)
            .map_err(|error| fault(LoadFaultKind::Corrupt, error.to_string()))?;
        if let Some(tokens) = spec.context_tokens_max {
            script.context_tokens = script.context_tokens.min(tokens);
        }
        let faults = Faults::new(&script.faults, &spec.folder);
        let mut ballast = Vec::new();
        let steps = script.load_steps.max(1);
        progress(0, steps);
        for step in 1..=steps {
            // Written to, so that it is resident.
            ballast.resize((script.allocate_mib << 20) * step as usize / steps as usize, 1);
            std::thread::sleep(Duration::from_millis(script.load_ms / steps));
            progress(step, steps);
            if step == steps.div_ceil(2) {
                faults
                    .strike(When::Load)
                    .map_err(|error| fault(LoadFaultKind::Engine, error.to_string()))?;
            }
        }
        if let Some(failure) = &script.load_failure {
            return Err(fault(failure.kind, failure.message.clone()));
        }
        Ok(ScriptedEngine::with_faults(script, faults, ballast))
    }
}
