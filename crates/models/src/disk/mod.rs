//! Blocks of kept prefixes on the disk: what outlives the process.
//!
//! One folder per model, one file per block, named by the block's hash, which stands for the
//! model, its tokenizer, its quantisation, the build and every token up to the block's end. So
//! the folder is the index: a file of another key is never asked for, and one that is not what
//! its name says is thrown away and counts as not there.
//!
//! The engine's thread gives plain bytes away and never waits for a write: what the thread here
//! cannot take is not kept. Files appear whole, by a rename. They are not forced to the disk: a
//! file that a power cut left torn fails its checksum.

mod file;

pub use file::{Plain, Saved};

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use mlxd_engine::DiskFigures;
use mlxd_protocol::TokenId;

/// Bytes given away and not written yet at the most.
const QUEUED_BYTES_MAX: u64 = 64 << 20;
/// What the write budget is counted over.
const BUDGET_PERIOD: Duration = Duration::from_secs(3600);
/// A file that was left half-written so long ago has no writer any more.
const ABANDONED: Duration = Duration::from_secs(3600);
const EXTENSION: &str = ".safetensors";
const UNFINISHED: &str = ".tmp";

/// How much may lie on the disk, and be written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskLimits {
    /// Bytes of all files of one model.
    pub bytes_max: u64,
    /// Bytes written in an hour.
    pub write_bytes_per_hour_max: u64,
}

/// One model's folder.
#[derive(Debug)]
pub struct DiskTier {
    folder: PathBuf,
    limits: DiskLimits,
    shared: Arc<Mutex<Shared>>,
    /// `None` once it is being dropped.
    jobs: Option<Sender<Job>>,
    writer: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    files: HashMap<String, Entry>,
    clock: u64,
    queued_bytes: u64,
    figures: DiskFigures,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    bytes: u64,
    used_at: u64,
    /// Not before it is written whole.
    there: bool,
}

#[derive(Debug)]
enum Job {
    Write(Saved),
    /// Says when all before it is done.
    Flush(Sender<()>),
}

impl DiskTier {
    /// Opens `folder`, which is made if it is not there, and starts the thread that writes.
    ///
    /// # Errors
    /// The folder cannot be made or read, or no thread be started.
    pub fn open(folder: &Path, limits: DiskLimits) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let shared = Arc::new(Mutex::new(Shared::scan(folder)?));
        let (jobs, taken) = mpsc::channel();
        let writer = Writer {
            folder: folder.to_owned(),
            limits,
            shared: shared.clone(),
            period_began: Instant::now(),
            period_bytes: 0,
        };
        let thread = std::thread::Builder::new().name("prefix-disk".into());
        let writer = thread.spawn(move || writer.run(&taken))?;
        let folder = folder.to_owned();
        let tier = Self { folder, limits, shared, jobs: Some(jobs), writer: Some(writer) };
        tier.shared().make_room(&tier.folder, 0, limits.bytes_max);
        Ok(tier)
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        lock(&self.shared)
    }

    /// Whether a block of this name is there, or will be.
    pub fn has(&self, name: &str) -> bool {
        self.shared().files.contains_key(name)
    }

    /// Gives a block away to be written. It may be let go of instead; nobody waits for it.
    pub fn write(&self, saved: Saved) {
        let bytes = saved.data_bytes() as u64;
        let mut shared = self.shared();
        if shared.files.contains_key(&saved.name) {
            return;
        }
        if bytes > self.limits.bytes_max || shared.queued_bytes + bytes > QUEUED_BYTES_MAX {
            shared.figures.skipped += 1;
            return;
        }
        shared.queued_bytes += bytes;
        let used_at = shared.tick();
        shared.files.insert(saved.name.clone(), Entry { bytes: 0, used_at, there: false });
        drop(shared);
        if let Some(jobs) = &self.jobs {
            // Its thread ends after us.
            let _ = jobs.send(Job::Write(saved));
        }
    }

    /// The block of this name with these tokens, if it is there and whole.
    pub fn read(&self, name: &str, tokens: &[TokenId]) -> Option<Saved> {
        if !self.shared().files.get(name)?.there {
            return None;
        }
        let path = path_of(&self.folder, name);
        let read = fs::read(&path).map_err(|error| error.to_string()).and_then(file::decode);
        let read = read.and_then(|saved| match saved.name == name && saved.tokens == tokens {
            true => Ok(saved),
            false => Err("it is another block".to_owned()),
        });
        match read {
            Ok(saved) => {
                let mut shared = self.shared();
                let now = shared.tick();
                if let Some(entry) = shared.files.get_mut(name) {
                    entry.used_at = now;
                }
                shared.figures.reads += 1;
                drop(shared);
                // So that the next process knows too. No matter if it cannot be.
                let _ = File::options()
                    .append(true)
                    .open(&path)
                    .and_then(|file| file.set_modified(SystemTime::now()));
                Some(saved)
            }
            Err(reason) => {
                tracing::warn!(file = %path.display(), reason, "a kept prefix is unusable");
                self.throw_away(name);
                None
            }
        }
    }

    /// A block turned out not to be what it should.
    pub fn throw_away(&self, name: &str) {
        let mut shared = self.shared();
        shared.remove(&self.folder, name);
        shared.figures.damaged += 1;
    }

    /// Waits until all that was given away is written or let go of.
    pub fn flush(&self) {
        let (done, wait) = mpsc::channel();
        if let Some(jobs) = &self.jobs
            && jobs.send(Job::Flush(done)).is_ok()
        {
            let _ = wait.recv();
        }
    }

    /// Removes every file.
    pub fn clear(&self) {
        self.flush();
        let mut shared = self.shared();
        let names: Vec<String> = shared.files.keys().cloned().collect();
        for name in names {
            shared.remove(&self.folder, &name);
        }
    }

    /// What is there and was done.
    pub fn figures(&self) -> DiskFigures {
        DiskFigures { bytes_max: self.limits.bytes_max, ..self.shared().figures }
    }
}

impl Drop for DiskTier {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            // What was given away is written first.
            let _ = writer.join();
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn path_of(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}{EXTENSION}"))
}

impl Shared {
    /// What is in `folder`, by when it was last used.
    fn scan(folder: &Path) -> io::Result<Self> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let Ok(metadata) = entry.metadata() else { continue };
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let file = entry.file_name().to_string_lossy().into_owned();
            let old = used.elapsed().is_ok_and(|age| age > ABANDONED);
            if let Some(name) = file.strip_suffix(EXTENSION) {
                found.push((used, name.to_owned(), metadata.len()));
            } else if file.ends_with(UNFINISHED) && old {
                let _ = fs::remove_file(entry.path());
            }
        }
        found.sort();
        let mut shared = Self::default();
        for (_, name, bytes) in found {
            let used_at = shared.tick();
            shared.files.insert(name, Entry { bytes, used_at, there: true });
            shared.figures.bytes += bytes;
            shared.figures.blocks += 1;
        }
        Ok(shared)
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn remove(&mut self, folder: &Path, name: &str) {
        if let Some(entry) = self.files.remove(name)
            && entry.there
        {
            self.figures.bytes -= entry.bytes;
            self.figures.blocks -= 1;
            let _ = fs::remove_file(path_of(folder, name));
        }
    }

    /// Removes what was not used for longest until `bytes` fit.
    fn make_room(&mut self, folder: &Path, bytes: u64, bytes_max: u64) {
        while self.figures.bytes + bytes > bytes_max {
            let files = self.files.iter().filter(|(_, entry)| entry.there);
            let oldest = files.min_by_key(|(_, entry)| entry.used_at);
            let Some(name) = oldest.map(|(name, _)| name.clone()) else { return };
            self.remove(folder, &name);
        }
    }
}

/// The thread's part.
struct Writer {
    folder: PathBuf,
    limits: DiskLimits,
    shared: Arc<Mutex<Shared>>,
    period_began: Instant,
    period_bytes: u64,
}

impl Writer {
    fn run(mut self, jobs: &Receiver<Job>) {
        for job in jobs {
            match job {
                Job::Write(saved) => self.write(&saved),
                Job::Flush(done) => drop(done.send(())),
            }
        }
    }

    fn write(&mut self, saved: &Saved) {
        let written = self.afford(saved).and_then(|file| self.put(&saved.name, &file));
        let mut shared = lock(&self.shared);
        shared.queued_bytes -= saved.data_bytes() as u64;
        match written {
            Some(bytes) => {
                let used_at = shared.tick();
                let entry = Entry { bytes, used_at, there: true };
                shared.files.insert(saved.name.clone(), entry);
                shared.figures.bytes += bytes;
                shared.figures.blocks += 1;
                shared.figures.written_bytes += bytes;
            }
            None => {
                shared.files.remove(&saved.name);
                shared.figures.skipped += 1;
            }
        }
    }

    /// The file's bytes, if the budget has room for them.
    fn afford(&mut self, saved: &Saved) -> Option<Vec<u8>> {
        if self.period_began.elapsed() >= BUDGET_PERIOD {
            self.period_began = Instant::now();
            self.period_bytes = 0;
        }
        let bytes = self.period_bytes + saved.data_bytes() as u64;
        if bytes > self.limits.write_bytes_per_hour_max {
            return None;
        }
        let file = file::encode(saved)?;
        self.period_bytes += file.len() as u64;
        (file.len() as u64 <= self.limits.bytes_max).then_some(file)
    }

    fn put(&self, name: &str, file: &[u8]) -> Option<u64> {
        let bytes = file.len() as u64;
        lock(&self.shared).make_room(&self.folder, bytes, self.limits.bytes_max);
        let unfinished = self.folder.join(format!("{name}.{}{UNFINISHED}", std::process::id()));
        let write = || -> io::Result<()> {
            let mut options = OpenOptions::new();
            let mut target =
                options.write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
            target.write_all(file)?;
            drop(target);
            fs::rename(&unfinished, path_of(&self.folder, name))
        };
        match write() {
            Ok(()) => Some(bytes),
            Err(error) => {
                let folder = self.folder.display();
                tracing::warn!(%folder, %error, "a prefix could not be kept on the disk");
                let _ = fs::remove_file(&unfinished);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlx_rs::Dtype;

    const ROOMY: DiskLimits = DiskLimits { bytes_max: 1 << 20, write_bytes_per_hour_max: 1 << 20 };

    fn block(number: u8) -> Saved {
        let bytes = vec![number; 400];
        let parts = vec![Plain { dtype: Dtype::Float32, shape: vec![100], bytes }];
        Saved { name: format!("{number:02x}").repeat(32), tokens: vec![number.into()], parts }
    }

    fn write(tier: &DiskTier, numbers: std::ops::Range<u8>) {
        for number in numbers {
            tier.write(block(number));
        }
        tier.flush();
    }

    fn reads(tier: &DiskTier, number: u8) -> bool {
        let wanted = block(number);
        let read = tier.read(&wanted.name, &wanted.tokens);
        assert!(read.as_ref().is_none_or(|read| *read == wanted), "another block");
        read.is_some()
    }

    #[test]
    fn another_process_finds_what_one_wrote() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        let tier = DiskTier::open(&path, ROOMY).unwrap();
        for number in 0..5 {
            tier.write(block(number));
        }
        drop(tier);
        let tier = DiskTier::open(&path, ROOMY).unwrap();
        assert!((0..5).all(|number| reads(&tier, number)) && !reads(&tier, 5));
        assert_eq!((tier.figures().blocks, tier.figures().reads), (5, 5));
        tier.clear();
        assert_eq!((tier.figures().blocks, tier.figures().bytes), (0, 0));
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
    }

    #[test]
    fn damaged_and_foreign_files_are_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let tier = DiskTier::open(folder.path(), ROOMY).unwrap();
        write(&tier, 0..4);
        let path = |number: u8| path_of(folder.path(), &block(number).name);
        let mut bytes = fs::read(path(0)).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(path(0), bytes).unwrap();
        fs::write(path(1), b"").unwrap();
        fs::copy(path(3), path(2)).unwrap();
        assert_eq!([0, 1, 2, 3].map(|number| reads(&tier, number)), [false, false, false, true]);
        assert_eq!((tier.figures().damaged, tier.figures().blocks), (3, 1));
        assert!(!path(0).exists() && !path(2).exists());
        // Asked for with other tokens: not it.
        assert!(tier.read(&block(3).name, &[77]).is_none());
    }

    #[test]
    fn the_longest_unused_make_room() {
        let folder = tempfile::tempdir().unwrap();
        let one = file::encode(&block(0)).unwrap().len() as u64;
        let limits = DiskLimits { bytes_max: 3 * one, ..ROOMY };
        let tier = DiskTier::open(folder.path(), limits).unwrap();
        write(&tier, 0..3);
        assert!(reads(&tier, 0));
        write(&tier, 3..4);
        assert_eq!([0, 1, 2, 3].map(|number| reads(&tier, number)), [true, false, true, true]);
        assert_eq!(tier.figures().bytes, 3 * one);
        drop(tier);
        let limits = DiskLimits { bytes_max: one, ..ROOMY };
        let tier = DiskTier::open(folder.path(), limits).unwrap();
        assert_eq!(tier.figures().blocks, 1, "a smaller limit holds at once");
    }

    #[test]
    fn the_write_budget_holds() {
        let folder = tempfile::tempdir().unwrap();
        let one = file::encode(&block(0)).unwrap().len() as u64;
        let limits = DiskLimits { write_bytes_per_hour_max: 3 * one, ..ROOMY };
        let tier = DiskTier::open(folder.path(), limits).unwrap();
        write(&tier, 0..9);
        let figures = tier.figures();
        assert_eq!((figures.blocks, figures.skipped, figures.written_bytes), (3, 6, 3 * one));
        assert!(!tier.has(&block(8).name), "it may be given away again");
    }

    #[test]
    fn a_folder_that_goes_away_is_no_fault() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gone");
        let tier = DiskTier::open(&path, ROOMY).unwrap();
        write(&tier, 0..1);
        fs::remove_dir_all(&path).unwrap();
        write(&tier, 1..2);
        assert!(!reads(&tier, 0) && !reads(&tier, 1));
    }
}
