//! What the next turn of a long conversation costs the front before its worker hears of it: the
//! template, and its text to tokens, whole and with what earlier turns left.
//!
//! `cargo bench -p mlxd-benches --bench text_turns [-- MODEL_FOLDER]`. Without a folder it is the
//! built-in model's tokenizer and template.

use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

use mlxd_text::{ChatTemplate, RenderInput, SegmentCache, TemplateLimits, Tokenizer};
use serde_json::{Value, json};

/// Lengths of conversations, in tokens.
const LENGTHS: [usize; 4] = [1_000, 10_000, 100_000, 200_000];
/// Turns measured of each; the figures are medians.
const TURNS: usize = 15;
/// Bytes that the cache may hold.
const CACHE_BYTES: usize = 16 << 20;

fn main() -> anyhow::Result<()> {
    let kept = std::env::temp_dir().join("mlxd-bench-demo");
    let folder = match std::env::args().skip(1).find(|arg| !arg.starts_with("--")) {
        Some(folder) => PathBuf::from(folder),
        None => mlxd_demo::materialise(&kept)?,
    };
    let tokenizer = Tokenizer::load(&folder)?;
    let limits = TemplateLimits { instructions_max: 1 << 32, ..TemplateLimits::default() };
    let template = ChatTemplate::load_within(&folder, limits)?
        .ok_or_else(|| anyhow::anyhow!("{} has no chat template", folder.display()))?;
    println!(
        "{:>9} {:>9} {:>12} {:>12} {:>14} {:>13}",
        "tokens", "messages", "message, tok", "render, ms", "whole, ms", "next turn, ms"
    );
    for length in LENGTHS {
        row(length, &tokenizer, &template)?;
    }
    Ok(())
}

fn message(number: usize) -> Value {
    let role = if number.is_multiple_of(2) { "user" } else { "assistant" };
    let words = ["worker", "models", "memory", "stream", "tokens", "answer", "config"];
    let sentence = |at: usize| {
        let word = |shift: usize| words[(number * 5 + at * 3 + shift) % words.len()];
        format!("The {} of number {} is {} for the {}. ", word(0), number * at, word(1), word(2))
    };
    json!({"role": role, "content": (0..30).map(sentence).collect::<String>()})
}

fn row(length: usize, tokenizer: &Tokenizer, template: &ChatTemplate) -> anyhow::Result<()> {
    let cache = SegmentCache::new(CACHE_BYTES);
    let mut messages = Vec::new();
    let render = |messages: &[Value]| {
        template.render(&RenderInput {
            messages,
            add_generation_prompt: true,
            ..RenderInput::default()
        })
    };
    let mut tokens = 0;
    while tokens < length {
        messages.push(message(messages.len()));
        tokens += tokenizer
            .encode(messages[messages.len() - 1]["content"].as_str().unwrap_or(""), false)?
            .len();
    }
    tokenizer.encode_cached(&render(&messages)?, false, &cache)?;
    let (mut rendered, mut whole, mut next) = (Vec::new(), Vec::new(), Vec::new());
    let mut added = 0;
    for _ in 0..TURNS {
        let before = tokenizer.encode(&render(&messages)?, false)?.len();
        messages.push(message(messages.len()));
        let begun = Instant::now();
        let text = black_box(render(&messages)?);
        rendered.push(begun.elapsed());
        let begun = Instant::now();
        let ids = black_box(tokenizer.encode_cached(&text, false, &cache)?);
        next.push(begun.elapsed());
        let begun = Instant::now();
        let expected = black_box(tokenizer.encode(&text, false)?);
        whole.push(begun.elapsed());
        assert_eq!(ids, expected, "a cached part is not what it was");
        (tokens, added) = (ids.len(), ids.len() - before);
    }
    let ms = |mut times: Vec<std::time::Duration>| {
        times.sort_unstable();
        times[times.len() / 2].as_secs_f64() * 1e3
    };
    println!(
        "{tokens:>9} {:>9} {added:>12} {:>12.3} {:>14.3} {:>13.3}",
        messages.len(),
        ms(rendered),
        ms(whole),
        ms(next)
    );
    Ok(())
}
