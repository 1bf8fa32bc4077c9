//! With kept prefixes a sequence gets the tokens that it gets without, whoever else runs.
//!
//! The whole engine below the rings: the scheduler with its places, preemptions and chunks over
//! the real engine, with so little room for prefixes that blocks come and go.

mod common;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use mlxd_engine::{CacheFigures, Engine, Limits, Scheduler, SeqId, SeqSpec, Sink};
use mlxd_models::MlxEngine;
use mlxd_protocol::{
    Command, KvQuantization, LoadSpec, PrefixDisk, Priority, Report, RequestId, Sampling, Submit,
    TokenId, TokenRecord,
};

/// Two tokens whose logits lie nearer than this, in standard deviations, are one choice: other
/// chunks and wider steps sum in another order.
const TIE: f32 = 1e-4;

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end as u64) as usize
    }

    fn tokens(&mut self, count: usize, vocab: usize) -> Vec<TokenId> {
        (0..count).map(|_| self.below(vocab) as TokenId).collect()
    }
}

#[derive(Default)]
struct Seen {
    tokens: HashMap<u64, Vec<TokenId>>,
    ended: Vec<u64>,
    cached: u64,
}

impl Sink for Seen {
    fn report(&mut self, report: Report) {
        match report {
            Report::Started(started) => self.cached += u64::from(started.cached_tokens),
            Report::Ended(ended) => panic!("refused: {}", ended.refusal),
            _ => {}
        }
    }

    fn tokens(&mut self, records: &[TokenRecord]) {
        for record in records {
            let tokens = self.tokens.entry(record.request).or_default();
            assert_eq!(record.index as usize, tokens.len());
            tokens.push(record.token);
            if record.flags != 0 {
                self.ended.push(record.request);
            }
        }
    }
}

/// Longest prompt and longest answer.
const PROMPT_MAX: usize = 380;
const NEW_MAX: usize = 30;

/// Prompts as chats make them: new ones, the same again, earlier ones with their answer and
/// more, and beginnings of earlier ones that go on otherwise.
fn prompt(dice: &mut Dice, vocab: usize, told: &[Vec<TokenId>]) -> Vec<TokenId> {
    let mut prompt = match told.len() {
        0 => Vec::new(),
        count => told[dice.below(count)].clone(),
    };
    match dice.below(5) {
        0 => prompt.clear(),
        1 => prompt.truncate(1 + dice.below(prompt.len().max(1))),
        2 => {}
        _ => {
            let more = dice.below(70);
            prompt.extend(dice.tokens(more, vocab));
        }
    }
    if prompt.is_empty() || prompt.len() > PROMPT_MAX {
        let count = 1 + dice.below(200);
        prompt = dice.tokens(count, vocab);
    }
    prompt
}

fn sampling(dice: &mut Dice) -> Sampling {
    match dice.below(4) {
        0 => Sampling { temperature: 0.8, top_k: 5, seed: 7, ..Sampling::default() },
        _ => Sampling::default(),
    }
}

/// What `submit` asks for from an engine without kept prefixes and with nothing else to do.
fn alone(engine: &mut MlxEngine, submit: &Submit) -> Vec<TokenId> {
    let (seq, count) = (SeqId(1), submit.max_new as usize);
    let spec = SeqSpec {
        tokens: submit.tokens.clone(),
        prompt_len: submit.tokens.len(),
        sampling: submit.sampling.clone(),
        logprobs: None,
        capacity: submit.tokens.len() + count,
    };
    engine.open(seq, spec).expect("a valid sequence");
    while engine.prefill(seq, 512).expect("prefill") > 0 {}
    let mut out = Vec::new();
    while out.len() < count {
        engine.submit(&[seq]).expect("submit");
        engine.collect(&mut out).expect("collect");
    }
    engine.close(seq);
    out.into_iter().map(|step| step.token).collect()
}

/// Fails unless the first token that differs was as likely as the one expected.
fn compare(name: &str, engine: &mut MlxEngine, submit: &Submit, got: &[TokenId]) -> bool {
    let expected = alone(engine, submit);
    assert_eq!(got.len(), expected.len(), "{name}");
    let Some(at) = (0..got.len()).find(|at| got[*at] != expected[*at]) else {
        return true;
    };
    let logits = engine.logits_along(&submit.tokens, &expected[..at]).expect("logits").remove(at);
    let mean = logits.iter().sum::<f32>() / logits.len() as f32;
    let deviation = logits.iter().map(|value| (value - mean).powi(2)).sum::<f32>();
    let deviation = (deviation / logits.len() as f32).sqrt();
    let apart = (logits[got[at] as usize] - logits[expected[at] as usize]).abs() / deviation;
    assert!(
        submit.sampling.temperature == 0.0 && apart < TIE,
        "{name}: token {at} of request {} ({} tokens of prompt) is {} and not {}, {apart} \
         standard deviations apart",
        submit.request,
        submit.tokens.len(),
        got[at],
        expected[at],
    );
    false
}

/// What a run of many requests did.
struct Ran {
    figures: CacheFigures,
    cached: u64,
    preemptions: u64,
    ties: usize,
}

/// How much an engine keeps.
#[derive(Default)]
struct Keeping {
    bytes_max: u64,
    disk: Option<PrefixDisk>,
    kv_tokens_max: Option<u32>,
    kv_quantization: Option<KvQuantization>,
    depth: Option<usize>,
}

/// `requests` at random, of which some are given up, over an engine with little room.
fn mix(name: &str, script: &str, requests: u64, keeping: Keeping, seed: u64) -> Ran {
    let folder = common::made_by(script).join(name);
    let Keeping { bytes_max, disk, kv_tokens_max, kv_quantization, depth } = keeping;
    let mut spec = LoadSpec { kv_tokens_max, kv_quantization, ..common::load_spec(&folder) };
    let mut plain = mlxd_models::load(&spec, &mut |_, _| {}).expect("it loads");
    spec.prefix_cache_bytes_max = bytes_max;
    spec.prefix_disk = disk;
    let mut engine = mlxd_models::load(&spec, &mut |_, _| {}).expect("it loads");
    if let Some(depth) = depth {
        engine = engine.with_depth(depth);
    }
    let vocab = engine.info().vocab_size as usize;
    let limits = Limits {
        prefill_chunk_tokens: 150,
        prefill_chunk_tokens_busy: 40,
        running_max: 4,
        queued_max: 16,
        parked_max: 3,
        ageing: Duration::ZERO,
        whole_chunks: false,
    };
    let mut scheduler = Scheduler::new(engine, limits);
    let mut dice = Dice(seed);
    let mut seen = Seen::default();
    let mut open: HashMap<u64, Submit> = HashMap::new();
    let mut told: Vec<Vec<TokenId>> = Vec::new();
    let (mut next, mut ties, mut compared) = (0, 0, 0);
    let now = Instant::now();
    while next < requests || !open.is_empty() {
        // Crowds and lulls.
        let crowd = [7, 1, 3][(next / 10 % 3) as usize];
        while next < requests && open.len() < crowd && dice.below(3) > 0 {
            let priorities = [Priority::High, Priority::Normal, Priority::Low];
            let tokens = prompt(&mut dice, vocab, &told);
            let submit = Submit {
                request: RequestId(next),
                trace: format!("request {next}"),
                prompt_len: tokens.len() as u32,
                tokens,
                max_new: 1 + dice.below(NEW_MAX) as u32,
                stop_tokens: Vec::new(),
                sampling: sampling(&mut dice),
                logprobs: None,
                priority: priorities[dice.below(3)],
                tenant: 0,
                weight: 1,
                deadline_ms: None,
            };
            open.insert(next, submit.clone());
            scheduler.command(Command::Submit(submit), now, &mut seen);
            next += 1;
        }
        if dice.below(150) == 0
            && let Some(request) = open.keys().copied().min()
        {
            open.remove(&request);
            scheduler.command(Command::Cancel(RequestId(request)), now, &mut seen);
        }
        scheduler.tick(now, &mut seen).expect("a unit of work");
        for request in std::mem::take(&mut seen.ended) {
            let submit = open.remove(&request).expect("an open request");
            let got = &seen.tokens[&request];
            ties += usize::from(!compare(name, &mut plain, &submit, got));
            compared += 1;
            told.push([&submit.tokens[..], got].concat());
        }
    }
    assert!(scheduler.is_idle());
    let figures = scheduler.engine().cache_figures();
    let preemptions = scheduler.counts().preemptions;
    println!("{name}: {compared} equal, {ties} by chance of rounding, {preemptions} preemptions");
    println!("{figures:?}");
    assert!(compared * 10 > requests * 7, "{compared} of {requests}");
    Ran { figures, cached: seen.cached, preemptions, ties }
}

/// Blocks of the smallest kind are some tens of kilobytes.
const KIB: u64 = 1 << 10;

fn check(name: &str, script: &str, bytes_max: u64, seed: u64) {
    check_keeping(name, script, Keeping { bytes_max, ..Keeping::default() }, seed);
}

fn check_keeping(name: &str, script: &str, keeping: Keeping, seed: u64) {
    let bytes_max = keeping.bytes_max;
    let ran = mix(name, script, 90, keeping, seed);
    let CacheFigures { hits, evictions, bytes, cached_tokens, .. } = ran.figures;
    assert!(hits > 15 && evictions > 15 && bytes <= bytes_max, "{:?}", ran.figures);
    assert!(ran.cached > 500 && ran.cached <= cached_tokens, "{} cached", ran.cached);
    assert!(ran.preemptions > 3, "{} preemptions", ran.preemptions);
    assert!(ran.ties <= 2, "{} ties", ran.ties);
}

#[test]
fn keys_and_values() {
    check("arch-llama", "make.py", 512 * KIB, 1);
    check("arch-qwen3", "make.py", 512 * KIB, 2);
}

#[test]
fn windows() {
    check("arch-llama-sliding", "make.py", 512 * KIB, 3);
    check("arch-mistral-sliding", "make.py", 512 * KIB, 4);
}

#[test]
fn experts() {
    check("moe", "hybrids.py", 512 * KIB, 5);
}

#[test]
fn scans() {
    check("hybrid", "hybrids.py", 2048 * KIB, 6);
    check("hybrid-experts", "hybrids.py", 2048 * KIB, 7);
}

/// A system prompt that all share and a question that each has for itself: the second prompt ends a
/// piece where it leaves the first one's way, and from the third on all go on from there.
#[test]
fn prompts_of_a_hybrid_that_begin_alike() {
    for (shared, kept) in [(200, 200), (192, 191), (30, 0)] {
        let mut spec = common::load_spec(&common::made_by("hybrids.py").join("hybrid"));
        let mut bare = mlxd_models::load(&spec, &mut |_, _| {}).expect("it loads");
        spec.prefix_cache_bytes_max = 1 << 30;
        let mut engine = mlxd_models::load(&spec, &mut |_, _| {}).expect("it loads");
        let vocab = engine.info().vocab_size as usize;
        let mut dice = Dice(78);
        let system = dice.tokens(shared, vocab);
        let mut found = Vec::new();
        for index in 0..4 {
            let seq = SeqId(index);
            let tokens = [system.clone(), dice.tokens(40, vocab)].concat();
            let spec = SeqSpec {
                prompt_len: tokens.len(),
                capacity: tokens.len() + 10,
                tokens,
                sampling: Sampling::default(),
                logprobs: None,
            };
            let answers = [&mut engine, &mut bare].map(|engine| {
                engine.open(seq, spec.clone()).expect("a valid sequence");
                while engine.prefill(seq, 512).expect("prefill") > 0 {}
                let mut out = Vec::new();
                while out.len() < 10 {
                    engine.submit(&[seq]).expect("submit");
                    engine.collect(&mut out).expect("collect");
                }
                let tokens: Vec<TokenId> = out.iter().map(|step| step.token).collect();
                tokens
            });
            assert_eq!(answers[0], answers[1], "{shared} shared");
            found.push(engine.found(seq).unwrap_or(0));
            engine.finish(seq).expect("an end");
            bare.finish(seq).expect("an end");
        }
        assert_eq!(found, [0, 0, kept, kept], "{shared} shared");
    }
}

/// A third of the sequences pass what is kept of each.
#[test]
fn first_and_last_positions() {
    for (name, script, kib, seed) in [
        ("arch-llama", "make.py", 400, 11),
        ("arch-llama-sliding", "make.py", 400, 9),
        ("hybrid", "hybrids.py", 1200, 10),
    ] {
        let kv_tokens_max = Some(150);
        let keeping = Keeping { bytes_max: kib * KIB, kv_tokens_max, ..Keeping::default() };
        check_keeping(name, script, keeping, seed);
    }
}

/// Most sequences reach the seam, some in their prompt and some in their answer, and many go on from
/// what was kept on either side of it. With steps in flight, and with less memory than a disk.
#[test]
fn packed_keys_and_values() {
    for (name, bits, from_tokens, depth, on_disk, kib, seed) in [
        ("llama-4-from-40", 4, 100, 1, true, 1000, 31),
        ("qwen3-8-from-0", 8, 128, 2, true, 800, 32),
        ("full-heads-8-from-0", 8, 0, 1, false, 1000, 33),
        ("hybrid-4-from-40", 4, 90, 2, false, 1500, 34),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let keeping = Keeping {
            bytes_max: kib * KIB,
            disk: on_disk.then(|| disk(folder.path())),
            kv_quantization: Some(KvQuantization { bits, from_tokens }),
            depth: Some(depth),
            ..Keeping::default()
        };
        let ran = mix(name, "kv.py", 90, keeping, seed);
        let CacheFigures { hits, evictions, disk, .. } = ran.figures;
        assert!(hits > 15 && evictions > 10, "{:?}", ran.figures);
        assert!(ran.cached > 500 && ran.preemptions > 0, "{} cached", ran.cached);
        assert!(disk.damaged == 0 && (disk.reads > 5) == on_disk, "{disk:?}");
        assert!(ran.ties <= 2, "{} ties", ran.ties);
    }
}

fn disk(folder: &Path) -> PrefixDisk {
    PrefixDisk { folder: folder.to_owned(), bytes_max: 1 << 30, write_bytes_per_hour_max: 1 << 30 }
}

/// Much more is on the disk than in memory, so that blocks come back from it all the time.
#[test]
fn blocks_that_come_back_from_the_disk() {
    for (name, script, bytes_max, kv_tokens_max, seed) in [
        ("arch-llama", "make.py", 400 * KIB, None, 21),
        ("arch-llama-sliding", "make.py", 400 * KIB, None, 22),
        ("hybrid", "hybrids.py", 900 * KIB, None, 23),
        ("moe", "hybrids.py", 400 * KIB, None, 24),
        ("arch-qwen3", "make.py", 250 * KIB, Some(200), 25),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let disk = Some(disk(folder.path()));
        let keeping = Keeping { bytes_max, disk, kv_tokens_max, ..Keeping::default() };
        let ran = mix(name, script, 60, keeping, seed);
        let CacheFigures { disk, evictions, .. } = ran.figures;
        assert!(disk.reads > 10 && disk.damaged == 0 && evictions > 10, "{:?}", ran.figures);
        assert!(ran.cached > 500 && ran.ties <= 2, "{} cached, {} ties", ran.cached, ran.ties);
    }
}

/// A process's life: the answers to some prompts, how much of each was found, and what was kept.
type Life = (Vec<Vec<TokenId>>, Vec<usize>, CacheFigures);

fn life(name: &str, script: &str, disk: Option<PrefixDisk>) -> Life {
    let mut spec = common::load_spec(&common::made_by(script).join(name));
    spec.prefix_cache_bytes_max = if disk.is_some() { 1 << 30 } else { 0 };
    spec.prefix_disk = disk;
    let mut engine = mlxd_models::load(&spec, &mut |_, _| {}).expect("it loads");
    let mut dice = Dice(77);
    let (mut answers, mut found) = (Vec::new(), Vec::new());
    for (index, length) in [130, 300, 70].into_iter().enumerate() {
        let seq = SeqId(index as u64);
        let tokens = dice.tokens(length, engine.info().vocab_size as usize);
        let sampling = Sampling::default();
        let capacity = length + 20;
        let prompt_len = length;
        let logprobs = None;
        let spec = SeqSpec { tokens, prompt_len, sampling, logprobs, capacity };
        engine.open(seq, spec).expect("a valid sequence");
        while engine.prefill(seq, 512).expect("prefill") > 0 {}
        let mut out = Vec::new();
        while out.len() < 20 {
            engine.submit(&[seq]).expect("submit");
            engine.collect(&mut out).expect("collect");
        }
        found.push(engine.found(seq).unwrap_or(0));
        engine.finish(seq).expect("an end");
        answers.push(out.into_iter().map(|step| step.token).collect());
    }
    let figures = engine.cache_figures();
    (answers, found, figures)
}

fn damage(folder: &Path, dice: &mut Dice) -> usize {
    let files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    for file in &files {
        let mut bytes = fs::read(file).unwrap();
        let at = dice.below(bytes.len());
        bytes[at] ^= 1 << dice.below(8);
        fs::write(file, bytes).unwrap();
    }
    files.len()
}

#[test]
fn what_is_on_the_disk_outlives_the_process() {
    let kinds = [
        ("arch-llama", "make.py"),
        ("arch-llama-sliding", "make.py"),
        ("hybrid", "hybrids.py"),
        ("moe", "hybrids.py"),
    ];
    for (name, script) in kinds {
        let folder = tempfile::tempdir().unwrap();
        let (expected, ..) = life(name, script, None);
        let ask = |what: &str, disk: PrefixDisk| -> (Vec<usize>, CacheFigures) {
            let (answers, found, figures) = life(name, script, Some(disk));
            println!("{name}, {what}: {found:?}, {:?}", figures.disk);
            assert_eq!(answers, expected, "{name}, {what}");
            (found, figures)
        };
        let all = || disk(folder.path());
        assert_eq!(ask("for the first time", all()).0, [0, 0, 0]);
        let (found, figures) = ask("again", all());
        assert!(found.iter().all(|found| *found >= 64), "{name}: {found:?}");
        assert!(figures.disk.reads >= 3);
        let mut dice = Dice(5);
        let files = damage(folder.path(), &mut dice);
        assert!(files > 4);
        let (found, figures) = ask("damaged", all());
        assert_eq!((found, figures.disk.reads), (vec![0, 0, 0], 0), "{name}");
        assert!(figures.disk.damaged >= 3);
        // Each life throws away what it comes upon, and writes it anew.
        for _ in 0..6 {
            ask("written anew in part", all());
        }
        let (found, _) = ask("written anew", all());
        assert!(found.iter().all(|found| *found >= 64), "{name}: {found:?}");

        // No room, and no leave to write.
        let one = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap();
        let bytes_max = one.metadata().unwrap().len() + 4096;
        let (_, figures) = ask("with little room", PrefixDisk { bytes_max, ..all() });
        assert!(figures.disk.bytes <= bytes_max);
        let empty = tempfile::tempdir().unwrap();
        let none = PrefixDisk { write_bytes_per_hour_max: 0, ..disk(empty.path()) };
        assert_eq!(ask("without a budget", none).1.disk.blocks, 0);
    }
}

#[test]
fn another_models_files_are_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let first = life("arch-llama", "make.py", Some(disk(folder.path())));
    assert!(first.2.disk.written_bytes > 0);
    let (expected, ..) = life("arch-qwen3", "make.py", None);
    let (answers, found, figures) = life("arch-qwen3", "make.py", Some(disk(folder.path())));
    assert_eq!((answers, found), (expected, vec![0, 0, 0]));
    assert_eq!((figures.disk.reads, figures.disk.damaged), (0, 0));
    // Renamed to what this model asks for.
    let ours: Vec<_> = fs::read_dir(folder.path()).unwrap().flatten().map(|e| e.path()).collect();
    let foreign = tempfile::tempdir().unwrap();
    life("arch-llama", "make.py", Some(disk(foreign.path())));
    let other = fs::read_dir(foreign.path()).unwrap().next().unwrap().unwrap().path();
    for file in &ours {
        fs::copy(&other, file).unwrap();
    }
    let (expected, ..) = life("arch-qwen3", "make.py", None);
    let (answers, found, figures) = life("arch-qwen3", "make.py", Some(disk(folder.path())));
    assert_eq!((answers, found), (expected, vec![0, 0, 0]));
    assert!(figures.disk.damaged >= 3 && figures.disk.reads == 0);
}
