//! Embeddings, whole: OpenAI's own client, the front, the rings, MLX, and vectors that others
//! computed.

use crate::fixture::{DEMO, config, python, repository, status_of};
use mlxd_testkit::FrontProcess;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

const BERT: &str = "random/bert-mean";
const QWEN3: &str = "random/qwen3-published";

/// A tokenizer of words `w0`, `w1`, … with BERT's marks at both ends, so that a text can be written
/// of which the ids are known.
fn write_tokenizer(folder: &Path, vocab: u32) {
    let word = |id: u32| match id {
        0 => "[UNK]".to_owned(),
        1 => "[CLS]".to_owned(),
        2 => "[SEP]".to_owned(),
        id => format!("w{id}"),
    };
    let vocab: serde_json::Map<String, Value> =
        (0..vocab).map(|id| (word(id), id.into())).collect();
    let special = |id: u32| {
        json!({"id": id, "content": word(id), "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true})
    };
    let mark = |id: u32| json!({"SpecialToken": {"id": word(id), "type_id": 0}});
    let known = |id: u32| json!({"id": word(id), "ids": [id], "tokens": [word(id)]});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let tokenizer = json!({
        "version": "1.0",
        // As published: the file asks for both, and neither is for a server.
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "[UNK]"},
        "added_tokens": [special(0), special(1), special(2)],
        "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {"type": "TemplateProcessing", "single": [mark(1), text, mark(2)],
            "pair": [mark(1), text, mark(2)], "special_tokens": {"[CLS]": known(1), "[SEP]": known(2)}},
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"},
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).expect("a tokenizer");
}

#[test]
fn openais_client_gets_the_vectors_that_others_compute() {
    let made = tempfile::tempdir().expect("a folder");
    let script = repository().join("crates/models/oracle/embeddings.py");
    let status = Command::new(python()).arg(script).arg(made.path()).status();
    assert!(status.expect("python starts").success(), "no checkpoints");
    let mut config = config().with_real_worker();
    for (name, vocab) in [(BERT, 300), (QWEN3, 320)] {
        let folder = made.path().join(name.strip_prefix("random/").expect("a folder's name"));
        write_tokenizer(&folder, vocab);
        config = config.with_model(name, &folder);
    }
    let front = FrontProcess::start(&config);
    let output = Command::new(python())
        .arg(repository().join("tests/python/embeddings.py"))
        .args([front.base_url(), DEMO, BERT, QWEN3])
        .arg(made.path())
        .env_remove("OPENAI_API_KEY")
        .output()
        .expect("python starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));

    let status = status_of(&front, BERT);
    assert_eq!((&status["state"], &status["deaths"]), (&json!("RUNNING"), &json!(0)));
    assert!(status["requests_total"].as_u64() > Some(100), "{status}");
    let metrics = front.client().get("/metrics").text();
    for family in ["mlxd_prompt_tokens_total{model=\"random/bert-mean\"}", "reason=\"embedded\"}"] {
        assert!(metrics.contains(family), "no {family} in\n{metrics}");
    }
}
