//! One file: begun or gone on with, tried again, checked, put in its place.

use super::client::{Hub, Opened, Remote, Trouble, passing};
use super::digest::Checksum;
use super::layout::Layout;
use super::{PullCancel, PullError, PullProgress, disk};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

/// The hub has another idea of the file's length.
const RANGE_NOT_SATISFIABLE: u16 = 416;
const PIECE_BYTES: usize = 256 * 1024;

/// What is shared by all files of a pull.
pub(crate) struct Transfers<'a> {
    pub(crate) hub: &'a Hub,
    pub(crate) layout: &'a Layout,
    pub(crate) repository: &'a str,
    pub(crate) commit: &'a str,
    pub(crate) progress: &'a PullProgress,
    pub(crate) cancel: &'a PullCancel,
}

/// What has come of a file.
struct Partial {
    file: File,
    bytes: u64,
    checksum: Checksum,
}

impl Transfers<'_> {
    /// Sees to it that the blob of `name` is there and whole. `index` is its place in the progress.
    pub(crate) fn fetch(&self, index: usize, name: &str, remote: &Remote) -> Result<(), PullError> {
        let blob = self.layout.blob(&remote.etag);
        let is_there = || std::fs::metadata(&blob).is_ok_and(|file| file.len() == remote.bytes);
        if is_there() {
            self.progress.done(index, remote.bytes);
            return Ok(());
        }
        let _lock = self.layout.lock(&remote.etag, self.cancel)?;
        // Another program may have fetched it while this one waited.
        if is_there() {
            self.progress.done(index, remote.bytes);
            return Ok(());
        }
        let path = self.layout.partial(&remote.etag);
        if self.receive(index, name, remote, &path)?.is_err() {
            // Whoever wrote the first part, or the hub between two requests, was wrong.
            self.progress.trouble(index, "it came damaged and is fetched once more".into());
            if let Err(fault) = self.receive(index, name, remote, &path)? {
                return Err(PullError::Damaged { file: name.to_owned(), fault });
            }
        }
        std::fs::rename(&path, &blob).map_err(disk(&blob))
    }

    /// Fetches what is missing of `path`. The inner error says how the whole differs from what
    /// was announced; it is deleted then.
    fn receive(
        &self,
        index: usize,
        name: &str,
        remote: &Remote,
        path: &Path,
    ) -> Result<Result<(), String>, PullError> {
        let mut partial = Partial::open(path, remote, self.cancel)?;
        self.progress.done(index, partial.bytes);
        let mut failures = 0;
        let mut sender_etag = None;
        let what = format!("{name} of {}", self.repository);
        while partial.bytes < remote.bytes {
            let before = partial.bytes;
            let outcome = self.attempt(index, name, remote, path, &mut partial, &mut sender_etag);
            if let Err(trouble) = outcome {
                if let Trouble::Passing { status: Some(RANGE_NOT_SATISFIABLE), .. } = &trouble {
                    partial.restart(path, remote)?;
                }
                failures = if partial.bytes > before { 1 } else { failures + 1 };
                self.hub.pause(&what, Some(index), trouble, failures)?;
            }
        }
        self.progress.answered(&what);
        partial.file.sync_all().map_err(disk(path))?;
        match partial.checksum.agrees(&remote.etag) {
            Ok(()) => Ok(Ok(())),
            Err(fault) => {
                std::fs::remove_file(path).map_err(disk(path))?;
                self.progress.done(index, 0);
                Ok(Err(fault))
            }
        }
    }

    /// One request, read as far as it goes.
    fn attempt(
        &self,
        index: usize,
        name: &str,
        remote: &Remote,
        path: &Path,
        partial: &mut Partial,
        sender_etag: &mut Option<String>,
    ) -> Result<(), Trouble> {
        let (repository, commit) = (self.repository, self.commit);
        let asked = sender_etag.as_deref();
        let opened = self.hub.open(repository, commit, name, remote, partial.bytes, asked)?;
        if opened.from != partial.bytes {
            // The hub does not go on, or its storage has another content now: from the beginning.
            partial.restart(path, remote)?;
            self.progress.done(index, 0);
            if opened.from != 0 {
                return Err(passing("the hub sent another part than was asked for".into()));
            }
        }
        let Opened { sender_etag: etag, body, .. } = opened;
        *sender_etag = etag;
        let mut reader = body.into_reader();
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let read = match reader.read(&mut piece) {
                Ok(read) => read,
                Err(error) => return Err(self.hub.passing(&ureq::Error::from(error))),
            };
            self.cancel.check()?;
            if read == 0 {
                break;
            }
            if partial.bytes + read as u64 > remote.bytes {
                partial.restart(path, remote)?;
                self.progress.done(index, 0);
                return Err(passing("more came than the file has".into()));
            }
            partial.append(&piece[..read]).map_err(disk(path))?;
            self.progress.fetched(index, read as u64);
        }
        if partial.bytes < remote.bytes {
            return Err(passing("the hub stopped in the middle".into()));
        }
        Ok(())
    }
}

impl Partial {
    /// What an earlier pull, or another tool, left of the file.
    fn open(path: &Path, remote: &Remote, cancel: &PullCancel) -> Result<Self, PullError> {
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(path)
            .map_err(disk(path))?;
        if file.metadata().map_err(disk(path))?.len() > remote.bytes {
            file.set_len(0).map_err(disk(path))?;
        }
        let mut checksum = Checksum::for_etag(&remote.etag, remote.bytes);
        let mut bytes = 0;
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            cancel.check()?;
            let read = file.read(&mut piece).map_err(disk(path))?;
            if read == 0 {
                break;
            }
            checksum.update(&piece[..read]);
            bytes += read as u64;
        }
        Ok(Self { file, bytes, checksum })
    }

    fn append(&mut self, piece: &[u8]) -> std::io::Result<()> {
        self.file.write_all(piece)?;
        self.checksum.update(piece);
        self.bytes += piece.len() as u64;
        Ok(())
    }

    fn restart(&mut self, path: &Path, remote: &Remote) -> Result<(), PullError> {
        self.file.set_len(0).map_err(disk(path))?;
        self.file.seek(SeekFrom::Start(0)).map_err(disk(path))?;
        self.bytes = 0;
        self.checksum = Checksum::for_etag(&remote.etag, remote.bytes);
        Ok(())
    }
}
