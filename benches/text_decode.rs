//! What decoding costs the front: µs a token, and to make a decoder.
//!
//! `cargo bench -p mlxd-benches --bench text_decode [-- MODEL_FOLDER]`. Without a folder the
//! vocabularies are made up: as many tokens as Qwen has, so that the tables do not fit a cache,
//! of random bytes, and random tokens to decode, which is the worst order for one.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use mlxd_text::{Decoder, Detokeniser, StopMatcher, Tokenizer, TokenizerLimits};
use serde_json::{Value, json};

/// Tokens of one answer.
const TOKENS: usize = 4096;
/// Answers decoded for one figure.
const ROUNDS: usize = 50;

fn main() -> anyhow::Result<()> {
    let folder = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    let made_up = || -> anyhow::Result<Vec<(String, Tokenizer)>> {
        Ok(vec![
            ("byte-level, 151,000".into(), parse(&byte_level(151_000))?),
            ("byte fallback, 32,000".into(), parse(&byte_fallback(32_000))?),
            ("word pieces, 30,000".into(), parse(&words(30_000, "WordPiece"))?),
            ("sliding window, 30,000".into(), parse(&words(30_000, "BPEDecoder"))?),
        ])
    };
    let tokenizers = match folder {
        Some(folder) => vec![(folder.clone(), Tokenizer::load(Path::new(&folder))?)],
        None => made_up()?,
    };
    println!(
        "{:<28} {:>14} {:>14} {:>14} {:>14}",
        "tokenizer", "make, µs", "decode, µs/tok", "+stops, µs/tok", "whole, µs/tok"
    );
    for (name, tokenizer) in tokenizers {
        row(&name, &tokenizer);
    }
    Ok(())
}

fn row(name: &str, tokenizer: &Tokenizer) {
    let ids = random_ids(tokenizer.vocab_size() as u64);
    let tail = &ids[..8];
    let make = median(|| {
        for _ in 0..TOKENS {
            black_box(Decoder::new(black_box(tokenizer), tail));
        }
    });
    let decode = median(|| {
        let mut decoder = Decoder::new(tokenizer, &[]);
        for &id in &ids {
            black_box(decoder.push(id));
        }
        black_box(decoder.finish());
    });
    let stops = ["\nUser:", "<|im_end|>", "\n\n\n", "```"].map(String::from);
    let stopped = median(|| {
        let decoder = Decoder::new(tokenizer, &[]);
        let mut detokeniser = Detokeniser::new(decoder, StopMatcher::new(&stops));
        for &id in &ids {
            black_box(detokeniser.push(id));
        }
        black_box(detokeniser.finish());
    });
    let whole = median(|| {
        black_box(tokenizer.decode(&ids, true));
    });
    let each = |time: Duration| time.as_secs_f64() * 1e6 / TOKENS as f64;
    println!(
        "{name:<28} {:>14.3} {:>14.4} {:>14.4} {:>14.4}",
        each(make),
        each(decode),
        each(stopped),
        each(whole)
    );
}

fn median(mut work: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[ROUNDS / 2]
}

/// The next of a fixed sequence of numbers without pattern.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

fn random_ids(size: u64) -> Vec<u32> {
    let mut state = 1;
    let id = |_| (next(&mut state) % size) as u32;
    (0..TOKENS).map(id).collect()
}

fn parse(tokenizer: &Value) -> anyhow::Result<Tokenizer> {
    let limits = TokenizerLimits::default();
    Ok(Tokenizer::from_json(&tokenizer.to_string(), &Value::Null, &[], limits)?)
}

fn file(model: Value, decoder: Value) -> Value {
    json!({"version": "1.0", "added_tokens": [], "model": model, "decoder": decoder})
}

/// A vocabulary of `count` tokens of 1 to 8 of these letters.
fn vocabulary(count: usize, letters: &[char], first: Vec<String>) -> Value {
    let mut state = 2;
    let mut vocabulary = serde_json::Map::new();
    for token in first {
        let id = vocabulary.len();
        vocabulary.insert(token, id.into());
    }
    while vocabulary.len() < count {
        let length = 1 + next(&mut state) as usize % 8;
        let letter = |_| letters[next(&mut state) as usize % letters.len()];
        let token: String = (0..length).map(letter).collect();
        let id = vocabulary.len();
        vocabulary.entry(token).or_insert(id.into());
    }
    Value::Object(vocabulary)
}

fn byte_level(count: usize) -> Value {
    // Printable Latin-1 stands for itself among the byte-level characters, Ġ for a space.
    let letters: Vec<char> = ('a'..='z').chain('\u{AE}'..='\u{FF}').chain(['Ġ'; 20]).collect();
    let model = json!({"type": "BPE", "vocab": vocabulary(count, &letters, vec![]), "merges": []});
    file(
        model,
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}),
    )
}

fn byte_fallback(count: usize) -> Value {
    let letters: Vec<char> = ('a'..='z').chain(['▁'; 6]).collect();
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>")).collect();
    let model = json!({"type": "BPE", "vocab": vocabulary(count, &letters, bytes), "merges": [], "byte_fallback": true});
    file(
        model,
        json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}
        ]}),
    )
}

fn words(count: usize, decoder: &str) -> Value {
    let letters: Vec<char> = ('a'..='z').collect();
    let model = json!({"type": "WordPiece", "vocab": vocabulary(count, &letters, vec!["[UNK]".into()]),
        "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100});
    file(model, json!({"type": decoder, "prefix": "##", "cleanup": true, "suffix": "</w>"}))
}
