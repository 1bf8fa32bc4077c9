//! Requests to a scheduler with a loaded checkpoint, and what they were given.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use mlxd_engine::{Engine, Limits, Scheduler, SeqId, SeqSpec, Sink};
use mlxd_models::MlxEngine;
use mlxd_protocol::{Command, Priority, Report, RequestId, Sampling, Submit, TokenId, TokenRecord};

/// What requests were given.
#[derive(Default)]
pub struct Heard {
    pub tokens: HashMap<u64, Vec<TokenId>>,
    pub cached: HashMap<u64, u32>,
    pub ended: usize,
}

impl Sink for Heard {
    fn report(&mut self, report: Report) {
        match report {
            Report::Started(started) => {
                self.cached.insert(started.request.0, started.cached_tokens);
            }
            Report::Ended(ended) => panic!("{ended:?}"),
            _ => {}
        }
    }

    fn tokens(&mut self, records: &[TokenRecord]) {
        for record in records {
            self.tokens.entry(record.request).or_default().push(record.token);
            self.ended += usize::from(record.flags != 0);
        }
    }
}

/// Pieces and places so few that requests get in each other's way.
pub const LIMITS: Limits = Limits {
    prefill_chunk_tokens: 16,
    prefill_chunk_tokens_busy: 5,
    running_max: 3,
    queued_max: 16,
    parked_max: 4,
    ageing: Duration::from_millis(40),
    whole_chunks: false,
};

/// A greedy request.
pub fn submit(request: u64, prompt: &[TokenId], max_new: u32, priority: Priority) -> Command {
    Command::Submit(Submit {
        request: RequestId(request),
        trace: String::new(),
        tokens: prompt.to_vec(),
        prompt_len: prompt.len() as u32,
        max_new,
        stop_tokens: Vec::new(),
        sampling: Sampling::default(),
        logprobs: None,
        priority,
        tenant: 0,
        weight: 1,
        deadline_ms: None,
    })
}

/// The rest of an answer of which another worker gave `known` tokens: what is known is run in
/// pieces of 7.
pub fn go_on(
    engine: &mut MlxEngine,
    prompt: &[TokenId],
    tokens: &[TokenId],
    known: usize,
) -> Vec<TokenId> {
    let seq = SeqId(3);
    let spec = SeqSpec {
        tokens: prompt.iter().chain(&tokens[..known]).copied().collect(),
        prompt_len: prompt.len(),
        sampling: Sampling::default(),
        logprobs: None,
        capacity: prompt.len() + tokens.len(),
    };
    engine.open(seq, spec).unwrap();
    while engine.prefill(seq, 7).unwrap() > 0 {}
    let mut out = Vec::new();
    while known + out.len() < tokens.len() {
        engine.submit(&[seq]).unwrap();
        engine.collect(&mut out).unwrap();
    }
    engine.close(seq);
    out.into_iter().map(|step| step.token).collect()
}

/// One tick, a millisecond after the last.
pub fn run(scheduler: &mut Scheduler<MlxEngine>, heard: &mut Heard, now: &mut Instant) {
    scheduler.tick(*now, heard).expect("MLX computes");
    *now += Duration::from_millis(1);
}
