//! Small tokenizers of every kind that language models use, trained on the spot.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::wordpiece::{WordPiece, WordPieceTrainer};
use tokenizers::models::{ModelWrapper, TrainerWrapper};

/// Text in several scripts to train on.
const CORPUS: [&str; 8] = [
    "The quick brown fox jumps over the lazy dog, again and again; isn't that nice?",
    "A worker is a process. The worker serves the tokens. Tokens are served by the worker.",
    "fn main() { println!(\"{}\", 1 + 2); } // comment\n    let x = vec![1, 2, 3];\n\n",
    "Voilà un café très cher à Besançon. Die Straße ist naß, schöne Grüße!",
    "日本語のテキストです。東京は日本の首都です。日本語。",
    "Привет, мир! Это проверка. Привет!",
    "emoji 🙂🙂 🇫🇷 👩‍👩‍👧 and symbols ← → ≤ 1234567890 12 345",
    "नमस्ते दुनिया। مرحبا بالعالم",
];

/// A tokenizer's `tokenizer.json` and what it is called.
pub struct Kind {
    pub name: &'static str,
    pub json: String,
}

/// All kinds.
pub fn all() -> Vec<Kind> {
    let spaced = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
    let bytes = json!({"type": "ByteFallback"});
    let fuse = json!({"type": "Fuse"});
    let metaspace = |scheme: &str| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true});
    let wordpiece =
        |cleanup: bool| json!({"type": "WordPiece", "prefix": "##", "cleanup": cleanup});
    let sequence = |decoders: &[&Value]| json!({"type": "Sequence", "decoders": decoders});
    let kinds = [
        ("byte-level", byte_level()),
        ("byte fallback, stripped", byte_fallback(sequence(&[&spaced, &bytes, &fuse, &strip]))),
        ("byte fallback", byte_fallback(sequence(&[&spaced, &bytes, &fuse]))),
        ("metaspace", pieces(metaspace("first"))),
        ("metaspace without prefix", pieces(metaspace("never"))),
        ("word pieces", words(wordpiece(true))),
        ("word pieces as they are", words(wordpiece(false))),
        ("no decoder", words(Value::Null)),
        ("word ends", word_ends()),
        ("fused, then replaced", pieces(sequence(&[&fuse, &spaced]))),
    ];
    kinds.into_iter().map(|(name, json)| Kind { name, json: json.to_string() }).collect()
}

/// The tokenizer of this name.
#[allow(dead_code, reason = "not every test that shares this module asks by name")]
pub fn named(name: &str) -> Kind {
    let found = all().into_iter().find(|kind| kind.name == name);
    found.expect("a kind of this name")
}

fn file(model: Value, added: Value, parts: [Value; 4]) -> Value {
    let [normalizer, pre_tokenizer, post_processor, decoder] = parts;
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor, "decoder": decoder, "model": model
    })
}

fn added(id: usize, content: &str, special: bool) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
           "normalized": false, "special": special})
}

/// The model part of a tokenizer trained behind these stages.
fn trained(
    model: ModelWrapper,
    trainer: impl Into<TrainerWrapper>,
    normalizer: Value,
    pre_tokenizer: Value,
) -> Value {
    let nothing = file(
        serde_json::to_value(&model).expect("a model"),
        json!([]),
        [normalizer, pre_tokenizer, Value::Null, Value::Null],
    );
    let mut tokenizer: tokenizers::Tokenizer = nothing.to_string().parse().expect("stages");
    let mut trainer = trainer.into();
    tokenizer.train(&mut trainer, CORPUS.iter()).expect("training");
    serde_json::to_value(tokenizer.get_model()).expect("a model")
}

/// GPT-2, Llama 3 and Qwen: bytes as printable characters.
fn byte_level() -> Value {
    let split = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
         "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}
    ]});
    let alphabet = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
    let trainer = BpeTrainer::builder()
        .vocab_size(500)
        .show_progress(false)
        .initial_alphabet(alphabet.into_iter().collect())
        .build();
    let nfc = json!({"type": "NFC"});
    let model = trained(BPE::default().into(), trainer, nfc.clone(), split.clone());
    let next = model["vocab"].as_object().expect("a vocabulary").len();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let tokens = json!([
        added(next, "<|end|>", true),
        added(next + 1, "<call>", false),
        added(next + 2, "<a b→>", false),
    ]);
    file(model, tokens, [nfc, split, byte_level.clone(), byte_level])
}

/// A BPE model over `▁` pieces, with the ids of Llama 2: specials, 256 bytes, pieces.
fn byte_fallback(decoder: Value) -> Value {
    let normalizer = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    ]});
    let trainer =
        BpeTrainer::builder().vocab_size(400).show_progress(false).limit_alphabet(70).build();
    let mut model = trained(BPE::default().into(), trainer, normalizer.clone(), Value::Null);
    let mut vocabulary: BTreeMap<usize, String> = BTreeMap::new();
    for (token, id) in model["vocab"].as_object().expect("a vocabulary") {
        vocabulary.insert(id.as_u64().expect("an id") as usize + 259, token.clone());
    }
    for (id, token) in ["<unk>", "<s>", "</s>"].iter().enumerate() {
        vocabulary.insert(id, token.to_string());
    }
    for byte in 0..256 {
        vocabulary.insert(byte + 3, format!("<0x{byte:02X}>"));
    }
    model["vocab"] = vocabulary.iter().map(|(id, token)| (token.clone(), json!(id))).collect();
    model["byte_fallback"] = true.into();
    model["unk_token"] = "<unk>".into();
    model["fuse_unk"] = true.into();
    let tokens = json!([added(0, "<unk>", true), added(1, "<s>", true), added(2, "</s>", true)]);
    file(model, tokens, [normalizer, Value::Null, Value::Null, decoder])
}

/// `▁` pieces without byte fallback.
fn pieces(decoder: Value) -> Value {
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let trainer = BpeTrainer::builder().vocab_size(400).show_progress(false).build();
    let model = trained(BPE::default().into(), trainer, Value::Null, metaspace.clone());
    let next = model["vocab"].as_object().expect("a vocabulary").len();
    let tokens = json!([added(next, "</s>", true), added(next + 1, "<tool>", false)]);
    file(model, tokens, [Value::Null, metaspace, Value::Null, decoder])
}

/// BERT's word pieces.
fn words(decoder: Value) -> Value {
    let pre_tokenizer = json!({"type": "BertPreTokenizer"});
    let trainer = WordPieceTrainer::builder()
        .vocab_size(400)
        .show_progress(false)
        .special_tokens(vec![tokenizers::AddedToken::from("[UNK]", true)])
        .build();
    let mut model =
        trained(WordPiece::default().into(), trainer, Value::Null, pre_tokenizer.clone());
    let vocabulary = model["vocab"].as_object_mut().expect("a vocabulary");
    for token in ["do", "not", "'s", "n't", "?", ".", "'"] {
        let next = vocabulary.len();
        vocabulary.entry(token).or_insert(next.into());
    }
    let next = vocabulary.len();
    let unknown = vocabulary["[UNK]"].as_u64().expect("an id") as usize;
    let tokens = json!([added(unknown, "[UNK]", true), added(next, "[SEP]", true)]);
    file(model, tokens, [Value::Null, pre_tokenizer, Value::Null, decoder])
}

/// GPT-1: a suffix ends a word.
fn word_ends() -> Value {
    let pre_tokenizer = json!({"type": "BertPreTokenizer"});
    let trainer = BpeTrainer::builder()
        .vocab_size(400)
        .show_progress(false)
        .end_of_word_suffix("</w>".into())
        .build();
    let mut model = trained(BPE::default().into(), trainer, Value::Null, pre_tokenizer.clone());
    model["end_of_word_suffix"] = "</w>".into();
    let decoder = json!({"type": "BPEDecoder", "suffix": "</w>"});
    file(model, json!([]), [Value::Null, pre_tokenizer, Value::Null, decoder])
}
