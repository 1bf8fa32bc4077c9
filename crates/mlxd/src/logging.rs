//! Log lines of the front, on standard error.

use mlxd_config::{LogConfig, LogFormat};
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

/// Starts logging. `MLXD_LOG` goes before the configured level.
pub fn start(config: &LogConfig) {
    let level = std::env::var("MLXD_LOG").unwrap_or_else(|_| config.level.clone());
    // actix tells of its own threads at every start; what it has to say beyond that is heard.
    let filter = EnvFilter::try_new(format!("actix_server=warn,{level}"));
    let filter = filter.unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .with_target(false);
    // Fails only when logging was started before; then it goes on as it was.
    let _ = match config.format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().try_init(),
    };
}
