//! Draws, penalties and log-probabilities against numpy, mlx-lm and themselves.

mod common;

use std::fs;

use mlxd_engine::{Engine, SeqId, SeqSpec, StepToken};
use mlxd_models::{MlxEngine, probe};
use mlxd_protocol::{RefusalCode, Sampling, TokenId};
use serde::Deserialize;

#[derive(Deserialize)]
struct Written {
    distributions: Vec<Distribution>,
    penalties: Vec<Penalties>,
}

#[derive(Deserialize)]
struct Distribution {
    logits: Vec<f32>,
    probabilities: Vec<f64>,
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
}

#[derive(Deserialize)]
struct Penalties {
    logits: Vec<f32>,
    prompt: Vec<TokenId>,
    generated: Vec<TokenId>,
    repetition: f32,
    window: u32,
    presence: f32,
    frequency: f32,
    bias: Vec<(TokenId, f32)>,
    adjusted: Vec<f32>,
}

fn written() -> Written {
    // Any load chooses the device and primes MLX; these tests go on from there.
    let _ = common::load(&common::made_by("make.py").join("arch-llama"));
    let path = common::made_by("sampling.py").join("sampling.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Draws follow the probabilities: none outside their support, and a chi-square that a true
/// sampler exceeds once in a thousand seeds. The seed is fixed, so the test is too.
#[test]
fn draws_follow_numpys_probabilities() {
    const DRAWS: u64 = 6000;
    for case in written().distributions {
        let sampling = Sampling {
            temperature: case.temperature.unwrap_or(1.0),
            top_k: case.top_k.unwrap_or(0),
            top_p: case.top_p.unwrap_or(1.0),
            min_p: case.min_p.unwrap_or(0.0),
            seed: 5,
            ..Sampling::default()
        };
        let drawn = probe::draws(&case.logits, &sampling, 0..DRAWS).unwrap();
        let mut counts = vec![0_u32; case.logits.len()];
        for token in drawn {
            counts[token as usize] += 1;
        }
        let mut chi_square = 0.0;
        let mut support = 0;
        for (token, (&count, &share)) in counts.iter().zip(&case.probabilities).enumerate() {
            if share == 0.0 {
                assert_eq!(count, 0, "token {token} is filtered: {sampling:?}");
                continue;
            }
            let expected = share * DRAWS as f64;
            chi_square += (f64::from(count) - expected).powi(2) / expected;
            support += 1;
        }
        // Wilson and Hilferty's approximation of the 99.9 % quantile.
        let freedom = f64::from(support - 1).max(1.0);
        let spread = 2.0 / (9.0 * freedom);
        let quantile = freedom * (1.0 - spread + 3.09 * spread.sqrt()).powi(3);
        assert!(
            chi_square <= quantile,
            "chi-square {chi_square:.1} over {quantile:.1}: {sampling:?}"
        );
    }
}

#[test]
fn penalties_equal_mlx_lms() {
    for case in written().penalties {
        let sampling = Sampling {
            repetition_penalty: case.repetition,
            repetition_window: case.window,
            presence_penalty: case.presence,
            frequency_penalty: case.frequency,
            logit_bias: case.bias.clone(),
            ..Sampling::default()
        };
        // Known from the start, or drawn one by one: the same.
        for drawn in [0, 5, case.generated.len()] {
            let ours =
                probe::adjusted(&case.logits, &sampling, &case.prompt, &case.generated, drawn);
            for (ours, theirs) in ours.unwrap().iter().zip(&case.adjusted) {
                assert!((ours - theirs).abs() < 1e-5, "{ours} for {theirs}: {sampling:?}");
            }
        }
    }
}

fn spec(tokens: &[TokenId], prompt_len: usize, sampling: &Sampling) -> SeqSpec {
    SeqSpec {
        tokens: tokens.to_vec(),
        prompt_len,
        sampling: sampling.clone(),
        logprobs: None,
        capacity: 200,
    }
}

fn generate(engine: &mut MlxEngine, spec: SeqSpec, count: usize) -> Vec<StepToken> {
    let seq = SeqId(9);
    engine.open(seq, spec).unwrap();
    while engine.prefill(seq, 16).unwrap() > 0 {}
    let mut out = Vec::new();
    for _ in 0..count {
        engine.submit(&[seq]).unwrap();
        engine.collect(&mut out).unwrap();
    }
    engine.close(seq);
    out
}

fn tokens_of(steps: &[StepToken]) -> Vec<TokenId> {
    steps.iter().map(|step| step.token).collect()
}

fn wild() -> Sampling {
    Sampling {
        temperature: 1.3,
        top_p: 0.95,
        top_k: 50,
        repetition_penalty: 1.2,
        repetition_window: 12,
        presence_penalty: 0.3,
        frequency_penalty: 0.2,
        logit_bias: vec![(5, 1.0)],
        seed: 42,
        ..Sampling::default()
    }
}

#[test]
fn a_seed_repeats_and_another_differs() {
    let mut engine = common::load(&common::made_by("make.py").join("arch-qwen3"));
    let prompt = [1, 2, 3, 4];
    let mut run = |seed| {
        let sampling = Sampling { seed, ..wild() };
        tokens_of(&generate(&mut engine, spec(&prompt, 4, &sampling), 40))
    };
    let first = run(42);
    assert_eq!(first, run(42));
    assert_ne!(first, run(43));
}

/// What recovery rests on: a sequence started again from its prompt and a part of its answer
/// goes on as if it had never stopped, sampling, penalties and all.
#[test]
fn a_replayed_sequence_goes_on_identically() {
    let mut engine = common::load(&common::made_by("make.py").join("arch-llama"));
    let prompt = [9, 8, 7, 6, 5];
    let whole = tokens_of(&generate(&mut engine, spec(&prompt, 5, &wild()), 60));
    for cut in [1, 17, 59] {
        let known = [&prompt[..], &whole[..cut]].concat();
        let rest = generate(&mut engine, spec(&known, 5, &wild()), 60 - cut);
        assert_eq!(tokens_of(&rest), whole[cut..], "cut after {cut}");
    }
}

#[test]
fn rows_do_not_disturb_each_other() {
    let mut engine = common::load(&common::made_by("make.py").join("arch-qwen2"));
    let greedy = Sampling::default();
    let specs =
        [spec(&[1, 2, 3], 3, &greedy), spec(&[7; 30], 30, &wild()), spec(&[300], 1, &greedy)];
    let alone: Vec<Vec<TokenId>> =
        specs.iter().map(|spec| tokens_of(&generate(&mut engine, spec.clone(), 20))).collect();
    let seqs: Vec<SeqId> = (100..103).map(SeqId).collect();
    let mut rows: Vec<Vec<TokenId>> = vec![Vec::new(); 3];
    for (seq, spec) in seqs.iter().zip(&specs) {
        engine.open(*seq, spec.clone()).unwrap();
        while engine.prefill(*seq, 8).unwrap() > 0 {}
    }
    for step in 0..20 {
        engine.submit(&seqs).unwrap();
        // The middle one leaves while its step is in flight.
        if step == 10 {
            engine.close(seqs[1]);
        }
        let mut out = Vec::new();
        engine.collect(&mut out).unwrap();
        assert_eq!(out.len(), if step < 10 { 3 } else { 2 });
        for step in out {
            rows[step.seq.0 as usize - 100].push(step.token);
        }
        if step == 10 {
            break;
        }
    }
    for step in 11..20 {
        engine.submit(&[seqs[2], seqs[0]]).unwrap();
        let mut out = Vec::new();
        engine.collect(&mut out).unwrap();
        assert_eq!((out[0].seq, out[1].seq), (seqs[2], seqs[0]), "step {step}");
        for step in out {
            rows[step.seq.0 as usize - 100].push(step.token);
        }
    }
    assert_eq!(rows[0], alone[0]);
    assert_eq!(rows[1], alone[1][..10]);
    assert_eq!(rows[2], alone[2]);
}

#[test]
fn logprobs_are_those_of_the_raw_logits() {
    let mut engine = common::load(&common::made_by("make.py").join("arch-llama"));
    let prompt = [3, 1, 4, 1, 5];
    let mut asked = spec(&prompt, 5, &wild());
    asked.logprobs = Some(4);
    let steps = generate(&mut engine, asked, 12);
    let rows = engine.logits_along(&prompt, &tokens_of(&steps)[..11]).unwrap();
    for (step, row) in steps.iter().zip(&rows) {
        let largest = row.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = row.iter().map(|logit| f64::from(logit - largest).exp()).sum();
        let logprob = |token: usize| row[token] - largest - sum.ln() as f32;
        assert!((step.logprob - logprob(step.token as usize)).abs() < 1e-4);
        let mut best: Vec<usize> = (0..row.len()).collect();
        best.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
        let wanted: Vec<u32> = best[..4].iter().map(|token| *token as u32).collect();
        let top: Vec<u32> = step.top.iter().map(|(token, _)| *token).collect();
        assert_eq!(top, wanted);
        for (token, value) in &step.top {
            assert!((value - logprob(*token as usize)).abs() < 1e-4);
        }
    }
    let unasked = generate(&mut engine, spec(&prompt, 5, &Sampling::default()), 1);
    assert!(unasked[0].logprob.is_nan() && unasked[0].top.is_empty());
}

#[test]
fn what_mlx_would_not_check_is_refused() {
    let mut engine = common::load(&common::made_by("make.py").join("arch-llama"));
    let good = Sampling::default();
    let with = |change: fn(&mut Sampling)| {
        let mut sampling = Sampling::default();
        change(&mut sampling);
        spec(&[1, 2], 2, &sampling)
    };
    let bad = [
        (spec(&[], 0, &good), "at least one token"),
        (spec(&[1, 2], 3, &good), "3 tokens"),
        (spec(&[1, 2], 0, &good), "0 tokens"),
        (spec(&[1, 320], 2, &good), "token id 320"),
        (spec(&[1, u32::MAX], 2, &good), "4294967295"),
        (spec(&[1; 201], 2, &good), "capacity of 200"),
        (with(|s| s.temperature = f32::NAN), "temperature"),
        (with(|s| s.temperature = -1.0), "temperature"),
        (with(|s| s.top_p = 1.5), "top_p"),
        (with(|s| s.min_p = f32::INFINITY), "min_p"),
        (with(|s| s.repetition_penalty = 0.0), "repetition_penalty"),
        (with(|s| s.frequency_penalty = f32::NAN), "frequency_penalty"),
        (with(|s| s.logit_bias = vec![(320, 1.0)]), "token 320"),
        (with(|s| s.logit_bias = vec![(3, f32::NAN)]), "logit_bias"),
    ];
    for (spec, word) in bad {
        let refusal = engine.open(SeqId(1), spec).expect_err(word);
        assert_eq!(refusal.code, RefusalCode::Invalid, "{refusal}");
        assert!(refusal.message.contains(word), "{word:?} not in: {refusal}");
    }
    let mut long = spec(&[1, 2], 2, &good);
    long.capacity = 513;
    let refusal = engine.open(SeqId(1), long).unwrap_err();
    assert_eq!(refusal.code, RefusalCode::ContextOverflow);
    assert!(refusal.message.contains("513") && refusal.message.contains("512"));

    // Nothing of that reached MLX, and steps without a sequence are faults, not crashes.
    assert!(engine.submit(&[SeqId(1)]).is_err());
    assert!(engine.prefill(SeqId(1), 4).is_err());
    engine.open(SeqId(2), spec(&[1, 2, 3], 3, &good)).unwrap();
    let early = engine.submit(&[SeqId(2)]).unwrap_err();
    assert!(early.reason.contains("not prefilled"), "{early}");
}
