//! Memory: what is promised, who waits, what a model would need.

use super::{Deserialize, Serialize};

/// The machine's memory as admission sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// Bytes that all models together may be promised.
    pub budget_bytes: u64,
    /// Bytes that are promised.
    pub promised_bytes: u64,
    /// Bytes that can be promised now: nobody holds them, and the machine has them.
    pub free_bytes: u64,
    /// Bytes that the machine could give now; `None` when it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_bytes: Option<u64>,
    /// Bytes left to the system and to other programs.
    pub reserve_bytes: u64,
    /// `normal`, `warning` or `critical`.
    pub pressure: String,
    /// Requests that wait for memory.
    pub waiting: u32,
}

/// What a model has to do with memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Residence {
    /// Bytes promised to it.
    pub promised_bytes: u64,
    /// Neither idleness nor another model's need unloads it.
    pub pinned: bool,
    /// Requests for it that wait for memory.
    pub waiting: u32,
    /// What they wait for, in numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
    /// Why it was not loaded when that was asked for last and memory was in the way, in a few words;
    /// the model's `reason` has all of them. Gone once it is loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Seconds until it is unloaded for being idle; `None` while it is used, and for one that
    /// stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaves_in_s: Option<u64>,
}

/// Asks what a model would need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EstimateCall {
    /// Its name.
    pub model: String,
    /// Tokens of each sequence, prompt and answer together. Left out: 4096, or the model's context
    /// if that is less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<u32>,
    /// Sequences at once. Left out: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<u32>,
}

/// What a model would need, part by part. All in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Estimate {
    /// Its name.
    pub model: String,
    /// Tokens of each sequence.
    pub context: u32,
    /// Sequences at once.
    pub batch: u32,
    /// The arithmetic, before anything is measured.
    pub parts: Vec<EstimatePart>,
    /// The measured footprint of the loaded worker with nothing running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_loaded_bytes: Option<u64>,
    /// The footprint to expect at this load, from one like it that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_peak_bytes: Option<u64>,
    /// What would be promised in all: the measured load with a margin, else the arithmetic.
    pub needs_bytes: u64,
    /// What is promised to it now.
    pub promised_bytes: u64,
    /// The machine.
    pub memory: MemoryStatus,
    /// Whether it fits.
    pub verdict: Verdict,
    /// The verdict in words and numbers.
    pub message: String,
}

/// One part of an [`Estimate`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EstimatePart {
    /// What for.
    pub name: String,
    /// Bytes.
    pub bytes: u64,
    /// How they come about.
    pub how: String,
}

/// Whether something fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It fits now.
    Fits,
    /// It fits once idle models are unloaded.
    Evicts,
    /// Requests for it would wait.
    Waits,
    /// It can never fit.
    Never,
}
