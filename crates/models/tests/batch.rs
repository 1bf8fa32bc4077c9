//! Rows that decode together must get what each would get alone.

mod common;

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use mlxd_engine::{Engine, SeqId, SeqSpec, StepToken};
use mlxd_models::{MlxEngine, probe};
use mlxd_protocol::{Sampling, TokenId};

/// Largest difference of logits, in standard deviations of them: sums in another order.
const TOLERANCE: f32 = 5e-5;

fn cases(script: &str) -> Vec<PathBuf> {
    let folder = common::made_by(script);
    let names: Vec<String> =
        serde_json::from_slice(&fs::read(folder.join("cases.json")).unwrap()).unwrap();
    names.iter().map(|name| folder.join(name)).collect()
}

fn case(name: &str) -> PathBuf {
    let script = match name.starts_with("arch") {
        true => "make.py",
        false => "hybrids.py",
    };
    common::made_by(script).join(name)
}

fn open(engine: &mut MlxEngine, seq: SeqId, prompt: &[TokenId], capacity: usize, how: &Sampling) {
    let spec = SeqSpec {
        tokens: prompt.to_vec(),
        prompt_len: prompt.len(),
        sampling: how.clone(),
        logprobs: None,
        capacity,
    };
    engine.open(seq, spec).expect("a valid sequence");
    while engine.prefill(seq, 64).expect("prefill") > 0 {}
}

/// `count` tokens of `prompt`, decoded alone.
fn alone(engine: &mut MlxEngine, prompt: &[TokenId], count: usize, how: &Sampling) -> Vec<TokenId> {
    let seq = SeqId(1 << 40);
    open(engine, seq, prompt, prompt.len() + count, how);
    let mut out = Vec::new();
    while out.len() < count {
        engine.submit(&[seq]).expect("submit");
        engine.collect(&mut out).expect("collect");
    }
    engine.close(seq);
    out.into_iter().map(|step| step.token).collect()
}

fn distance(ours: &[Vec<f32>], theirs: &[Vec<f32>]) -> f32 {
    let count = theirs.iter().flatten().count() as f32;
    let mean = theirs.iter().flatten().sum::<f32>() / count;
    let squares = theirs.iter().flatten().map(|value| (value - mean).powi(2));
    let deviation = (squares.sum::<f32>() / count).sqrt();
    assert!(ours.len() == theirs.len() && deviation > 0.1, "logits that say nothing");
    let pairs = ours.iter().flatten().zip(theirs.iter().flatten());
    let largest = pairs.fold(0.0, |worst: f32, (a, b)| {
        let apart = (a - b).abs();
        if apart > worst || apart.is_nan() { apart } else { worst }
    });
    largest / deviation
}

/// Every checkpoint of the oracle: logits near those of a single row, and the row with the
/// oracle's prompt draws mlx-lm's tokens.
fn compare(script: &str, at_least: usize) {
    let mut compared = 0;
    for case in cases(script) {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        let mut engine = common::load(&case);
        let reference = common::reference(&case);
        let (prompt, tokens) = (&reference.prompt, &reference.tokens);
        let forced = &tokens[..tokens.len() - 1];
        let context = engine.info().context_tokens as usize;
        let longest = (prompt.len() * 3).min(context - tokens.len());
        // Other lengths beside the oracle's, the shortest possible among them.
        let prompts: Vec<Vec<TokenId>> = vec![
            prompt[..1].to_vec(),
            prompt.clone(),
            prompt.iter().rev().copied().cycle().take(longest).collect(),
        ];
        let given: Vec<_> = prompts.iter().map(|of| (of.clone(), forced.to_vec())).collect();
        let together = engine.logits_together(&given).unwrap();
        for ((prompt, forced), ours) in given.iter().zip(&together) {
            let single = engine.logits_along(prompt, forced).unwrap();
            let apart = distance(ours, &single);
            assert!(apart <= TOLERANCE, "{name}, {} tokens: {apart}", prompt.len());
        }
        for (index, prompt) in prompts.iter().enumerate() {
            let capacity = prompt.len() + tokens.len();
            open(&mut engine, SeqId(index as u64), prompt, capacity, &Sampling::default());
        }
        let rows: Vec<SeqId> = (0..prompts.len() as u64).map(SeqId).collect();
        let mut out = Vec::new();
        for _ in 0..tokens.len() {
            engine.submit(&rows).expect("submit");
            engine.collect(&mut out).expect("collect");
        }
        let ours: Vec<TokenId> =
            out.iter().filter(|step| step.seq == SeqId(1)).map(|step| step.token).collect();
        assert_eq!(&ours, tokens, "{name}: greedy tokens differ from mlx-lm's");
        compared += 1;
    }
    assert!(compared >= at_least, "{compared} checkpoints");
}

#[test]
fn batches_equal_single_rows_and_mlx_lm() {
    compare("make.py", 45);
}

#[test]
fn batches_of_experts_and_scans_equal_single_rows_and_mlx_lm() {
    compare("hybrids.py", 22);
}

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end as u64) as usize
    }
}

struct Running {
    prompt: usize,
    submitted: usize,
    got: Vec<TokenId>,
    wanted: usize,
}

const PROMPTS: usize = 6;

/// Sampling that differs by prompt, and so within each batch.
fn sampling(prompt: usize) -> Sampling {
    let plain = Sampling { seed: 40 + prompt as u64, ..Sampling::default() };
    match prompt {
        0 | 3 => plain,
        1 => Sampling { temperature: 0.7, top_p: 0.9, ..plain },
        2 => Sampling { temperature: 1.2, top_k: 7, min_p: 0.02, ..plain },
        4 => Sampling { temperature: 0.9, top_k: 3, top_p: 0.8, ..plain },
        _ => Sampling { temperature: 0.5, presence_penalty: 0.5, ..plain },
    }
}

/// Sequences come, go, pause and end at random; each must get the tokens it gets alone.
fn mix(name: &str, depth: usize, seed: u64, steps: usize) {
    const LONGEST: usize = 430;
    let mut engine = common::load(&case(name)).with_depth(depth);
    let mut dice = Dice(seed);
    let vocab = engine.info().vocab_size as usize;
    // One history much longer than the others, so that sharing ends and begins.
    let lengths = [1, 3, 40, 330, 90, 17];
    let prompts: Vec<Vec<TokenId>> = lengths
        .iter()
        .map(|length| (0..*length).map(|_| dice.below(vocab) as TokenId).collect())
        .collect();
    let expected: Vec<Vec<TokenId>> = (0..PROMPTS)
        .map(|of| alone(&mut engine, &prompts[of], LONGEST - lengths[of], &sampling(of)))
        .collect();
    let mut running: HashMap<SeqId, Running> = HashMap::new();
    let (mut next, mut in_flight, mut finished, mut widest) = (0, 0, 0, 0);
    let mut out: Vec<StepToken> = Vec::new();
    for step in 0..steps {
        // Crowds and lulls, so that buffers grow and shrink.
        let crowd = [9, 2, 5, 1][step / 60 % 4];
        while running.len() < crowd && dice.below(3) > 0 {
            let prompt = dice.below(PROMPTS);
            let most = LONGEST - lengths[prompt];
            let wanted = 1 + dice.below(most);
            let seq = SeqId(next);
            next += 1;
            open(&mut engine, seq, &prompts[prompt], lengths[prompt] + wanted, &sampling(prompt));
            running.insert(seq, Running { prompt, submitted: 0, got: Vec::new(), wanted });
        }
        if dice.below(25) == 0
            && let Some(seq) = running.keys().copied().min()
        {
            running.remove(&seq);
            engine.close(seq);
        }
        let mut rows: Vec<SeqId> = running
            .iter()
            .filter(|(_, row)| row.submitted < row.wanted)
            .map(|(seq, _)| *seq)
            .collect();
        rows.sort();
        if dice.below(12) == 0 && rows.len() > 1 {
            rows.remove(dice.below(rows.len())); // paused for a step
        }
        if !rows.is_empty() {
            for seq in &rows {
                running.get_mut(seq).unwrap().submitted += 1;
            }
            widest = widest.max(rows.len());
            engine.submit(&rows).expect("submit");
            in_flight += 1;
        }
        while in_flight >= depth || (rows.is_empty() && in_flight > 0) {
            out.clear();
            engine.collect(&mut out).expect("collect");
            in_flight -= 1;
            for token in &out {
                let row = running.get_mut(&token.seq).expect("only what runs");
                let wanted = expected[row.prompt][row.got.len()];
                assert_eq!(
                    token.token,
                    wanted,
                    "{name}, seed {seed}, step {step}: token {} of prompt {}",
                    row.got.len(),
                    row.prompt
                );
                row.got.push(token.token);
                if row.got.len() == row.wanted {
                    running.remove(&token.seq);
                    engine.close(token.seq);
                    finished += 1;
                }
            }
        }
    }
    assert!(finished > 3 && widest >= 6, "{finished} finished, {widest} at once");
}

#[test]
fn random_mixes_equal_single_rows() {
    mix("arch-llama", 1, 1, 900);
    mix("arch-qwen3", 1, 2, 600);
}

#[test]
fn random_mixes_equal_single_rows_with_windows() {
    mix("arch-llama-sliding", 1, 3, 900);
    mix("arch-mistral-sliding", 1, 4, 600);
}

#[test]
fn random_mixes_equal_single_rows_with_experts_and_scans() {
    mix("moe", 1, 10, 400);
    mix("hybrid", 1, 11, 400);
    mix("hybrid-experts", 1, 12, 400);
}

#[test]
fn random_mixes_equal_single_rows_with_steps_in_flight() {
    mix("hybrid", 2, 13, 400);
    mix("arch-qwen2", 2, 5, 600);
    mix("arch-llama-sliding", 2, 6, 600);
}

/// Draws from the same logits do not depend on who else draws.
#[test]
fn draws_do_not_depend_on_company() {
    let _ = common::load(&case("arch-llama"));
    let mut dice = Dice(9);
    let vocab = 300;
    let rows: Vec<(Vec<f32>, Sampling, u64)> = (0..24)
        .map(|row| {
            let logits = (0..vocab).map(|_| dice.below(2000) as f32 / 250.0).collect();
            let mut how = sampling(row % PROMPTS);
            how.seed = row as u64 * 77;
            (logits, how, dice.below(1000) as u64)
        })
        .collect();
    let together = probe::draws_together(&rows).unwrap();
    for ((logits, how, index), token) in rows.iter().zip(&together) {
        let single = probe::draws(logits, how, *index..*index + 1).unwrap();
        assert_eq!(single, [*token], "{how:?}");
    }
    // Not all alike: the rows do differ.
    assert!(together.iter().collect::<std::collections::HashSet<_>>().len() > 10);
}
