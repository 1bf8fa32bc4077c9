//! `mlxd config check` and `mlxd config show`.

use crate::arguments::ConfigFlags;
use crate::exit::Failed;
use mlxd_config::{Environment, LoadedConfig};

pub fn load(flags: &ConfigFlags, environment: &Environment) -> Result<LoadedConfig, Failed> {
    mlxd_config::load(flags.config.as_deref(), environment, &flags.overrides())
        .map_err(Failed::config)
}

pub fn check(flags: &ConfigFlags) -> Result<(), Failed> {
    let loaded = load(flags, &Environment::of_process())?;
    for warning in &loaded.warnings {
        println!("warning: {warning}");
    }
    match &loaded.file {
        Some(file) => println!("{} is fine", file.display()),
        None => println!("no configuration file; the defaults are fine"),
    }
    Ok(())
}

pub fn show(flags: &ConfigFlags) -> Result<(), Failed> {
    let loaded = load(flags, &Environment::of_process())?;
    print!("{}", loaded.config.to_toml());
    Ok(())
}
