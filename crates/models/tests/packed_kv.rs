//! Packed keys and values: what mlx-lm computes with them, how far that is from full precision,
//! and sequences that are parked, restored or done again with them.

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

/// What mlx-lm said about one case of `oracle/kv.py`.
#[derive(Deserialize)]
struct Packed {
    prompt: Vec<TokenId>,
    tokens: Vec<TokenId>,
    bits: u32,
    start: u32,
}

fn packed(case: &Path) -> Packed {
    serde_json::from_slice(&fs::read(case.join("reference.json")).unwrap()).unwrap()
}

fn case(name: &str) -> PathBuf {
    common::made_by("kv.py").join(name)
}

fn spec(folder: &Path, bits: u32, from_tokens: u32) -> LoadSpec {
    let kv_quantization = Some(KvQuantization { bits, from_tokens });
    LoadSpec { kv_quantization, ..common::load_spec(folder) }
}

fn load(spec: &LoadSpec) -> MlxEngine {
    mlxd_models::load(spec, &mut |_, _| {}).unwrap_or_else(|fault| panic!("{fault}"))
}

/// The mean difference in standard deviations of `theirs`.
fn mean_distance(ours: &[Vec<f32>], theirs: &[Vec<f32>]) -> f32 {
    let count = theirs.iter().flatten().count() as f32;
    let mean = theirs.iter().flatten().sum::<f32>() / count;
    let squares = theirs.iter().flatten().map(|value| (value - mean).powi(2)).sum::<f32>();
    let pairs = ours.iter().flatten().zip(theirs.iter().flatten());
    pairs.map(|(a, b)| (a - b).abs()).sum::<f32>() / count / (squares / count).sqrt()
}

/// Logits equal up to a value here and there that is packed one step higher or lower.
const TOLERANCE: [(u32, f32); 2] = [(8, 4e-3), (4, 2e-2)];
/// Logits equal but for the order of sums, and how many cases of the twenty must be that.
const EQUAL: (f32, usize) = (2e-5, 14);
/// How far packing itself may take logits from full precision, in the mean.
const QUALITY: [(u32, f32); 2] = [(8, 0.02), (4, 0.4)];

#[test]
fn packed_keys_and_values_equal_mlx_lm() {
    let folder = common::made_by("kv.py");
    let names: Vec<String> =
        serde_json::from_slice(&fs::read(folder.join("cases.json")).unwrap()).unwrap();
    assert_eq!(names.len(), 20);
    let mut equal = 0;
    for name in names {
        let case = folder.join(&name);
        let Packed { prompt, tokens, bits, start } = packed(&case);
        let mut engine = load(&spec(&case, bits, start));
        let vocab = engine.info().vocab_size as usize;
        let theirs = common::rows(&case.join("packed.f32"), vocab);
        let full = common::rows(&case.join("full.f32"), vocab);
        let ours = engine.logits_along(&prompt, &tokens[..tokens.len() - 1]).unwrap();
        let apart = distance(&ours, &theirs);
        let lost = mean_distance(&ours, &full);
        equal += usize::from(apart <= EQUAL.0);
        println!("{name}: {apart:.1e} from mlx-lm, {lost:.1e} in the mean from full precision");
        let of = |table: [(u32, f32); 2]| table.into_iter().find(|(of, _)| *of == bits).unwrap().1;
        assert!(apart <= of(TOLERANCE), "{name}: {apart} from mlx-lm");
        assert!(lost <= of(QUALITY), "{name}: {lost} from full precision");
        // Decoded up to `start` in full precision, and packed from there on.
        let seam = (start as usize + 1).saturating_sub(prompt.len()).min(tokens.len());
        if seam > 0 {
            let before = distance(&ours[..seam], &full[..seam]);
            assert!(before < 2e-5, "{name}: {before} from full precision before the seam");
        }
        let after = distance(&ours[seam..], &full[seam..]);
        assert!(after > 1e-4, "{name}: nothing is packed: {after}");
        assert_eq!(greedy(&mut engine, &prompt, tokens.len()), tokens, "{name}: greedy tokens");
    }
    assert!(equal >= EQUAL.1, "{equal} cases without a value that was rounded otherwise");
}

#[test]
fn eight_bits_are_nearer_to_full_precision_than_four() {
    let folder = case("llama-8-from-0");
    let Packed { prompt, tokens, .. } = packed(&folder);
    let plain = common::load(&folder).logits_along(&prompt, &tokens).unwrap();
    let lost = |bits| {
        let engine = load(&spec(&folder, bits, 0));
        mean_distance(&engine.logits_along(&prompt, &tokens).unwrap(), &plain)
    };
    let (eight, four) = (lost(8), lost(4));
    assert!(eight > 0.0 && four > 4.0 * eight, "{eight} with 8 bits, {four} with 4");
}

/// Runs a prompt of `length` and a few steps and gives the bytes that its state took.
fn state_bytes(engine: &mut MlxEngine, length: usize) -> u64 {
    engine.trim();
    let before = engine.memory().active;
    let seq = SeqId(7);
    let tokens: Vec<TokenId> = (0..length as u32).map(|at| at * 31 % 320).collect();
    let capacity = length + 8;
    let sampling = Sampling::default();
    let spec = SeqSpec { tokens, prompt_len: length, sampling, logprobs: None, capacity };
    engine.open(seq, spec).unwrap();
    while engine.prefill(seq, 64).unwrap() > 0 {}
    for _ in 0..4 {
        engine.submit(&[seq]).unwrap();
        engine.collect(&mut Vec::new()).unwrap();
    }
    let after = engine.memory().active;
    engine.close(seq);
    after - before
}

#[test]
fn packed_sequences_take_fewer_bytes() {
    let folder = case("llama-8-from-0");
    let mut plain = common::load(&folder);
    // Two layers of keys and values, two heads of 64, as float32; or 8 bits each and a scale and
    // a bias of 4 bytes for every 64.
    assert_eq!(plain.info().kv_bytes_per_token, 2 * 2 * 2 * 64 * 4);
    let full = state_bytes(&mut plain, 480);
    drop(plain);
    for (bits, per_head) in [(8, 64 + 8), (4, 32 + 8)] {
        let mut engine = load(&spec(&folder, bits, 100));
        assert_eq!(engine.info().kv_bytes_per_token, 2 * 2 * 2 * per_head);
        assert_eq!(engine.info().quantization, format!("f32, {bits}-bit KV from 100 tokens"));
        let short = state_bytes(&mut engine, 90);
        let long = state_bytes(&mut engine, 480);
        let wanted = full * per_head / 256;
        assert!(long < wanted * 11 / 10, "{bits} bits: {long} bytes of {full}, not {wanted}");
        assert!(short > full / 3, "short sequences are not packed: {short} bytes");
    }
}

/// What an answer held before it was packed is kept for others, and not by the answer too.
#[test]
fn nothing_is_held_twice_once_it_is_packed() {
    let folder = case("llama-8-from-0");
    for (depth, from_tokens) in [(1, 100), (2, 100), (1, 89), (2, 128)] {
        let spec = LoadSpec { prefix_cache_bytes_max: 1 << 24, ..spec(&folder, 8, from_tokens) };
        let mut engine = load(&spec).with_depth(depth);
        engine.trim();
        let before = engine.memory().active;
        let seq = SeqId(7);
        let tokens: Vec<TokenId> = (0..90u32).map(|at| at * 31 % 320).collect();
        let sampling = Sampling::default();
        let spec = SeqSpec { tokens, prompt_len: 90, sampling, logprobs: None, capacity: 200 };
        engine.open(seq, spec).unwrap();
        while engine.prefill(seq, 64).unwrap() > 0 {}
        let mut out = Vec::new();
        for _ in 0..60 {
            engine.submit(&[seq]).unwrap();
            engine.collect(&mut out).unwrap();
        }
        let kept = engine.cache_figures();
        assert_eq!(kept.blocks as usize, from_tokens as usize / 64, "from {from_tokens}");
        let held = engine.memory().active - before - kept.bytes;
        // One block of rows: keys and values of two layers, two heads of 64 and 8 bytes beside them.
        let packed = 256 * 2 * 2 * 2 * (64 + 8);
        assert!(held < packed * 6 / 5, "from {from_tokens}, depth {depth}: {held} of {packed}");
    }
}

#[test]
fn heads_that_cannot_be_packed_are_refused() {
    let folder = common::made_by("make.py").join("arch-llama-head-dim");
    let refused = |bits| match mlxd_models::load(&spec(&folder, bits, 0), &mut |_, _| {}) {
        Err(fault) => fault,
        Ok(_) => panic!("loaded"),
    };
    let fault = refused(8);
    assert_eq!(fault.kind, LoadFaultKind::Unsupported);
    assert!(fault.message.contains("48 wide"), "{}", fault.message);
    assert!(fault.message.contains("set kv_bits = 0"), "{}", fault.message);
    assert!(refused(5).message.contains("packed in 4 or 8"));
}

#[test]
fn layers_that_slide_stay_as_they_are() {
    let folder = common::made_by("make.py").join("arch-mistral-sliding");
    let reference = common::reference(&folder);
    let mut engine = load(&spec(&folder, 4, 0));
    assert_eq!(greedy(&mut engine, &reference.prompt, 64), reference.tokens);
}

#[test]
fn an_answer_done_again_in_deterministic_mode_is_the_same() {
    let folder = case("qwen3-4-from-40");
    let Packed { prompt, tokens, bits, start } = packed(&folder);
    let spec = LoadSpec { deterministic: true, ..spec(&folder, bits, start) };
    let mut engine = load(&spec);
    // Before the seam, at it, and long after it.
    for known in [5, 40 - prompt.len(), 41 - prompt.len(), 50] {
        let again = go_on(&mut engine, &prompt, &tokens, known);
        assert_eq!(again, tokens[known..], "after {known} tokens");
    }
}

/// Rows that share buffers and leave them when they are packed, rows that join packed, and packed
/// ones that give up their place: each gets the tokens that it gets alone.
#[test]
fn packed_and_parked_rows_get_their_own_tokens() {
    let folder = case("llama-8-from-40");
    let Packed { prompt, bits, start, .. } = packed(&folder);
    let priorities = [Priority::Low, Priority::Normal, Priority::High];
    let of = |request: u64| &prompt[request as usize % 7..];
    let mut now = Instant::now();
    let mut alone = Heard::default();
    let mut scheduler = Scheduler::new(load(&spec(&folder, bits, start)), LIMITS);
    for request in 0..9 {
        scheduler.command(submit(request, of(request), 40, Priority::Normal), now, &mut alone);
        while !scheduler.is_idle() {
            run(&mut scheduler, &mut alone, &mut now);
        }
    }
    for (depth, guesses) in [(1, 0), (2, 0), (2, 6)] {
        let engine = load(&spec(&folder, bits, start));
        let engine = engine.with_depth(depth).always_guessing(guesses, None);
        let mut heard = Heard::default();
        let mut scheduler = Scheduler::new(engine, LIMITS);
        for request in 0..9 {
            let priority = priorities[request as usize / 3];
            scheduler.command(submit(request, of(request), 40, priority), now, &mut heard);
            for _ in 0..14 {
                run(&mut scheduler, &mut heard, &mut now);
            }
        }
        while !scheduler.is_idle() {
            run(&mut scheduler, &mut heard, &mut now);
        }
        assert!(scheduler.counts().preemptions > 1, "{:?}", scheduler.counts());
        assert_eq!(heard.tokens, alone.tokens, "depth {depth}, {guesses} guesses");
        assert_eq!(heard.ended, 9);
    }
}

/// Prompts that end before the seam, at it and behind it, cut anywhere, found in part or whole: each
/// gets the tokens that it gets from an engine that keeps nothing.
#[test]
fn what_was_found_and_where_a_prompt_is_cut_change_no_answer() {
    let lengths = [30, 63, 64, 65, 99, 100, 101, 127, 128, 129, 150, 200];
    for (name, start) in
        [("llama-4-from-40", 100), ("qwen3-8-from-0", 64), ("full-heads-4-from-0", 0)]
    {
        let folder = case(name);
        let Packed { bits, .. } = packed(&folder);
        let plain = spec(&folder, bits, start);
        let tokens: Vec<TokenId> = (0..400).map(|at: u32| at * at * 31 % 320).collect();
        let mut bare = load(&plain);
        let alone: Vec<Vec<TokenId>> =
            lengths.iter().map(|length| greedy(&mut bare, &tokens[..*length], 40)).collect();
        for (piece, order) in [(512, [0, 5, 7]), (23, [11, 1, 5]), (64, [6, 7, 11])] {
            let spec = LoadSpec { prefix_cache_bytes_max: 1 << 26, ..plain.clone() };
            let limits = Limits { prefill_chunk_tokens: piece, ..LIMITS };
            let mut scheduler = Scheduler::new(load(&spec), limits);
            let (mut heard, mut now) = (Heard::default(), Instant::now());
            let mut ask = |request: usize, prompt: &[TokenId]| {
                let submit = submit(request as u64, prompt, 40, Priority::Normal);
                scheduler.command(submit, now, &mut heard);
                while !scheduler.is_idle() {
                    run(&mut scheduler, &mut heard, &mut now);
                }
                let request = request as u64;
                (heard.tokens[&request].clone(), heard.cached[&request])
            };
            for (request, at) in order.into_iter().chain(0..lengths.len()).enumerate() {
                let length = lengths[at];
                let (answer, cached) = ask(request, &tokens[..length]);
                assert_eq!(
                    answer, alone[at],
                    "{name} from {start}: {length} tokens, {cached} of them found, in pieces of {piece}"
                );
                let found_all = request >= order.len() && order.contains(&at);
                assert!(
                    !found_all || cached as usize >= (length - 1) / 64 * 64,
                    "{cached} of {length}"
                );
            }
        }
    }
}

/// A chat goes on from beyond the seam that its answer crossed, and from before it.
#[test]
fn a_chat_goes_on_from_kept_packed_keys_and_values() {
    let folder = case("llama-8-from-40");
    let Packed { prompt, bits, .. } = packed(&folder);
    for (start, depth) in [(40, 1), (64, 1), (64, 2), (100, 2), (128, 2)] {
        let spec = LoadSpec { prefix_cache_bytes_max: 1 << 24, ..spec(&folder, bits, start) };
        let mut scheduler = Scheduler::new(load(&spec).with_depth(depth), LIMITS);
        let (mut heard, mut now) = (Heard::default(), Instant::now());
        let mut ask = |request, prompt: &[TokenId], new| {
            scheduler.command(submit(request, prompt, new, Priority::Normal), now, &mut heard);
            while !scheduler.is_idle() {
                run(&mut scheduler, &mut heard, &mut now);
            }
            (heard.tokens[&request].clone(), heard.cached[&request])
        };
        let (answer, _) = ask(1, &prompt, 150);
        let chat: Vec<TokenId> = prompt.iter().chain(&answer).copied().collect();
        let mut fresh = load(&LoadSpec { prefix_cache_bytes_max: 0, ..spec });
        for (request, end, least) in [(2, chat.len(), 128), (3, 70, 64), (4, chat.len() - 1, 128)] {
            let (more, cached) = ask(request, &chat[..end], 16);
            assert!(cached >= least, "from {start}, depth {depth}: {cached} of {end} tokens found");
            assert_eq!(more, greedy(&mut fresh, &chat[..end], 16), "from {start}, depth {depth}");
        }
    }
}
