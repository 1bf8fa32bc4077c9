//! What safetensors headers say: parameters, bytes, types. The weights are not read.
//!
//! Format: <https://huggingface.co/docs/safetensors>: eight bytes with the header's length, the
//! header in JSON, the data. The `safetensors` crate checks that the offsets leave no gap and
//! fit shapes and types; here the file's length is held against them.

use crate::StoreError;
use crate::folder::{read_json, weight_files};
use safetensors::tensor::Metadata;
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::Path;

/// The `safetensors` crate's own limit.
const HEADER_BYTES_MAX: u64 = 100_000_000;
const LENGTH_BYTES: u64 = 8;
const CONFIG_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// A model's weights as its files hold them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WeightSummary {
    /// How many tensors.
    pub tensors: usize,
    /// Parameters, counted before quantisation.
    pub parameters: u64,
    /// Bytes of data, headers not counted.
    pub bytes: u64,
    /// Bytes by type, as `BF16`, `U32`.
    pub bytes_by_type: BTreeMap<String, u64>,
}

/// `quantization` of an MLX model's `config.json`: for all layers, and for single ones by name.
#[derive(Debug, Default, Deserialize)]
struct Quantization {
    #[serde(default)]
    group_size: Option<u64>,
    #[serde(flatten)]
    others: HashMap<String, serde_json::Value>,
}

impl Quantization {
    /// Parameters per scale in `layer`.
    fn group_size(&self, layer: &str) -> Option<u64> {
        let own = self.others.get(layer).and_then(|layer| layer.get("group_size"));
        own.and_then(serde_json::Value::as_u64).or(self.group_size)
    }
}

#[derive(Debug, Default, Deserialize)]
struct Config {
    #[serde(default)]
    quantization: Option<Quantization>,
}

/// Reads the headers of the model in `folder`.
pub fn weight_summary(folder: &Path) -> Result<WeightSummary, StoreError> {
    let config: Config = read_json(&folder.join("config.json"), CONFIG_BYTES_MAX)?;
    let quantization = config.quantization.unwrap_or_default();
    let files = weight_files(folder)?.map_err(|missing| StoreError::Incomplete {
        name: folder.to_string_lossy().into_owned(),
        folder: folder.to_owned(),
        missing,
        from_hub: false,
    })?;
    let mut summary = WeightSummary::default();
    // A quantised layer's scales may lie in another file than its weight.
    let mut elements: HashMap<String, u64> = HashMap::new();
    for file in files {
        let header = read_header(&file)?;
        for (name, info) in header.tensors() {
            let count = info.shape.iter().product::<usize>() as u64;
            let bytes = (info.data_offsets.1 - info.data_offsets.0) as u64;
            summary.tensors += 1;
            summary.bytes += bytes;
            *summary.bytes_by_type.entry(format!("{:?}", info.dtype)).or_default() += bytes;
            elements.insert(name, count);
        }
    }
    summary.parameters = elements
        .iter()
        .map(|(name, count)| parameters(name, *count, &elements, &quantization))
        .fold(0, u64::saturating_add);
    Ok(summary)
}

/// How many parameters one tensor stands for.
fn parameters(
    name: &str,
    count: u64,
    elements: &HashMap<String, u64>,
    quantization: &Quantization,
) -> u64 {
    let (layer, kind) = name.rsplit_once('.').unwrap_or(("", name));
    let scales = elements.get(&format!("{layer}.scales"));
    match (kind, scales, quantization.group_size(layer)) {
        ("weight", Some(scales), Some(group)) => scales.saturating_mul(group),
        ("scales" | "biases", Some(_), Some(_)) => 0,
        _ => count,
    }
}

fn read_header(path: &Path) -> Result<Metadata, StoreError> {
    let unreadable = |error: std::io::Error| StoreError::Unreadable {
        path: path.to_owned(),
        error: error.to_string(),
    };
    let corrupt = |fault: String| StoreError::Corrupt { file: path.to_owned(), fault };
    let mut file = std::fs::File::open(path).map_err(unreadable)?;
    let file_bytes = file.metadata().map_err(unreadable)?.len();
    if file_bytes < LENGTH_BYTES {
        return Err(corrupt(format!("it has {file_bytes} bytes")));
    }
    let mut length = [0; LENGTH_BYTES as usize];
    file.read_exact(&mut length).map_err(unreadable)?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > HEADER_BYTES_MAX || header_bytes > file_bytes - LENGTH_BYTES {
        return Err(corrupt(format!("its header would have {header_bytes} of {file_bytes} bytes")));
    }
    let mut header = vec![0; header_bytes as usize];
    file.read_exact(&mut header).map_err(unreadable)?;
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|error| corrupt(error.to_string()))?;
    let expected = LENGTH_BYTES + header_bytes + metadata.data_len() as u64;
    if expected != file_bytes {
        return Err(corrupt(format!("it has {file_bytes} bytes, its header speaks of {expected}")));
    }
    Ok(metadata)
}
