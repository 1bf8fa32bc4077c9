//! The engine in a bare loop, timed: what a client could get if nothing stood between.

use crate::engine::{Engine, EngineFault, SeqId, SeqSpec, StepToken};
use mlxd_protocol::{BenchLeg, BenchSpec, Refusal, Sampling};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

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

/// The sequence number of the next direct run, far from those a scheduler gives.
static NEXT_SEQ: AtomicU64 = AtomicU64::new(SeqId::MEASURED.0);

/// Greedy runs of one sequence on an idle engine, straight through the [`Engine`] trait with its
/// pipeline full. The prompt runs in pieces of `prefill_chunk_tokens`; `alive` is called after
/// every piece and every token.
///
/// # Errors
/// [`BenchError::Refused`] for a prompt that the engine does not take. After
/// [`BenchError::Fault`] the engine is not to be used any more.
pub fn bench_direct(
    engine: &mut impl Engine,
    spec: &BenchSpec,
    prefill_chunk_tokens: usize,
    alive: &mut dyn FnMut(),
) -> Result<BenchLeg, BenchError> {
    let mut leg =
        BenchLeg { seconds: Vec::new(), first_token_seconds: Vec::new(), tokens: Vec::new() };
    for run in 0..spec.warmup_runs.saturating_add(spec.runs) {
        let seq = SeqId(NEXT_SEQ.fetch_add(1, Ordering::Relaxed));
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
        while engine.prefill(seq, prefill_chunk_tokens)? > 0 {
            alive();
        }
        let first_at = decode(engine, seq, spec.new_tokens, &mut leg.tokens, alive)?;
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
fn decode(
    engine: &mut impl Engine,
    seq: SeqId,
    new_tokens: u32,
    tokens: &mut Vec<u32>,
    alive: &mut dyn FnMut(),
) -> Result<Option<Instant>, EngineFault> {
    let mut step: Vec<StepToken> = Vec::new();
    let mut submitted = 0;
    let mut first_at = None;
    while tokens.len() < new_tokens as usize {
        // As the scheduler does it: the first token waits for no second step.
        let depth = if tokens.is_empty() { 1 } else { engine.depth() };
        while submitted < new_tokens && submitted as usize - tokens.len() < depth {
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
