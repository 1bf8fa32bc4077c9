//! What the worker writes about itself: the progress page, and the phase for a last log line.

use mlxd_engine::{CacheFigures, Counts, Engine, GuessFigures, MemoryFigures};
use mlxd_protocol::Phase;
use mlxd_ring::{Guessed, Kept, ProgressWriter};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How often the token rate is computed.
const RATE_PERIOD: Duration = Duration::from_millis(500);

/// The phase, for whoever logs the process's end.
static PHASE: AtomicU32 = AtomicU32::new(Phase::Starting as u32);

/// What the main thread is doing now.
pub(crate) fn doing() -> &'static str {
    Phase::from_word(PHASE.load(Ordering::Relaxed)).map_or("unknown", Phase::name)
}

/// The progress page, with what was last written to it.
#[derive(Debug)]
pub(crate) struct Page {
    writer: ProgressWriter,
    phase: Phase,
    counts: Counts,
    rate_from: Instant,
    rate_tokens: u64,
}

impl Page {
    pub(crate) fn new(writer: ProgressWriter, now: Instant) -> Self {
        writer.set_phase(Phase::Starting as u32);
        Self {
            writer,
            phase: Phase::Starting,
            counts: Counts::default(),
            rate_from: now,
            rate_tokens: 0,
        }
    }

    /// Says what comes next. Written before the work begins: a hang shows the phase it is in.
    pub(crate) fn enter(&mut self, phase: Phase) {
        if self.phase != phase {
            self.phase = phase;
            PHASE.store(phase as u32, Ordering::Relaxed);
            self.writer.set_phase(phase as u32);
        }
    }

    /// How far loading is.
    pub(crate) fn loaded(&self, done: u64, total: u64) {
        self.writer.set_load(done, total);
    }

    /// A unit of work is done.
    pub(crate) fn step(&mut self, counts: Counts, engine: &impl Engine, now: Instant) {
        self.figures(counts, engine.memory());
        self.kept(engine.cache_figures());
        self.guessed(engine.guess_figures());
        self.rate(now);
        self.writer.step();
    }

    /// A sign of life of work that no scheduler does.
    pub(crate) fn alive(&self) {
        self.writer.step();
    }

    /// Nothing runs any more.
    pub(crate) fn idle(&mut self, counts: Counts, engine: &impl Engine, now: Instant) {
        self.enter(Phase::Idle);
        self.figures(counts, engine.memory());
        self.kept(engine.cache_figures());
        self.writer.set_milli_tokens_per_second(0);
        self.rate_from = now;
        self.rate_tokens = counts.generated_tokens;
    }

    fn figures(&mut self, counts: Counts, memory: MemoryFigures) {
        let before = std::mem::replace(&mut self.counts, counts);
        self.writer.set_sequences(counts.running as u64, counts.queued as u64);
        self.writer.set_preemptions(counts.preemptions);
        self.writer.add_tokens_generated(counts.generated_tokens - before.generated_tokens);
        self.writer.add_prompt_tokens(counts.prefilled_tokens - before.prefilled_tokens);
        self.writer.set_memory(memory.active, memory.peak, memory.cache);
    }

    fn kept(&self, figures: CacheFigures) {
        let disk = figures.disk;
        self.writer.set_kept(&Kept {
            bytes: figures.bytes,
            bytes_max: figures.bytes_max,
            blocks: figures.blocks,
            lookups: figures.lookups,
            hits: figures.hits,
            tokens: figures.cached_tokens,
            evictions: figures.evictions,
            disk_bytes: disk.bytes,
            disk_bytes_max: disk.bytes_max,
            disk_blocks: disk.blocks,
            disk_reads: disk.reads,
            disk_written_bytes: disk.written_bytes,
            disk_damaged: disk.damaged,
        });
    }

    fn guessed(&self, figures: GuessFigures) {
        let GuessFigures { text, text_right, draft, draft_right } = figures;
        self.writer.set_guessed(&Guessed { text, text_right, draft, draft_right });
    }

    fn rate(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.rate_from);
        if elapsed < RATE_PERIOD {
            return;
        }
        let tokens = self.counts.generated_tokens - self.rate_tokens;
        let milli_rate = tokens as f64 * 1000.0 / elapsed.as_secs_f64();
        self.writer.set_milli_tokens_per_second(milli_rate as u64);
        self.rate_from = now;
        self.rate_tokens = self.counts.generated_tokens;
    }
}
