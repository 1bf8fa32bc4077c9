//! Programs of the system, behind a trait so that tests see every call.

use std::io;
use std::process::{Command, Stdio};

/// How a program ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ran {
    /// Its exit code; -1 after a signal.
    pub code: i32,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Ran {
    /// Whether it ended with 0.
    pub fn is_success(&self) -> bool {
        self.code == 0
    }
}

/// Runs programs.
pub trait Commands {
    /// Runs `program` with `arguments` to its end.
    ///
    /// # Errors
    /// When it cannot be started.
    fn run(&mut self, program: &str, arguments: &[&str]) -> io::Result<Ran>;
}

/// The programs of this system.
#[derive(Debug, Default)]
pub struct System;

impl Commands for System {
    fn run(&mut self, program: &str, arguments: &[&str]) -> io::Result<Ran> {
        let output = Command::new(program).args(arguments).stdin(Stdio::null()).output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Ran {
            code: output.status.code().unwrap_or(-1),
            out: text(&output.stdout),
            err: text(&output.stderr),
        })
    }
}
