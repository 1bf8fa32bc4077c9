//! The built-in model answers 36 of its 40 questions, greedily. `crates/demo/train/score.py` has
//! the same rule.

use crate::fixture::{DEMO, chat, config, repository, said};
use mlxd_testkit::FrontProcess;
use serde_json::{Value, json};

/// Right answers of the 40 that are asked for.
const RIGHT_MIN: usize = 36;

/// Lower case, runs of white space as one space.
fn plain(text: &str) -> String {
    text.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn words(list: &Value) -> impl Iterator<Item = String> + '_ {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(plain)
}

/// Whether the answer was ended by the model itself and holds what the question asks for.
fn is_right(question: &Value, answer: &Value) -> bool {
    let text = plain(said(answer));
    let groups = question["must_any"].as_array();
    answer["choices"][0]["finish_reason"] == "stop"
        && words(&question["must_all"]).all(|fact| text.contains(&fact))
        && groups.into_iter().flatten().all(|group| words(group).any(|word| text.contains(&word)))
        && !words(&question["must_not"]).any(|word| text.contains(&word))
}

#[test]
fn thirty_six_of_forty_are_right() {
    let file = repository().join("crates/demo/questions.json");
    let file = std::fs::read_to_string(file).expect("the questions");
    let questions: Vec<Value> = serde_json::from_str(&file).expect("a list of questions");
    assert_eq!(questions.len(), 40);
    let front = FrontProcess::start(&config().with_real_worker());
    let client = front.client();
    let mut wrong = Vec::new();
    for question in &questions {
        let asked = question["question"].as_str().expect("a question");
        let body = chat(DEMO, asked, json!({"temperature": 0, "max_tokens": 512}));
        let answer = client.post("/v1/chat/completions", &body).json();
        if !is_right(question, &answer) {
            wrong.push(format!("{asked}\n    {}", said(&answer)));
        }
    }
    let right = questions.len() - wrong.len();
    assert!(right >= RIGHT_MIN, "{right} of 40 are right; these are not:\n{}", wrong.join("\n"));
}
