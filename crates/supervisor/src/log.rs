//! A worker's standard error: always drained, kept in a file of bounded size.
//!
//! A thread of its own reads the pipe, so that a chatty worker never blocks on it and a slow disk
//! never blocks the event loop.

use crate::crash::Tail;
use crate::logs::LogFolder;
use std::io::{self, PipeReader, Read, Write};
use std::path::PathBuf;

/// The largest piece read at once.
const READ_BYTES: usize = 16 << 10;

/// A worker's log file.
#[derive(Debug, Clone)]
pub struct WorkerLog {
    /// Where all logs are.
    pub folder: LogFolder,
    /// The file's name there.
    pub name: String,
    /// When the file begins anew.
    pub bytes_max: u64,
}

impl WorkerLog {
    /// Where the file is.
    pub fn path(&self) -> PathBuf {
        self.folder.path(&self.name)
    }
}

/// Keeps what comes out of `pipe` in the worker's file until the pipe's last writer is gone.
/// When the file cannot be written the pipe is drained all the same.
pub(crate) fn keep(mut pipe: PipeReader, log: &WorkerLog, tail: &Tail) {
    let path = log.path();
    let mut file = log
        .folder
        .open(&log.name, log.bytes_max)
        .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "no worker log"))
        .ok();
    let mut piece = vec![0; READ_BYTES];
    loop {
        match pipe.read(&mut piece) {
            Ok(0) => return,
            Ok(n) => {
                tail.push(&piece[..n]);
                let written = file.as_mut().map_or(Ok(()), |file| file.write_all(&piece[..n]));
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
    use std::fs;
    use std::path::Path;

    fn log(folder: &Path, name: &str) -> WorkerLog {
        let folder = LogFolder::new(folder, 10_000);
        WorkerLog { folder, name: name.into(), bytes_max: 100 }
    }

    #[test]
    fn a_full_log_starts_over_and_keeps_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("logs/model.log");
        let (reader, mut writer) = io::pipe().unwrap();
        let log = log(&folder.path().join("logs"), "model.log");
        let keeper = std::thread::spawn(move || keep(reader, &log, &Tail::default()));
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
        std::fs::create_dir(folder.path().join("model.log")).unwrap(); // A folder, not a file.
        let log = log(folder.path(), "model.log");
        let keeper = std::thread::spawn(move || keep(reader, &log, &Tail::default()));
        writer.write_all(&vec![b'x'; 1 << 20]).unwrap();
        drop(writer);
        keeper.join().unwrap();
    }
}
