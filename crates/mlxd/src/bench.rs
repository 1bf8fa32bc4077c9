//! What `mlxd bench` must know of the configuration.

use crate::source::Models;
use mlxd_bench::{Front, LocalModel};
use mlxd_config::{Environment, Folders, LoadedConfig};
use mlxd_dispatch::ModelSource;
use mlxd_supervisor::LogFolder;
use std::path::{Path, PathBuf};

/// This user's configuration, read when asked.
pub struct Configured;

fn read(config: Option<&Path>) -> anyhow::Result<(LoadedConfig, Folders, Environment)> {
    let environment = Environment::of_process();
    let loaded = mlxd_config::load(config, &environment, &[])?;
    let folders = Folders::new(&loaded.config, &environment)?;
    Ok((loaded, folders, environment))
}

impl Front for Configured {
    fn model(&self, config: Option<&Path>, name: &str) -> anyhow::Result<LocalModel> {
        let (loaded, folders, environment) = read(config)?;
        let logs = LogFolder::new(&folders.logs, loaded.config.log.total_bytes_max);
        let models = Models::new(&loaded.config, &folders, logs, environment.home.clone());
        let found = models.find(name)?;
        Ok(LocalModel { folder: found.folder, load: found.worker.load, needs: found.needs })
    }

    fn worker_program(&self, config: Option<&Path>) -> anyhow::Result<PathBuf> {
        let (loaded, _, _) = read(config)?;
        let beside = || Ok(std::env::current_exe()?.with_file_name("mlxd-worker"));
        loaded.config.workers.program.map_or_else(beside, Ok)
    }

    fn card(&self) -> Option<PathBuf> {
        let (_, folders, _) = read(None).ok()?;
        Some(folders.runtime.join("mlxd.json"))
    }
}
