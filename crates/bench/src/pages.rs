//! Whether a model's files are in the system's page cache.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;

#[cfg(target_os = "linux")]
pub use linux::forget;
#[cfg(target_os = "macos")]
pub use macos::forget;

use anyhow::Context;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Reads the files once, so that the system has them.
pub fn remember(folder: &Path) -> anyhow::Result<()> {
    for path in files(folder)? {
        let mut file = File::open(&path).with_context(|| path.display().to_string())?;
        std::io::copy(&mut file, &mut std::io::sink())?;
    }
    Ok(())
}

/// Files in a folder, and those that links in it lead to.
fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    Ok(paths.into_iter().filter(|path| path.is_file()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_the_same_afterwards() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("weights");
        std::fs::write(&path, vec![7; 100_000]).expect("written");
        std::fs::create_dir(folder.path().join("more")).expect("a folder");
        remember(folder.path()).expect("read");
        assert_eq!(forget(folder.path()).expect("forgotten"), cfg!(target_os = "linux"));
        assert_eq!(std::fs::read(&path).expect("read"), vec![7; 100_000]);
        assert!(remember(&path).is_err());
    }
}
