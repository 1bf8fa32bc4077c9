//! Keys and values of a bounded number of positions: what mlx-lm computes with them, and sequences
//! that share a step, are parked, restored or done again with them.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use common::compare::{distance, greedy};
use common::scheduled::{Heard, LIMITS, go_on, run, submit};
use mlxd_engine::{Engine, Limits, Scheduler, SeqId, SeqSpec};
use mlxd_models::MlxEngine;
use mlxd_protocol::{KvQuantization, LoadFaultKind, LoadSpec, Priority, Sampling, TokenId};
use serde::Deserialize;

/// What mlx-lm said about one case of `oracle/rotating.py`.
#[derive(Deserialize)]
struct Rotating {
    prompt: Vec<TokenId>,
    tokens: Vec<TokenId>,
    most: u32,
}

fn case(name: &str) -> (PathBuf, Rotating) {
    let folder = common::made_by("rotating.py").join(name);
    let reference = serde_json::from_slice(&fs::read(folder.join("reference.json")).unwrap());
    (folder, reference.unwrap())
}

fn spec(folder: &Path, most: u32) -> LoadSpec {
    LoadSpec { kv_tokens_max: Some(most), ..common::load_spec(folder) }
}

fn load(spec: &LoadSpec) -> MlxEngine {
    mlxd_models::load(spec, &mut |_, _| {}).unwrap_or_else(|fault| panic!("{fault}"))
}

const TOLERANCE: f32 = 2e-5;

#[test]
fn bounded_keys_and_values_equal_mlx_lm() {
    let folder = common::made_by("rotating.py");
    let names: Vec<String> =
        serde_json::from_slice(&fs::read(folder.join("cases.json")).unwrap()).unwrap();
    assert_eq!(names.len(), 16);
    for name in names {
        let (folder, Rotating { prompt, tokens, most }) = case(&name);
        let mut engine = load(&spec(&folder, most));
        let vocab = engine.info().vocab_size as usize;
        let theirs = common::rows(&folder.join("rotating.f32"), vocab);
        let full = common::rows(&folder.join("full.f32"), vocab);
        let ours = engine.logits_along(&prompt, &tokens[..tokens.len() - 1]).unwrap();
        let apart = distance(&ours, &theirs);
        println!("{name}: {apart:.1e} from mlx-lm");
        assert!(apart <= TOLERANCE, "{name}: {apart} from mlx-lm");
        // Nothing is dropped until the limit, and something is beyond it.
        let seam = (most as usize + 1).saturating_sub(prompt.len());
        if seam > 0 {
            let before = distance(&ours[..seam], &full[..seam]);
            assert!(before <= TOLERANCE, "{name}: {before} from all positions before the limit");
        }
        let after = distance(&ours[seam..], &full[seam..]);
        assert!(after > 1e-2, "{name}: nothing is dropped: {after}");
        assert_eq!(greedy(&mut engine, &prompt, tokens.len()), tokens, "{name}: greedy tokens");
    }
}

/// Rows of prompts before, at and beyond the limit, in one step.
#[test]
fn rows_of_a_batch_see_what_they_see_alone() {
    for model in ["llama", "hybrid"] {
        let (folder, Rotating { prompt, tokens, most }) = case(&format!("{model}-150"));
        let given: Vec<(Vec<TokenId>, Vec<TokenId>)> = [150, 3, 30, 39, 40, 41, 77]
            .map(|length| (prompt[..length].to_vec(), tokens.clone()))
            .into();
        let engine = load(&spec(&folder, most)).with_depth(2);
        let together = engine.logits_together(&given).unwrap();
        for ((prompt, forced), rows) in given.iter().zip(&together) {
            let alone = engine.logits_along(prompt, forced).unwrap();
            let apart = distance(rows, &alone);
            assert!(apart <= TOLERANCE, "{model}, {} tokens: {apart} apart", prompt.len());
        }
    }
}

/// Bytes that a sequence's state takes after a prompt of `length` and so many steps.
fn state_bytes(engine: &mut MlxEngine, length: usize, steps: usize) -> u64 {
    engine.trim();
    let before = engine.memory().active;
    let seq = SeqId(7);
    let tokens: Vec<TokenId> = (0..length as u32).map(|at| at * 31 % 320).collect();
    let capacity = length + steps;
    let sampling = Sampling::default();
    let spec = SeqSpec { tokens, prompt_len: length, sampling, logprobs: None, capacity };
    engine.open(seq, spec).unwrap();
    while engine.prefill(seq, 16).unwrap() > 0 {}
    for _ in 0..steps {
        engine.submit(&[seq]).unwrap();
        engine.collect(&mut Vec::new()).unwrap();
    }
    let after = engine.memory().active;
    engine.close(seq);
    after - before
}

#[test]
fn a_sequence_takes_no_more_than_its_limit() {
    let (folder, Rotating { most, .. }) = case("llama-24");
    let mut engine = load(&spec(&folder, most));
    let per_token = engine.info().kv_bytes_per_token;
    assert_eq!(per_token, 2 * 2 * 2 * 32 * 4);
    assert_eq!(engine.info().quantization, format!("f32, KV of {most} tokens"));
    let limit = u64::from(most) * per_token;
    for (prompt, steps) in [(8, 400), (400, 100)] {
        let bytes = state_bytes(&mut engine, prompt, steps);
        assert!(bytes >= limit, "{bytes} bytes are not what {most} tokens take");
        assert!(bytes < limit * 5 / 4, "{prompt} and {steps} tokens take {bytes} of {limit} bytes");
    }
    // A prompt keeps a piece more while it is run.
    let (prompt, piece) = (400, 16);
    let bytes = state_bytes(&mut engine, prompt, 0);
    let limit = u64::from(most + piece + 4) * per_token;
    assert!(bytes < limit * 5 / 4, "a prompt takes {bytes} of {limit} bytes");
}

fn refused(spec: &LoadSpec) -> String {
    match mlxd_models::load(spec, &mut |_, _| {}) {
        Err(fault) => {
            assert_eq!(fault.kind, LoadFaultKind::Unsupported);
            fault.message
        }
        Ok(_) => panic!("loaded"),
    }
}

#[test]
fn what_cannot_be_bounded_is_refused() {
    let (folder, Rotating { most, .. }) = case("llama-24");
    let message = refused(&spec(&folder, 8));
    assert!(message.contains("max_kv_tokens = 8") && message.contains("16 tokens"), "{message}");
    let kv_quantization = Some(KvQuantization { bits: 8, from_tokens: 0 });
    let message = refused(&LoadSpec { kv_quantization, ..spec(&folder, most) });
    assert!(message.contains("kv_bits = 8 and max_kv_tokens = 40"), "{message}");
    // A limit that is none.
    let engine = load(&spec(&folder, 512));
    assert_eq!(engine.info().quantization, "f32");
}

/// An answer that another worker goes on with: the generated part is decoded again, or run in
/// pieces as part of what is known.
#[test]
fn an_answer_done_again_is_the_same() {
    for name in ["llama-24", "llama-150", "qwen3-41", "hybrid-24"] {
        let (folder, Rotating { prompt, tokens, most }) = case(name);
        for deterministic in [true, false] {
            let mut engine = load(&LoadSpec { deterministic, ..spec(&folder, most) });
            for known in [1, 15, 16, 17, 40] {
                let again = go_on(&mut engine, &prompt, &tokens, known);
                assert_eq!(again, tokens[known..], "{name} after {known}, {deterministic}");
            }
        }
    }
}

/// Answers of 40 tokens to prompts of 1 to 150 tokens, of which each priority pushes the last
/// one's out.
fn crowded(engine: MlxEngine, limits: Limits, prompt: &[TokenId]) -> (Heard, u64) {
    let priorities = [Priority::Low, Priority::Normal, Priority::High];
    let (mut heard, mut now) = (Heard::default(), Instant::now());
    let mut scheduler = Scheduler::new(engine, limits);
    for request in 0..9 {
        let priority = priorities[request as usize / 3];
        scheduler.command(submit(request, of(prompt, request), 40, priority), now, &mut heard);
        for _ in 0..14 {
            run(&mut scheduler, &mut heard, &mut now);
        }
    }
    while !scheduler.is_idle() {
        run(&mut scheduler, &mut heard, &mut now);
    }
    assert_eq!(heard.ended, 9);
    (heard, scheduler.counts().preemptions)
}

fn of(prompt: &[TokenId], request: u64) -> &[TokenId] {
    &prompt[..[150, 24, 1, 38, 100, 40, 41, 3, 39][request as usize]]
}

#[test]
fn rows_that_are_parked_and_guessed_get_their_own_tokens() {
    for model in ["qwen3", "hybrid"] {
        let (folder, Rotating { prompt, most, .. }) = case(&format!("{model}-150"));
        let mut engine = load(&spec(&folder, most));
        let alone: Vec<Vec<TokenId>> =
            (0..9).map(|request| greedy(&mut engine, of(&prompt, request), 40)).collect();
        for (depth, guesses) in [(1, 0), (2, 0), (2, 6)] {
            let engine = load(&spec(&folder, most));
            let engine = engine.with_depth(depth).always_guessing(guesses, None);
            let (heard, preemptions) = crowded(engine, LIMITS, &prompt);
            assert!(preemptions > 1, "{preemptions} gave up their place");
            for (request, alone) in (0..).zip(&alone) {
                assert_eq!(heard.tokens[&request], *alone, "{model}, depth {depth}: {request}");
            }
        }
    }
}

/// Prefixes are kept up to the limit and not beyond it: what is found changes no token.
#[test]
fn chats_go_on_from_what_may_be_kept() {
    const MOST: u32 = 200;
    for model in ["llama", "hybrid"] {
        let (folder, Rotating { prompt, .. }) = case(&format!("{model}-150"));
        let kept = LoadSpec { prefix_cache_bytes_max: 1 << 24, ..spec(&folder, MOST) };
        let mut fresh = load(&spec(&folder, MOST));
        let mut scheduler = Scheduler::new(load(&kept), LIMITS);
        let (mut heard, mut now) = (Heard::default(), Instant::now());
        let mut chat = prompt.clone();
        let mut most_cached = 0;
        // The second answer passes the limit, and the third prompt is beyond it.
        for request in 0..4 {
            let asked = submit(request, &chat, 40, Priority::Normal);
            scheduler.command(asked, now, &mut heard);
            while !scheduler.is_idle() {
                run(&mut scheduler, &mut heard, &mut now);
            }
            let answer = heard.tokens[&request].clone();
            assert_eq!(answer, greedy(&mut fresh, &chat, 40), "{model}: {} tokens", chat.len());
            let cached = heard.cached[&request];
            assert!(cached <= MOST, "{model}: {cached} tokens found beyond the limit");
            most_cached = most_cached.max(cached);
            chat.extend(answer);
            chat.extend(&prompt[..7]);
        }
        assert!(most_cached >= 128, "{model}: {most_cached} tokens found, less than two blocks");
    }
}
