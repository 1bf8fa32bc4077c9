//! Front ↔ worker, over `ipc-channel`: rare, ordered, typed.
//!
//! The front spawns the worker with the address of a one-shot server. The worker connects and
//! sends [`FromWorker::Hello`]; the front answers with [`ToWorker::Load`]; progress follows,
//! then [`FromWorker::Ready`] or [`FromWorker::LoadFailed`]. From then on requests go over the rings.

use crate::Incarnation;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What a worker says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`](crate::PROTOCOL_VERSION) of the worker's build.
    pub protocol: u32,
    /// The worker's crate version.
    pub version: String,
    /// The worker's process id.
    pub pid: u32,
    /// Which life this is, as told on its command line.
    pub incarnation: Incarnation,
}

/// Worker → front.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum FromWorker {
    /// First message.
    Hello(Hello),
    /// The model is loaded and warm; requests may come.
    Ready(ModelInfo),
    /// The model cannot be loaded. The worker exits after this.
    LoadFailed(LoadFault),
    /// Everything that ran is finished; nothing is left to publish.
    Drained,
    /// A [`ToWorker::ClearCache`] is done.
    CacheCleared(Cleared),
    /// The result of a [`ToWorker::Bench`].
    BenchDone(BenchLeg),
    /// A [`ToWorker::Bench`] that could not run.
    BenchFailed(String),
}

/// Front → worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ToWorker {
    /// Load this model. Once per life.
    Load(LoadSpec),
    /// Take no new sequence, finish what runs, answer [`FromWorker::Drained`].
    Drain,
    /// Exit now, code 0.
    Shutdown,
    /// Give back what is only kept for reuse: memory is short.
    Trim,
    /// Drop what is kept for prompts that begin alike, in memory and on the disk, and answer
    /// [`FromWorker::CacheCleared`].
    ClearCache,
    /// Run the engine directly, with no ring, text or HTTP, and time it.
    Bench(BenchSpec),
    /// The engine's arrays may take so many bytes; close to that it keeps nothing for reuse and
    /// waits for what runs. It ends nothing: that is the system's and the front's part.
    MemoryLimit(u64),
}

/// Which device MLX computes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceChoice {
    /// The GPU when MLX has one, else the CPU.
    #[default]
    Auto,
    /// The CPU, even where there is a GPU.
    Cpu,
    /// The GPU, or a load error.
    Gpu,
}

/// What to load and within which limits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadSpec {
    /// Folder with `config.json` and safetensors files.
    pub folder: PathBuf,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Tokens of a prompt run in one piece at the most.
    pub prefill_chunk_tokens: u32,
    /// The same while other sequences decode: they wait for the piece.
    pub prefill_chunk_tokens_busy: u32,
    /// Tokens a sequence may have; `None` is what the model's config says.
    pub context_tokens_max: Option<u32>,
    /// Sequences computed at once at the most.
    pub running_max: u32,
    /// Sequences waiting inside the worker at the most.
    pub queued_max: u32,
    /// Begun sequences that a more urgent one may push out of their place at the most. They keep
    /// their KV.
    pub parked_max: u32,
    /// Milliseconds of waiting that lift a sequence by one priority; 0 never does.
    pub ageing_ms: u64,
    /// Bytes of KV kept for prompts that begin as earlier ones did; 0 keeps none. Nothing is kept
    /// where `deterministic` is true.
    pub prefix_cache_bytes_max: u64,
    /// Where and how much of that is kept on the disk as well; `None` is nothing.
    pub prefix_disk: Option<PrefixDisk>,
    /// Tokens guessed from the sequence itself and checked in one pass, at the most, where that is
    /// measured faster than steps; 0 never guesses. Not where `deterministic` is true.
    pub guesses_max: u32,
    /// A small model that guesses for this one; `None` where there is none. Nothing is guessed
    /// where `deterministic` is true.
    pub draft: Option<DraftSpec>,
    /// How keys and values of long sequences are packed; `None` keeps them as they are computed.
    pub kv_quantization: Option<KvQuantization>,
    /// Positions whose keys and values a sequence keeps at the most, in layers that would keep all
    /// of them: the first few and the last ones. `None` keeps all. Not with `kv_quantization`.
    pub kv_tokens_max: Option<u32>,
    /// Bytes MLX may keep in its buffer cache; `None` leaves MLX's default.
    pub cache_bytes_max: Option<u64>,
    /// A sequence that an earlier incarnation began goes on with the very tokens that it would
    /// have had there.
    ///
    /// What that fixes: a prompt is cut into the same pieces whatever else runs, and the generated
    /// part is decoded again, one token a forward as it was the first time, not prefilled in one
    /// piece, whose products round differently. The width of the batch needs no fixing today:
    /// every row is a graph of its own with batch 1, so what runs beside it makes no difference.
    /// It will once rows share a forward, and so will a cache of prefixes that were cut otherwise.
    ///
    /// What it costs: a replay's generated part takes one decode step a token, and up to two
    /// pieces of prompts may run between two decode steps. An undisturbed sequence costs the same.
    pub deterministic: bool,
}

/// A model that guesses for another one, with the same tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DraftSpec {
    /// Folder with `config.json` and safetensors files.
    pub folder: PathBuf,
    /// Tokens guessed and checked in one pass at the most.
    pub tokens_max: u32,
}

/// Packed keys and values. Layers that see a window of positions, and states of scans, are never
/// packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvQuantization {
    /// Bits of one key or value: 4 or 8.
    pub bits: u32,
    /// Tokens from which on all of a sequence's keys and values are packed.
    pub from_tokens: u32,
}

/// Kept prefixes on the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefixDisk {
    /// The model's own folder for them. Made if it is not there.
    pub folder: PathBuf,
    /// Bytes of all files in it.
    pub bytes_max: u64,
    /// Bytes written in an hour at the most.
    pub write_bytes_per_hour_max: u64,
}

/// What was dropped of kept prefixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cleared {
    /// Bytes in memory.
    pub bytes: u64,
    /// Bytes on the disk.
    pub disk_bytes: u64,
}

/// What a loaded model is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// `model_type` of its config: `llama`, `qwen3`, ….
    pub architecture: String,
    /// Rows of the embedding: token ids are below this.
    pub vocab_size: u32,
    /// Tokens a sequence may have, prompt and answer together.
    pub context_tokens: u32,
    /// Parameters, counted before quantisation.
    pub parameters: u64,
    /// Bytes of the weights as loaded.
    pub weight_bytes: u64,
    /// KV bytes one token takes over all layers; where long sequences' KV is packed, one of theirs.
    pub kv_bytes_per_token: u64,
    /// As `4-bit g64`, `bf16`, `f32`.
    pub quantization: String,
    /// `metal`, `cuda` or `cpu`.
    pub backend: String,
    /// The version of MLX that runs it, where it is MLX.
    pub mlx: Option<String>,
    /// Milliseconds from the load command to ready.
    pub load_ms: u64,
}

/// Numbers of parameters as in models' names: `0.6B`, `30.5B`, `494M`.
pub fn parameters_in_short(count: u64) -> String {
    match count {
        1_000_000_000.. => format!("{:.1}B", count as f64 / 1e9),
        1_000_000.. => format!("{:.0}M", count as f64 / 1e6),
        _ => format!("{:.0}k", count as f64 / 1e3),
    }
}

/// Why a model could not be loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct LoadFault {
    /// Whose fault.
    pub kind: LoadFaultKind,
    /// Names the file, tensor or key, and says what to do.
    pub message: String,
}

/// Kinds of [`LoadFault`]. None of them is cured by trying again unchanged, except `Engine`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoadFaultKind {
    /// The folder or a file of it is missing or unreadable.
    Missing,
    /// A file contradicts itself or another.
    Corrupt,
    /// An architecture or quantisation this build does not know.
    Unsupported,
    /// MLX or the device failed.
    Engine,
}

/// A direct run of the engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchSpec {
    /// The prompt.
    pub prompt: Vec<u32>,
    /// Tokens to generate; no stop token ends it early.
    pub new_tokens: u32,
    /// Runs before the timed ones.
    pub warmup_runs: u32,
    /// Timed runs.
    pub runs: u32,
}

/// Times of a direct run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchLeg {
    /// Seconds of each run, from the prompt to the last token read.
    pub seconds: Vec<f64>,
    /// Seconds of each run's prompt, up to the first token read.
    pub first_token_seconds: Vec<f64>,
    /// The tokens of the last run.
    pub tokens: Vec<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_parameters_are_short() {
        let short = [30_530_000_000, 494_000_000, 9_000].map(parameters_in_short);
        assert_eq!(short, ["30.5B", "494M", "9k"]);
    }
}
