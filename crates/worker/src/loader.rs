//! Where a worker's engine comes from.

use mlxd_engine::{Engine, EngineFault, SeqId, SeqSpec};
use mlxd_protocol::{BenchLeg, BenchSpec, LoadFault, LoadSpec, Refusal, Sampling};
use std::time::Instant;

/// Makes engines of one kind. Called on the thread that will own the engine.
pub trait Loader {
    /// What it makes.
    type Engine: Engine;

    /// Loads and warms up a model. `progress(done, total)` is a sign of life for the front: call
    /// it at least every few seconds.
    ///
    /// # Errors
    /// A fault that names the file, tensor or key.
    fn load(
        &mut self,
        spec: &LoadSpec,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self::Engine, LoadFault>;

    /// Runs an idle engine directly and times it; `alive` is called with every token.
    ///
    /// # Errors
    /// [`BenchError::Refused`] for a prompt that the engine does not take; after
    /// [`BenchError::Fault`] the process ends.
    fn bench(
        &mut self,
        engine: &mut Self::Engine,
        spec: &BenchSpec,
        alive: &mut dyn FnMut(),
    ) -> Result<BenchLeg, BenchError> {
        bench_direct(engine, spec, alive)
    }
}

/// Why a direct run gave no times.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The prompt or the number of tokens cannot be run.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The engine failed.
    #[error(transparent)]
    Fault(#[from] EngineFault),
}

/// Sequence numbers of direct runs, far from those a scheduler gives.
const BENCH_SEQ: u64 = 1 << 63;

/// Greedy runs of one sequence on an idle engine, straight through the [`Engine`] trait with its
/// pipeline full: what a client could get if nothing stood between it and the engine.
///
/// # Errors
/// See [`Loader::bench`].
pub fn bench_direct(
    engine: &mut impl Engine,
    spec: &BenchSpec,
    alive: &mut dyn FnMut(),
) -> Result<BenchLeg, BenchError> {
    let mut leg =
        BenchLeg { seconds: Vec::new(), first_token_seconds: Vec::new(), tokens: Vec::new() };
    for run in 0..spec.warmup_runs + spec.runs {
        let seq = SeqId(BENCH_SEQ + u64::from(run));
        let begun = Instant::now();
        leg.tokens.clear();
        engine.open(
            seq,
            SeqSpec {
                tokens: spec.prompt.clone(),
                prompt_len: spec.prompt.len(),
                sampling: Sampling::default(),
                logprobs: None,
                capacity: spec.prompt.len() + spec.new_tokens as usize,
            },
        )?;
        let first_at = run_once(engine, seq, spec, &mut leg.tokens, alive)?;
        let seconds = begun.elapsed().as_secs_f64();
        engine.close(seq);
        if run >= spec.warmup_runs {
            leg.seconds.push(seconds);
            let first = first_at.map_or(seconds, |at| (at - begun).as_secs_f64());
            leg.first_token_seconds.push(first);
        }
    }
    Ok(leg)
}

/// Generates all tokens of one run; gives when the first was read.
fn run_once(
    engine: &mut impl Engine,
    seq: SeqId,
    spec: &BenchSpec,
    tokens: &mut Vec<u32>,
    alive: &mut dyn FnMut(),
) -> Result<Option<Instant>, EngineFault> {
    while engine.prefill(seq, BENCH_CHUNK_TOKENS)? > 0 {
        alive();
    }
    let mut step = Vec::new();
    let mut submitted = 0;
    let mut first_at = None;
    while tokens.len() < spec.new_tokens as usize {
        while submitted < spec.new_tokens && submitted as usize - tokens.len() < engine.depth() {
            engine.submit(&[seq])?;
            submitted += 1;
        }
        step.clear();
        engine.collect(&mut step)?;
        first_at.get_or_insert_with(Instant::now);
        tokens.extend(step.iter().map(|token| token.token));
        alive();
    }
    Ok(first_at)
}

/// Prompt tokens of a direct run computed in one piece.
const BENCH_CHUNK_TOKENS: usize = 512;
