//! Standard error: one line per event, and a last one for a panic.

use crate::os;
use mlxd_protocol::exit_code;
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// The variable that holds the level or a filter.
const LEVEL: &str = "MLXD_LOG";

/// The variable that holds the lines' format: `json`, or any other for text.
const FORMAT: &str = "MLXD_LOG_FORMAT";

/// Sends tracing to standard error, which the front collects in the model's own log.
pub(crate) fn start() {
    let filter = EnvFilter::builder()
        .with_env_var(LEVEL)
        .with_default_directive(tracing::Level::INFO.into())
        .from_env_lossy();
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    // Fails only where a test has set a subscriber of its own.
    let _ = match std::env::var(FORMAT).is_ok_and(|format| format == "json") {
        true => lines.json().try_init(),
        false => lines.try_init(),
    };
}

/// A panic anywhere ends the process: no thread here can go on without the others.
pub(crate) fn end_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("unnamed").to_owned();
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let payload = panic.payload();
        let reason = payload.downcast_ref::<&str>().copied();
        let reason = reason.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let reason = reason.unwrap_or("no reason given");
        let doing = crate::page::doing();
        tracing::error!(thread, place, doing, "panic: {reason}");
        os::leave(exit_code::FAULT);
    }));
}
