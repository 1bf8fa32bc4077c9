//! The folder of all log files, and how large they may be together.
//!
//! A full file is renamed to `NAME.1`, replacing the one before, and begun anew. When all files
//! together are too long, the oldest renamed ones go first, then files that nothing writes any
//! more; when only open ones are left, the one that is written to begins anew. Nothing is removed
//! but what was written here, by recorded name: the folder may hold other programs' files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

/// Holds the names of the files written here, one a line.
const INDEX: &str = ".mlxd-logs";

/// What a full file's name becomes longer by.
const OLD: &str = ".1";

/// A folder of log files. Clones share it.
#[derive(Debug, Clone)]
pub struct LogFolder(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    bytes_max: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Every file written here, now or earlier.
    names: BTreeSet<String>,
    /// How often each is open.
    open: BTreeMap<String, usize>,
    /// Of all of them, as far as known: more is found out by looking.
    bytes: u64,
}

/// A file of the past: when it was last written, where it is, how long it is.
type Closed = (SystemTime, PathBuf, u64);

impl LogFolder {
    /// The log files in `folder`, `bytes_max` together. Nothing is touched yet.
    pub fn new(folder: &Path, bytes_max: u64) -> Self {
        let state = Mutex::default();
        Self(Arc::new(Inner { folder: folder.to_owned(), bytes_max, state }))
    }

    /// Where a file is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.folder.join(name)
    }

    /// Opens a file for appending, with the folder, which is private if it is new. It begins anew at
    /// `bytes_max`.
    ///
    /// # Errors
    /// As for any file that is opened.
    pub fn open(&self, name: &str, bytes_max: u64) -> io::Result<BoundedFile> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0.folder)?;
        let file = OpenOptions::new().create(true).append(true).open(self.path(name))?;
        let bytes = file.metadata()?.len();
        let mut state = self.state();
        self.learn(&mut state, name)?;
        *state.open.entry(name.to_owned()).or_default() += 1;
        self.trim(&mut state, 0);
        drop(state);
        Ok(BoundedFile { folder: self.clone(), name: name.to_owned(), file, bytes, bytes_max })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Puts `name` on record, with what earlier instances put there.
    fn learn(&self, state: &mut State, name: &str) -> io::Result<()> {
        if state.names.contains(name) {
            return Ok(());
        }
        let index = self.0.folder.join(INDEX);
        let is_plain = |line: &&str| !line.is_empty() && !line.contains('/');
        let recorded = fs::read_to_string(&index).unwrap_or_default();
        state.names.extend(recorded.lines().filter(is_plain).map(str::to_owned));
        if state.names.insert(name.to_owned()) {
            let mut index = OpenOptions::new().create(true).append(true).open(index)?;
            index.write_all(format!("{name}\n").as_bytes())?;
        }
        Ok(())
    }

    /// Makes room for `bytes` that are written next. False when there is none: the writer's file
    /// is to begin anew.
    fn make_room(&self, bytes: u64) -> bool {
        let mut state = self.state();
        let fits = state.bytes + bytes <= self.0.bytes_max || self.trim(&mut state, bytes);
        state.bytes += bytes;
        fits
    }

    /// Looks how long all files are, and removes what nobody writes until there is room for
    /// `bytes` more. Whether there is.
    fn trim(&self, state: &mut State, bytes: u64) -> bool {
        let kept_max = self.0.bytes_max.saturating_sub(bytes);
        let (mut renamed, mut unused): (Vec<Closed>, Vec<Closed>) = (Vec::new(), Vec::new());
        state.bytes = 0;
        for name in &state.names {
            if let Some(old) = closed(self.path(&format!("{name}{OLD}"))) {
                state.bytes += old.2;
                renamed.push(old);
            }
            if let Some(now) = closed(self.path(name)) {
                state.bytes += now.2;
                if !state.open.contains_key(name) {
                    unused.push(now);
                }
            }
        }
        renamed.sort();
        unused.sort();
        for (_, path, length) in renamed.into_iter().chain(unused) {
            if state.bytes <= kept_max {
                break;
            }
            if fs::remove_file(path).is_ok() {
                state.bytes -= length;
            }
        }
        state.bytes <= kept_max
    }

    fn close(&self, name: &str) {
        let mut state = self.state();
        if let Some(count) = state.open.get_mut(name) {
            *count -= 1;
            if *count == 0 {
                state.open.remove(name);
            }
        }
    }
}

fn closed(path: PathBuf) -> Option<Closed> {
    let metadata = fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
    Some((metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), path, metadata.len()))
}

/// A log file that begins anew when it, or the whole folder, is full.
#[derive(Debug)]
pub struct BoundedFile {
    folder: LogFolder,
    name: String,
    file: File,
    bytes: u64,
    bytes_max: u64,
}

impl BoundedFile {
    fn keep(&mut self, piece: &[u8]) -> io::Result<()> {
        let length = piece.len() as u64;
        if self.bytes > 0 && self.bytes + length > self.bytes_max {
            let path = self.folder.path(&self.name);
            fs::rename(&path, self.folder.path(&format!("{}{OLD}", self.name)))?;
            self.file = OpenOptions::new().create(true).append(true).open(path)?;
            self.bytes = 0;
        }
        if !self.folder.make_room(length) {
            self.file.set_len(0)?;
            self.bytes = 0;
        }
        self.file.write_all(piece)?;
        self.bytes += length;
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

impl Drop for BoundedFile {
    fn drop(&mut self) {
        self.folder.close(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const LINE: &[u8] = &[b'x'; 100];

    fn bytes(folder: &Path) -> u64 {
        let files = fs::read_dir(folder).unwrap().flatten();
        let logs = files.filter(|file| file.file_name() != INDEX);
        logs.map(|file| file.metadata().unwrap().len()).sum()
    }

    fn write(file: &mut BoundedFile, lines: usize) {
        (0..lines).for_each(|_| file.write_all(LINE).unwrap());
    }

    fn age(path: &Path, seconds: u64) {
        let file = File::options().append(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
    }

    #[test]
    fn all_files_together_stay_within_the_limit_and_the_oldest_renamed_go_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let logs = LogFolder::new(folder.path(), 4000);
        let [mut a, mut b] = ["a.log", "b.log"].map(|name| logs.open(name, 1000).unwrap());
        write(&mut a, 15);
        write(&mut b, 15);
        assert!(path("a.log.1").exists() && path("b.log.1").exists());
        age(&path("b.log.1"), 100);
        let mut c = logs.open("c.log", 1000).unwrap();
        write(&mut c, 10);
        assert!(bytes(folder.path()) <= 4000);
        write(&mut c, 1);
        assert!(!path("b.log.1").exists(), "the oldest is gone");
        assert!(path("a.log.1").exists() && path("a.log").exists() && path("b.log").exists());
        for _ in 0..50 {
            write(&mut a, 3);
            write(&mut c, 2);
            assert!(bytes(folder.path()) <= 4000);
        }
    }

    #[test]
    fn open_files_begin_anew_where_nothing_else_is_left_to_go() {
        let folder = tempfile::tempdir().unwrap();
        let logs = LogFolder::new(folder.path(), 1000);
        let mut files = ["a.log", "b.log", "c.log"].map(|name| logs.open(name, 10_000).unwrap());
        for round in 0..20 {
            write(&mut files[round % 3], 3);
            assert!(bytes(folder.path()) <= 1000, "round {round}");
        }
        assert!(bytes(folder.path()) > 0);
    }

    #[test]
    fn an_earlier_instances_files_count_and_other_programs_files_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        write(&mut LogFolder::new(folder.path(), 4000).open("gone.log", 10_000).unwrap(), 30);
        fs::write(path("foreign.log"), [b'f'; 5000]).unwrap();
        fs::write(path("foreign.log.1"), [b'f'; 5000]).unwrap();
        let logs = LogFolder::new(folder.path(), 2000);
        let mut file = logs.open("new.log", 10_000).unwrap();
        assert!(!path("gone.log").exists(), "3000 bytes of a model that is not there any more");
        write(&mut file, 60);
        assert!(fs::metadata(path("new.log")).unwrap().len() <= 2000);
        assert_eq!(fs::read(path("foreign.log")).unwrap().len(), 5000);
        assert_eq!(fs::read(path("foreign.log.1")).unwrap().len(), 5000);
    }
}
