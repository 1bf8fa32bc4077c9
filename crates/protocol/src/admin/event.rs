//! What happened, for `mlxctl events`.

use super::{Deserialize, Serialize, WorkerState};

/// Something that happened since the front started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Counts from 1; a gap means that older events were dropped.
    pub sequence: u64,
    /// Milliseconds since 1970.
    pub unix_ms: u64,
    /// The model it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What it was.
    #[serde(flatten)]
    pub happening: Happening,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Happening {
    /// The front takes requests.
    Serving {
        /// Where, as `http://127.0.0.1:11440/v1`.
        base_url: String,
    },
    /// A worker's state changed.
    WorkerState {
        /// Before.
        from: WorkerState,
        /// Now.
        to: WorkerState,
        /// Why, where there is something to say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A worker's process was made.
    WorkerSpawned {
        /// The process.
        pid: u32,
    },
    /// A worker's process ended.
    WorkerGone {
        /// The process.
        pid: u32,
        /// In words.
        how: String,
    },
    /// Requests of a dead worker were handed to its successor.
    Replayed {
        /// How many.
        requests: u32,
    },
    /// A request was given up because worker after worker died with it.
    Quarantined {
        /// Its id.
        request: String,
        /// Why, as its client was told.
        reason: String,
    },
    /// A model is unloaded that nobody stopped.
    Unloading {
        /// For what: room, idleness, pressure.
        reason: String,
    },
    /// A worker is not started: the machine has no memory for it.
    NoRoom {
        /// In numbers.
        reason: String,
    },
    /// How hard the system's memory is pressed.
    MemoryPressure {
        /// `normal`, `warning` or `critical`.
        level: String,
    },
    /// A new configuration was put to work.
    Reloaded {
        /// Models that were added, changed or removed.
        models: Vec<String>,
    },
    /// The front finishes what runs.
    ShuttingDown,
    /// Something that this version does not know.
    #[serde(other)]
    Other,
}
