//! `[workers]`: how worker processes are started, watched, stopped and started again.

use crate::section::section;
use crate::value::{FullPath, Optional, PowerOfTwo, Truth};
use std::path::PathBuf;

section! {
    /// How worker processes are started, watched, stopped and started again.
    pub struct WorkersConfig in "workers" {
        /// The worker program. Left out: `mlxd-worker` beside `mlxd`.
        program: Option<PathBuf> = None, Optional(FullPath);
        /// Workers alive at once; a model that needs one more gets 503.
        workers_max: usize = 8, 1..=256;
        /// From the spawn to the worker's first message.
        start_timeout_ms: u64 = 10_000, 100..=600_000;
        /// From the load command to ready.
        load_timeout_ms: u64 = 600_000, 1_000..=7_200_000;
        /// How long a stopped worker may finish what runs, before it is told to end.
        drain_ms: u64 = 30_000, 0..=3_600_000;
        /// How long it may take to end after that and after SIGTERM each, before SIGKILL.
        term_ms: u64 = 10_000, 100..=600_000;
        /// Wait before the first restart after a death; doubles with each further death.
        backoff_initial_ms: u64 = 100, 1..=600_000;
        /// The longest wait before a restart.
        backoff_max_ms: u64 = 30_000, 1..=3_600_000;
        /// So many deaths within `deaths_window_s` make a worker FATAL.
        deaths_max: u32 = 5, 1..=1_000;
        /// See `deaths_max`.
        deaths_window_s: u64 = 300, 1..=86_400;
        /// A worker whose step counter stands still so long within a prefill is hung.
        prefill_hang_ms: u64 = 120_000, 1_000..=3_600_000;
        /// The same within a decode step.
        decode_hang_ms: u64 = 5_000, 1_000..=3_600_000;
        /// A worker that was sent requests and takes none for so long is hung.
        idle_hang_ms: u64 = 5_000, 1_000..=3_600_000;
        /// From SIGTERM to SIGKILL for a worker that hung or broke the protocol.
        condemned_term_ms: u64 = 500, 100..=600_000;
        /// How often the progress pages are looked at.
        watch_interval_ms: u64 = 250, 10..=60_000;
        /// Ring that carries requests to a worker.
        commands_ring_bytes: usize = 1024 * 1024, PowerOfTwo(4096..=256 * 1024 * 1024);
        /// Ring that carries tokens back.
        tokens_ring_bytes: usize = 1024 * 1024, PowerOfTwo(4096..=256 * 1024 * 1024);
        /// Crash reports kept for each model, the newest.
        crash_reports_max: usize = 20, 1..=10_000;
        /// Bytes of a crash report.
        crash_report_bytes_max: usize = 256 * 1024, 4096..=64 * 1024 * 1024;
        /// Whether crash reports hold the prompts (as token ids) of the requests in flight.
        crash_prompts: bool = false, Truth;
        /// A worker's log file is turned over at this size; one older file is kept.
        log_bytes_max: u64 = 4 * 1024 * 1024, 4096..=1024 * 1024 * 1024;
    }
}
