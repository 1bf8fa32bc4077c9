//! One model's folder: is it whole, and what is in it.

use crate::StoreError;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

/// A longer `config.json` is none.
pub(crate) const CONFIG_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// A longer index is none.
pub(crate) const INDEX_BYTES_MAX: u64 = 64 * 1024 * 1024;
const INDEX_FILE: &str = "model.safetensors.index.json";

/// The part of `config.json` that says what kind of model it is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ModelConfigHead {
    /// `llama`, `qwen3`, ….
    pub model_type: String,
    /// Classes of the library it was trained with.
    #[serde(default)]
    pub architectures: Option<Vec<String>>,
    /// Whether it has an encoder of its own, as translation and speech models do.
    #[serde(default)]
    pub is_encoder_decoder: Option<bool>,
}

impl ModelConfigHead {
    /// Whether such a model goes on with a text.
    pub fn generates_text(&self) -> bool {
        const ENDINGS: [&str; 3] = ["ForCausalLM", "ForConditionalGeneration", "LMHeadModel"];
        let by_class = self.architectures.as_deref().unwrap_or_default();
        self.is_encoder_decoder != Some(true)
            && (by_class.is_empty()
                || by_class.iter().any(|class| ENDINGS.iter().any(|end| class.ends_with(end))))
    }
}

/// Reads what kind of model lies in `folder`.
pub fn read_config_head(folder: &Path) -> Result<ModelConfigHead, StoreError> {
    read_json(&folder.join("config.json"), CONFIG_BYTES_MAX)
}

/// The safetensors files of the model in `folder`, or the names of the files it lacks.
pub(crate) fn weight_files(folder: &Path) -> Result<Result<Vec<PathBuf>, Vec<String>>, StoreError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index = folder.join(INDEX_FILE);
    let mut names: Vec<String> = if index.is_file() {
        let read: Index = read_json(&index, INDEX_BYTES_MAX)?;
        let files: BTreeSet<String> = read.weight_map.into_values().collect();
        if let Some(odd) = files.iter().find(|name| !is_plain(name)) {
            let fault = format!("it names the weight file {odd:?}");
            return Err(StoreError::Corrupt { file: index, fault });
        }
        files.into_iter().collect()
    } else {
        file_names(folder)?.into_iter().filter(|name| name.ends_with(".safetensors")).collect()
    };
    names.sort();
    if names.is_empty() {
        return Ok(Err(vec!["model.safetensors".to_owned()]));
    }
    let missing: Vec<String> =
        names.iter().filter(|name| !folder.join(name).is_file()).cloned().collect();
    if missing.is_empty() {
        Ok(Ok(names.iter().map(|name| folder.join(name)).collect()))
    } else {
        Ok(Err(missing))
    }
}

/// Files that the model in `folder` needs and lacks.
pub(crate) fn missing_files(folder: &Path) -> Result<Vec<String>, StoreError> {
    let mut missing: Vec<String> = ["config.json", "tokenizer.json"]
        .into_iter()
        .filter(|name| !folder.join(name).is_file())
        .map(str::to_owned)
        .collect();
    if let Err(weights) = weight_files(folder)? {
        missing.extend(weights);
    }
    Ok(missing)
}

/// A file name that stays in its folder.
fn is_plain(name: &str) -> bool {
    name.ends_with(".safetensors")
        && !name.starts_with('.')
        && !name.contains(['/', '\\', '\0'])
        && !name.chars().any(char::is_control)
}

pub(crate) fn read_json<T: serde::de::DeserializeOwned>(
    path: &Path,
    bytes_max: u64,
) -> Result<T, StoreError> {
    let unreadable = |error: std::io::Error| StoreError::Unreadable {
        path: path.to_owned(),
        error: error.to_string(),
    };
    let corrupt = |fault: String| StoreError::Corrupt { file: path.to_owned(), fault };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > bytes_max {
        return Err(corrupt(format!("it is longer than {bytes_max} bytes")));
    }
    serde_json::from_slice(&bytes).map_err(|error| corrupt(error.to_string()))
}

/// Names in `folder` that are UTF-8, in no order; none when the folder is not there.
pub(crate) fn file_names(folder: &Path) -> Result<Vec<String>, StoreError> {
    let unreadable = |error: std::io::Error| StoreError::Unreadable {
        path: folder.to_owned(),
        error: error.to_string(),
    };
    match std::fs::read_dir(folder) {
        Ok(entries) => {
            Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => Ok(Vec::new()),
        Err(error) => Err(unreadable(error)),
    }
}

/// Whether `folder` holds an entry of exactly this name. File systems that ignore case find
/// `Qwen` under `qwen` too, which would give one model two names.
pub(crate) fn has_exact_entry(folder: &Path, name: &str) -> Result<bool, StoreError> {
    Ok(file_names(folder)?.iter().any(|entry| entry == name))
}
