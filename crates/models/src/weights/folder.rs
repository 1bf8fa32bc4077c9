//! Which safetensors files a model folder has, and which tensors they hold.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::header::{HeaderError, TensorEntry, Tensors, header_length, parse_header};
use crate::fault::{Loaded, corrupt, missing};

/// The longest index that is read.
const INDEX_BYTES_MAX: u64 = 64 << 20;
/// Shards of one model at the most.
const FILES_MAX: usize = 4096;

/// Every tensor of a model folder, its headers checked; no tensor data is read yet.
#[derive(Debug)]
pub struct Checkpoint {
    /// The files, in order.
    pub files: Vec<PathBuf>,
    /// Name → where and what.
    pub tensors: HashMap<String, Placed>,
    /// From a name in the files to the name here.
    pub names: fn(&str) -> String,
}

/// A tensor and the file it lies in.
#[derive(Debug, Clone)]
pub struct Placed {
    /// Index into [`Checkpoint::files`].
    pub file: usize,
    /// Type, shape and size.
    pub entry: TensorEntry,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Finds the files and reads their headers.
    ///
    /// With `model.safetensors.index.json` these are the files it names, and each tensor must be
    /// where it says; without, all `model*.safetensors`, as mlx-lm takes them.
    pub fn open(folder: &Path) -> Loaded<Self> {
        let index = read_index(folder)?;
        let names = match &index {
            Some(index) => shard_names(index)?,
            None => listed_names(folder)?,
        };
        let mut checkpoint = Self {
            files: Vec::with_capacity(names.len()),
            tensors: HashMap::new(),
            names: str::to_owned,
        };
        for name in &names {
            checkpoint.add(folder, name)?;
        }
        if let Some(index) = index {
            checkpoint.check_index(&index)?;
        }
        Ok(checkpoint)
    }

    fn add(&mut self, folder: &Path, name: &str) -> Loaded<()> {
        let path = folder.join(name);
        let file = self.files.len();
        for (tensor, entry) in read_tensors(&path, name)? {
            let placed = Placed { file, entry };
            if let Some(before) = self.tensors.insert(tensor.clone(), placed) {
                let before = self.files[before.file].display();
                return Err(corrupt(format!("tensor {tensor} is in {name} and in {before}")));
            }
        }
        self.files.push(path);
        Ok(())
    }

    /// Calls the tensors as `names` says: not everybody who saves a model calls them alike.
    pub fn rename(&mut self, names: fn(&str) -> String) {
        self.names = names;
        self.tensors = self.tensors.drain().map(|(name, placed)| (names(&name), placed)).collect();
    }

    fn check_index(&self, index: &Index) -> Loaded<()> {
        for (tensor, name) in &index.weight_map {
            let placed = self.tensors.get(tensor);
            let found = placed.and_then(|placed| self.files[placed.file].file_name());
            if found != Some(name.as_ref()) {
                return Err(corrupt(format!(
                    "model.safetensors.index.json says that {name} holds tensor {tensor}, but it does not"
                )));
            }
        }
        Ok(())
    }
}

fn read_index(folder: &Path) -> Loaded<Option<Index>> {
    let path = folder.join("model.safetensors.index.json");
    let Ok(found) = std::fs::metadata(&path) else {
        return Ok(None);
    };
    if found.len() > INDEX_BYTES_MAX {
        return Err(corrupt(format!(
            "model.safetensors.index.json has {} bytes; at most {INDEX_BYTES_MAX} are read",
            found.len()
        )));
    }
    let text =
        std::fs::read(&path).map_err(|error| missing(format!("{}: {error}", path.display())))?;
    let index = serde_json::from_slice(&text)
        .map_err(|error| corrupt(format!("model.safetensors.index.json: {error}")))?;
    Ok(Some(index))
}

/// The files an index names. A name with a folder in it could reach outside the model.
fn shard_names(index: &Index) -> Loaded<Vec<String>> {
    let mut names: Vec<String> = index.weight_map.values().cloned().collect();
    names.sort();
    names.dedup();
    for name in &names {
        let plain = Path::new(name).file_name() == Some(name.as_ref());
        if !plain || !name.ends_with(".safetensors") {
            return Err(corrupt(format!(
                "model.safetensors.index.json names {name:?}, which is not the plain name of a safetensors file"
            )));
        }
    }
    check_count(names, "model.safetensors.index.json")
}

fn listed_names(folder: &Path) -> Loaded<Vec<String>> {
    let entries = std::fs::read_dir(folder)
        .map_err(|error| missing(format!("{}: {error}", folder.display())))?;
    let all: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".safetensors"))
        .collect();
    let mut names: Vec<String> =
        all.iter().filter(|name| name.starts_with("model")).cloned().collect();
    if names.is_empty() {
        names = all;
    }
    if names.is_empty() {
        return Err(missing(format!(
            "{} holds no safetensors file; is the download complete?",
            folder.display()
        )));
    }
    names.sort();
    check_count(names, "the folder")
}

fn check_count(names: Vec<String>, place: &str) -> Loaded<Vec<String>> {
    if names.len() > FILES_MAX {
        return Err(corrupt(format!(
            "{place} names {} files; at most {FILES_MAX} are read",
            names.len()
        )));
    }
    Ok(names)
}

/// Reads one file's header. `name` is for messages.
fn read_tensors(path: &Path, name: &str) -> Loaded<Tensors> {
    let unreadable =
        |error: std::io::Error| missing(format!("{name}: {error}; is the download complete?"));
    let lie = |error: HeaderError| corrupt(format!("{name}: {error}"));
    let mut file = File::open(path).map_err(unreadable)?;
    let found = file.metadata().map_err(unreadable)?;
    if !found.is_file() {
        return Err(corrupt(format!("{name} is not a file")));
    }
    let file_bytes = found.len();
    if file_bytes < 8 {
        let short = HeaderError::Short { got: file_bytes, wanted: 8 };
        return Err(lie(short));
    }
    let mut prefix = [0; 8];
    file.read_exact(&mut prefix).map_err(unreadable)?;
    let length = header_length(prefix, file_bytes).map_err(lie)?;
    let mut json = vec![0; length as usize];
    file.read_exact(&mut json).map_err(unreadable)?;
    parse_header(&json, file_bytes - 8 - length).map_err(lie)
}
