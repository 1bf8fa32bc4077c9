//! The engine driven by nothing but a loop: what any path through it is measured against.

use std::time::Instant;

use mlxd_engine::{Engine, EngineFault, SeqId, SeqSpec};
use mlxd_protocol::{BenchLeg, BenchSpec, Sampling};

/// Sequences of a bench, far above those that a scheduler counts up from 0.
const FIRST_SEQ: u64 = 1 << 63;

/// Tokens of a prompt run at once, as many as mlx-lm's loop takes.
const CHUNK_TOKENS: usize = 2048;

/// Runs `spec` and times each run: prefill, then greedy steps, as many in flight as the engine
/// likes, every token read.
pub fn bench_direct<E: Engine + ?Sized>(
    engine: &mut E,
    spec: &BenchSpec,
) -> Result<BenchLeg, EngineFault> {
    let mut leg = BenchLeg {
        seconds: Vec::new(),
        first_token_seconds: Vec::new(),
        tokens: Vec::new(),
    };
    let runs = u64::from(spec.warmup_runs) + u64::from(spec.runs);
    for run in 0..runs {
        let seq = SeqId(FIRST_SEQ + run);
        let timed = one_run(engine, seq, spec);
        engine.close(seq);
        let timed = timed?;
        if run >= u64::from(spec.warmup_runs) {
            leg.seconds.push(timed.seconds);
            leg.first_token_seconds.push(timed.first_token_seconds);
        }
        leg.tokens = timed.tokens;
    }
    Ok(leg)
}

struct Timed {
    seconds: f64,
    first_token_seconds: f64,
    tokens: Vec<u32>,
}

fn one_run<E: Engine + ?Sized>(
    engine: &mut E,
    seq: SeqId,
    spec: &BenchSpec,
) -> Result<Timed, EngineFault> {
    let wanted = spec.new_tokens as usize;
    let begin = Instant::now();
    let opened = engine.open(
        seq,
        SeqSpec {
            tokens: spec.prompt.clone(),
            prompt_len: spec.prompt.len(),
            sampling: Sampling::default(),
            logprobs: None,
            capacity: spec.prompt.len() + wanted,
        },
    );
    opened.map_err(|refusal| EngineFault {
        doing: "bench",
        reason: refusal.message,
    })?;
    while engine.prefill(seq, CHUNK_TOKENS)? > 0 {}
    let mut submitted = 0;
    let mut out = Vec::with_capacity(wanted);
    let mut first_token_seconds = 0.0;
    while out.len() < wanted {
        while submitted < wanted && submitted - out.len() < engine.depth() {
            engine.submit(&[seq])?;
            submitted += 1;
        }
        engine.collect(&mut out)?;
        if out.len() == 1 {
            first_token_seconds = begin.elapsed().as_secs_f64();
        }
    }
    Ok(Timed {
        seconds: begin.elapsed().as_secs_f64(),
        first_token_seconds,
        tokens: out.into_iter().map(|step| step.token).collect(),
    })
}
