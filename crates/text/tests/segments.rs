//! A text tokenised in parts has the ids of the whole, whatever the parts were used for before.

#[path = "support/kinds.rs"]
mod kinds;

use mlxd_text::{SegmentCache, Tokenizer, TokenizerLimits};
use proptest::prelude::*;
use serde_json::{Value, json};

fn tokenizer(json: &str) -> Tokenizer {
    Tokenizer::from_json(json, &Value::Null, &[], TokenizerLimits::default()).expect("a tokenizer")
}

/// Every kind, and the byte-level one with added tokens of every odd manner.
fn tokenizers() -> Vec<(String, Tokenizer)> {
    let mut all: Vec<(String, Tokenizer)> = kinds::all()
        .into_iter()
        .map(|kind| (kind.name.to_owned(), tokenizer(&kind.json)))
        .collect();
    let mut odd: Value = serde_json::from_str(&kinds::named("byte-level").json).expect("JSON");
    let tokens = odd["added_tokens"].as_array_mut().expect("a list");
    let next = tokens.iter().filter_map(|token| token["id"].as_u64()).max().expect("a token") + 1;
    let more = [
        ("<|left|>", "lstrip"),
        ("<|right|>", "rstrip"),
        ("worker", "single_word"),
        ("The", "normalized"),
        ("{end}", ""),
        ("{", "rstrip"),
        ("<|end|> x", "single_word"),
    ];
    for (id, (content, manner)) in (next..).zip(more) {
        let flag = |name| manner == name;
        tokens.push(json!({"id": id, "content": content, "single_word": flag("single_word"),
            "lstrip": flag("lstrip"), "rstrip": flag("rstrip"),
            "normalized": flag("normalized"), "special": manner.is_empty()}));
    }
    all.push(("odd tokens".to_owned(), tokenizer(&odd.to_string())));
    all
}

const PARTS: [&str; 24] = [
    "The worker",
    " tokens are served",
    "isn't",
    "  ",
    "\n",
    "\r\n\t",
    "日本語のテキスト",
    "é",
    "🙂",
    "👩‍👩‍👧",
    "12345",
    "<|end|>",
    "</s>",
    "<s>",
    "<call>",
    "<tool>",
    "[SEP]",
    "▁",
    "<|left|>",
    "<|right|>",
    "worker",
    "{end}",
    "\u{301}",
    "<|en",
];

fn part() -> impl Strategy<Value = String> {
    prop_oneof![
        5 => proptest::sample::select(&PARTS[..]).prop_map(str::to_owned),
        // Long enough to be cut behind.
        2 => (proptest::sample::select(&PARTS[..]), 20usize..60)
            .prop_map(|(part, times)| part.repeat(times)),
        1 => any::<char>().prop_map(String::from),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Conversations that grow, and others that begin alike, through a cache that has room for
    /// everything, for little, or for nothing.
    #[test]
    fn parts_make_the_whole(
        turns in proptest::collection::vec(proptest::collection::vec(part(), 0..12), 1..8),
        bytes_max in proptest::sample::select(&[0usize, 3000, 1 << 20][..]),
    ) {
        let cache = SegmentCache::new(bytes_max);
        for (name, tokenizer) in tokenizers() {
            let mut text = String::new();
            for turn in &turns {
                text.push_str(&turn.concat());
                for end in ["", "<|end|>\n", "</s>", "[SEP]assistant"] {
                    let text = format!("{text}{end}");
                    for special in [false, true, false, true] {
                        let whole = tokenizer.encode(&text, special).expect("ids");
                        let parts = tokenizer.encode_cached(&text, special, &cache).expect("ids");
                        prop_assert_eq!(parts, whole, "{}: {:?}", name, text);
                    }
                }
                text.push_str("<|end|></s>[SEP]");
            }
        }
        prop_assert!(cache.figures().held_bytes <= bytes_max);
    }
}

#[test]
fn a_turn_costs_what_is_new_in_it() {
    let tokenizer = tokenizer(&kinds::named("byte-level").json);
    let cache = SegmentCache::new(16 << 20);
    let mut conversation = String::new();
    let mut before = cache.figures();
    for turn in 0..200 {
        let message = format!("{turn}: {}", "The worker serves the tokens. ".repeat(40 + turn % 7));
        conversation.push_str(&format!("<|end|>user\n{message}<|end|>assistant\nYes, {turn}."));
        let ids = tokenizer.encode_cached(&conversation, false, &cache).expect("ids");
        let now = cache.figures();
        let encoded = (now.encoded_bytes - before.encoded_bytes) as usize;
        // The message, and the end of what was there before, which was not cut off.
        assert!(
            encoded < message.len() + 600,
            "turn {turn}: {encoded} bytes for {}",
            message.len()
        );
        before = now;
        if turn % 50 == 49 {
            assert_eq!(ids, tokenizer.encode(&conversation, false).expect("ids"));
        }
    }
    assert!(conversation.len() > 250_000);
    let again = tokenizer.encode_cached(&conversation, false, &cache).expect("ids");
    assert_eq!(again, tokenizer.encode(&conversation, false).expect("ids"));
    let encoded = cache.figures().encoded_bytes - before.encoded_bytes;
    assert!(encoded < 256, "{encoded} bytes of the same text once more");
    // Another model's tokenizer has its own ids for the same text.
    let other = kinds::named("byte fallback");
    let other = Tokenizer::from_json(&other.json, &Value::Null, &[], TokenizerLimits::default());
    let other = other.expect("a tokenizer");
    let ids = other.encode_cached(&conversation, false, &cache).expect("ids");
    assert_eq!(ids, other.encode(&conversation, false).expect("ids"));
}
