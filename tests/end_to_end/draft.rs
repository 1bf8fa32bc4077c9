//! A model for which another one guesses.

use crate::cache::mlxctl;
use crate::fixture::{DEMO, chat, config, repository, said, status_of};
use mlxd_testkit::{FrontConfig, FrontProcess, ModelFolder, Script};
use serde_json::{Value, json};
use std::path::Path;

const LARGE: &str = "org/large";
const CHAT: &str = "/v1/chat/completions";

/// The built-in model under another name; `draft` guesses for it.
fn with_draft(draft: &str) -> FrontConfig {
    config()
        .with_real_worker()
        .with_model(LARGE, &repository().join("crates/demo/model"))
        .with_model_key(LARGE, "draft_model", draft)
}

fn ask(front: &FrontProcess, model: &str, seed: u64) -> Value {
    let more = json!({"seed": seed, "temperature": 0.9, "max_tokens": 80, "ignore_eos": true});
    let answer = front.client().post(CHAT, &chat(model, "What is mlxd?", more));
    assert_eq!(answer.status, 200);
    answer.json()
}

#[test]
fn a_draft_model_guesses_and_changes_no_answer() {
    let front = FrontProcess::start(&with_draft(DEMO));
    for seed in 1..4 {
        let (drafted, plain) = (ask(&front, LARGE, seed), ask(&front, DEMO, seed));
        assert_eq!(said(&drafted), said(&plain), "seed {seed}");
    }
    let status = status_of(&front, LARGE);
    let figure = |name: &str| status["guesses"][name].as_u64().expect("a figure");
    let (made, right) = (figure("draft"), figure("draft_right"));
    assert!(made > 0 && right * 10 > made * 9, "{right} right of {made}: {status}");
    assert_eq!(status_of(&front, DEMO)["guesses"]["draft"], 0);
    assert!(status["quantization"].as_str().is_some_and(|how| how.contains("drafts by")));
    let metrics = front.client().get("/metrics").text();
    let line = format!("mlxd_guessed_tokens{{model=\"{LARGE}\",source=\"draft\"}} {made}");
    assert!(metrics.contains(&line), "{metrics}");
    let parts = mlxctl(&front, &["estimate", LARGE]);
    assert!(parts.contains("draft model") && parts.contains("parameters that guess"), "{parts}");
}

#[test]
fn a_draft_that_cannot_guess_is_named() {
    let refused = |config: FrontConfig| {
        let front = FrontProcess::start(&config);
        let answer = front.client().post(CHAT, &chat(LARGE, "Hello", json!({})));
        let status = answer.status;
        let text = answer.text();
        assert!(status >= 500, "{status}: {text}");
        text
    };
    let unknown = refused(with_draft("org/nobody"));
    assert!(unknown.contains("draft_model of") && unknown.contains("org/nobody"), "{unknown}");
    let strange = ModelFolder::new(&Script::default());
    let path = Path::new(strange.path()).to_string_lossy().into_owned();
    let other = refused(with_draft(&path));
    assert!(other.contains("has other tokens") && other.contains("same family"), "{other}");
}
