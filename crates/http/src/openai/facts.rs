//! What a request holds, brings and wants, for the rules of virtual models. Read before the
//! request is checked, so it takes nothing for granted.

use mlxd_dispatch::route::{Modality, RequestFacts};
use serde_json::{Map, Value};

/// Other ways to want JSON than `response_format`.
const JSON_FIELDS: [&str; 3] = ["guided_json", "json_schema", "structured_outputs"];

/// The facts of a request's body. Its priority stands in a header.
pub(crate) fn of_body(body: &Map<String, Value>) -> RequestFacts {
    let has = |name: &str| body.get(name).is_some_and(|value| !value.is_null());
    let tools = body.get("tools").and_then(Value::as_array).is_some_and(|tools| !tools.is_empty());
    let format = body.get("response_format").and_then(|format| format.get("type"));
    let format = format.and_then(Value::as_str);
    let mut holds: Vec<Modality> = contents(body).filter_map(kind_of_part).collect();
    holds.sort_unstable();
    holds.dedup();
    RequestFacts {
        holds,
        tools: tools && body.get("tool_choice").and_then(Value::as_str) != Some("none"),
        json: matches!(format, Some("json_object" | "json_schema"))
            || JSON_FIELDS.into_iter().any(has),
        chat: has("messages"),
        ..RequestFacts::default()
    }
}

/// A request's content parts.
fn contents(body: &Map<String, Value>) -> impl Iterator<Item = &Value> {
    let messages = body.get("messages").and_then(Value::as_array).into_iter().flatten();
    messages.filter_map(|message| message.get("content")?.as_array()).flatten()
}

/// What a part is besides text.
fn kind_of_part(part: &Value) -> Option<Modality> {
    match part.get("type")?.as_str()? {
        "image_url" | "input_image" | "image" => Some(Modality::Image),
        "video_url" | "input_video" | "video" => Some(Modality::Video),
        "audio_url" | "input_audio" | "audio" => Some(Modality::Audio),
        _ => None,
    }
}

/// The body without what this version cannot give to a model: its text can be counted all the
/// same.
pub(crate) fn text_alone(body: &Map<String, Value>) -> Map<String, Value> {
    let mut body = body.clone();
    for name in JSON_FIELDS.into_iter().chain(["response_format"]) {
        body.remove(name);
    }
    if body.get("tool_choice").is_some_and(|choice| choice != "none") {
        body.remove("tool_choice");
    }
    let messages = body.get_mut("messages").and_then(Value::as_array_mut);
    for message in messages.into_iter().flatten() {
        if let Some(parts) = message.get_mut("content").and_then(Value::as_array_mut) {
            parts.retain(|part| kind_of_part(part).is_none());
        }
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn facts(body: Value) -> RequestFacts {
        of_body(body.as_object().unwrap())
    }

    #[test]
    fn what_a_request_says_of_itself() {
        assert_eq!(facts(json!({"prompt": "x"})), RequestFacts::default());
        let parts = json!([
            {"type": "text", "text": "see"},
            {"type": "input_audio", "input_audio": {}},
            {"type": "image_url", "image_url": {"url": "data:"}},
            {"type": "image_url", "image_url": {"url": "data:"}},
        ]);
        let full = facts(json!({
            "messages": [{"role": "user", "content": parts}, "odd"],
            "tools": [{"type": "function"}],
            "response_format": {"type": "json_schema"},
        }));
        assert_eq!(full.holds, [Modality::Image, Modality::Audio]);
        assert!(full.tools && full.json && full.chat);
        let none = facts(json!({"tools": [1], "tool_choice": "none", "response_format": 3}));
        assert!(!none.tools && !none.json);
        assert!(!facts(json!({"tools": []})).tools);
        assert!(facts(json!({"guided_json": {}})).json);
    }

    #[test]
    fn what_cannot_be_given_to_a_model_is_left_out() {
        let body = json!({
            "messages": [{"role": "user", "content": [{"type": "text", "text": "see"},
                {"type": "image_url", "image_url": {"url": "data:"}}]}],
            "response_format": {"type": "json_object"}, "tool_choice": "required", "n": 1,
        });
        let left = text_alone(body.as_object().unwrap());
        let expected = json!({
            "messages": [{"role": "user", "content": [{"type": "text", "text": "see"}]}], "n": 1,
        });
        assert_eq!(Value::Object(left), expected);
    }
}
