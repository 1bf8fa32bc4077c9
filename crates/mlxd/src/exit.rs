//! Exit codes, in one place.

use std::fmt;
use std::process::ExitCode;

/// Why the program ends with something else than 0.
#[derive(Debug)]
pub enum Failed {
    /// 1: something went wrong while running.
    Run(anyhow::Error),
    /// 2: the configuration or the command line is wrong.
    Config(anyhow::Error),
    /// 3: the address, the socket or the folders cannot be had; another mlxd has them, say.
    Address(anyhow::Error),
}

/// What `--help` says of exit codes.
pub const HELP: &str = "Exit codes: 0 after a drain or a finished command, 1 something went wrong while running, \
2 the command line or the configuration is wrong, 3 the address, socket or folders cannot be had, \
130 ended by a second Ctrl-C or SIGTERM.";

impl Failed {
    pub fn run(error: impl Into<anyhow::Error>) -> Self {
        Self::Run(error.into())
    }

    pub fn config(error: impl Into<anyhow::Error>) -> Self {
        Self::Config(error.into())
    }

    pub fn address(error: impl Into<anyhow::Error>) -> Self {
        Self::Address(error.into())
    }

    /// Whether a new start would end the same way. launchd, which starts again after every code
    /// but 0, must not be told of it by one.
    pub fn would_come_again(&self) -> bool {
        matches!(self, Self::Config(_) | Self::Address(_))
    }

    pub fn code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Run(_) => 1,
            Self::Config(_) => 2,
            Self::Address(_) => 3,
        })
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Run(error) | Self::Config(error) | Self::Address(error)) = self;
        write!(f, "{error:#}")
    }
}
