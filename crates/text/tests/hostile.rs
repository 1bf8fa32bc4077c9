//! Templates and messages that make no sense end in an error, not in a panic.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use mlxd_text::{ChatTemplate, RenderInput, SpecialTokens, TemplateLimits};
use serde_json::{Map, Value, json};

/// Characters that mean something to a template, or are rare in one.
const ODD: [char; 16] =
    ['{', '}', '%', '\'', '"', '[', ']', '(', ')', '|', '.', '-', '+', ' ', '9', '\u{e9}'];

fn sources() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/templates");
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .expect("templates")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    let text = |path| std::fs::read_to_string(path).expect("text");
    paths.into_iter().map(text).collect()
}

/// The template with a few pieces cut out, doubled or swapped.
fn mutated(source: &str, random: &mut fastrand::Rng) -> String {
    let mut letters: Vec<char> = source.chars().collect();
    for _ in 0..random.usize(1..6) {
        let from = random.usize(0..letters.len());
        let to = (from + random.usize(1..12)).min(letters.len());
        match random.u8(0..4) {
            0 => drop(letters.drain(from..to)),
            1 => letters.extend_from_within(from..to),
            2 => letters[from..to].reverse(),
            _ => letters[from] = *random.choice(&ODD).expect("one"),
        }
        if letters.is_empty() {
            letters.push('x');
        }
    }
    letters.into_iter().collect()
}

fn value(random: &mut fastrand::Rng, depth: u8) -> Value {
    let keys = ["role", "content", "tool_calls", "function", "arguments", "name", "type", "text"];
    let words = ["user", "system", "assistant", "tool", "", "{}", "<think>", "日本", "text"];
    match random.u8(0..if depth == 0 { 5 } else { 8 }) {
        0 => Value::Null,
        1 => random.bool().into(),
        2 => random.i64(..).into(),
        3 => random.f64().into(),
        4 => (*random.choice(&words).expect("one")).into(),
        5 => (0..random.usize(0..4)).map(|_| value(random, depth - 1)).collect(),
        _ => {
            let entry = |random: &mut fastrand::Rng| {
                let key = random.choice(&keys).expect("one").to_string();
                (key, value(random, depth - 1))
            };
            let entries: Map<String, Value> =
                (0..random.usize(0..5)).map(|_| entry(random)).collect();
            entries.into()
        }
    }
}

#[test]
fn nonsense_never_panics() {
    let mut random = fastrand::Rng::with_seed(11);
    let limits = TemplateLimits { instructions_max: 200_000, ..TemplateLimits::default() };
    let sources = sources();
    let (mut compiled, mut rendered) = (0, 0);
    for round in 0..3000 {
        let whole = random.choice(&sources).expect("a template");
        let source = match round % 3 {
            0 => whole.clone(),
            _ => mutated(whole, &mut random),
        };
        let messages: Vec<Value> = match round % 2 {
            0 => vec![json!({"role": "user", "content": "Hello"}); 3],
            _ => (0..random.usize(0..4)).map(|_| value(&mut random, 4)).collect(),
        };
        let tools = random.bool().then(|| value(&mut random, 4));
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let sources = vec![("default".to_owned(), source.clone())];
            let template =
                ChatTemplate::from_sources(sources, SpecialTokens::default(), limits).ok()?;
            let input = RenderInput {
                messages: &messages,
                tools: tools.as_ref(),
                continue_final_message: round % 5 == 0,
                ..RenderInput::default()
            };
            Some(template.render(&input).is_ok())
        }));
        let outcome = outcome.unwrap_or_else(|_| {
            panic!("a panic with messages {messages:?}, tools {tools:?} and template\n{source}")
        });
        compiled += usize::from(outcome.is_some());
        rendered += usize::from(outcome == Some(true));
    }
    assert!(compiled > 1000 && rendered > 300, "{compiled} compiled, {rendered} rendered");
}
