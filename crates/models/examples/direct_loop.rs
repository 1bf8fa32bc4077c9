//! The engine in a bare loop, timed: one JSON object on standard output.
//!
//! `cargo run --release -p mlxd-models --example direct_loop -- FOLDER
//! [--layout qkv+gate_up+compile+fuse] [--prompt 40] [--new 50,100,200] [--runs 5] [--logits FILE --force 1,2,3]`
//!
//! `--layout` replaces what was measured best for the device. `--logits` writes the logits
//! of the prompt's last token and of each forced token, little-endian float32. The prompt is
//! `13, 7932, 15851, …`: token `i` is `(7919 i + 13)` modulo the vocabulary.
//! `benches/gpu_overhead.py` runs this beside mlx-lm.

use std::error::Error;
use std::path::PathBuf;

use mlxd_engine::{Engine, bench_direct};
use mlxd_models::{Layout, load_with_layout};
use mlxd_protocol::{BenchSpec, DeviceChoice, LoadSpec};
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
}

fn numbers(text: &str) -> Result<Vec<u32>, std::num::ParseIntError> {
    text.split(',').map(str::parse).collect()
}

/// A layout from the names of what is on: `qkv+gate_up+compile+fuse`, or `plain`.
fn layout(text: &str) -> Result<Layout, String> {
    let mut layout =
        Layout { join_qkv: false, join_gate_up: false, compile: false, fuse_decode: false };
    for name in text.split('+') {
        match name {
            "plain" => {}
            "qkv" => layout.join_qkv = true,
            "gate_up" => layout.join_gate_up = true,
            "compile" => layout.compile = true,
            "fuse" => layout.fuse_decode = true,
            other => return Err(format!("unknown layout {other}")),
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
        running_max: 1,
        queued_max: 1,
        parked_max: 0,
        ageing_ms: 0,
        prefix_cache_bytes_max: 0,
        cache_bytes_max: None,
        deterministic: false,
    };
    let mut engine = load_with_layout(&spec, arguments.layout, &mut |_, _| {})?;
    let vocab = u64::from(engine.info().vocab_size);
    let token = |index: u32| ((u64::from(index) * 7919 + 13) % vocab) as u32;
    let prompt: Vec<u32> = (0..arguments.prompt).map(token).collect();
    if let Some(path) = arguments.logits {
        let rows = engine.logits_along(&prompt, &arguments.force)?;
        let bytes: Vec<u8> = rows.iter().flatten().flat_map(|logit| logit.to_le_bytes()).collect();
        std::fs::write(path, bytes)?;
    }
    let mut legs = serde_json::Map::new();
    let mut tokens = Vec::new();
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
    let memory = engine.memory();
    println!(
        "{}",
        json!({
            "info": engine.info(), "legs": legs, "tokens": tokens,
            "active_bytes": memory.active, "peak_bytes": memory.peak,
        })
    );
    Ok(())
}
