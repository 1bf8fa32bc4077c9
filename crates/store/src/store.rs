//! Names to folders, and the list of all models.

use crate::error::cure;
use crate::folder::{file_names, has_exact_entry, missing_files, read_config_head, weight_files};
use crate::name::{Name, check_any, is_part, nearest, parse};
use crate::pull::OTHER_FORMATS;
use crate::{StoreError, hub};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// A name that somebody gave to a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedFolder {
    /// The name, as in requests.
    pub name: String,
    /// The folder with `config.json`.
    pub folder: PathBuf,
}

/// Where to look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StorePaths {
    /// The Hugging Face cache (the folder called `hub`).
    pub hf_cache: Option<PathBuf>,
    /// Folders with models in them, as `<folder>/<name>` or `<folder>/<organisation>/<name>`.
    pub folders: Vec<PathBuf>,
    /// Names from the configuration, the built-in model among them.
    pub named: Vec<NamedFolder>,
    /// Whether a name may be a path.
    pub paths_allowed: bool,
    /// What `~` stands for.
    pub home: Option<PathBuf>,
}

/// Where a model was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// By a configured name.
    Named,
    /// By its path.
    Path,
    /// In the Hugging Face cache.
    Hub,
    /// In one of the other folders.
    Folder,
}

/// A model whose files are all there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFolder {
    /// The one name by which it is kept: as asked for, a path without its odd slashes.
    pub name: String,
    /// Where its files are.
    pub folder: PathBuf,
    /// How it was found.
    pub source: Source,
}

/// A model as `/v1/models` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelEntry {
    /// Its name in requests.
    pub name: String,
    /// Where its files are.
    pub folder: PathBuf,
    /// Bytes of its safetensors files.
    pub size_bytes: u64,
    /// `model_type` of its `config.json`.
    pub architecture: String,
    /// When its `config.json` was written, in seconds since 1970.
    pub created_unix_s: u64,
    /// Where it was found.
    pub source: Source,
}

/// A model that files are missing of: it cannot be loaded, and no request may name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncompleteModel {
    /// Its name in requests, once it is whole.
    pub name: String,
    /// Where its files are, or of a repository without any the repository.
    pub folder: PathBuf,
    /// `model_type` of its `config.json`, if that is here.
    pub architecture: Option<String>,
    /// Bytes of its weights that are here, parts of files included.
    pub bytes: u64,
    /// Names of the missing files, as far as they are known.
    pub missing: Vec<String>,
    /// What to do about it, in words.
    pub cure: String,
    /// Where it was found.
    pub source: Source,
}

/// A place that could hold a model: its name and folder.
type Place = (String, Result<PathBuf, StoreError>, Source);

/// Finds models. Holds no state but where to look.
#[derive(Debug, Clone, Default)]
pub struct Store {
    paths: StorePaths,
}

impl Store {
    /// A store that looks in these places.
    pub fn new(paths: StorePaths) -> Self {
        Self { paths }
    }

    /// The folder of the model called `name`, with every file it needs there.
    pub fn resolve(&self, name: &str) -> Result<ModelFolder, StoreError> {
        if let Some(named) = self.paths.named.iter().find(|named| named.name == name) {
            check_any(name)?;
            return whole(name, named.folder.clone(), Source::Named);
        }
        match parse(name)? {
            Name::Path(path) => self.by_path(path),
            Name::Hub { repository, revision } => {
                if let Some(cache) = &self.paths.hf_cache
                    && let Some(folder) = hub::snapshot(cache, repository, revision)?
                {
                    return whole(name, folder, Source::Hub);
                }
                match self.in_folders(name)? {
                    Some(folder) => whole(name, folder, Source::Folder),
                    None => Err(self.unknown(name)),
                }
            }
        }
    }

    /// Every model that could be loaded, in name order. What is incomplete, damaged or no
    /// text-generation model is left out, so that one bad folder hides no other.
    pub fn list(&self) -> Vec<ModelEntry> {
        let mut found: BTreeMap<String, ModelEntry> = BTreeMap::new();
        for (name, folder, source) in self.places() {
            if !found.contains_key(&name)
                && let Ok(folder) = folder
                && let Some(entry) = entry(&name, folder, source)
            {
                found.insert(name, entry);
            }
        }
        found.into_values().collect()
    }

    /// Every model that could be loaded if no files of it were missing, in name order. What is known
    /// to be no text-generation model is left out, and what has weights in other formats alone.
    pub fn incomplete(&self) -> Vec<IncompleteModel> {
        let whole: BTreeSet<String> = self.list().into_iter().map(|entry| entry.name).collect();
        let mut found: BTreeMap<String, IncompleteModel> = BTreeMap::new();
        for (name, folder, source) in self.places() {
            if !whole.contains(&name)
                && !found.contains_key(&name)
                && let Some(model) = self.unfinished(&name, folder, source)
            {
                found.insert(name, model);
            }
        }
        found.into_values().collect()
    }

    /// Where models could be, those first that count first.
    fn places(&self) -> Vec<Place> {
        let mut places: Vec<Place> = Vec::new();
        for named in &self.paths.named {
            places.push((named.name.clone(), Ok(named.folder.clone()), Source::Named));
        }
        if let Some(cache) = &self.paths.hf_cache {
            for repository in hub::repositories(cache).unwrap_or_default() {
                if let Some(folder) = hub::snapshot(cache, &repository, None).transpose() {
                    places.push((repository, folder, Source::Hub));
                }
            }
        }
        for root in &self.paths.folders {
            let found = model_folders(root).into_iter();
            places.extend(found.map(|(name, folder)| (name, Ok(folder), Source::Folder)));
        }
        places
    }

    /// What is here of a model that is not whole.
    fn unfinished(
        &self,
        name: &str,
        folder: Result<PathBuf, StoreError>,
        source: Source,
    ) -> Option<IncompleteModel> {
        let (folder, known) = match folder {
            Ok(folder) => (folder, None),
            // Not one file of it is in its place yet.
            Err(StoreError::Incomplete { folder, .. }) if !folder.join("snapshots").is_dir() => {
                (folder, None)
            }
            Err(StoreError::Incomplete { folder, missing, .. }) => (folder, Some(missing)),
            Err(_) => return None,
        };
        let missing = known.map_or_else(|| missing_files(&folder), Ok).ok()?;
        if missing.is_empty() {
            return None;
        }
        let from_hub = source == Source::Hub;
        let cache = self.paths.hf_cache.as_ref().filter(|_| from_hub);
        let begun = cache.and_then(|cache| hub::partial_bytes(cache, name));
        let architecture = match read_config_head(&folder) {
            Ok(head) if head.generates_text() => Some(head.model_type),
            // Before its first file came, a repository is a model if something else is coming.
            Err(StoreError::Unreadable { .. }) if !from_hub || begun.is_some() => None,
            _ => return None,
        };
        let names = file_names(&folder).ok()?;
        let has = |endings: &[&str]| {
            names.iter().any(|name| endings.iter().any(|end| name.ends_with(end)))
        };
        if begun.is_none()
            && !has(&[".safetensors", ".safetensors.index.json"])
            && has(&OTHER_FORMATS)
        {
            return None;
        }
        let here = names.iter().filter(|name| name.ends_with(".safetensors"));
        let here = here.filter_map(|name| std::fs::metadata(folder.join(name)).ok());
        Some(IncompleteModel {
            name: name.to_owned(),
            architecture,
            bytes: here.map(|file| file.len()).sum::<u64>() + begun.unwrap_or(0),
            missing,
            cure: cure(name, from_hub),
            folder,
            source,
        })
    }

    /// The error for a name that nothing was found under.
    pub fn unknown(&self, name: &str) -> StoreError {
        let known: Vec<String> = self.list().into_iter().map(|entry| entry.name).collect();
        let nearest = nearest(name, &known);
        StoreError::Unknown { name: name.to_owned(), known, nearest }
    }

    fn by_path(&self, name: &str) -> Result<ModelFolder, StoreError> {
        if !self.paths.paths_allowed {
            return Err(StoreError::PathsNotAllowed { name: name.to_owned() });
        }
        let folder = match name.strip_prefix('~') {
            Some(rest) => match (&self.paths.home, rest.strip_prefix('/')) {
                (Some(home), Some(rest)) => home.join(rest),
                (Some(home), None) if rest.is_empty() => home.clone(),
                _ => {
                    let fault = "only '~/' is understood after '~'".to_owned();
                    return Err(StoreError::BadName { name: name.to_owned(), fault });
                }
            },
            None => std::path::absolute(name).map_err(|error| StoreError::Unreadable {
                path: PathBuf::from(name),
                error: error.to_string(),
            })?,
        };
        // Without doubled and closing slashes: one model, one name.
        let folder: PathBuf = folder.components().collect();
        if !folder.join("config.json").is_file() {
            return Err(self.unknown(name));
        }
        whole(&folder.to_string_lossy(), folder.clone(), Source::Path)
    }

    fn in_folders(&self, name: &str) -> Result<Option<PathBuf>, StoreError> {
        for root in &self.paths.folders {
            let (parent, last) = match name.split_once('/') {
                Some((organisation, last)) => (root.join(organisation), last),
                None => (root.clone(), name),
            };
            let exact = match name.split_once('/') {
                Some((organisation, _)) => has_exact_entry(root, organisation)?,
                None => true,
            };
            let folder = parent.join(last);
            if exact && has_exact_entry(&parent, last)? && folder.join("config.json").is_file() {
                return Ok(Some(folder));
            }
        }
        Ok(None)
    }
}

/// The model, if no file of it is missing.
fn whole(name: &str, folder: PathBuf, source: Source) -> Result<ModelFolder, StoreError> {
    let missing = missing_files(&folder)?;
    if missing.is_empty() {
        return Ok(ModelFolder { name: name.to_owned(), folder, source });
    }
    let from_hub = source == Source::Hub;
    Err(StoreError::Incomplete { name: name.to_owned(), folder, missing, from_hub })
}

/// What the list shows of a folder; `None` when it holds nothing to load.
fn entry(name: &str, folder: PathBuf, source: Source) -> Option<ModelEntry> {
    if !missing_files(&folder).ok()?.is_empty() {
        return None;
    }
    let head = read_config_head(&folder).ok()?;
    if !head.generates_text() {
        return None;
    }
    let size_bytes = weight_files(&folder)
        .ok()?
        .ok()?
        .iter()
        .filter_map(|file| std::fs::metadata(file).ok())
        .map(|metadata| metadata.len())
        .sum();
    let written = std::fs::metadata(folder.join("config.json")).and_then(|file| file.modified());
    let created_unix_s = written
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
        .map_or(0, |since| since.as_secs());
    Some(ModelEntry {
        name: name.to_owned(),
        folder,
        size_bytes,
        architecture: head.model_type,
        created_unix_s,
        source,
    })
}

/// Folders with a `config.json` one or two levels below `root`, by the names they get.
fn model_folders(root: &Path) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    for first in file_names(root).unwrap_or_default().into_iter().filter(|name| is_part(name)) {
        let folder = root.join(&first);
        if folder.join("config.json").is_file() {
            found.push((first, folder));
            continue;
        }
        for second in
            file_names(&folder).unwrap_or_default().into_iter().filter(|name| is_part(name))
        {
            let inner = folder.join(&second);
            if inner.join("config.json").is_file() {
                found.push((format!("{first}/{second}"), inner));
            }
        }
    }
    found
}
