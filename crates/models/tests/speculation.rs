//! Tokens guessed ahead must be those that plain steps give: greedy, sampled, with penalties and
//! log-probabilities, whatever the guesses are and whoever else runs.

mod common;

use mlxd_engine::{Engine, SeqId, SeqSpec, StepToken};
use mlxd_models::{Guessed, Guesser, Layout, MlxEngine, Source};
use mlxd_protocol::{DraftSpec, Sampling, TokenId};

fn case(script: &str, name: &str) -> std::path::PathBuf {
    common::made_by(script).join(name)
}

fn sampled(seed: u64) -> Sampling {
    Sampling { temperature: 0.9, top_p: 0.95, top_k: 40, seed, ..Sampling::default() }
}

fn penalised(seed: u64) -> Sampling {
    Sampling {
        repetition_penalty: 1.3,
        repetition_window: 12,
        presence_penalty: 0.4,
        frequency_penalty: 0.3,
        logit_bias: vec![(5, 2.0), (9, -3.0)],
        ..sampled(seed)
    }
}

fn open(engine: &mut MlxEngine, seq: u64, prompt: &[TokenId], count: usize, how: &Sampling) {
    let spec = SeqSpec {
        tokens: prompt.to_vec(),
        prompt_len: prompt.len(),
        sampling: how.clone(),
        logprobs: (seq % 2 == 1).then_some(3),
        capacity: prompt.len() + count,
    };
    engine.open(SeqId(seq), spec).expect("a valid sequence");
    while engine.prefill(SeqId(seq), 64).expect("prefill") > 0 {}
}

/// `count` tokens of one sequence, with the pipeline full as the scheduler keeps it.
fn decode(engine: &mut MlxEngine, seq: u64, count: usize) -> Vec<StepToken> {
    let (mut out, mut submitted) = (Vec::new(), 0);
    while out.len() < count {
        while submitted < count && submitted - out.len() < engine.depth() {
            engine.submit(&[SeqId(seq)]).expect("submit");
            submitted += 1;
        }
        engine.collect(&mut out).expect("collect");
    }
    out
}

fn alone(
    engine: &mut MlxEngine,
    seq: u64,
    prompt: &[TokenId],
    count: usize,
    how: &Sampling,
) -> Vec<StepToken> {
    open(engine, seq, prompt, count, how);
    let out = decode(engine, seq, count);
    engine.finish(SeqId(seq)).expect("finish");
    out
}

fn ids(steps: &[StepToken]) -> Vec<TokenId> {
    steps.iter().map(|step| step.token).collect()
}

fn assert_same(ours: &[StepToken], plain: &[StepToken], what: &str) {
    assert_eq!(ids(ours), ids(plain), "{what}");
    for (ours, plain) in ours.iter().zip(plain) {
        let near = |a: f32, b: f32| (a.is_nan() && b.is_nan()) || (a - b).abs() < 1e-3;
        assert!(near(ours.logprob, plain.logprob), "{what}: {ours:?} and {plain:?}");
        let tops = ours.top.iter().zip(&plain.top);
        assert!(tops.clone().all(|(a, b)| near(a.1, b.1)), "{what}: {ours:?} and {plain:?}");
        assert_eq!(ours.top.len(), plain.top.len());
    }
}

/// Guesses that are right for a while: `whole` is how the sequence goes on from its prompt.
fn partly_right(whole: Vec<TokenId>, mut random: fastrand::Rng) -> Guesser {
    Box::new(move |known, most| {
        let mut guesses: Vec<TokenId> = whole.iter().copied().skip(known.len()).collect();
        // Also none, fewer than asked for, and ids that no vocabulary has.
        guesses.truncate(random.usize(0..=most));
        for guess in &mut guesses {
            match random.u8(0..12) {
                0 => *guess = random.u32(0..320),
                1 => *guess = u32::MAX,
                _ => {}
            }
        }
        guesses
    })
}

#[test]
fn guesses_change_no_token() {
    const COUNT: usize = 60;
    let mut random = fastrand::Rng::with_seed(3);
    let (mut right, mut wrong) = (0, 0);
    let cases = [
        ("make.py", "arch-llama"),
        ("make.py", "arch-qwen3"),
        ("make.py", "quant-4-64"),
        ("hybrids.py", "moe"),
    ];
    for (script, name) in cases {
        let folder = case(script, name);
        let prompt = common::reference(&folder).prompt;
        let mut plain = common::load(&folder);
        for (seq, how) in
            [Sampling::default(), sampled(7), penalised(8), penalised(9)].into_iter().enumerate()
        {
            for seq in [2 * seq as u64 + 10, 2 * seq as u64 + 11] {
                let expected = alone(&mut plain, seq, &prompt, COUNT, &how);
                let whole: Vec<TokenId> = prompt.iter().copied().chain(ids(&expected)).collect();
                for (depth, most) in [(1, 8), (2, 5), (2, 1)] {
                    let guesser = partly_right(whole.clone(), random.fork());
                    let mut engine = common::load(&folder)
                        .with_depth(depth)
                        .always_guessing(most, Some(guesser));
                    let ours = alone(&mut engine, seq, &prompt, COUNT, &how);
                    assert_same(&ours, &expected, &format!("{name}, {how:?}, {depth}, {most}"));
                    right += engine.guessed(Source::Text).right;
                    wrong +=
                        engine.guessed(Source::Text).guesses - engine.guessed(Source::Text).right;
                }
            }
        }
        assert_eq!(plain.guessed(Source::Text), Default::default(), "not asked to guess");
    }
    assert!(right > 500 && wrong > 200, "{right} guesses were right, {wrong} wrong");
}

#[test]
fn company_comes_and_goes_between_guesses() {
    let folder = case("make.py", "arch-qwen3");
    let prompt = common::reference(&folder).prompt;
    let other: Vec<TokenId> = prompt.iter().rev().copied().collect();
    let mut plain = common::load(&folder);
    let first = alone(&mut plain, 1, &prompt, 80, &penalised(1));
    let second = alone(&mut plain, 2, &other, 30, &sampled(2));
    let whole: Vec<TokenId> = prompt.iter().copied().chain(ids(&first)).collect();
    for seed in 0..6 {
        let mut random = fastrand::Rng::with_seed(seed);
        let depth = 1 + seed as usize % 2;
        let guesser = partly_right(whole.clone(), random.fork());
        let mut engine = common::load(&folder).with_depth(depth).always_guessing(6, Some(guesser));
        open(&mut engine, 1, &prompt, 80, &penalised(1));
        let joins = random.usize(5..30);
        let (mut got, mut out) = ([Vec::new(), Vec::new()], Vec::new());
        let (mut submitted, mut in_flight) = ([0, 0], 0);
        while got[0].len() < 80 {
            if got[0].len() >= joins && submitted[1] == 0 {
                open(&mut engine, 2, &other, 30, &sampled(2));
            }
            while in_flight < depth {
                let runs = |seq: usize| {
                    submitted[seq] < [80, 30][seq] && (seq == 0 || got[0].len() >= joins)
                };
                let rows: Vec<usize> = (0..2).filter(|seq| runs(*seq)).collect();
                if rows.is_empty() {
                    break;
                }
                rows.iter().for_each(|seq| submitted[*seq] += 1);
                let rows: Vec<SeqId> = rows.iter().map(|seq| SeqId(*seq as u64 + 1)).collect();
                engine.submit(&rows).expect("submit");
                in_flight += 1;
            }
            out.clear();
            engine.collect(&mut out).expect("collect");
            in_flight -= 1;
            for step in out.drain(..) {
                got[step.seq.0 as usize - 1].push(step);
            }
            if got[1].len() == 30 && submitted[1] == 30 {
                submitted[1] += 1;
                engine.finish(SeqId(2)).expect("finish");
            }
        }
        assert_same(&got[0], &first, &format!("seed {seed}"));
        assert_same(&got[1], &second, &format!("seed {seed}"));
        assert!(engine.guessed(Source::Text).right > 0);
    }
}

#[test]
fn what_was_guessed_too_far_is_not_kept() {
    let folder = case("make.py", "arch-llama");
    let prompt = common::reference(&folder).prompt;
    let mut plain = common::load(&folder);
    let expected = ids(&alone(&mut plain, 2, &prompt, 50, &Sampling::default()));
    let whole: Vec<TokenId> = prompt.iter().copied().chain(expected.iter().copied()).collect();
    for (depth, stop) in [(1, 9), (1, 12), (2, 9), (2, 14)] {
        let right = whole.clone();
        let guesser: Guesser = Box::new(move |known, most| {
            right.iter().copied().skip(known.len()).take(most).collect()
        });
        let mut spec = common::load_spec(&folder);
        spec.prefix_cache_bytes_max = 64 << 20;
        let engine = mlxd_models::load(&spec, &mut |_, _| {}).expect("a model");
        let mut engine = engine.with_depth(depth).always_guessing(8, Some(guesser));
        // It ends in the middle of what a pass gave.
        open(&mut engine, 2, &prompt, 50, &Sampling::default());
        assert_eq!(ids(&decode(&mut engine, 2, stop)), expected[..stop]);
        engine.finish(SeqId(2)).expect("finish");
        // The next turn goes on elsewhere than the guesses did.
        let turn: Vec<TokenId> =
            whole[..prompt.len() + stop].iter().copied().chain([7, 8, 9]).collect();
        let fresh = ids(&alone(&mut plain, 4, &turn, 20, &Sampling::default()));
        let spec = SeqSpec {
            tokens: turn.clone(),
            prompt_len: turn.len(),
            sampling: Sampling::default(),
            logprobs: None,
            capacity: turn.len() + 20,
        };
        let cached = engine.open(SeqId(4), spec).expect("a valid sequence").cached_tokens;
        assert!(cached >= prompt.len(), "{cached} tokens of {} were kept", turn.len());
        while engine.prefill(SeqId(4), 64).expect("prefill") > 0 {}
        assert_eq!(ids(&decode(&mut engine, 4, 20)), fresh, "depth {depth}, stopped at {stop}");
    }
}

#[test]
fn a_repetition_is_found_and_pays() {
    let folder = case("make.py", "arch-qwen3");
    let passage = common::reference(&folder).prompt;
    let prompt: Vec<TokenId> = passage.iter().cycle().take(passage.len() * 4).copied().collect();
    let mut plain = common::load(&folder);
    let mut engine = common::load(&folder).always_guessing(8, None);
    let (mut right, mut passes) = (0, 0);
    for seed in 0..8 {
        // A bias that makes the model say a few tokens over and over.
        let few: Vec<(TokenId, f32)> = passage[..4].iter().map(|token| (*token, 9.0)).collect();
        let how = Sampling { temperature: 0.3, seed, logit_bias: few, ..Sampling::default() };
        let expected = alone(&mut plain, 2 + 2 * seed, &prompt, 60, &how);
        let ours = alone(&mut engine, 2 + 2 * seed, &prompt, 60, &how);
        assert_same(&ours, &expected, &format!("seed {seed}"));
        (right, passes) = (engine.guessed(Source::Text).right, engine.guessed(Source::Text).passes);
    }
    assert!(passes > 0 && right > 0, "{right} right guesses in {passes} passes");
}

#[test]
fn deterministic_engines_and_recurrent_ones_do_not_guess() {
    let folder = case("make.py", "arch-llama");
    let mut spec = common::load_spec(&folder);
    (spec.deterministic, spec.guesses_max) = (true, 8);
    let engine = mlxd_models::load(&spec, &mut |_, _| {}).expect("a model");
    let prompt = [1, 2, 3, 1, 2, 3, 1, 2, 3];
    let hybrid = common::load(&case("hybrids.py", "hybrid"));
    let sliding = common::load(&case("make.py", "arch-mistral-sliding"));
    for engine in [engine, hybrid, sliding] {
        let mut engine = engine.always_guessing(8, None);
        alone(&mut engine, 2, &prompt, 30, &Sampling::default());
        assert_eq!(engine.guessed(Source::Text), Default::default());
    }
}

/// `target`, for which the model of another case guesses.
fn drafted(
    target: &std::path::Path,
    draft: &std::path::Path,
    piece: u32,
    depth: usize,
) -> MlxEngine {
    let mut spec = common::load_spec(target);
    spec.draft = Some(DraftSpec { folder: draft.to_owned(), tokens_max: 4 });
    spec.prefill_chunk_tokens_busy = piece;
    let engine = mlxd_models::load(&spec, &mut |_, _| {}).expect("a model with a draft");
    engine.with_depth(depth).always_guessing(0, None)
}

#[test]
fn a_draft_model_changes_no_token() {
    const COUNT: usize = 40;
    let (mut agreeing, mut others) = ((0, 0), (0, 0));
    for (script, name) in
        [("make.py", "arch-llama"), ("make.py", "arch-qwen3"), ("hybrids.py", "moe")]
    {
        let folder = case(script, name);
        let prompt = common::reference(&folder).prompt;
        let mut plain = common::load(&folder);
        let how = [Sampling::default(), sampled(7), penalised(8)];
        for (index, how) in how.into_iter().enumerate() {
            let seq = 10 + index as u64;
            let expected = alone(&mut plain, seq, &prompt, COUNT, &how);
            for (draft, piece, depth) in
                [(folder.clone(), 256, 2), (case("make.py", "arch-qwen2"), 5, 1)]
            {
                let mut engine = drafted(&folder, &draft, piece, depth);
                let ours = alone(&mut engine, seq, &prompt, COUNT, &how);
                assert_same(&ours, &expected, &format!("{name}, {how:?} by {}", draft.display()));
                let Guessed { passes, guesses, right } = engine.guessed(Source::Draft);
                assert!(passes > 0 && guesses > 0, "{name}: nothing was guessed");
                let sum = if draft == folder { &mut agreeing } else { &mut others };
                *sum = (sum.0 + right, sum.1 + guesses);
            }
        }
    }
    // The same model agrees with itself but for rounding, sampled as greedy.
    assert!(agreeing.0 * 100 >= agreeing.1 * 97, "{agreeing:?}");
    assert!(others.0 < others.1 && others.1 > 100, "{others:?}");
}

#[test]
fn guesses_that_attend_one_by_one_change_no_token() {
    let folder = case("make.py", "arch-qwen3");
    let prompt = common::reference(&folder).prompt;
    let expected = alone(&mut common::load(&folder), 2, &prompt, 60, &sampled(3));
    let whole: Vec<TokenId> = prompt.iter().copied().chain(ids(&expected)).collect();
    let layout = Some(Layout { split_few: true, ..Layout::PLAIN });
    let spec = common::load_spec(&folder);
    let engine = mlxd_models::load_with_layout(&spec, layout, &mut |_, _| {}).expect("a model");
    let guesser = partly_right(whole, fastrand::Rng::with_seed(4));
    let mut engine = engine.always_guessing(9, Some(guesser));
    let ours = alone(&mut engine, 2, &prompt, 60, &sampled(3));
    assert_same(&ours, &expected, "one by one");
    assert!(engine.guessed(Source::Text).right > 20);
}

#[test]
fn a_draft_model_follows_whoever_is_alone() {
    let folder = case("make.py", "arch-qwen3");
    let prompt = common::reference(&folder).prompt;
    let other: Vec<TokenId> = prompt.iter().rev().copied().collect();
    let mut plain = common::load(&folder);
    let mut engine = drafted(&folder, &folder, 16, 1);
    let mut turn = prompt.clone();
    for seq in 0..4 {
        // A conversation that grows, with another one between its turns.
        let expected = alone(&mut plain, 2 + 4 * seq, &turn, 20, &sampled(seq));
        let ours = alone(&mut engine, 2 + 4 * seq, &turn, 20, &sampled(seq));
        assert_same(&ours, &expected, &format!("turn {seq}"));
        turn.extend(ids(&expected));
        let expected = alone(&mut plain, 4 + 4 * seq, &other, 20, &Sampling::default());
        let ours = alone(&mut engine, 4 + 4 * seq, &other, 20, &Sampling::default());
        assert_same(&ours, &expected, &format!("between, {seq}"));
        engine.trim();
    }
    let Guessed { guesses, right, .. } = engine.guessed(Source::Draft);
    assert!(right > 50 && right * 100 >= guesses * 97, "{right} of {guesses}");
}

#[test]
fn what_cannot_guess_is_refused() {
    let refused = |target: &std::path::Path, draft: &std::path::Path| {
        let mut spec = common::load_spec(target);
        spec.draft = Some(DraftSpec { folder: draft.to_owned(), tokens_max: 4 });
        mlxd_models::load(&spec, &mut |_, _| {}).err().expect("it cannot guess").message
    };
    let target = case("make.py", "arch-llama");
    let why = refused(&target, &case("make.py", "arch-mistral-sliding"));
    assert!(why.contains("the draft model in") && why.contains("forget"), "{why}");
    let why = refused(&target, &case("hybrids.py", "hybrid"));
    assert!(why.contains("forget"), "{why}");
    let why = refused(&target, std::path::Path::new("/nowhere"));
    assert!(why.contains("/nowhere"), "{why}");
    // In deterministic mode nothing is guessed, and no draft is read.
    let mut spec = common::load_spec(&target);
    spec.draft = Some(DraftSpec { folder: "/nowhere".into(), tokens_max: 4 });
    spec.deterministic = true;
    assert!(mlxd_models::load(&spec, &mut |_, _| {}).is_ok());
}
