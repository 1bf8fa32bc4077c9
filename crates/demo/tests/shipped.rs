//! What is shipped is whole and fits together, and the 40 questions were kept out of the text
//! that the model learnt from.

use mlxd_demo::{FILES, REVISION, fingerprint, materialise};
use mlxd_text::Tokenizer;
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

const SHIPPED_BYTES_MAX: u64 = 8_000_000;

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn bytes(name: &str) -> &'static [u8] {
    FILES.iter().find(|file| file.name == name).unwrap().bytes
}

fn json(name: &str) -> Value {
    serde_json::from_slice(bytes(name)).unwrap()
}

fn number(config: &Value, key: &str) -> u64 {
    config[key].as_u64().unwrap_or_else(|| panic!("{key} in config.json"))
}

#[test]
fn the_revision_is_that_of_the_files() {
    assert_eq!(REVISION, format!("{:016x}", fingerprint(FILES)));
}

#[test]
fn the_model_with_its_text_and_training_stays_under_eight_megabytes() {
    fn size(path: &Path) -> u64 {
        if path.is_file() {
            return path.metadata().unwrap().len();
        }
        let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| !path.ends_with("__pycache__")).map(|path| size(&path)).sum()
    }
    let total = size(&here("model")) + size(&here("train")) + size(&here("questions.json"));
    assert!(total <= SHIPPED_BYTES_MAX, "{total} bytes");
    let inside: usize = FILES.iter().map(|file| file.bytes.len()).sum();
    assert!(inside > 1_000_000, "{inside} bytes: is the model there?");
}

/// A tensor as the header of a safetensors file describes it.
#[derive(Deserialize)]
struct Tensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

fn tensors() -> (BTreeMap<String, Tensor>, u64) {
    let file = bytes("model.safetensors");
    let length = u64::from_le_bytes(file[..8].try_into().unwrap());
    let end = 8 + usize::try_from(length).unwrap();
    let mut header: serde_json::Map<String, Value> = serde_json::from_slice(&file[8..end]).unwrap();
    assert_eq!(header.remove("__metadata__").unwrap()["format"], "mlx");
    let tensors = header
        .into_iter()
        .map(|(name, value)| (name, serde_json::from_value(value).unwrap()))
        .collect();
    (tensors, (file.len() - end) as u64)
}

#[test]
fn the_weights_are_those_that_the_config_asks_for() {
    let config = json("config.json");
    assert_eq!(config["model_type"], "qwen3");
    assert_eq!(config["tie_word_embeddings"], true);
    let [hidden, inner, vocabulary, head] =
        ["hidden_size", "intermediate_size", "vocab_size", "head_dim"]
            .map(|key| number(&config, key));
    let queries = number(&config, "num_attention_heads") * head;
    let keys = number(&config, "num_key_value_heads") * head;
    let mut wanted = BTreeMap::from([
        ("model.embed_tokens.weight".to_owned(), vec![vocabulary, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ]);
    for layer in 0..number(&config, "num_hidden_layers") {
        for (name, shape) in [
            ("self_attn.q_proj", vec![queries, hidden]),
            ("self_attn.k_proj", vec![keys, hidden]),
            ("self_attn.v_proj", vec![keys, hidden]),
            ("self_attn.o_proj", vec![hidden, queries]),
            ("self_attn.q_norm", vec![head]),
            ("self_attn.k_norm", vec![head]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
        ] {
            wanted.insert(format!("model.layers.{layer}.{name}.weight"), shape);
        }
    }
    let (found, data) = tensors();
    let shapes: BTreeMap<_, _> = found.iter().map(|(n, t)| (n.clone(), t.shape.clone())).collect();
    assert_eq!(shapes, wanted);
    let mut spans: Vec<_> = found.values().map(|t| t.data_offsets).collect();
    spans.sort_unstable();
    let mut end = 0;
    for (start, stop) in spans {
        assert_eq!(start, end, "a gap or an overlap");
        end = stop;
    }
    assert_eq!(end, data);
    for (name, tensor) in &found {
        assert_eq!(tensor.dtype, "BF16", "{name}");
        let parameters: u64 = tensor.shape.iter().product();
        assert_eq!(tensor.data_offsets.1 - tensor.data_offsets.0, 2 * parameters, "{name}");
    }
}

#[test]
fn the_tokenizer_loads_and_gives_text_back() {
    let folder = tempfile::tempdir().unwrap();
    let own = materialise(folder.path()).unwrap();
    let tokenizer = Tokenizer::load(&own).unwrap();
    let config = json("config.json");
    assert!(tokenizer.vocab_size() as u64 <= number(&config, "vocab_size"));
    let end = tokenizer.token_id("<|im_end|>").unwrap();
    assert!(tokenizer.eos_ids().contains(&end));
    for text in
        ["mlxctl start MODEL", "Wie geht's? 你好 🙂\n\n\tx = 3.5;", "http://127.0.0.1:11440/v1"]
    {
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(&ids, true), text);
    }
    let turn = tokenizer.encode("<|im_start|>user\nhi<|im_end|>", false).unwrap();
    assert_eq!(turn.first(), tokenizer.token_id("<|im_start|>").as_ref());
    assert_eq!(turn.last(), Some(&end));
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    question: String,
    must_all: Vec<String>,
    must_any: Vec<Vec<String>>,
    must_not: Vec<String>,
}

fn questions() -> Vec<Question> {
    serde_json::from_slice(&std::fs::read(here("questions.json")).unwrap()).unwrap()
}

/// Lower case, letters and digits only, one space between words.
fn normalised(text: &str) -> String {
    let lower = text.to_lowercase();
    let words: Vec<&str> =
        lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    words.join(" ")
}

#[test]
fn there_are_forty_different_questions_and_each_asks_for_something() {
    let questions = questions();
    assert_eq!(questions.len(), 40);
    let different: BTreeSet<String> = questions.iter().map(|q| normalised(&q.question)).collect();
    assert_eq!(different.len(), 40);
    for q in &questions {
        assert!(!q.must_all.is_empty() || !q.must_any.is_empty(), "{}", q.question);
        assert!(q.must_any.iter().all(|group| !group.is_empty()), "{}", q.question);
        let facts = q.must_all.iter().chain(q.must_any.iter().flatten());
        // A refusal must not be scored right for what it refuses, nor the other way round.
        assert!(facts.clone().all(|fact| !q.must_not.contains(fact)), "{}", q.question);
    }
}

#[test]
fn no_question_stands_in_the_training_text() {
    let questions = questions();
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(here("train/text")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.push(here("train/rehearsal.txt"));
    assert!(files.len() > 8);
    for file in files {
        let text = format!(" {} ", normalised(&std::fs::read_to_string(&file).unwrap()));
        for q in questions.iter().filter(|q| q.question.split_whitespace().count() > 3) {
            let words = format!(" {} ", normalised(&q.question));
            assert!(!text.contains(&words), "{:?} in {}", q.question, file.display());
        }
    }
}

#[test]
fn no_question_comes_out_of_the_generator() {
    const DRAWN: usize = 60_000;
    let held_out: BTreeSet<String> = questions().iter().map(|q| normalised(&q.question)).collect();
    for seed in ["11", "12"] {
        let run = Command::new("python3")
            .args(["-B", "corpus.py", &DRAWN.to_string(), seed])
            .current_dir(here("train"))
            .output()
            .expect("python3 runs the generator");
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        let drawn = String::from_utf8(run.stdout).unwrap();
        assert_eq!(drawn.lines().count(), DRAWN);
        for line in drawn.lines() {
            let text: String = serde_json::from_str(line).unwrap();
            assert!(!held_out.contains(&normalised(&text)), "{text:?}");
        }
    }
}
