//! What a killed front leaves behind, and how the next one finds it.
//!
//! For every segment that still has a name, the front keeps a small file in a folder of its own:
//! the segment's exact name, and the front's process id for whoever looks. The front holds a lock
//! on the file as long as it lives. The next front takes each file whose lock it can get, and
//! removes exactly the name written there: no scan of the system's shared memory, no pattern, no
//! guess from process ids that the system may have given to someone else.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::segment::{is_segment_name, unlink};

/// How every record's file name ends.
const SUFFIX: &str = ".segment";
/// Longest record that is read.
const RECORD_BYTES_MAX: u64 = 256;

/// A record of one segment. Holds the file's lock; [`clear`] it once the segment is unlinked. A
/// record that is merely dropped stays on the disk, for the next [`sweep`].
#[derive(Debug)]
pub struct Record {
    path: PathBuf,
    _locked: File,
}

/// Records a segment's name in `dir`, which must exist, before the worker is started.
///
/// # Errors
/// As for any file that is written; [`io::ErrorKind::InvalidInput`] for a name that
/// [`Segment::create`](crate::Segment::create) did not give.
pub fn record(dir: &Path, name: &str) -> io::Result<Record> {
    if !is_segment_name(name) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not the name of a segment",
        ));
    }
    let path = dir.join(format!("{}{SUFFIX}", &name[1..]));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    let written = file.lock().and_then(|()| {
        file.write_all(format!("{name}\nfront {}\n", std::process::id()).as_bytes())
    });
    if let Err(error) = written {
        fs::remove_file(&path)?;
        return Err(error);
    }
    Ok(Record {
        path,
        _locked: file,
    })
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
        let ours = path.file_name().and_then(|name| name.to_str());
        if ours.is_some_and(|name| name.ends_with(SUFFIX)) {
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
    let mut text = String::new();
    file.take(RECORD_BYTES_MAX).read_to_string(&mut text)?;
    // A record cut short names nothing: its front died before it started a worker, and dropped
    // or lost a segment that `record` had not vouched for yet.
    let name = text.lines().next().filter(|name| is_segment_name(name));
    let removed = name.filter(|name| unlink(name)).map(str::to_owned);
    fs::remove_file(path)?;
    Ok(removed)
}
