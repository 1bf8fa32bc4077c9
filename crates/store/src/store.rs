//! Names to folders, and the list of all models.

use crate::folder::{file_names, has_exact_entry, missing_files, read_config_head, weight_files};
use crate::name::{Name, check_any, is_part, nearest, parse};
use crate::{StoreError, hub};
use std::collections::BTreeMap;
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
        let mut add = |name: String, folder: PathBuf, source: Source| {
            if !found.contains_key(&name)
                && let Some(entry) = entry(&name, folder, source)
            {
                found.insert(name, entry);
            }
        };
        for named in &self.paths.named {
            add(named.name.clone(), named.folder.clone(), Source::Named);
        }
        if let Some(cache) = &self.paths.hf_cache {
            for repository in hub::repositories(cache).unwrap_or_default() {
                if let Ok(Some(folder)) = hub::snapshot(cache, &repository, None) {
                    add(repository, folder, Source::Hub);
                }
            }
        }
        for root in &self.paths.folders {
            for (name, folder) in model_folders(root) {
                add(name, folder, Source::Folder);
            }
        }
        found.into_values().collect()
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
