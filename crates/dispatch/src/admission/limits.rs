//! What admission keeps to. All of it is configuration.

use mlxd_memory::{Machine, Thresholds};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Limits over all models' memory.
#[derive(Debug, Clone)]
pub struct MemoryLimits {
    /// Bytes that may be promised in all; `None`: what the machine has, less the reserve.
    pub budget: Option<u64>,
    /// Bytes left to the system and to others; `None`: by the machine's size.
    pub reserve: Option<u64>,
    /// Models loaded at once.
    pub loaded_max: usize,
    /// A model that was just loaded is not unloaded for another within this time.
    pub residence_min: Duration,
    /// A model that has waited so long for memory is served next: those in its way take nothing
    /// new until it was.
    pub starvation: Duration,
    /// Sequences that wait for memory, over all models.
    pub waiting_max: usize,
    /// How long one may wait.
    pub waiting_timeout: Duration,
    /// How often the machine and the workers are looked at.
    pub look_interval: Duration,
    /// How far, in percent of its promise, a worker may go over it before the system ends it;
    /// `None` lets it.
    pub overrun_percent: Option<u32>,
    /// When memory pressure is a warning, or critical.
    pub pressure: Thresholds,
}

impl Default for MemoryLimits {
    fn default() -> Self {
        Self {
            budget: None,
            reserve: None,
            loaded_max: 8,
            residence_min: Duration::from_secs(5),
            starvation: Duration::from_secs(10),
            waiting_max: 256,
            waiting_timeout: Duration::from_secs(600),
            look_interval: Duration::from_secs(1),
            overrun_percent: Some(50),
            pressure: Thresholds::default(),
        }
    }
}

/// What admission works with.
#[derive(Debug, Clone)]
pub struct MemoryKeeping {
    /// The machine's figures.
    pub machine: Arc<dyn Machine>,
    /// Where measured figures are kept.
    pub measured: PathBuf,
    /// What it keeps to.
    pub limits: MemoryLimits,
}

/// How long a model stays loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lifetime {
    /// Idle so long, it is unloaded; `None` never.
    pub ttl: Option<Duration>,
    /// Never unloaded to make room, nor for being idle.
    pub pinned: bool,
}

/// How long a request wants its model to stay loaded after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepAlive {
    /// So long.
    For(Duration),
    /// Until somebody says otherwise.
    Forever,
}
