//! `mlxd config check` and `mlxd config show`.

use crate::arguments::ConfigFlags;
use crate::exit::Failed;
use crate::source::Models;
use mlxd_config::{Environment, Folders, LoadedConfig};
use mlxd_supervisor::LogFolder;

pub fn load(flags: &ConfigFlags, environment: &Environment) -> Result<LoadedConfig, Failed> {
    mlxd_config::load(flags.config.as_deref(), environment, &flags.overrides())
        .map_err(Failed::config)
}

pub fn check(flags: &ConfigFlags) -> Result<(), Failed> {
    let environment = Environment::of_process();
    let loaded = load(flags, &environment)?;
    for warning in &loaded.warnings {
        println!("warning: {warning}");
    }
    let unknown = models(&loaded, &environment)?.unknown_targets();
    if !unknown.is_empty() {
        return Err(Failed::config(anyhow::anyhow!(unknown.join("\n"))));
    }
    match &loaded.file {
        Some(file) => println!("{} is fine", file.display()),
        None => println!("no configuration file; the defaults are fine"),
    }
    Ok(())
}

/// The models that this configuration names.
fn models(loaded: &LoadedConfig, environment: &Environment) -> Result<Models, Failed> {
    let folders = Folders::new(&loaded.config, environment).map_err(Failed::config)?;
    let logs = LogFolder::new(&folders.logs, loaded.config.log.total_bytes_max);
    Ok(Models::new(&loaded.config, &folders, logs, environment.home.clone()))
}

pub fn show(flags: &ConfigFlags) -> Result<(), Failed> {
    let loaded = load(flags, &Environment::of_process())?;
    print!("{}", loaded.config.to_toml());
    Ok(())
}
