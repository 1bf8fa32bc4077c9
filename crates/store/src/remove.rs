//! Deleting what was pulled. Only the Hugging Face cache is touched: folders that a person filled
//! are a person's to delete.

use crate::folder::file_names;
use crate::hub::folder_name;
use crate::name::{Name, parse};
use crate::{StoreError, hub};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// What a removal did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removal {
    /// Bytes given back.
    pub freed_bytes: u64,
    /// Bytes that stay, because another revision has them too.
    pub shared_bytes: u64,
}

/// The folder of the cache that would go, or lose a revision: `None` when the cache has none.
pub fn cached_folder(cache: &Path, name: &str) -> Result<Option<PathBuf>, StoreError> {
    match parse(name)? {
        Name::Hub { repository, .. } => {
            let folder = cache.join(folder_name(repository));
            Ok(folder.is_dir().then_some(folder))
        }
        Name::Path(_) => Ok(None),
    }
}

/// Deletes `NAME` with all its revisions, or the one revision of `NAME@REVISION`. `None` when the
/// cache has nothing of it.
pub fn remove(cache: &Path, name: &str) -> Result<Option<Removal>, StoreError> {
    let Name::Hub { repository, revision } = parse(name)? else {
        return Ok(None);
    };
    let folder = cache.join(folder_name(repository));
    if !folder.is_dir() {
        return Ok(None);
    }
    match revision {
        None => {
            let freed_bytes = blobs(&folder)?.values().sum();
            // Renamed first, so that nobody finds half of it.
            let gone = cache.join(format!(".{}.removed", folder_name(repository)));
            discard(&gone)?;
            std::fs::rename(&folder, &gone).map_err(unwritable(&folder))?;
            discard(&gone)?;
            discard(&cache.join(".locks").join(folder_name(repository)))?;
            Ok(Some(Removal { freed_bytes, shared_bytes: 0 }))
        }
        Some(revision) => match hub::snapshot(cache, repository, Some(revision))? {
            Some(snapshot) => remove_revision(&folder, &snapshot).map(Some),
            None => Ok(None),
        },
    }
}

/// Deletes one snapshot, the references to it, and the blobs that no other snapshot links to.
fn remove_revision(folder: &Path, snapshot: &Path) -> Result<Removal, StoreError> {
    let commit = snapshot.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let references = folder.join("refs");
    for name in file_names(&references)? {
        let path = references.join(name);
        if std::fs::read_to_string(&path).is_ok_and(|there| there.trim() == commit) {
            std::fs::remove_file(&path).map_err(unwritable(&path))?;
        }
    }
    let own = linked(snapshot)?;
    discard(snapshot)?;
    let snapshots = folder.join("snapshots");
    let mut kept = Vec::new();
    for other in file_names(&snapshots)? {
        kept.extend(linked(&snapshots.join(other))?);
    }
    let sizes = blobs(folder)?;
    let mut removal = Removal::default();
    let mut own_unique = own;
    own_unique.sort();
    own_unique.dedup();
    for blob in own_unique {
        let Some(bytes) = sizes.get(&blob) else { continue };
        if kept.contains(&blob) {
            removal.shared_bytes += bytes;
            continue;
        }
        let path = folder.join("blobs").join(&blob);
        std::fs::remove_file(&path).map_err(unwritable(&path))?;
        removal.freed_bytes += bytes;
    }
    Ok(removal)
}

/// Names of the blobs that a snapshot's files link to.
fn linked(snapshot: &Path) -> Result<Vec<String>, StoreError> {
    let mut found = Vec::new();
    for name in file_names(snapshot)? {
        let path = snapshot.join(&name);
        if path.is_symlink() {
            let target = std::fs::read_link(&path).map_err(unwritable(&path))?;
            found.extend(target.file_name().map(|blob| blob.to_string_lossy().into_owned()));
        } else if path.is_dir() {
            found.extend(linked(&path)?);
        }
    }
    Ok(found)
}

/// Every blob with its bytes.
fn blobs(folder: &Path) -> Result<HashMap<String, u64>, StoreError> {
    let blobs = folder.join("blobs");
    let bytes = |name: &String| std::fs::metadata(blobs.join(name)).map_or(0, |file| file.len());
    Ok(file_names(&blobs)?.into_iter().map(|name| (name.clone(), bytes(&name))).collect())
}

fn discard(folder: &Path) -> Result<(), StoreError> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(unwritable(folder)(error))
        }
        _ => Ok(()),
    }
}

fn unwritable(path: &Path) -> impl Fn(std::io::Error) -> StoreError {
    let path = path.to_owned();
    move |error| StoreError::Unremovable { path: path.clone(), error: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const OLD: &str = "1111111111111111111111111111111111111111";
    const NEW: &str = "2222222222222222222222222222222222222222";

    /// Two revisions: one blob in both, one in each.
    fn cache() -> tempfile::TempDir {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("models--org--name");
        for part in ["blobs", "refs", "snapshots"] {
            std::fs::create_dir_all(folder.join(part)).unwrap();
        }
        for (blob, bytes) in [("shared", 10), ("old", 100), ("new", 1000)] {
            std::fs::write(folder.join("blobs").join(blob), vec![0; bytes]).unwrap();
        }
        for (commit, own) in [(OLD, "old"), (NEW, "new")] {
            let snapshot = folder.join("snapshots").join(commit);
            std::fs::create_dir_all(snapshot.join("sub")).unwrap();
            symlink("../../blobs/shared", snapshot.join("config.json")).unwrap();
            symlink(format!("../../../blobs/{own}"), snapshot.join("sub/x")).unwrap();
        }
        std::fs::write(folder.join("refs/main"), NEW).unwrap();
        std::fs::write(folder.join("refs/v1"), OLD).unwrap();
        cache
    }

    #[test]
    fn a_revision_goes_and_what_others_share_stays() {
        let cache = cache();
        let removal = remove(cache.path(), "org/name@v1").unwrap().unwrap();
        assert_eq!(removal, Removal { freed_bytes: 100, shared_bytes: 10 });
        let folder = cache.path().join("models--org--name");
        assert!(folder.join("blobs/shared").exists() && folder.join("blobs/new").exists());
        assert!(!folder.join("snapshots").join(OLD).exists() && !folder.join("refs/v1").exists());
        assert!(folder.join("snapshots").join(NEW).join("config.json").exists());
        assert_eq!(remove(cache.path(), "org/name@v1"), Ok(None));
    }

    #[test]
    fn all_of_a_model_goes_and_nothing_else() {
        let cache = cache();
        std::fs::create_dir_all(cache.path().join(".locks/models--org--name")).unwrap();
        std::fs::create_dir_all(cache.path().join("models--org--other")).unwrap();
        let removal = remove(cache.path(), "org/name").unwrap().unwrap();
        assert_eq!(removal.freed_bytes, 1110);
        let left = file_names(cache.path()).unwrap();
        assert_eq!(left.len(), 2, "{left:?}");
        assert_eq!(file_names(&cache.path().join(".locks")).unwrap(), Vec::<String>::new());
        assert_eq!(remove(cache.path(), "org/name"), Ok(None));
        assert_eq!(remove(cache.path(), "/org/name"), Ok(None));
        assert!(remove(cache.path(), "../name").is_err());
    }
}
