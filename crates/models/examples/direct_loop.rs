//! The engine in a bare loop, timed: one JSON object on standard output.
//!
//! `cargo run --release -p mlxd-models --example direct_loop -- FOLDER
//! [--layout qkv+gate_up+compile+fuse+stride4] [--prompt 40] [--new 50,100,200] [--runs 5] [--rows 1,5,16] [--guess 4]
//! [--logits FILE --force 1,2,3] [--apart 16]`
//!
//! `--layout` replaces what was measured best for the device. `--logits` writes the logits
//! of the prompt's last token and of each forced token, little-endian float32. The prompt is
//! `13, 7932, 15851, …`: token `i` is `(7919 i + 13)` modulo the vocabulary.
//! `--rows` times as many sequences at once, by the last of `--new`. Row `r` of them has the prompt's
//! tokens plus `101 r`. `--apart N` says how far logits of N rows that are decoded together are from
//! what each row gets alone. `--guess N` generates the same tokens once more, N of them guessed right
//! at a time, and times each pass over them. `benches/gpu_overhead.py` and `benches/gpu_batch.py` run this beside
//! mlx-lm.

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use mlxd_engine::{Engine, SeqId, SeqSpec, bench_direct};
use mlxd_models::{Layout, MlxEngine, load_with_layout};
use mlxd_protocol::{BenchSpec, DeviceChoice, LoadSpec, Sampling};
use serde_json::json;

/// Tokens of a prompt run at once, as many as mlx-lm's loop takes.
const CHUNK_TOKENS: u32 = 2048;

struct Arguments {
    folder: PathBuf,
    layout: Option<Layout>,
    prompt: u32,
    new: Vec<u32>,
    runs: u32,
    logits: Option<PathBuf>,
    force: Vec<u32>,
    rows: Vec<u32>,
    apart: Option<u32>,
    guess: Option<u32>,
}

fn numbers(text: &str) -> Result<Vec<u32>, std::num::ParseIntError> {
    text.split(',').map(str::parse).collect()
}

/// A layout from the names of what is on: `qkv+gate_up+compile+fuse+stride4`, or `plain`.
fn layout(text: &str) -> Result<Layout, String> {
    let mut layout = Layout::PLAIN;
    for name in text.split('+') {
        match name {
            "plain" => {}
            "qkv" => layout.join_qkv = true,
            "gate_up" => layout.join_gate_up = true,
            "compile" => layout.compile = true,
            "fuse" => layout.fuse_decode = true,
            other => {
                let stride = other.strip_prefix("stride").and_then(|layers| layers.parse().ok());
                layout.stride = Some(stride.ok_or_else(|| format!("unknown layout {other}"))?);
            }
        }
    }
    Ok(layout)
}

fn arguments() -> Result<Arguments, Box<dyn Error>> {
    let mut given = std::env::args().skip(1);
    let mut parsed = Arguments {
        folder: given.next().ok_or("which model folder?")?.into(),
        layout: None,
        prompt: 40,
        new: vec![50, 100, 200],
        runs: 5,
        logits: None,
        force: Vec::new(),
        rows: Vec::new(),
        apart: None,
        guess: None,
    };
    while let Some(name) = given.next() {
        let mut value = || given.next().ok_or(format!("{name} needs a value"));
        match name.as_str() {
            "--layout" => parsed.layout = Some(layout(&value()?)?),
            "--prompt" => parsed.prompt = value()?.parse()?,
            "--new" => parsed.new = numbers(&value()?)?,
            "--runs" => parsed.runs = value()?.parse()?,
            "--logits" => parsed.logits = Some(value()?.into()),
            "--force" => parsed.force = numbers(&value()?)?,
            "--rows" => parsed.rows = numbers(&value()?)?,
            "--guess" => parsed.guess = Some(value()?.parse()?),
            "--apart" => parsed.apart = Some(value()?.parse()?),
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    Ok(parsed)
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = arguments()?;
    let spec = LoadSpec {
        folder: arguments.folder,
        device: DeviceChoice::Auto,
        prefill_chunk_tokens: CHUNK_TOKENS,
        prefill_chunk_tokens_busy: CHUNK_TOKENS,
        context_tokens_max: None,
        running_max: arguments.rows.iter().copied().chain(arguments.apart).max().unwrap_or(1),
        queued_max: 1,
        parked_max: 0,
        ageing_ms: 0,
        prefix_cache_bytes_max: 0,
        guesses_max: 0,
        draft: None,
        kv_quantization: None,
        kv_tokens_max: None,
        prefix_disk: None,
        cache_bytes_max: None,
        deterministic: false,
    };
    let mut engine = load_with_layout(&spec, arguments.layout, &mut |_, _| {})?;
    let vocab = u64::from(engine.info().vocab_size);
    let token = |index: u32| ((u64::from(index) * 7919 + 13) % vocab) as u32;
    let prompt: Vec<u32> = (0..arguments.prompt).map(token).collect();
    let prompt_of = |row: u32| -> Vec<u32> {
        let moved = |token: &u32| ((u64::from(*token) + 101 * u64::from(row)) % vocab) as u32;
        prompt.iter().map(moved).collect()
    };
    if let Some(path) = arguments.logits {
        let rows = engine.logits_along(&prompt, &arguments.force)?;
        let bytes: Vec<u8> = rows.iter().flatten().flat_map(|logit| logit.to_le_bytes()).collect();
        std::fs::write(path, bytes)?;
    }
    let mut legs = serde_json::Map::new();
    let mut tokens = Vec::new();
    let leg_tokens = arguments.new.last().copied().unwrap_or(0);
    for new_tokens in arguments.new {
        let spec =
            BenchSpec { prompt: prompt.clone(), new_tokens, warmup_runs: 1, runs: arguments.runs };
        let leg = bench_direct(&mut engine, &spec, CHUNK_TOKENS as usize, &mut || {})?;
        legs.insert(
            new_tokens.to_string(),
            json!({"seconds": leg.seconds, "first_token_seconds": leg.first_token_seconds}),
        );
        tokens = leg.tokens;
    }
    let new = leg_tokens;
    let mut together = serde_json::Map::new();
    for rows in arguments.rows {
        let prompts: Vec<Vec<u32>> = (0..rows).map(prompt_of).collect();
        let runs: Result<Vec<[f64; 2]>, _> =
            (0..=arguments.runs).map(|_| crowd(&mut engine, &prompts, new)).collect();
        together.insert(rows.to_string(), json!(runs?[1..]));
    }
    let apart = match arguments.apart {
        Some(rows) => Some(apart(&engine, (0..rows).map(prompt_of).collect(), &tokens)?),
        None => None,
    };
    let passes = match arguments.guess {
        Some(most) => {
            engine = guessing(engine, most, &prompt, &tokens);
            Some(passes(&mut engine, &prompt, tokens.len())?)
        }
        None => None,
    };
    let memory = engine.memory();
    println!(
        "{}",
        json!({
            "info": engine.info(), "legs": legs, "tokens": tokens,
            "together": together, "apart": apart, "pass_seconds": passes,
            "active_bytes": memory.active, "peak_bytes": memory.peak,
        })
    );
    Ok(())
}

/// Runs a prompt of which `new` greedy tokens are to follow.
fn open(
    engine: &mut MlxEngine,
    seq: SeqId,
    prompt: &[u32],
    new: usize,
) -> Result<(), Box<dyn Error>> {
    let spec = SeqSpec {
        tokens: prompt.to_vec(),
        prompt_len: prompt.len(),
        sampling: Sampling::default(),
        logprobs: None,
        capacity: prompt.len() + new,
    };
    engine.open(seq, spec).map_err(|refusal| refusal.message)?;
    while engine.prefill(seq, CHUNK_TOKENS as usize)? > 0 {}
    Ok(())
}

/// `engine`, which from now on guesses what it said before.
fn guessing(engine: MlxEngine, most: u32, prompt: &[u32], tokens: &[u32]) -> MlxEngine {
    let whole: Vec<u32> = prompt.iter().chain(tokens).copied().collect();
    let right = move |known: &[u32], most: usize| {
        whole.iter().copied().skip(known.len()).take(most).collect()
    };
    engine.always_guessing(most, Some(Box::new(right)))
}

/// Seconds between tokens of one sequence that did not come at once.
fn passes(engine: &mut MlxEngine, prompt: &[u32], new: usize) -> Result<Vec<f64>, Box<dyn Error>> {
    let seq = SeqId(1);
    open(engine, seq, prompt, new)?;
    let (mut seconds, mut read, mut submitted) = (Vec::new(), Vec::new(), 0);
    for collected in 0..new {
        let begun = Instant::now();
        while submitted < new && submitted - collected < engine.depth() {
            engine.submit(&[seq])?;
            submitted += 1;
        }
        engine.collect(&mut read)?;
        let took = begun.elapsed().as_secs_f64();
        if took > 1e-4 {
            seconds.push(took);
        }
    }
    engine.close(seq);
    Ok(seconds)
}

/// Seconds that `new` greedy tokens for each of `prompts` take: in all, and without the prompts.
fn crowd(
    engine: &mut MlxEngine,
    prompts: &[Vec<u32>],
    new: u32,
) -> Result<[f64; 2], Box<dyn Error>> {
    let begun = Instant::now();
    let rows: Vec<SeqId> =
        (0..prompts.len() as u64).map(|row| SeqId(SeqId::MEASURED.0 + (1 << 32) + row)).collect();
    for (seq, prompt) in rows.iter().zip(prompts) {
        open(engine, *seq, prompt, new as usize)?;
    }
    let filled = Instant::now();
    let mut read = Vec::new();
    let mut submitted = 0;
    for collected in 0..new {
        while submitted < new && ((submitted - collected) as usize) < engine.depth() {
            engine.submit(&rows)?;
            submitted += 1;
        }
        read.clear();
        engine.collect(&mut read)?;
    }
    let seconds = [begun.elapsed().as_secs_f64(), filled.elapsed().as_secs_f64()];
    rows.into_iter().for_each(|seq| engine.close(seq));
    Ok(seconds)
}

/// Root mean square distance of logits of rows decoded together from those of each row alone, in
/// standard deviations; prompts are cut to different lengths.
fn apart(
    engine: &MlxEngine,
    prompts: Vec<Vec<u32>>,
    forced: &[u32],
) -> Result<f64, Box<dyn Error>> {
    let cut = |(row, prompt): (usize, Vec<u32>)| {
        let length = prompt.len() - row % prompt.len().min(8);
        (prompt[..length].to_vec(), forced[..forced.len().min(8)].to_vec())
    };
    let given: Vec<_> = prompts.into_iter().enumerate().map(cut).collect();
    let together = engine.logits_together(&given)?;
    let (mut square, mut sum, mut squares, mut count) = (0.0, 0.0, 0.0, 0.0);
    for ((prompt, forced), ours) in given.iter().zip(together) {
        let single = engine.logits_along(prompt, forced)?;
        for (a, b) in ours.iter().flatten().zip(single.iter().flatten()) {
            let (a, b) = (f64::from(*a), f64::from(*b));
            square += (a - b) * (a - b);
            sum += b;
            squares += b * b;
            count += 1.0;
        }
    }
    let mean: f64 = sum / count;
    Ok((square / count).sqrt() / (squares / count - mean * mean).sqrt())
}
