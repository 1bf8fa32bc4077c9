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
const FORMAT: u32 = 2;

/// Models kept, the latest measured ones.
const ENTRIES_MAX: usize = 512;

/// Samples of one bucket.
const SAMPLES_MAX: usize = 4;

/// How far a load may go over what was measured of the same.
const MARGIN_PERCENT: u64 = 3;

/// And over what the formula adds to it, or takes away, for another load.
const MARGIN_OF_GAP_PERCENT: u64 = 15;

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

/// The largest footprint seen at one load.
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

    /// Whether it ran no more than `load` has, tokens and sequences.
    fn is_within(&self, load: Load) -> bool {
        self.context <= load.context && self.batch <= load.batch
    }

    /// Whether it ran no less.
    fn has_all(&self, load: Load) -> bool {
        self.context >= load.context && self.batch >= load.batch
    }
}

/// What MLX said of its own arrays at a largest footprint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MlxBytes {
    /// In live arrays.
    pub active: u64,
    /// The most that was, since the process began.
    pub peak: u64,
    /// Of freed buffers, kept.
    pub cache: u64,
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
    /// The largest footprint with nothing running, after something did: with what the engine then
    /// keeps of freed buffers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resting_bytes: Option<u64>,
    /// How long loading took at the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_ms: Option<u64>,
    /// By bucket. Of two samples there the one with more tokens and sequences took more.
    #[serde(default)]
    pub buckets: BTreeMap<String, Vec<Sample>>,
    /// What MLX said, of the loaded worker and by bucket. Plans go by footprints alone: this says
    /// what of them is MLX's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub mlx: BTreeMap<String, MlxBytes>,
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

/// Where `formula` comes to on the way through `points`, of what the formula says and what was
/// measured: straight between two, and beyond them as the formula goes. Never falls.
fn along(mut points: Vec<(u64, u64)>, formula: u64) -> u64 {
    points.sort_unstable();
    let (mut below, mut highest) = (None, 0);
    for (at, peak) in points {
        highest = peak.max(highest);
        if at > formula {
            let Some((from, low)) = below else { return highest.saturating_sub(at - formula) };
            let way = u128::from(highest - low) * u128::from(formula - from);
            return low + (way / u128::from(at - from)) as u64;
        }
        below = Some((at, highest));
    }
    below.map_or(formula, |(from, low)| low.saturating_add(formula - from))
}

impl Measured {
    /// Takes in a measured run. True when it says something new: not when as much was seen at a
    /// load that is no larger.
    pub fn record(&mut self, sample: Sample) -> bool {
        let kept = self.buckets.entry(bucket(sample.load())).or_default();
        let (load, peak) = (sample.load(), sample.peak_bytes);
        if kept.iter().any(|one| one.is_within(load) && one.peak_bytes >= peak) {
            return false;
        }
        kept.retain(|one| !(one.has_all(load) && one.peak_bytes <= peak));
        kept.push(sample);
        kept.sort_by_key(|one| (one.context * one.batch, one.context));
        if kept.len() > SAMPLES_MAX {
            // The inner one that is nearest to the one before it.
            let size = |index: usize| kept[index].context * kept[index].batch;
            let nearest = (1..kept.len() - 1).min_by_key(|index| size(*index) - size(index - 1));
            nearest.map(|index| kept.remove(index));
        }
        true
    }

    /// Notes what MLX said when a sample of `load` was taken, or the loaded worker's footprint.
    pub fn note_mlx(&mut self, load: Option<Load>, bytes: MlxBytes) {
        self.mlx.insert(load.map_or("loaded".to_owned(), bucket), bytes);
    }

    /// Whether a load of this bucket was measured.
    pub fn has(&self, load: Load) -> bool {
        !self.samples(load).is_empty()
    }

    fn samples(&self, load: Load) -> &[Sample] {
        self.buckets.get(&bucket(load)).map_or(&[], Vec::as_slice)
    }

    /// The largest footprint to expect at `load`.
    pub fn peak_bytes(&self, needs: &Needs, load: Load) -> u64 {
        let formula = needs.peak_bytes(load);
        let samples = self.samples(load);
        if samples.is_empty() {
            return formula.saturating_sub(needs.loaded_bytes()) + self.loaded_bytes(needs);
        }
        let points = samples.iter().map(|one| (needs.peak_bytes(one.load()), one.peak_bytes));
        let of = |within: fn(&Sample, Load) -> bool| {
            samples.iter().filter(move |one| within(one, load)).map(|one| one.peak_bytes)
        };
        let least = of(Sample::is_within).max().unwrap_or(0);
        let most = of(Sample::has_all).min().unwrap_or(u64::MAX);
        along(points.collect(), formula).max(least).min(most)
    }

    /// How much more than [`peak_bytes`](Self::peak_bytes) may come of a load whose bucket was
    /// measured: a little where that very load was, and more the further the formula bridges.
    pub fn margin_bytes(&self, needs: &Needs, load: Load) -> u64 {
        let formula = needs.peak_bytes(load);
        let gap = |one: &Sample| needs.peak_bytes(one.load()).abs_diff(formula);
        let gap = self.samples(load).iter().map(gap).min().unwrap_or(0);
        let percent = |bytes: u64, percent| bytes / 100 * percent;
        percent(self.peak_bytes(needs, load), MARGIN_PERCENT) + percent(gap, MARGIN_OF_GAP_PERCENT)
    }

    /// The footprint to expect of the loaded worker, and at the worst moment of loading.
    pub fn loaded_bytes(&self, needs: &Needs) -> u64 {
        self.loaded_bytes.unwrap_or_else(|| needs.loaded_bytes())
    }

    /// What a worker is to be promised before its first sequence: what it was seen to take with
    /// nothing running, or for as long as that is not known what `load` takes for a moment.
    pub fn base_bytes(&self, needs: &Needs, load: Load) -> u64 {
        let resting = self.loaded_bytes(needs) + self.spare_bytes(needs, load);
        resting.max(self.loading_peak_bytes.unwrap_or(0)) + needs.prefix_bytes_max
    }

    /// What of the base is there for what sequences take for a moment, or leave in freed buffers.
    pub fn spare_bytes(&self, needs: &Needs, load: Load) -> u64 {
        match self.resting_bytes {
            Some(resting) => resting.saturating_sub(self.loaded_bytes(needs)),
            None => needs.cache_bytes().max(needs.transient_bytes(load)),
        }
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
            draft: None,
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
        assert_eq!(
            measured.buckets["256 x 1"],
            [sample(10), Sample { context: 256, ..sample(11) }]
        );
        // As much at less: what more took says nothing any longer.
        assert!(measured.record(sample(12)));
        assert_eq!(measured.buckets["256 x 1"], [sample(12)]);
        assert!(!measured.record(Sample { context: 256, ..sample(12) }));
        for more in 1..9 {
            let context = 100 + more * more;
            assert!(measured.record(Sample { context, ..sample(12 + more) }));
        }
        let kept: Vec<u64> = measured.buckets["256 x 1"].iter().map(|one| one.context).collect();
        assert_eq!((kept.len(), kept[0], kept[3]), (SAMPLES_MAX, 100, 164));
    }

    #[test]
    fn between_two_samples_the_formula_divides_the_way() {
        let (needs, mut measured) = (needs(), Measured::default());
        let at = |context| Load { context, batch: 1 };
        let (low, high) = (needs.peak_bytes(at(2100)), needs.peak_bytes(at(4000)) + (100 << 20));
        measured.record(Sample { context: 2100, batch: 1, peak_bytes: low });
        assert_eq!(measured.margin_bytes(&needs, at(2100)), low / 100 * MARGIN_PERCENT);
        let far = measured.margin_bytes(&needs, at(4000));
        assert!(far > measured.margin_bytes(&needs, at(3000)));
        measured.record(Sample { context: 4000, batch: 1, peak_bytes: high });
        assert!(far > measured.margin_bytes(&needs, at(4000)));
        let middle = measured.peak_bytes(&needs, at(3000));
        assert!(needs.peak_bytes(at(3000)) < middle && middle < high, "{middle}");
        assert_eq!(along(vec![(10, 100), (20, 300)], 15), 200);
    }

    proptest::proptest! {
        /// What was kept is predicted exactly, and more never takes less, whatever was measured.
        #[test]
        fn predictions_are_exact_where_measured_and_never_fall(
            runs in proptest::collection::vec((2049..4097_u64, 3..5_u64, 0..4_000_000_000_u64), 1..9),
            context in 2049..4097_u64, more in 0..2048_u64, batch in 3..5_u64, beside in 0..2_u64,
        ) {
            let (needs, mut measured) = (needs(), Measured::default());
            for (context, batch, peak_bytes) in runs {
                measured.record(Sample { context, batch, peak_bytes });
            }
            for one in measured.buckets.values().flatten() {
                proptest::prop_assert_eq!(measured.peak_bytes(&needs, one.load()), one.peak_bytes);
            }
            let less = measured.peak_bytes(&needs, Load { context, batch });
            let more = Load { context: (context + more).min(4096), batch: (batch + beside).min(4) };
            proptest::prop_assert!(measured.peak_bytes(&needs, more) >= less);
        }
    }

    #[test]
    fn the_base_follows_what_loading_took() {
        let (needs, mut measured) = (needs(), Measured::default());
        let load = Load { context: 4096, batch: 1 };
        assert_eq!(measured.base_bytes(&needs, load), needs.base_bytes(load));
        measured.loaded_bytes = Some(needs.loaded_bytes() + 50);
        assert_eq!(measured.base_bytes(&needs, load), needs.base_bytes(load) + 50);
        // Seen at rest, that is what it is, and no buffers are guessed.
        measured.resting_bytes = Some(needs.loaded_bytes() + 70);
        assert_eq!(measured.base_bytes(&needs, load), needs.loaded_bytes() + 70);
        assert_eq!(measured.spare_bytes(&needs, load), 20);
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
