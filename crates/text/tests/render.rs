//! Chat templates render byte for byte as in Python's `transformers`.

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use mlxd_text::{ChatTemplate, RenderInput, SpecialTokens, TemplateLimits, TextError};
use serde_json::{Map, Value, json};

/// One rendering, here and there.
struct Case {
    name: String,
    template: String,
    request: Value,
}

fn specials() -> Value {
    json!({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"})
}

fn tools() -> Value {
    json!([
        {"type": "function", "function": {
            "name": "weather",
            "description": "The weather in a \"city\", <soon> & later – été",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Where"},
                    "days": {"type": "integer", "minimum": 1, "maximum": 1e3, "default": 2.0},
                    "units": {"type": "string", "enum": ["C", "F"]},
                    "items": {"type": "array", "items": {"type": "string"}}
                },
                "required": ["city"]
            }
        }},
        {"type": "function", "function": {
            "name": "clock", "description": "", "parameters": {"type": "object", "properties": {}}
        }}
    ])
}

fn templates() -> BTreeMap<String, String> {
    let folder = support::folder().join("templates");
    let entries = std::fs::read_dir(folder).expect("templates");
    entries
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let name = path.file_stem().expect("a name").to_string_lossy();
            (name.into_owned(), std::fs::read_to_string(&path).expect("text"))
        })
        .collect()
}

/// Every template with every conversation in several ways.
fn cases() -> Vec<Case> {
    let conversations = std::fs::read_to_string(support::folder().join("conversations.json"));
    let conversations: Map<String, Value> =
        serde_json::from_str(&conversations.expect("conversations")).expect("JSON");
    let ways = [
        ("plain", json!({})),
        ("prompt", json!({"add_generation_prompt": true})),
        (
            "no thinking",
            json!({"add_generation_prompt": true, "extra": {"enable_thinking": false}}),
        ),
        (
            "variables",
            json!({"extra": {"date_string": "2 Mar 2024", "tools_in_user_message": false,
                             "builtin_tools": ["weather"], "bos_token": "<other>"}}),
        ),
        ("continued", json!({"continue_final_message": true})),
    ];
    let mut cases = Vec::new();
    for (template_name, template) in templates() {
        for (conversation_name, conversation) in &conversations {
            for (way_name, way) in &ways {
                let mut request = way.clone();
                request["template"] = template.clone().into();
                request["specials"] = specials();
                request["messages"] = conversation["messages"].clone();
                if conversation.get("tools").is_some() {
                    request["tools"] = tools();
                }
                cases.push(Case {
                    name: format!("{template_name} / {conversation_name} / {way_name}"),
                    template: template.clone(),
                    request,
                });
            }
        }
    }
    cases
}

fn render(case: &Case) -> Result<String, TextError> {
    let template = ChatTemplate::from_sources(
        vec![("default".into(), case.template.clone())],
        SpecialTokens::from_config(&specials()),
        TemplateLimits::default(),
    )?;
    let flag = |name| case.request.get(name) == Some(&Value::Bool(true));
    template.render_as_given(&RenderInput {
        messages: case.request["messages"].as_array().expect("messages"),
        tools: case.request.get("tools"),
        add_generation_prompt: flag("add_generation_prompt"),
        continue_final_message: flag("continue_final_message"),
        extra: case.request.get("extra").and_then(Value::as_object),
        now: SystemTime::UNIX_EPOCH + Duration::from_secs(support::NOW),
        ..RenderInput::default()
    })
}

/// What is wrong with our answer, if anything.
fn difference(ours: &Result<String, TextError>, theirs: &Value) -> Option<String> {
    match (ours, theirs.get("text").and_then(Value::as_str)) {
        (Ok(ours), Some(theirs)) if ours == theirs => None,
        (Ok(ours), Some(theirs)) => Some(first_difference(ours, theirs)),
        (Ok(ours), None) => Some(format!("theirs fails ({}), ours: {ours:?}", theirs["error"])),
        (Err(error), Some(theirs)) => Some(format!("ours fails ({error}), theirs: {theirs:.200?}")),
        (Err(error), None) => {
            let raised = theirs["raised"] == true;
            let expected = TextError::Refused(theirs["error"].as_str()?.to_owned());
            (raised && *error != expected)
                .then(|| format!("ours: {error}, theirs: {}", theirs["error"]))
        }
    }
}

/// The two texts from shortly before the place where they part.
fn first_difference(ours: &str, theirs: &str) -> String {
    let alike = ours.chars().zip(theirs.chars());
    let alike = alike.take_while(|(a, b)| a == b).count();
    let around = |text: &str| -> String {
        let from = text.chars().skip(alike.saturating_sub(30));
        from.take(90).collect()
    };
    format!("ours:   {:?}\ntheirs: {:?}", around(ours), around(theirs))
}

#[test]
fn renders_as_transformers_does() {
    let cases = cases();
    let requests: Vec<&Value> = cases.iter().map(|case| &case.request).collect();
    let answer = support::reference(&json!({"now": support::NOW, "render": requests}));
    let answers = answer["render"].as_array().expect("a list");
    assert_eq!(answers.len(), cases.len());
    let mut rendered = BTreeMap::new();
    let mut wrong = Vec::new();
    for (case, theirs) in cases.iter().zip(answers) {
        let count: &mut usize = rendered.entry(&case.template).or_default();
        *count += usize::from(theirs.get("text").is_some());
        if let Some(difference) = difference(&render(case), theirs) {
            wrong.push(format!("{}\n{difference}", case.name));
        }
    }
    for (template, count) in rendered {
        assert!(count >= 10, "the reference renders only {count} cases of\n{template}");
    }
    assert!(
        wrong.is_empty(),
        "{} of {} cases differ:\n\n{}",
        wrong.len(),
        cases.len(),
        wrong[..wrong.len().min(8)].join("\n\n")
    );
}
