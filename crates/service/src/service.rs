//! What is to run, in plain values.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Whose service it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// One user's: it runs while the user is logged in.
    User,
    /// The machine's: it runs from the machine's start on, as one user.
    System,
}

/// Who keeps it running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    /// macOS.
    Launchd,
    /// Linux.
    Systemd,
}

impl Manager {
    /// The one of this system.
    pub fn native() -> Self {
        if cfg!(target_os = "macos") { Self::Launchd } else { Self::Systemd }
    }
}

/// mlxd as a service on one machine. Paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Whose it is.
    pub scope: Scope,
    /// The program `mlxd`.
    pub program: PathBuf,
    /// The configuration file, where it is not the standard one.
    pub config: Option<PathBuf>,
    /// The address to be listened on by launchd or systemd, who hand it over; `None` leaves
    /// listening to mlxd.
    pub address: Option<SocketAddr>,
    /// Name of the user that a [`Scope::System`] service runs as.
    pub user: String,
    /// The folder it works in.
    pub state: PathBuf,
    /// Where the manager writes what mlxd says before it has a log of its own.
    pub logs: PathBuf,
    /// Variables, in this order.
    pub environment: Vec<(String, String)>,
    /// Files and connections open at once.
    pub open_files_max: u64,
    /// How long mlxd may take to end, in seconds; then it is killed.
    pub stop_timeout_s: u64,
    /// The shortest time between two starts, in seconds.
    pub restart_s: u64,
}
