//! The scheduler over MLX: sequences that give up their place to more urgent ones and go on later
//! get the tokens that each would get alone, guessing ahead or not.

mod common;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use mlxd_engine::{Limits, Scheduler, Sink};
use mlxd_models::MlxEngine;
use mlxd_protocol::{Command, Priority, Report, RequestId, Sampling, Submit, TokenId, TokenRecord};

#[derive(Default)]
struct Heard {
    tokens: HashMap<u64, Vec<TokenId>>,
    ended: Vec<u64>,
}

impl Sink for Heard {
    fn report(&mut self, report: Report) {
        if let Report::Ended(ended) = report {
            panic!("{ended:?}");
        }
    }

    fn tokens(&mut self, records: &[TokenRecord]) {
        for record in records {
            self.tokens.entry(record.request).or_default().push(record.token);
            if record.flags != 0 {
                self.ended.push(record.request);
            }
        }
    }
}

fn submit(request: u64, prompt: &[TokenId], priority: Priority) -> Command {
    let sampling = match request % 3 {
        0 => Sampling::default(),
        1 => Sampling { temperature: 0.8, top_p: 0.9, seed: request, ..Sampling::default() },
        _ => Sampling {
            temperature: 0.7,
            repetition_penalty: 1.2,
            seed: request,
            ..Sampling::default()
        },
    };
    Command::Submit(Submit {
        request: RequestId(request),
        trace: String::new(),
        tokens: prompt[request as usize % 7..].to_vec(),
        prompt_len: (prompt.len() - request as usize % 7) as u32,
        max_new: 20 + request as u32,
        stop_tokens: Vec::new(),
        sampling,
        logprobs: None,
        priority,
        tenant: 0,
        weight: 1,
        deadline_ms: None,
    })
}

const LIMITS: Limits = Limits {
    prefill_chunk_tokens: 8,
    prefill_chunk_tokens_busy: 5,
    running_max: 2,
    queued_max: 16,
    parked_max: 4,
    ageing: Duration::from_millis(40),
    whole_chunks: false,
};

fn run(scheduler: &mut Scheduler<MlxEngine>, heard: &mut Heard, now: &mut Instant) {
    scheduler.tick(*now, heard).expect("MLX computes");
    *now += Duration::from_millis(1);
}

#[test]
fn parked_sequences_go_on_with_their_own_tokens() {
    let folder = common::made_by("make.py").join("arch-qwen3");
    let prompt = common::reference(&folder).prompt;
    let priorities = [Priority::Low, Priority::Normal, Priority::High];
    let mut now = Instant::now();
    let mut alone = Heard::default();
    let mut scheduler = Scheduler::new(common::load(&folder), LIMITS);
    for request in 0..9 {
        scheduler.command(submit(request, &prompt, Priority::Normal), now, &mut alone);
        while !scheduler.is_idle() {
            run(&mut scheduler, &mut alone, &mut now);
        }
    }
    assert_eq!(scheduler.counts().preemptions, 0);
    for (depth, guesses) in [(1, 0), (2, 0), (1, 6), (2, 6)] {
        let mut heard = Heard::default();
        let engine = common::load(&folder).with_depth(depth).always_guessing(guesses, None);
        let mut scheduler = Scheduler::new(engine, LIMITS);
        for request in 0..9 {
            let priority = priorities[request as usize / 3];
            scheduler.command(submit(request, &prompt, priority), now, &mut heard);
            for _ in 0..9 {
                run(&mut scheduler, &mut heard, &mut now);
            }
        }
        while !scheduler.is_idle() {
            run(&mut scheduler, &mut heard, &mut now);
        }
        assert!(scheduler.counts().preemptions > 1, "{:?}", scheduler.counts());
        assert_eq!(heard.tokens, alone.tokens, "depth {depth}, {guesses} guesses");
        assert_eq!(heard.ended.len(), 9);
    }
}
