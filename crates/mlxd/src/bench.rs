//! What `mlxd bench` must know of the configuration.

use crate::source::Models;
use mlxd_bench::Front;
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
    fn model_folder(&self, config: Option<&Path>, model: &str) -> anyhow::Result<PathBuf> {
        let (loaded, folders, environment) = read(config)?;
        let logs = LogFolder::new(&folders.logs, loaded.config.log.total_bytes_max);
        let models = Models::new(&loaded.config, &folders, logs, environment.home.clone());
        let found = models.find(model)?;
        Ok(found.folder)
    }

    fn card(&self) -> Option<PathBuf> {
        let (_, folders, _) = read(None).ok()?;
        Some(folders.runtime.join("mlxd.json"))
    }
}
