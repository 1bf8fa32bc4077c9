//! Encode and decode agree with Python's `transformers` on random Unicode text and tokens.

#[path = "support/kinds.rs"]
mod kinds;
mod support;

use mlxd_text::{Tokenizer, TokenizerLimits};
use serde_json::{Value, json};

/// Text of several scripts, spaces, line ends and odd characters.
fn text(random: &mut fastrand::Rng) -> String {
    let words = [
        "The worker",
        " tokens",
        "isn't",
        "  ",
        "\n",
        "\r\n\t",
        "日本",
        "é",
        "🙂",
        "👩‍👩‍👧",
        "1234",
        "<|end|>",
        "</s>",
        "▁",
        "##",
        "ß",
        "नमस्ते",
        "\u{301}",
        "\u{200b}",
        ".",
    ];
    (0..random.usize(0..12))
        .map(|_| match random.u8(0..4) {
            0 => random.char(..).to_string(),
            _ => random.choice(words).expect("a word").to_string(),
        })
        .collect()
}

#[test]
fn encodes_and_decodes_as_transformers_does() {
    let mut random = fastrand::Rng::with_seed(7);
    let mut tokenizers = Vec::new();
    let mut requests = Vec::new();
    for kind in kinds::all() {
        let tokenizer =
            Tokenizer::from_json(&kind.json, &Value::Null, &[], TokenizerLimits::default());
        let tokenizer = tokenizer.expect("a tokenizer");
        let size = tokenizer.vocab_size() as u32;
        let texts: Vec<String> = (0..60).map(|_| text(&mut random)).collect();
        // At least one token: some of the library's decoders cannot take none.
        let ids: Vec<Vec<u32>> = (0..60)
            .map(|_| (0..random.usize(1..30)).map(|_| random.u32(3..size)).collect())
            .collect();
        requests.push(json!({"json": kind.json, "texts": texts, "ids": ids}));
        tokenizers.push((kind.name, tokenizer, texts, ids));
    }
    let answer = support::reference(&json!({"now": support::NOW, "tokenizers": requests}));
    for ((name, tokenizer, texts, ids), theirs) in
        tokenizers.iter().zip(answer["tokenizers"].as_array().expect("a list"))
    {
        for (at, text) in texts.iter().enumerate() {
            let encoded = json!(tokenizer.encode(text, false).expect("ids"));
            assert_eq!(encoded, theirs["encoded"][at], "{name}: {text:?}");
        }
        for (at, ids) in ids.iter().enumerate() {
            assert_eq!(tokenizer.decode(ids, true), theirs["decoded"][at], "{name}: {ids:?}");
            assert_eq!(tokenizer.decode(ids, false), theirs["shown"][at], "{name}: {ids:?}");
        }
    }
    assert_eq!(answer["tokenizers"].as_array().map(Vec::len), Some(tokenizers.len()));
}
