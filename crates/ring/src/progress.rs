//! The progress page: what a worker tells about itself without sending anything.
//!
//! The worker writes, the front reads whenever it likes. Each figure is one atomic word; a
//! snapshot is a set of true figures, not a picture of one instant. The front takes them as
//! claims of a process that may be broken: they inform, they index nothing.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::monotonic_ns;
use crate::memory::Words;

/// Bytes set aside for the page.
pub(crate) const PROGRESS_BYTES: usize = 4096;

#[derive(Clone, Copy)]
enum Figure {
    Step,
    LastStepNs,
    Phase,
    PhaseSinceNs,
    MemoryActiveBytes,
    MemoryPeakBytes,
    MemoryCacheBytes,
    LoadDone,
    LoadTotal,
    SequencesRunning,
    SequencesQueued,
    Preemptions,
    TokensGenerated,
    PromptTokens,
    MilliTokensPerSecond,
    KeptBytes,
    KeptBytesMax,
    KeptBlocks,
    KeptLookups,
    KeptHits,
    KeptTokens,
    KeptEvictions,
    DiskBytes,
    DiskBytesMax,
    DiskBlocks,
    DiskReads,
    DiskWritten,
    DiskDamaged,
    GuessedText,
    GuessedTextRight,
    GuessedDraft,
    GuessedDraftRight,
}

/// A copy of the progress page. All zero before the worker has attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Steps done since the worker started.
    pub step: u64,
    /// When the last step was done or load progress was told, by [`monotonic_ns`].
    pub last_step_ns: u64,
    /// What the worker is at; the numbers' meaning belongs to the protocol.
    pub phase: u32,
    /// When this phase began, by [`monotonic_ns`].
    pub phase_since_ns: u64,
    /// Bytes that the engine has in use.
    pub memory_active_bytes: u64,
    /// Most bytes that the engine ever had in use.
    pub memory_peak_bytes: u64,
    /// Bytes that the engine keeps for reuse.
    pub memory_cache_bytes: u64,
    /// How much is loaded, in the unit of `load_total`.
    pub load_done: u64,
    /// How much there is to load.
    pub load_total: u64,
    /// Sequences in the batch.
    pub sequences_running: u64,
    /// Sequences waiting for a place in the batch.
    pub sequences_queued: u64,
    /// How often a sequence gave up its place for another, since the worker started.
    pub preemptions: u64,
    /// Tokens generated since the worker started.
    pub tokens_generated: u64,
    /// Prompt tokens processed since the worker started.
    pub prompt_tokens: u64,
    /// Tokens per second at present, times 1000.
    pub milli_tokens_per_second: u64,
    /// What is kept for prompts that begin as earlier ones did.
    pub kept: Kept,
    /// Tokens guessed ahead.
    pub guessed: Guessed,
}

/// Tokens guessed ahead since the worker was loaded, and those of them that were right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guessed {
    /// Guessed from the sequence's own text.
    pub text: u64,
    /// Of those, right.
    pub text_right: u64,
    /// Guessed by a draft model.
    pub draft: u64,
    /// Of those, right.
    pub draft_right: u64,
}

/// What a worker keeps for prompts that begin as earlier ones did; counts are since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Bytes held.
    pub bytes: u64,
    /// Bytes that may be held.
    pub bytes_max: u64,
    /// Blocks held.
    pub blocks: u64,
    /// Prompts looked up.
    pub lookups: u64,
    /// Those of which a part was there.
    pub hits: u64,
    /// Tokens that were there.
    pub tokens: u64,
    /// Blocks dropped to make room.
    pub evictions: u64,
    /// Bytes of files.
    pub disk_bytes: u64,
    /// Bytes that files may have; 0 where nothing is kept on the disk.
    pub disk_bytes_max: u64,
    /// Files.
    pub disk_blocks: u64,
    /// Blocks read from files.
    pub disk_reads: u64,
    /// Bytes written to files.
    pub disk_written_bytes: u64,
    /// Files thrown away because they were not what their names say.
    pub disk_damaged: u64,
}

/// The worker's side of the progress page. Clones write the same page; each figure should have
/// one thread that sets it.
#[derive(Clone)]
pub struct ProgressWriter {
    words: Words,
}

impl ProgressWriter {
    pub(crate) fn new(words: Words) -> Self {
        Self { words }
    }

    fn figure(&self, figure: Figure) -> &AtomicU64 {
        &self.words.as_slice()[figure as usize]
    }

    fn set(&self, figure: Figure, value: u64) {
        self.figure(figure).store(value, Ordering::Relaxed);
    }

    /// One more step is done.
    pub fn step(&self) {
        self.set(Figure::LastStepNs, monotonic_ns());
        // SYNC POINT: step done (pairs with ProgressReader::snapshot): who sees the step sees its
        // time and every figure that was set before.
        self.figure(Figure::Step).fetch_add(1, Ordering::Release);
    }

    /// The worker is now at something else.
    pub fn set_phase(&self, phase: u32) {
        self.set(Figure::PhaseSinceNs, monotonic_ns());
        // SYNC POINT: phase entered (pairs with ProgressReader::snapshot)
        self.figure(Figure::Phase).store(u64::from(phase), Ordering::Release);
    }

    /// What the engine holds, in bytes.
    pub fn set_memory(&self, active_bytes: u64, peak_bytes: u64, cache_bytes: u64) {
        self.set(Figure::MemoryActiveBytes, active_bytes);
        self.set(Figure::MemoryPeakBytes, peak_bytes);
        self.set(Figure::MemoryCacheBytes, cache_bytes);
    }

    /// How far loading has come. Counts as a sign of life: it sets the last step's time.
    pub fn set_load(&self, done: u64, total: u64) {
        self.set(Figure::LoadTotal, total);
        self.set(Figure::LoadDone, done);
        self.set(Figure::LastStepNs, monotonic_ns());
    }

    /// Sequences in the batch and waiting.
    pub fn set_sequences(&self, running: u64, queued: u64) {
        self.set(Figure::SequencesRunning, running);
        self.set(Figure::SequencesQueued, queued);
    }

    /// More tokens were generated.
    pub fn add_tokens_generated(&self, tokens: u64) {
        self.figure(Figure::TokensGenerated).fetch_add(tokens, Ordering::Relaxed);
    }

    /// More prompt tokens were processed.
    pub fn add_prompt_tokens(&self, tokens: u64) {
        self.figure(Figure::PromptTokens).fetch_add(tokens, Ordering::Relaxed);
    }

    /// How often a sequence gave up its place for another.
    pub fn set_preemptions(&self, count: u64) {
        self.set(Figure::Preemptions, count);
    }

    /// What is kept for later prompts.
    pub fn set_kept(&self, kept: &Kept) {
        self.set(Figure::KeptBytes, kept.bytes);
        self.set(Figure::KeptBytesMax, kept.bytes_max);
        self.set(Figure::KeptBlocks, kept.blocks);
        self.set(Figure::KeptLookups, kept.lookups);
        self.set(Figure::KeptHits, kept.hits);
        self.set(Figure::KeptTokens, kept.tokens);
        self.set(Figure::KeptEvictions, kept.evictions);
        self.set(Figure::DiskBytes, kept.disk_bytes);
        self.set(Figure::DiskBytesMax, kept.disk_bytes_max);
        self.set(Figure::DiskBlocks, kept.disk_blocks);
        self.set(Figure::DiskReads, kept.disk_reads);
        self.set(Figure::DiskWritten, kept.disk_written_bytes);
        self.set(Figure::DiskDamaged, kept.disk_damaged);
    }

    /// Tokens guessed ahead.
    pub fn set_guessed(&self, guessed: &Guessed) {
        self.set(Figure::GuessedText, guessed.text);
        self.set(Figure::GuessedTextRight, guessed.text_right);
        self.set(Figure::GuessedDraft, guessed.draft);
        self.set(Figure::GuessedDraftRight, guessed.draft_right);
    }

    /// Tokens per second at present, times 1000.
    pub fn set_milli_tokens_per_second(&self, rate: u64) {
        self.set(Figure::MilliTokensPerSecond, rate);
    }
}

impl std::fmt::Debug for ProgressWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProgressWriter").finish_non_exhaustive()
    }
}

/// The front's side of the progress page. Clones read the same page.
#[derive(Clone)]
pub struct ProgressReader {
    words: Words,
}

impl ProgressReader {
    pub(crate) fn new(words: Words) -> Self {
        Self { words }
    }

    /// Copies the page.
    pub fn snapshot(&self) -> Progress {
        let words = self.words.as_slice();
        let get = |figure: Figure| words[figure as usize].load(Ordering::Relaxed);
        // SYNC POINT: step done, phase entered (pair with ProgressWriter::step, set_phase)
        let step = words[Figure::Step as usize].load(Ordering::Acquire);
        let phase = words[Figure::Phase as usize].load(Ordering::Acquire);
        Progress {
            step,
            last_step_ns: get(Figure::LastStepNs),
            phase: phase as u32,
            phase_since_ns: get(Figure::PhaseSinceNs),
            memory_active_bytes: get(Figure::MemoryActiveBytes),
            memory_peak_bytes: get(Figure::MemoryPeakBytes),
            memory_cache_bytes: get(Figure::MemoryCacheBytes),
            load_done: get(Figure::LoadDone),
            load_total: get(Figure::LoadTotal),
            sequences_running: get(Figure::SequencesRunning),
            sequences_queued: get(Figure::SequencesQueued),
            preemptions: get(Figure::Preemptions),
            tokens_generated: get(Figure::TokensGenerated),
            prompt_tokens: get(Figure::PromptTokens),
            milli_tokens_per_second: get(Figure::MilliTokensPerSecond),
            kept: Kept {
                bytes: get(Figure::KeptBytes),
                bytes_max: get(Figure::KeptBytesMax),
                blocks: get(Figure::KeptBlocks),
                lookups: get(Figure::KeptLookups),
                hits: get(Figure::KeptHits),
                tokens: get(Figure::KeptTokens),
                evictions: get(Figure::KeptEvictions),
                disk_bytes: get(Figure::DiskBytes),
                disk_bytes_max: get(Figure::DiskBytesMax),
                disk_blocks: get(Figure::DiskBlocks),
                disk_reads: get(Figure::DiskReads),
                disk_written_bytes: get(Figure::DiskWritten),
                disk_damaged: get(Figure::DiskDamaged),
            },
            guessed: Guessed {
                text: get(Figure::GuessedText),
                text_right: get(Figure::GuessedTextRight),
                draft: get(Figure::GuessedDraft),
                draft_right: get(Figure::GuessedDraftRight),
            },
        }
    }
}

impl std::fmt::Debug for ProgressReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ProgressReader").field(&self.snapshot()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_arrives_in_its_own_place() {
        let words = Words::on_heap(PROGRESS_BYTES / 8);
        let writer = ProgressWriter::new(words.clone());
        let reader = ProgressReader::new(words);
        assert_eq!(reader.snapshot(), Progress::default());

        let before = monotonic_ns();
        writer.step();
        writer.step();
        writer.set_phase(7);
        writer.set_memory(11, 12, 13);
        writer.set_load(21, 22);
        writer.set_sequences(31, 32);
        writer.set_preemptions(33);
        writer.add_tokens_generated(40);
        writer.add_tokens_generated(1);
        writer.add_prompt_tokens(50);
        writer.set_milli_tokens_per_second(61);
        let kept = Kept {
            bytes: 71,
            bytes_max: 72,
            blocks: 73,
            lookups: 74,
            hits: 75,
            tokens: 76,
            evictions: 77,
            disk_bytes: 78,
            disk_bytes_max: 79,
            disk_blocks: 80,
            disk_reads: 81,
            disk_written_bytes: 82,
            disk_damaged: 83,
        };
        writer.set_kept(&kept);
        let guessed = Guessed { text: 91, text_right: 92, draft: 93, draft_right: 94 };
        writer.set_guessed(&guessed);
        let after = monotonic_ns();

        let seen = reader.snapshot();
        assert!((before..=after).contains(&seen.last_step_ns));
        assert!((before..=after).contains(&seen.phase_since_ns));
        let expected = Progress {
            step: 2,
            last_step_ns: seen.last_step_ns,
            phase: 7,
            phase_since_ns: seen.phase_since_ns,
            memory_active_bytes: 11,
            memory_peak_bytes: 12,
            memory_cache_bytes: 13,
            load_done: 21,
            load_total: 22,
            sequences_running: 31,
            sequences_queued: 32,
            preemptions: 33,
            tokens_generated: 41,
            prompt_tokens: 50,
            milli_tokens_per_second: 61,
            kept,
            guessed,
        };
        assert_eq!(seen, expected);
    }
}
