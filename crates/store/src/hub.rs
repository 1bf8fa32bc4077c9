//! The layout of the Hugging Face cache.
//!
//! `models--<organisation>--<name>/refs/<revision>` holds a commit, and
//! `snapshots/<commit>` the files of that commit, as links into `blobs`. The layout is documented
//! in huggingface_hub's "Understand caching".

use crate::StoreError;
use crate::folder::{file_names, has_exact_entry};
use crate::name::is_part;
use std::path::{Path, PathBuf};

const PREFIX: &str = "models--";
/// How a blob's name ends until all of it has come.
pub(crate) const PARTIAL: &str = ".incomplete";
/// A commit has 40 characters; a longer file is no reference.
const REFERENCE_BYTES_MAX: u64 = 128;

/// The cache's folder for a repository that was checked by [`crate::name::parse`].
pub(crate) fn folder_name(repository: &str) -> String {
    format!("{PREFIX}{}", repository.replace('/', "--"))
}

/// The snapshot of `repository`, `None` when the cache has nothing of it.
pub(crate) fn snapshot(
    cache: &Path,
    repository: &str,
    revision: Option<&str>,
) -> Result<Option<PathBuf>, StoreError> {
    let folder_name = folder_name(repository);
    if !has_exact_entry(cache, &folder_name)? {
        return Ok(None);
    }
    let folder = cache.join(folder_name);
    let snapshots = folder.join("snapshots");
    let reference = folder.join("refs").join(revision.unwrap_or("main"));
    let commit = match (read_reference(&reference), revision) {
        (Some(commit), _) => commit,
        // A commit given in full needs no reference.
        (None, Some(revision)) => revision.to_owned(),
        // Fetched by its commit alone: there is no choice to make when there is one.
        (None, None) => match &file_names(&snapshots)?[..] {
            [only] if is_part(only) => only.clone(),
            _ => return incomplete(repository, folder, "refs/main"),
        },
    };
    let snapshot = snapshots.join(&commit);
    if !snapshot.is_dir() {
        return match revision {
            Some(_) => Ok(None),
            None => incomplete(repository, folder, &format!("snapshots/{commit}")),
        };
    }
    Ok(Some(snapshot))
}

fn incomplete(
    repository: &str,
    folder: PathBuf,
    missing: &str,
) -> Result<Option<PathBuf>, StoreError> {
    Err(StoreError::Incomplete {
        name: repository.to_owned(),
        folder,
        missing: vec![missing.to_owned()],
        from_hub: true,
    })
}

/// The commit that a reference names, when it is one.
fn read_reference(path: &Path) -> Option<String> {
    let length = std::fs::metadata(path).ok()?.len();
    if length > REFERENCE_BYTES_MAX {
        return None;
    }
    let commit = std::fs::read_to_string(path).ok()?.trim().to_owned();
    is_part(&commit).then_some(commit)
}

/// Bytes of the files of `repository` that have come in part, `None` when there is no such file.
pub(crate) fn partial_bytes(cache: &Path, repository: &str) -> Option<u64> {
    let blobs = cache.join(folder_name(repository)).join("blobs");
    let names = file_names(&blobs).unwrap_or_default();
    let partial = names.iter().filter(|name| name.ends_with(PARTIAL));
    let sizes =
        partial.map(|name| std::fs::metadata(blobs.join(name)).map_or(0, |file| file.len()));
    sizes.reduce(|sum, bytes| sum + bytes)
}

/// The repositories the cache knows of, whole or not.
pub(crate) fn repositories(cache: &Path) -> Result<Vec<String>, StoreError> {
    let mut found: Vec<String> = file_names(cache)?
        .iter()
        .filter_map(|entry| entry.strip_prefix(PREFIX))
        .map(|rest| rest.replacen("--", "/", 1))
        .filter(|name| name.split('/').all(is_part))
        .collect();
    found.sort();
    Ok(found)
}
