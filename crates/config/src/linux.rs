//! Where things go on Linux when neither the file nor an XDG variable says so.

use std::path::{Path, PathBuf};

/// Bytes a socket's path may have: `sun_path` has 108, one of them the closing zero.
pub(crate) const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The folder of `mlxd.toml`.
pub(crate) fn config_folder(home: &Path) -> PathBuf {
    home.join(".config/mlxd")
}

/// What outlives a restart.
pub(crate) fn state_folder(home: &Path) -> PathBuf {
    home.join(".local/state/mlxd")
}

/// Workers' logs.
pub(crate) fn log_folder(_home: &Path, state: &Path) -> PathBuf {
    state.join("logs")
}

/// What can be made again.
pub(crate) fn cache_folder(home: &Path) -> PathBuf {
    home.join(".cache/mlxd")
}
