//! A worker's standard error: always drained, kept in a file of bounded size.
//!
//! A thread of its own reads the pipe, so that a chatty worker never blocks on it and a slow disk
//! never blocks the event loop. A full file is renamed to `NAME.1` (replacing the one before) and
//! begun anew: at most twice `bytes_max` are kept per model.

use crate::crash::Tail;
use std::fs::{self, File, OpenOptions};
use std::io::{self, PipeReader, Read, Write};
use std::path::{Path, PathBuf};

/// The largest piece read at once.
const READ_BYTES: usize = 16 << 10;

/// A log file that starts over when it is full: then it becomes `NAME.1`.
#[derive(Debug)]
pub struct BoundedFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    bytes_max: u64,
}

impl BoundedFile {
    /// Opens `path` for appending, with its folder.
    ///
    /// # Errors
    /// As for any file that is opened.
    pub fn open(path: &Path, bytes_max: u64) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, bytes, bytes_max })
    }

    fn keep(&mut self, piece: &[u8]) -> io::Result<()> {
        if self.bytes > 0 && self.bytes + piece.len() as u64 > self.bytes_max {
            let mut old = self.path.clone().into_os_string();
            old.push(".1");
            fs::rename(&self.path, old)?;
            *self = Self::open(&self.path, self.bytes_max)?;
        }
        self.file.write_all(piece)?;
        self.bytes += piece.len() as u64;
        Ok(())
    }
}

impl Write for BoundedFile {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.keep(piece)?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Keeps what comes out of `pipe` in the file at `path` until the pipe's last writer is gone.
/// When the file cannot be written the pipe is drained all the same.
pub(crate) fn keep(mut pipe: PipeReader, path: PathBuf, bytes_max: u64, tail: &Tail) {
    let mut file = BoundedFile::open(&path, bytes_max)
        .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "no worker log"))
        .ok();
    let mut piece = vec![0; READ_BYTES];
    loop {
        match pipe.read(&mut piece) {
            Ok(0) => return,
            Ok(n) => {
                tail.push(&piece[..n]);
                let written = file.as_mut().map_or(Ok(()), |file| file.keep(&piece[..n]));
                if let Err(error) = written {
                    tracing::warn!(path = %path.display(), %error, "worker log ends");
                    file = None;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_starts_over_and_keeps_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("logs/model.log");
        let (reader, mut writer) = io::pipe().unwrap();
        let keeper = {
            let path = path.clone();
            std::thread::spawn(move || keep(reader, path, 100, &Tail::default()))
        };
        for line in 0..50 {
            writeln!(writer, "line {line:03}").unwrap();
        }
        drop(writer);
        keeper.join().unwrap();
        let new = fs::read_to_string(&path).unwrap();
        let old = fs::read_to_string(folder.path().join("logs/model.log.1")).unwrap_or_default();
        assert!(new.ends_with("line 049\n"));
        // Pieces are as long as the reader found them: only a piece longer than the limit may pass it.
        assert!(new.len() + old.len() <= 500);
    }

    #[test]
    fn a_log_that_cannot_be_written_does_not_block_the_worker() {
        let folder = tempfile::tempdir().unwrap();
        let (reader, mut writer) = io::pipe().unwrap();
        let path = folder.path().to_owned(); // A folder, not a file.
        let keeper = std::thread::spawn(move || keep(reader, path, 100, &Tail::default()));
        writer.write_all(&vec![b'x'; 1 << 20]).unwrap();
        drop(writer);
        keeper.join().unwrap();
    }
}
