//! `[memory]`: how much of it models may have, who goes to make room, who waits how.

use crate::section::section;
use crate::value::{FullPath, Optional, Truth};
use std::path::PathBuf;

section! {
    /// How much memory models may have, who goes to make room, who waits how.
    pub struct MemoryConfig in "memory" {
        /// Bytes that all models together may be promised. Left out: the machine's memory, or what
        /// a control group leaves of it, less the reserve; on a Mac at the most what its GPU should
        /// hold. Of that only what other programs leave available is given out.
        budget_bytes: Option<u64> = None, Optional(1 << 26..=1 << 50);
        /// Bytes left to the system and to other programs. Left out: 20 GiB from 64 GiB of memory
        /// on, 8 GiB from 24 GiB on, else 4 GiB, and never more than a quarter.
        reserve_bytes: Option<u64> = None, Optional(0..=1 << 50);
        /// Models loaded at once. Left out: `workers_max`.
        max_loaded: Option<usize> = None, Optional(1..=256);
        /// A model that was just loaded is not unloaded for another within this time.
        residence_min_ms: u64 = 5_000, 0..=3_600_000;
        /// A model that has waited so long for memory is next: those in its way take nothing new.
        starvation_ms: u64 = 10_000, 100..=3_600_000;
        /// Requests that wait for memory, over all models; a further one gets 503.
        waiting_max: usize = 256, 1..=65_536;
        /// Whether a worker that outgrows its promise is ended by the system.
        contain: bool = true, Truth;
        /// How far it may go over its promise, in percent of it; 256 MiB come on top.
        overrun_percent: u32 = 50, 0..=1_000;
        /// How often the machine and the workers are looked at.
        look_interval_ms: u64 = 1_000, 20..=60_000;
        /// Percent of the last ten seconds with some process waiting for memory that is a warning.
        pressure_warning_percent: u32 = 10, 1..=100;
        /// Percent with all of them waiting that is critical.
        pressure_critical_percent: u32 = 10, 1..=100;
        /// Percent of available memory from which on such waits say nothing.
        pressure_roomy_percent: u32 = 20, 1..=100;
        /// How long it must be calmer before it counts as calmer.
        pressure_calm_ms: u64 = 10_000, 0..=3_600_000;
        /// A file whose figures stand in for the machine's own, to rehearse with.
        rehearsal: Option<PathBuf> = None, Optional(FullPath);
    }
}
