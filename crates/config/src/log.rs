//! `[log]`: what the front writes to standard error, and how much is kept of logs and events.

use crate::section::section;
use crate::value::{Allowed, OneOf, words};

words! {
    /// How a log line looks.
    pub enum LogFormat {
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

section! {
    /// What the front and the workers log.
    pub struct LogConfig in "log" {
        /// off, error, warn, info, debug or trace; or by module, as `info,mlxd_http=debug`.
        /// The variable `MLXD_LOG` sets it too.
        level: String = "info".to_owned(), LogFilter;
        /// `text` or `json`.
        format: LogFormat = LogFormat::Text, OneOf;
        /// All log files together, the front's and the workers': the oldest turned over go first.
        total_bytes_max: u64 = 64 * 1024 * 1024, 65_536..=1024 * 1024 * 1024 * 1024;
        /// Bytes of a log file that one call of `mlxctl tail` gets at the most.
        tail_bytes_max: u64 = 16 * 1024 * 1024, 1024..=1024 * 1024 * 1024;
        /// Events kept for `mlxctl events`.
        events_kept_max: usize = 1000, 1..=1_000_000;
    }
}

/// A level, or a list of `module=level`.
struct LogFilter;

impl Allowed<String> for LogFilter {
    fn must_be(&self) -> String {
        "off, error, warn, info, debug or trace, or a list as info,mlxd_http=debug".to_owned()
    }

    fn admits(&self, value: &String) -> bool {
        value.split(',').all(|directive| {
            let level = match directive.trim().split_once('=') {
                Some((module, level)) if is_module(module) => level,
                Some(_) => return false,
                None => directive.trim(),
            };
            ["off", "error", "warn", "info", "debug", "trace"]
                .iter()
                .any(|known| known.eq_ignore_ascii_case(level))
        })
    }
}

fn is_module(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "_:-".contains(c))
}
