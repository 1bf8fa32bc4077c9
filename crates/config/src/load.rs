//! Finds `mlxd.toml`, reads it, and puts it together with the environment and the flags.

use crate::config::{Config, Override, Sources};
use crate::paths::{Environment, config_file};
use crate::problem::{Problem, Problems};
use std::io::Read;
use std::path::{Path, PathBuf};

/// A file longer than this is not a configuration.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// A configuration and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedConfig {
    /// The configuration.
    pub config: Config,
    /// To be logged.
    pub warnings: Vec<Problem>,
    /// The file that was read; `None` when there was none and nobody named one.
    pub file: Option<PathBuf>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {error}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It can, but something is wrong with it, with a variable or with a flag.
    #[error(transparent)]
    Problems(#[from] Problems),
}

/// Loads the configuration from `named` (the flag `--config`), else `MLXD_CONFIG`, else the
/// standard place. A file that was named must exist; the standard one need not.
pub fn load(
    named: Option<&Path>,
    environment: &Environment,
    overrides: &[Override],
) -> Result<LoadedConfig, ConfigError> {
    let named = named.or(environment.mlxd_config.as_deref());
    let (path, text) = match named {
        Some(path) => (Some(path.to_owned()), Some(read(path)?)),
        None => match config_file(environment) {
            Ok(path) => match read(&path) {
                Ok(text) => (Some(path), Some(text)),
                Err(ConfigError::Read { error, .. })
                    if error.kind() == std::io::ErrorKind::NotFound =>
                {
                    (None, None)
                }
                Err(error) => return Err(error),
            },
            Err(_) => (None, None),
        },
    };
    let loaded = Config::from_sources(Sources {
        file: path.as_deref().zip(text.as_deref()),
        variables: &environment.mlxd,
        overrides,
        home: environment.home.as_deref(),
    })?;
    Ok(LoadedConfig { config: loaded.config, warnings: loaded.warnings, file: path })
}

/// What [`check`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckReport {
    /// What keeps mlxd from starting.
    pub problems: Vec<Problem>,
    /// What it would start with all the same.
    pub warnings: Vec<Problem>,
}

impl CheckReport {
    /// Whether mlxd would start.
    pub fn is_good(&self) -> bool {
        self.problems.is_empty()
    }
}

impl std::fmt::Display for CheckReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for problem in &self.problems {
            writeln!(f, "error: {problem}")?;
        }
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        match self.problems.len() {
            0 => write!(f, "good"),
            1 => write!(f, "1 error"),
            count => write!(f, "{count} errors"),
        }
    }
}

/// Checks the file at `path` by itself, without variables and flags, for `mlxd config check`.
pub fn check(path: &Path, environment: &Environment) -> Result<CheckReport, ConfigError> {
    let text = read(path)?;
    let sources = Sources {
        file: Some((path, &text)),
        home: environment.home.as_deref(),
        ..Sources::default()
    };
    Ok(match Config::from_sources(sources) {
        Ok(loaded) => CheckReport { problems: Vec::new(), warnings: loaded.warnings },
        Err(Problems(problems)) => CheckReport { problems, warnings: Vec::new() },
    })
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let wrong = |error| ConfigError::Read { path: path.to_owned(), error };
    let file = std::fs::File::open(path).map_err(wrong)?;
    let mut text = String::new();
    let got = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(wrong)?;
    if got as u64 > FILE_BYTES_MAX {
        let message = format!("it is longer than {FILE_BYTES_MAX} bytes");
        return Err(wrong(std::io::Error::new(std::io::ErrorKind::InvalidData, message)));
    }
    Ok(text)
}
