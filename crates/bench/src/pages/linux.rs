//! Linux drops clean pages of a file that somebody says will not be needed.

use super::files;
use anyhow::Context;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::fs::File;
use std::path::Path;

/// Drops the files from the page cache. Says whether the system can.
pub fn forget(folder: &Path) -> anyhow::Result<bool> {
    for path in files(folder)? {
        let file = File::open(&path).with_context(|| path.display().to_string())?;
        // Only what is on the disk can be dropped.
        file.sync_all()?;
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    }
    Ok(true)
}
