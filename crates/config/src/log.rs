//! `[log]`: what the front writes to standard error.

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
