//! What workers really took, kept in one small file over restarts.
//!
//! One entry per model, quantisation, build and device; in it the footprint of the loaded worker,
//! and per bucket of context and batch the largest footprint seen, with the load it was seen at.
//! A prediction for another load of that bucket is the measured one plus what the formula says of
//! the difference: after one run the formula only bridges small gaps.

use crate::{Load, Needs};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Raised whenever the file's meaning changes; another number's file is put aside.
const FORMAT: u32 = 1;

/// Models kept, the latest measured ones.
const ENTRIES_MAX: usize = 512;

/// The longest file that is read.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// Which model, as it was run.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MeasuredKey {
    /// Its name.
    pub model: String,
    /// As `4-bit g64`.
    pub quantization: String,
    /// Version of the worker's build.
    pub build: String,
    /// `metal`, `cuda`, `cpu`.
    pub backend: String,
}

/// The largest footprint seen in one bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Tokens of a sequence.
    pub context: u64,
    /// Sequences.
    pub batch: u64,
    /// The worker's largest footprint meanwhile.
    pub peak_bytes: u64,
}

impl Sample {
    fn load(&self) -> Load {
        Load { context: self.context, batch: self.batch }
    }
}

/// What is known of one key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// The footprint of the worker once loaded and warm, before its first sequence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loaded_bytes: Option<u64>,
    /// The largest footprint while loading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loading_peak_bytes: Option<u64>,
    /// How long loading took at the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_ms: Option<u64>,
    /// By bucket.
    #[serde(default)]
    pub buckets: BTreeMap<String, Sample>,
    /// When something was last written here, seconds since 1970.
    #[serde(default)]
    pub unix_s: u64,
}

/// The name of the bucket of a load: powers of two of tokens (from 256 on) and of sequences.
fn bucket(load: Load) -> String {
    let tokens = load.context.max(256).next_power_of_two();
    let batch = load.batch.max(1).next_power_of_two();
    format!("{tokens} x {batch}")
}

impl Measured {
    /// Takes in a measured run. True when it says something new.
    pub fn record(&mut self, sample: Sample) -> bool {
        let slot = self.buckets.entry(bucket(sample.load()));
        let mut new = false;
        let kept = slot.or_insert_with(|| {
            new = true;
            sample
        });
        if sample.peak_bytes > kept.peak_bytes {
            *kept = sample;
            new = true;
        }
        new
    }

    /// Whether a load of this bucket was measured.
    pub fn has(&self, load: Load) -> bool {
        self.buckets.contains_key(&bucket(load))
    }

    /// The largest footprint to expect at `load`.
    pub fn peak_bytes(&self, needs: &Needs, load: Load) -> u64 {
        let formula = needs.peak_bytes(load);
        if let Some(sample) = self.buckets.get(&bucket(load)) {
            let there = needs.peak_bytes(sample.load());
            return (sample.peak_bytes + formula).saturating_sub(there);
        }
        formula.saturating_sub(needs.loaded_bytes()) + self.loaded_bytes(needs)
    }

    /// The footprint to expect of the loaded worker, and at the worst moment of loading.
    pub fn loaded_bytes(&self, needs: &Needs) -> u64 {
        self.loaded_bytes.unwrap_or_else(|| needs.loaded_bytes())
    }

    /// What a worker is to be promised before its first sequence: its measured footprint, and of
    /// what was measured at `load` all that no sequence keeps.
    pub fn base_bytes(&self, needs: &Needs, load: Load) -> u64 {
        let sequences = load.batch * needs.sequence_bytes(load.context);
        let working = match self.buckets.get(&bucket(load)) {
            Some(_) => self.peak_bytes(needs, load).saturating_sub(sequences),
            None => self.loaded_bytes(needs) + needs.cache_bytes().max(needs.transient_bytes(load)),
        };
        working.max(self.loading_peak_bytes.unwrap_or(0)) + needs.prefix_bytes_max
    }
}

#[derive(Serialize, Deserialize)]
struct Entry {
    key: MeasuredKey,
    #[serde(flatten)]
    measured: Measured,
}

#[derive(Serialize, Deserialize)]
struct File {
    format: u32,
    models: Vec<Entry>,
}

/// The file, and what is in it. Blocks; call it off the event loop.
#[derive(Debug, Default)]
pub struct MeasuredFile {
    path: PathBuf,
    models: BTreeMap<MeasuredKey, Measured>,
}

impl MeasuredFile {
    /// Reads `path`. A file that is not there is an empty one; one that cannot be understood is
    /// put aside under another name, and its reason given.
    pub fn open(path: PathBuf) -> (Self, Option<String>) {
        match read(&path) {
            Ok(models) => (Self { path, models }, None),
            Err(reason) => {
                let aside = path.with_extension("unreadable");
                let moved = std::fs::rename(&path, &aside).is_ok();
                let whither =
                    if moved { format!("; it is now {}", aside.display()) } else { String::new() };
                let why = format!("{}: {reason}{whither}", path.display());
                (Self { path, models: BTreeMap::new() }, Some(why))
            }
        }
    }

    /// What is known of a key; nothing for a new one.
    pub fn get(&self, key: &MeasuredKey) -> Measured {
        self.models.get(key).cloned().unwrap_or_default()
    }

    /// What is known of a model under any key, the latest first: for a plan made before its
    /// worker has said how it runs.
    pub fn latest(&self, model: &str, build: &str) -> Option<(&MeasuredKey, &Measured)> {
        let of_model =
            self.models.iter().filter(|(key, _)| key.model == model && key.build == build);
        of_model.max_by_key(|(_, measured)| measured.unix_s)
    }

    /// Everything.
    pub fn iter(&self) -> impl Iterator<Item = (&MeasuredKey, &Measured)> {
        self.models.iter()
    }

    /// Puts what is known of a key, measured at `unix_s`. Written with [`MeasuredFile::save`].
    pub fn put(&mut self, key: MeasuredKey, mut measured: Measured, unix_s: u64) {
        measured.unix_s = unix_s;
        self.models.insert(key, measured);
        while self.models.len() > ENTRIES_MAX {
            let oldest = self.models.iter().min_by_key(|(_, measured)| measured.unix_s);
            let Some(oldest) = oldest.map(|(key, _)| key.clone()) else { break };
            self.models.remove(&oldest);
        }
    }

    /// Writes the file: whole or not at all.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn save(&self) -> io::Result<()> {
        let models = self.models.iter();
        let models =
            models.map(|(key, measured)| Entry { key: key.clone(), measured: measured.clone() });
        let file = File { format: FORMAT, models: models.collect() };
        let text = serde_json::to_vec_pretty(&file).map_err(io::Error::other)?;
        let draft = self.path.with_extension("new");
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut out = std::fs::File::create(&draft)?;
        out.write_all(&text)?;
        out.sync_all()?;
        std::fs::rename(draft, &self.path)
    }
}

fn read(path: &Path) -> Result<BTreeMap<MeasuredKey, Measured>, String> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error.to_string()),
        Ok(found) if found.len() > FILE_BYTES_MAX => {
            return Err(format!("it has {} bytes", found.len()));
        }
        Ok(_) => {}
    }
    let text = std::fs::read(path).map_err(|error| error.to_string())?;
    let file: File = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    if file.format != FORMAT {
        return Err(format!("it is of format {}, this mlxd writes {FORMAT}", file.format));
    }
    Ok(file.models.into_iter().map(|entry| (entry.key, entry.measured)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Form, ModelShape, WeightBytes};
    use serde_json::json;

    fn needs() -> Needs {
        let config = json!({
            "model_type": "qwen2", "hidden_size": 896, "num_hidden_layers": 24,
            "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864,
            "vocab_size": 151_936,
        });
        Needs {
            shape: ModelShape::from_config(&config).ok(),
            weights: WeightBytes { stored: 988_000_000, parameters: 494_000_000 },
            form: Form::Stored,
            chunk_tokens: 512,
            cache_bytes_max: None,
            prefix_bytes_max: 0,
            packed_kv: None,
            kv_tokens_max: None,
        }
    }

    fn key(model: &str) -> MeasuredKey {
        MeasuredKey {
            model: model.into(),
            quantization: "bf16".into(),
            build: "0.1.0".into(),
            backend: "cuda".into(),
        }
    }

    #[test]
    fn one_run_takes_the_formulas_place() {
        let (needs, mut measured) = (needs(), Measured::default());
        let load = Load { context: 3000, batch: 3 };
        assert_eq!(measured.peak_bytes(&needs, load), needs.peak_bytes(load));
        let peak = needs.peak_bytes(load) * 2;
        assert!(measured.record(Sample { context: 3000, batch: 3, peak_bytes: peak }));
        assert_eq!(measured.peak_bytes(&needs, load), peak);
        // Elsewhere in the bucket the formula bridges the gap, in both directions.
        let more = Load { context: 4000, batch: 4 };
        let gap = needs.peak_bytes(more) - needs.peak_bytes(load);
        assert_eq!(measured.peak_bytes(&needs, more), peak + gap);
        let less = Load { context: 2049, batch: 3 };
        assert!(measured.peak_bytes(&needs, less) < peak);
        // Other buckets do not hear of it.
        let other = Load { context: 5000, batch: 3 };
        assert_eq!(measured.peak_bytes(&needs, other), needs.peak_bytes(other));
    }

    #[test]
    fn the_largest_peak_of_a_bucket_is_kept() {
        let mut measured = Measured::default();
        let sample = |peak_bytes| Sample { context: 100, batch: 1, peak_bytes };
        assert!(measured.record(sample(10)));
        assert!(!measured.record(sample(9)) && !measured.record(sample(10)));
        assert!(measured.record(Sample { context: 256, ..sample(11) }));
        assert_eq!(measured.buckets.len(), 1);
        assert_eq!(measured.buckets["256 x 1"].peak_bytes, 11);
    }

    #[test]
    fn the_base_follows_what_loading_took() {
        let (needs, mut measured) = (needs(), Measured::default());
        let load = Load { context: 4096, batch: 1 };
        assert_eq!(measured.base_bytes(&needs, load), needs.base_bytes(load));
        measured.loaded_bytes = Some(needs.loaded_bytes() + 50);
        assert_eq!(measured.base_bytes(&needs, load), needs.base_bytes(load) + 50);
        measured.loading_peak_bytes = Some(1 << 40);
        assert_eq!(measured.base_bytes(&needs, load), 1 << 40);
    }

    #[test]
    fn the_file_survives_and_a_foreign_one_is_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/memory.json");
        let (mut file, problem) = MeasuredFile::open(path.clone());
        assert!(problem.is_none() && file.latest("m", "0.1.0").is_none());
        let mut measured = Measured { load_ms: Some(7), ..Measured::default() };
        measured.record(Sample { context: 100, batch: 2, peak_bytes: 5 });
        file.put(key("m"), measured.clone(), 12);
        file.put(key("n"), Measured::default(), 13);
        file.save().unwrap();
        let (again, problem) = MeasuredFile::open(path.clone());
        assert_eq!(problem, None);
        let found = again.get(&key("m"));
        assert_eq!((found.buckets, found.load_ms, found.unix_s), (measured.buckets, Some(7), 12));
        assert_eq!(again.latest("m", "0.1.0").unwrap().0, &key("m"));
        assert!(again.latest("m", "0.2.0").is_none());
        for foreign in ["{\"format\": 99, \"models\": []}", "not JSON", ""] {
            std::fs::write(&path, foreign).unwrap();
            let (empty, problem) = MeasuredFile::open(path.clone());
            assert!(problem.unwrap().contains("unreadable"));
            assert_eq!(empty.iter().count(), 0);
            assert!(!path.exists());
        }
    }

    #[test]
    fn the_oldest_goes_when_there_are_too_many() {
        let (mut file, _) = MeasuredFile::open(PathBuf::from("/nowhere/memory.json"));
        for number in 0..=ENTRIES_MAX as u64 {
            file.put(key(&format!("m{number}")), Measured::default(), 1000 + number);
        }
        assert_eq!(file.iter().count(), ENTRIES_MAX);
        assert_eq!(file.get(&key("m0")).unix_s, 0);
        assert_eq!(file.get(&key("m1")).unix_s, 1001);
    }
}
