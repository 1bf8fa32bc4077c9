//! Where things go on macOS when neither the file nor an XDG variable says so.

use std::path::{Path, PathBuf};

/// Bytes a socket's path may have: `sun_path` has 104, one of them the closing zero.
pub(crate) const SOCKET_PATH_BYTES_MAX: usize = 103;

/// The folder of `mlxd.toml`.
pub(crate) fn config_folder(home: &Path) -> PathBuf {
    home.join("Library/Application Support/mlxd")
}

/// What outlives a restart.
pub(crate) fn state_folder(home: &Path) -> PathBuf {
    home.join("Library/Application Support/mlxd")
}

/// Workers' logs.
pub(crate) fn log_folder(home: &Path, _state: &Path) -> PathBuf {
    home.join("Library/Logs/mlxd")
}

/// What can be made again.
pub(crate) fn cache_folder(home: &Path) -> PathBuf {
    home.join("Library/Caches/mlxd")
}
