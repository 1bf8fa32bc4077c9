//! `mlxd demo`: the whole path once, beside whatever else runs on this machine.

use crate::administration::Given;
use crate::arguments::{ConfigFlags, Demo};
use crate::exit::Failed;
use crate::serve::{Purpose, run_with};
use mlxd_config::{Environment, Override};

pub fn run(demo: &Demo) -> Result<(), Failed> {
    let environment = Environment::of_process();
    let folder =
        tempfile::Builder::new().prefix("mlxd-demo-").tempdir().map_err(Failed::address)?;
    let own =
        |key: &str, value: String| Override { flag: "mlxd demo".into(), key: key.into(), value };
    let place = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let flags = ConfigFlags { config: demo.config.clone(), host: None, port: None };
    let mut overrides = flags.overrides();
    overrides.extend([
        own("http.port", "0".into()),
        own("log.level", "warn".into()),
        own("paths.runtime", place("run")),
        own("paths.state", place("state")),
        own("paths.logs", place("logs")),
    ]);
    let given =
        Given { config: flags.config.clone(), overrides: overrides.clone(), launchd: false };
    let loaded = mlxd_config::load(flags.config.as_deref(), &environment, &overrides)
        .map_err(Failed::config)?;
    run_with(&loaded, &environment, given, Purpose::Ask(demo.question.clone()))
}
