//! What a killed front leaves behind, and how the next one finds it.
//!
//! For every segment that still has a name, the front keeps a small file in a folder of its own:
//! the segment's exact name, and the front's process id for whoever looks. The front holds a lock
//! on the file as long as it lives; the system drops the lock with the process, however that
//! ends. The next front takes each file whose lock it can get, and removes exactly the name
//! written there: no scan of the system's shared memory, no pattern, no guess from process ids
//! that the system may have given to someone else.
//!
//! [`Segment::create_recorded`](crate::Segment::create_recorded) does the recording at the right
//! moment, before the segment exists, and the clearing when it is unlinked.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::segment::{is_segment_name, unlink};

/// How every record's file name ends.
const SUFFIX: &str = ".segment";
/// Longest record that is read.
const RECORD_FILE_BYTES_MAX: u64 = 256;
/// How often a record is written anew because a sweep took it away unfinished.
const ATTEMPTS_MAX: u32 = 8;

/// A record of one segment. Holds the file's lock; [`clear`] it once the segment is unlinked. A
/// record that is merely dropped stays on the disk, for the next [`sweep`].
#[derive(Debug)]
pub struct Record {
    path: PathBuf,
    _locked: File,
}

/// Records a segment's name in `dir`, which must exist.
///
/// # Errors
/// As for any file that is written; [`io::ErrorKind::InvalidInput`] for a name that no segment
/// has.
pub fn record(dir: &Path, name: &str) -> io::Result<Record> {
    if !is_segment_name(name) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the name of a segment"));
    }
    let path = dir.join(format!("{}{SUFFIX}", &name[1..]));
    for _ in 0..ATTEMPTS_MAX {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        // Between the two calls another front's sweep may find a file that nobody has locked,
        // and take it away.
        file.lock()?;
        if is_still_at(&file, &path) {
            return write_record(file, path, name);
        }
    }
    Err(io::Error::other("another front keeps sweeping the record away"))
}

fn is_still_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

fn write_record(mut file: File, path: PathBuf, name: &str) -> io::Result<Record> {
    let text = format!("{name}\nfront {}\n", std::process::id());
    if let Err(error) = file.write_all(text.as_bytes()) {
        fs::remove_file(&path)?;
        return Err(error);
    }
    Ok(Record { path, _locked: file })
}

/// Takes a record away; to be called when its segment has been unlinked.
///
/// # Errors
/// As for any file that is removed.
pub fn clear(record: Record) -> io::Result<()> {
    fs::remove_file(&record.path)
}

/// Removes the segments that fronts no longer alive recorded in `dir`, and their records. Gives
/// the names that were still there. Records of living fronts, this one included, stay.
///
/// # Errors
/// When `dir` cannot be read. A record that cannot be read or removed is left for the next time.
pub fn sweep(dir: &Path) -> io::Result<Vec<String>> {
    let mut removed = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let file_name = path.file_name().and_then(|name| name.to_str());
        if file_name.is_some_and(|name| name.ends_with(SUFFIX)) {
            removed.extend(sweep_record(&path).unwrap_or_default());
        }
    }
    Ok(removed)
}

fn sweep_record(path: &Path) -> io::Result<Option<String>> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    let mut bytes = Vec::new();
    (&file).take(RECORD_FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    // A record cut short names nothing: its front died before it made the segment.
    let text = String::from_utf8_lossy(&bytes);
    let name = text.lines().next().filter(|name| is_segment_name(name));
    let removed = name.filter(|name| unlink(name)).map(str::to_owned);
    fs::remove_file(path)?;
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Segment, SegmentSpec, WorkerLink};

    fn files(dir: &Path) -> usize {
        fs::read_dir(dir).map_or(0, Iterator::count)
    }

    fn can_attach(name: &str) -> bool {
        let (_, commands) = crate::doorbell::Doorbell::pair().expect("a doorbell");
        let (_, tokens) = crate::doorbell::Doorbell::pair().expect("a doorbell");
        WorkerLink::attach(name, commands, tokens).is_ok()
    }

    #[test]
    fn a_living_fronts_segment_is_left_alone() {
        let dir = tempfile::tempdir().expect("a folder");
        let segment = Segment::create_recorded(&SegmentSpec::default(), dir.path()).expect("made");
        assert_eq!(sweep(dir.path()).expect("swept"), Vec::<String>::new());
        assert_eq!(files(dir.path()), 1);
        assert!(can_attach(segment.name()));
    }

    #[test]
    fn unlinking_clears_the_record() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut segment =
            Segment::create_recorded(&SegmentSpec::default(), dir.path()).expect("made");
        assert_eq!(files(dir.path()), 1);
        segment.unlink();
        assert_eq!(files(dir.path()), 0);
        assert!(!can_attach(segment.name()));
    }

    #[test]
    fn a_dead_fronts_segment_is_removed_by_its_name_and_no_other() {
        let dir = tempfile::tempdir().expect("a folder");
        let bystander = Segment::create(&SegmentSpec::default()).expect("made");
        let segment = Segment::create(&SegmentSpec::default()).expect("made");
        // The lock goes with the record's file, as it goes with the process.
        drop(record(dir.path(), segment.name()).expect("recorded"));
        assert_eq!(sweep(dir.path()).expect("swept"), vec![segment.name().to_owned()]);
        assert_eq!(files(dir.path()), 0);
        assert!(!can_attach(segment.name()));
        assert!(can_attach(bystander.name()));
    }

    #[test]
    fn a_record_that_names_no_segment_removes_nothing() {
        let dir = tempfile::tempdir().expect("a folder");
        for (file, text) in [
            ("a.segment", ""),
            ("b.segment", "/some-other-programs-memory\n"),
            ("c.segment", "/mlxd-../../etc\n"),
            ("d.segment", "/mlxd-"),
        ] {
            fs::write(dir.path().join(file), text).expect("written");
        }
        fs::write(dir.path().join("e.segment"), [0xff; 1000]).expect("written");
        fs::write(dir.path().join("notes.txt"), "/mlxd-00").expect("written");
        assert_eq!(sweep(dir.path()).expect("swept"), Vec::<String>::new());
        assert_eq!(files(dir.path()), 1, "only what is no record stays");
    }

    #[test]
    fn a_foreign_name_is_not_recorded() {
        let dir = tempfile::tempdir().expect("a folder");
        assert!(record(dir.path(), "/other").is_err());
        assert!(record(dir.path(), "/mlxd-../x").is_err());
        assert_eq!(files(dir.path()), 0);
    }
}
