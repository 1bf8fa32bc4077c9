//! What is written down about a death, and handed out by `mlxctl why`.
//!
//! A death has a folder, `crashes/MODEL/TIME/` in the state folder, with a `report.json` that
//! holds a [`CrashReport`]. Requests appear by their shape: what they said is left out unless the
//! configuration asks for it.

use super::{Deserialize, ModelStatus, Serialize};

/// The number in [`CrashReport::format`]. Raised when a field changes its meaning; new fields are
/// optional.
pub const CRASH_REPORT_FORMAT: u32 = 1;

/// The last death of a model's worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Why {
    /// The model now.
    pub status: ModelStatus,
    /// Its last death; `None` when none is on record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<CrashReport>,
    /// The folder of that report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
    /// Deaths of this model on record.
    pub reports: u32,
}

/// One death.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CrashReport {
    /// [`CRASH_REPORT_FORMAT`].
    pub format: u32,
    /// The model's name.
    pub model: String,
    /// When the process was found dead, in milliseconds since 1970.
    pub unix_ms: u64,
    /// Which life it was.
    pub incarnation: u64,
    /// The process.
    pub pid: u32,
    /// How long the process lived, in milliseconds.
    pub uptime_ms: u64,
    /// How the process ended.
    pub end: DeathEnd,
    /// What that means.
    pub cause: DeathCause,
    /// What it was doing, from its progress page: `loading`, `prefill`, `decode`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// How long it had been doing that, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase_ms: Option<u64>,
    /// `qwen3`, …, when it had been loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// `4-bit g64`, …, when it had been loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<String>,
    /// The requests it had, at most as many as are kept.
    pub requests: Vec<RequestShape>,
    /// Further requests that are not listed.
    #[serde(default)]
    pub requests_left_out: u32,
    /// Whether some of what follows was left out to keep to the limit on a report's size.
    #[serde(default)]
    pub shortened: bool,
    /// The end of what it wrote to standard error in this life.
    pub stderr_tail: String,
    /// What it told of itself towards the end, oldest first.
    pub timeline: Vec<Sample>,
    /// Deaths of this model's workers since the front started, this one included.
    pub deaths: u32,
    /// Those of them that count for FATAL now.
    pub deaths_recent: u32,
    /// More than this in the window is FATAL.
    pub deaths_max: u32,
    /// What mlxd did about it, in order.
    pub deeds: Vec<Deed>,
    /// Who was involved.
    pub versions: Versions,
}

/// How a process ended, as the operating system tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum DeathEnd {
    /// By a signal.
    Signal {
        /// As `SIGSEGV`.
        name: String,
        /// Its number on this system.
        number: i32,
    },
    /// With an exit code.
    Exit {
        /// The code.
        code: i32,
        /// Its meaning, from [`exit_code`](crate::exit_code).
        meaning: String,
    },
    /// Nothing is known of it.
    Unknown,
}

/// Why it died, as far as the front knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum DeathCause {
    /// It ended by itself, or something outside mlxd ended it.
    Itself,
    /// It stood still and mlxd ended it.
    Hang {
        /// For so long, in milliseconds.
        still_ms: u64,
        /// The deadline, in milliseconds.
        limit_ms: u64,
        /// The deadline's key in the configuration, as `workers.decode_hang_ms`.
        key: String,
    },
    /// It was not ready in time, and mlxd ended it.
    Overdue {
        /// What was waited for, how long, and the limit's key in the configuration.
        why: String,
    },
    /// It said or did what no worker should, and mlxd ended it.
    Condemned {
        /// What that was.
        why: String,
    },
}

/// A request without what it said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestShape {
    /// Its id, as in the log and the `x-request-id` of its answer.
    pub id: String,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens that had been generated.
    pub generated_tokens: u32,
    /// Tokens that it may generate.
    pub max_tokens: u32,
    /// Whether it was being computed; else it waited.
    pub running: bool,
    /// Deaths in a row that it was present at, this one included.
    pub deaths: u32,
    /// Its prompt, where the configuration says that it may be kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
}

/// What the progress page said at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Milliseconds before the death was found.
    pub before_ms: u64,
    /// `prefill`, `decode`, …
    pub phase: String,
    /// Steps so far.
    pub step: u64,
    /// Bytes that the engine had in use.
    pub memory_bytes: u64,
    /// Bytes that the engine kept for reuse.
    #[serde(default)]
    pub cache_bytes: u64,
    /// Sequences in the batch.
    pub running: u32,
    /// Sequences waiting.
    pub queued: u32,
}

/// Something that mlxd did because of a death.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "did", rename_all = "snake_case")]
pub enum Deed {
    /// It sent the process this signal.
    Signalled {
        /// As `SIGTERM`.
        signal: String,
    },
    /// It sent the process this signal, because an admin asked for that.
    Passed {
        /// As `SIGTERM`.
        signal: String,
    },
    /// It will start another worker.
    StartAgain {
        /// After so long, in milliseconds.
        after_ms: u64,
    },
    /// It will not.
    GiveUp {
        /// Why.
        why: String,
    },
    /// It keeps requests for the next worker, which goes on where this one stopped.
    Replay {
        /// How many.
        requests: u32,
    },
    /// It gave a request up.
    Quarantine {
        /// Its id.
        request: String,
    },
    /// It ended requests with an error.
    Fail {
        /// How many.
        requests: u32,
        /// What their clients were told.
        why: String,
    },
}

/// Who was involved.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The front.
    pub mlxd: String,
    /// The worker, where it said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// [`PROTOCOL_VERSION`](crate::PROTOCOL_VERSION) of the front.
    pub protocol: u32,
    /// The operating system, as `Linux 6.1 x86_64`.
    pub system: String,
}
