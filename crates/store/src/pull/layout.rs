//! Writing into the Hugging Face cache, so that other tools find what was fetched here and the
//! other way round.
//!
//! `models--ORG--NAME/blobs/<etag>` holds a file, `<etag>.incomplete` what has come of it,
//! `snapshots/<commit>/<file>` is a relative link to it, `refs/<revision>` names a commit, and
//! `.locks/models--ORG--NAME/<etag>.lock` is locked (flock) while a file is being fetched.

use super::watch::PullCancel;
use super::{PullError, disk};
use crate::hub::{PARTIAL, folder_name};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often a lock that another program holds is tried again.
const LOCK_INTERVAL: Duration = Duration::from_millis(200);

/// One repository's places in the cache.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    repository: PathBuf,
    locks: PathBuf,
}

impl Layout {
    pub(crate) fn new(cache: &Path, repository: &str) -> Self {
        let folder = folder_name(repository);
        Self { repository: cache.join(&folder), locks: cache.join(".locks").join(folder) }
    }

    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.repository.join("blobs").join(etag)
    }

    pub(crate) fn partial(&self, etag: &str) -> PathBuf {
        self.repository.join("blobs").join(format!("{etag}{PARTIAL}"))
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.repository.join("snapshots").join(commit)
    }

    /// Creates the folders that files are fetched into.
    pub(crate) fn create(&self) -> Result<(), PullError> {
        for folder in [self.repository.join("blobs"), self.locks.clone()] {
            std::fs::create_dir_all(&folder).map_err(disk(&folder))?;
        }
        Ok(())
    }

    /// Waits until no other program fetches this file. `None` where the file system has no locks.
    pub(crate) fn lock(&self, etag: &str, cancel: &PullCancel) -> Result<Option<File>, PullError> {
        let path = self.locks.join(format!("{etag}.lock"));
        let options = OpenOptions::new().create(true).write(true).truncate(false).open(&path);
        let file = options.map_err(disk(&path))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(file)),
                Err(TryLockError::WouldBlock) => cancel.wait(LOCK_INTERVAL)?,
                Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {
                    return Ok(None);
                }
                Err(TryLockError::Error(error)) => return Err(disk(&path)(error)),
            }
        }
    }

    /// Makes `file` of `commit` a link to its blob. Replaces another link, never a real file.
    pub(crate) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), PullError> {
        let path = self.snapshot(commit).join(file);
        let parent = path.parent().unwrap_or(&path);
        std::fs::create_dir_all(parent).map_err(disk(parent))?;
        let up = "../".repeat(2 + file.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{etag}"));
        if std::fs::read_link(&path).is_ok_and(|there| there == target) {
            return Ok(());
        }
        let fresh = path.with_file_name(format!(".{etag}.{}.link", std::process::id()));
        let _ = std::fs::remove_file(&fresh);
        symlink(&target, &fresh).map_err(disk(&fresh))?;
        std::fs::rename(&fresh, &path).map_err(disk(&path))
    }

    /// Lets `revision` name `commit`. A commit needs no reference to itself.
    pub(crate) fn refer(&self, revision: &str, commit: &str) -> Result<(), PullError> {
        if revision == commit {
            return Ok(());
        }
        let folder = self.repository.join("refs");
        std::fs::create_dir_all(&folder).map_err(disk(&folder))?;
        let fresh = folder.join(format!(".{revision}.{}", std::process::id()));
        std::fs::write(&fresh, commit).map_err(disk(&fresh))?;
        let path = folder.join(revision);
        std::fs::rename(&fresh, &path).map_err(disk(&path))
    }
}
