//! Exit codes: supervisorctl's, which are those of LSB init scripts.
//!
//! The table is [`EXIT_CODES_HELP`]. As there, `status` has codes of its own: 3 and 4 mean
//! something else than for the other commands.

use std::process::ExitCode;

/// Shown by `mlxctl --help`.
pub(crate) const EXIT_CODES_HELP: &str = "\
Exit codes, as supervisorctl's:
  0  it is done; also when the model was already started, or was not running to be stopped
  1  it was refused, or went wrong on the way
  2  wrong arguments
  3  status: a model shown is STOPPED, EXITED or FATAL
  4  status: a model named is unknown, or mlxd does not answer
     others: the socket is there, but nobody answers on it, or it may not be opened
  5  mlxctl and mlxd are of versions that do not understand each other
  7  mlxd is not running, the model's worker could not be started, or it has no process
Without a command: the last failure's code, or 0 after a prompt at a terminal.";

/// How mlxctl ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Success,
    Generic,
    /// The arguments are wrong.
    Usage,
    /// `status`: something shown is not running.
    StatusNotRunning,
    /// `status`: nothing can be said.
    StatusUnknown,
    /// The socket cannot be used.
    InsufficientPrivileges,
    /// Versions that do not fit.
    NotInstalled,
    NotRunning,
}

impl Exit {
    fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Generic => 1,
            Self::Usage => 2,
            Self::StatusNotRunning => 3,
            Self::StatusUnknown | Self::InsufficientPrivileges => 4,
            Self::NotInstalled => 5,
            Self::NotRunning => 7,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
