//! Writing the model out.
//!
//! A file appears whole or not at all, and the revision is written last: a folder that names it
//! is complete. A worker that reads an older model while a newer one is written keeps the older
//! files, since names are moved and contents never changed.

use crate::files::{FILES, REVISION};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const REVISION_FILE: &str = "revision";

/// Why the model could not be written out.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The folder could not be made or written to.
    #[error(
        "cannot write the built-in model to {}: {source}. It needs 8 MB there and a folder that \
         you may write to", path.display()
    )]
    Write {
        /// What could not be written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Makes sure that `folder` holds the model of this program, in a folder of its own, and returns
/// that one's path. Several processes may call it at once.
///
/// When it is there already, this looks at seven sizes and reads 17 bytes; otherwise it writes
/// 7 MB and waits for the disk, so call it off an event loop.
///
/// # Errors
///
/// The folder cannot be written to.
pub fn materialise(folder: &Path) -> Result<PathBuf, DemoError> {
    let own = folder.join(crate::NAME);
    if !is_current(&own) {
        write_all(&own)?;
    }
    Ok(own)
}

fn is_current(own: &Path) -> bool {
    let right_size = |name: &str, bytes: usize| {
        fs::symlink_metadata(own.join(name)).is_ok_and(|m| m.is_file() && m.len() == bytes as u64)
    };
    right_size(REVISION_FILE, REVISION.len() + 1)
        && FILES.iter().all(|file| right_size(file.name, file.bytes.len()))
        && fs::read_to_string(own.join(REVISION_FILE)).is_ok_and(|text| text.trim_end() == REVISION)
}

fn write_all(own: &Path) -> Result<(), DemoError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| DemoError::Write { path, source }
    };
    fs::create_dir_all(own).map_err(failed(own))?;
    // Held until this returns: one writer at a time, so a partial file has one owner.
    let lock = File::create(own.join(".lock")).map_err(failed(own))?;
    lock.lock().map_err(failed(own))?;
    if is_current(own) {
        return Ok(());
    }
    // Until the last file is there the folder claims nothing.
    let revision = own.join(REVISION_FILE);
    match fs::remove_file(&revision) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(&revision)(e)),
        _ => {}
    }
    for file in FILES {
        replace(own, file.name, file.bytes).map_err(failed(&own.join(file.name)))?;
    }
    replace(own, REVISION_FILE, format!("{REVISION}\n").as_bytes()).map_err(failed(&revision))
}

/// Writes beside the name, then moves over it. A partial file that a killed writer left behind is
/// taken over: it bears the same name, and the lock is ours.
fn replace(own: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let partial = own.join(format!(".{name}.partial"));
    match fs::remove_file(&partial) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = File::create_new(&partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&partial, own.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    fn written(own: &Path, name: &str) -> (SystemTime, u64) {
        let meta = fs::metadata(own.join(name)).unwrap();
        (meta.modified().unwrap(), meta.len())
    }

    #[test]
    fn it_writes_every_file_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let own = materialise(folder.path()).unwrap();
        assert_eq!(own, folder.path().join("mlxd-demo"));
        for file in FILES {
            assert_eq!(fs::read(own.join(file.name)).unwrap(), file.bytes, "{}", file.name);
        }
        let mut names: Vec<String> = fs::read_dir(&own)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let mut wanted: Vec<String> = FILES.iter().map(|f| f.name.to_owned()).collect();
        wanted.extend([".lock".into(), "revision".into()]);
        wanted.sort();
        assert_eq!(names, wanted);
    }

    #[test]
    fn what_is_there_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let own = materialise(folder.path()).unwrap();
        let before: Vec<_> = FILES.iter().map(|f| written(&own, f.name)).collect();
        materialise(folder.path()).unwrap();
        let after: Vec<_> = FILES.iter().map(|f| written(&own, f.name)).collect();
        assert_eq!(before, after);
    }

    #[test]
    fn a_cut_lost_or_older_file_is_written_again() {
        let damages: [fn(&Path); 4] = [
            |own| {
                File::options()
                    .write(true)
                    .open(own.join("model.safetensors"))
                    .unwrap()
                    .set_len(1000)
                    .unwrap()
            },
            |own| fs::remove_file(own.join("tokenizer.json")).unwrap(),
            |own| {
                // The same size, but of another revision.
                fs::write(own.join("config.json"), vec![b' '; FILES[0].bytes.len()]).unwrap();
                fs::write(own.join("revision"), "0000000000000000\n").unwrap();
            },
            |own| {
                // A writer that was killed.
                fs::remove_file(own.join("revision")).unwrap();
                fs::write(own.join(".model.safetensors.partial"), "half").unwrap();
            },
        ];
        for damage in damages {
            let folder = tempfile::tempdir().unwrap();
            let own = materialise(folder.path()).unwrap();
            damage(&own);
            assert!(!is_current(&own));
            materialise(folder.path()).unwrap();
            assert!(is_current(&own));
            for file in FILES {
                assert_eq!(fs::read(own.join(file.name)).unwrap(), file.bytes, "{}", file.name);
            }
            assert!(!own.join(".model.safetensors.partial").exists());
        }
    }

    #[test]
    fn many_may_write_at_once() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let own = materialise(folder.path()).unwrap();
                    assert!(is_current(&own));
                });
            }
        });
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("in-the-way");
        fs::write(&file, "").unwrap();
        let error = materialise(&file).unwrap_err().to_string();
        assert!(error.contains("in-the-way") && error.contains("8 MB"), "{error}");
    }
}
