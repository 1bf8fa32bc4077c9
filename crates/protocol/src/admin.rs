//! What `mlxctl` and the front say to each other: JSON over HTTP on the Unix socket.
//!
//! | call | body | answer |
//! |---|---|---|
//! | `GET /admin/v1/status` | | [`Status`] |
//! | `GET /admin/v1/version` | | [`Version`] |
//! | `POST /admin/v1/start`, `/stop`, `/restart` | [`ModelCall`] | [`ModelStatus`] once it is so |
//! | `POST /admin/v1/pin`, `/unpin` | [`ModelCall`] | [`ModelStatus`] once it is so |
//! | `GET /admin/v1/estimate?model=M&context=N&batch=N` | [`EstimateCall`], in the query | [`Estimate`] |
//! | `POST /admin/v1/signal` | [`SignalCall`] | [`ModelStatus`] once it is sent |
//! | `GET /admin/v1/log?model=M&bytes=N&follow=true` | | the worker's log, plain text; with `follow` it never ends; without `model` mlxd's own |
//! | `GET /admin/v1/events?last=N&follow=true` | | one [`Event`] a line; with `follow` it never ends |
//! | `GET /admin/v1/why?model=M` | | [`Why`]: a model's last death |
//! | `POST /admin/v1/reread` | | [`Reread`]: what the configuration would change |
//! | `POST /admin/v1/update` | | [`Reread`]: what it changed |
//! | `POST /admin/v1/bench` | [`BenchCall`] | [`BenchAnswer`]: the engine alone, inside its worker |
//! | `POST /admin/v1/pull` | [`PullCall`] | one [`PullStatus`] a line until its end |
//! | `POST /admin/v1/pull/cancel` | [`PullCancelCall`] | [`PullStatus`] |
//! | `GET /admin/v1/models` | | [`Shelf`]: the models on disk |
//! | `GET /admin/v1/show?model=M` | | [`ModelShow`] |
//! | `POST /admin/v1/remove` | [`RemoveCall`] | [`Removed`] once it is so |
//! | `POST /admin/v1/route` | a request of the API | [`RouteReport`]: which model would answer, and why |
//! | `POST /admin/v1/shutdown` | | [`Version`], then the front drains and exits |
//!
//! Errors have an HTTP status of 400 and above and an [`AdminError`] as body. The OpenAI routes
//! are served on the same socket, so `mlxctl ask` is a chat request.

mod cache;
mod crash;
mod event;
mod memory;
mod reload;
mod route;
mod shelf;
mod signal;

pub use cache::{CacheReport, CacheStatus, DiskCacheStatus, ModelCache};
pub use crash::{
    CRASH_REPORT_FORMAT, CrashReport, DeathCause, DeathEnd, Deed, RequestShape, Sample, Versions,
    Why,
};
pub use event::{Event, Happening};
pub use memory::{Estimate, EstimateCall, EstimatePart, MemoryStatus, Residence, Verdict};
pub use reload::{ModelChange, ModelChangeKind, Reread, SettingChange};
pub use route::{RouteOutcome, RouteReport, RouteRequest, RouteStep};
pub use shelf::{
    Incomplete, ModelOnDisk, ModelShow, PullCall, PullCancelCall, PullFileStatus, PullRetry,
    PullStage, PullStatus, RemoveCall, Removed, Shelf,
};
pub use signal::{SignalCall, SignalName, SignalNameError};

use serde::{Deserialize, Serialize};

/// Supervisor's state names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum WorkerState {
    /// Never started, or stopped by an admin.
    Stopped,
    /// Spawned; shaking hands or loading.
    Starting,
    /// Takes requests.
    Running,
    /// Died; will be started again after a delay.
    Backoff,
    /// Draining or being ended.
    Stopping,
    /// Ended by itself with code 0.
    Exited,
    /// Gave up: the reason says why. Cleared by `start`.
    Fatal,
}

impl WorkerState {
    /// The name people see.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stopped => "STOPPED",
            Self::Starting => "STARTING",
            Self::Running => "RUNNING",
            Self::Backoff => "BACKOFF",
            Self::Stopping => "STOPPING",
            Self::Exited => "EXITED",
            Self::Fatal => "FATAL",
        }
    }
}

/// The front and its models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The front.
    pub server: Version,
    /// Seconds since the front started.
    pub uptime_s: u64,
    /// Resident bytes of the front.
    pub memory_bytes: u64,
    /// Base URL of the API, as `http://127.0.0.1:11440/v1`.
    pub base_url: String,
    /// Whether the front finishes what runs and then ends; it takes no further request.
    #[serde(default)]
    pub shutting_down: bool,
    /// The machine's memory.
    #[serde(default)]
    pub memory: MemoryStatus,
    /// Every model known by configuration or by having been asked for, in name order.
    pub models: Vec<ModelStatus>,
}

/// One model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelStatus {
    /// Its name in requests.
    pub name: String,
    /// Groups it belongs to by configuration.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// What its worker is doing.
    pub state: WorkerState,
    /// Why it is in that state, for BACKOFF, EXITED and FATAL; for STOPPED, why it could
    /// not be loaded when that was tried last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The worker's process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Seconds in this life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uptime_s: Option<u64>,
    /// 0 to 1 while loading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_progress: Option<f32>,
    /// What the operating system counts for the process, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// `idle`, `prefill`, `decode`, … from the progress page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Requests taken since the front started.
    pub requests_total: u64,
    /// Tokens generated since the front started.
    pub tokens_total: u64,
    /// Sequences in the worker now.
    pub running: u32,
    /// Sequences waiting now.
    pub queued: u32,
    /// How often a sequence gave up its place for another, since the worker was loaded.
    #[serde(default)]
    pub preemptions: u64,
    /// Tokens a second over the last seconds; 0 when idle.
    pub tokens_per_s: f32,
    /// Deaths since the front started.
    pub deaths: u32,
    /// What it has to do with memory.
    #[serde(default)]
    pub residence: Residence,
    /// `qwen3`, …, once loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// `4-bit g64`, …, once loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<String>,
    /// The version of MLX that runs it, once loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mlx: Option<String>,
    /// Tokens of context, once loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_tokens: Option<u32>,
    /// What its worker keeps for prompts that begin as earlier ones did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheStatus>,
    /// How its worker's guessing ahead went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guesses: Option<GuessStatus>,
}

/// Tokens guessed ahead since the worker was loaded, and those of them that were right.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuessStatus {
    /// Guessed from the sequence's own text.
    pub text: u64,
    /// Of those, right.
    pub text_right: u64,
    /// Guessed by a draft model.
    pub draft: u64,
    /// Of those, right.
    pub draft_right: u64,
}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The front's version.
    pub version: String,
    /// [`PROTOCOL_VERSION`](crate::PROTOCOL_VERSION).
    pub protocol: u32,
    /// The front's process id.
    pub pid: u32,
}

/// Which model a call is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelCall {
    /// Its name.
    pub model: String,
}

/// Why an admin call was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminError {
    /// What happened.
    pub error: AdminErrorBody,
}

/// The inside of an [`AdminError`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminErrorBody {
    /// Stable: `unknown_model`, `already_started`, `not_running`, `load_failed`, `spawn_failed`,
    /// `bad_request`, `bad_config`, `no_log`, `in_use`, `not_pulling`, `pull_failed`, `cancelled`,
    /// `insufficient_memory`, `memory_full`, `memory_pressure`, `shutting_down`, `internal`.
    pub code: String,
    /// For people.
    pub message: String,
}

/// A direct run of a model's engine, for `mlxd bench`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BenchCall {
    /// Which model. It is loaded if it is not.
    pub model: String,
    /// A user's message; rendered and tokenised as a chat request's would be.
    pub question: String,
    /// Tokens to generate; no stop token ends it early.
    pub new_tokens: u32,
    /// Runs before the timed ones.
    pub warmup_runs: u32,
    /// Timed runs.
    pub runs: u32,
}

/// What a direct run took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchAnswer {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// The times.
    pub leg: crate::BenchLeg,
    /// What the model is.
    pub status: ModelStatus,
}
