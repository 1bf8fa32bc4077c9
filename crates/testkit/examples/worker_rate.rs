//! How many tokens a second a scripted worker gives over its ring: 64 sequences, no step time.
//!
//! `cargo run --release -p mlxd-testkit --example worker_rate`, after
//! `cargo build --release -p mlxd-testkit --bins`.

use mlxd_protocol::{Priority, RequestId, Sampling, Submit};
use mlxd_testkit::{FrontHalf, ModelFolder, Said, Script, program};
use std::time::Instant;

const SEQUENCES: u64 = 64;
const TOKENS_EACH: u32 = 30_000;

fn main() {
    let script = Script { context_tokens: 1 << 20, ..Script::default() };
    let folder = ModelFolder::new(&script);
    let mut front = FrontHalf::start_loaded(&program("mlxd-scripted-worker"), folder.path());
    for request in 0..SEQUENCES {
        front.submit(Submit {
            request: RequestId(request),
            trace: format!("t{request}"),
            tokens: vec![request as u32, 1, 2],
            prompt_len: 3,
            max_new: TOKENS_EACH,
            stop_tokens: vec![Script::END],
            sampling: Sampling::default(),
            logprobs: None,
            priority: Priority::Normal,
            tenant: 0,
            weight: 1,
            deadline_ms: None,
        });
    }
    let begun = Instant::now();
    let (mut tokens, mut frames, mut running) = (0u64, 0u64, SEQUENCES);
    while running > 0 {
        if let Said::Tokens(records) = front.hear().expect("the worker lives") {
            frames += 1;
            tokens += records.len() as u64;
            running -= records.iter().filter(|record| record.flags != 0).count() as u64;
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{tokens} tokens in {frames} frames, {seconds:.3} s: {:.0} tokens/s",
        tokens as f64 / seconds
    );
}
