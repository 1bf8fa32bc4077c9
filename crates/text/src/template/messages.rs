//! Messages between an API and a template: their fields, the forms of `content`, and the mark
//! that finds the end of a message to be continued.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use super::ContentShape;
use crate::error::TextError;

/// Names that a message's reasoning is found under, the usual one first.
const REASONING_FIELDS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Stands at the end of a message to be continued while the template runs. The space at its end
/// tells whether the template trims.
const END_MARK: &str = "MLXD-CONTINUES-HERE ";

/// Text that no template contains, to see whether it comes through.
const PROBE: &str = "mlxd probe 8d1f";

/// What every rendering does to messages: null fields are dropped, and reasoning is found under
/// each of its names.
pub(super) fn complete(messages: Vec<Value>) -> Result<Vec<Value>, TextError> {
    let complete_one = |(at, message): (usize, Value)| {
        let Value::Object(fields) = message else {
            return Err(TextError::Content {
                message: at,
                reason: "the message is not an object".into(),
            });
        };
        let fields: Map<String, Value> =
            fields.into_iter().filter(|(_, value)| !value.is_null()).collect();
        let named = REASONING_FIELDS.iter().find_map(|name| fields.get(*name));
        let Some(reasoning) = named.cloned() else {
            return Ok(Value::Object(fields));
        };
        // `thinking` comes first where it was absent, so that the order is Python's.
        let mut all = Map::new();
        all.insert("thinking".into(), reasoning.clone());
        all.extend(fields);
        all.insert("reasoning_content".into(), reasoning);
        Ok(Value::Object(all))
    };
    messages.into_iter().enumerate().map(complete_one).collect()
}

/// Brings messages as an API delivers them into the form that a template reads.
pub(super) fn normalise(
    messages: &[Value],
    shape: ContentShape,
    knows_developer: bool,
) -> Result<Vec<Value>, TextError> {
    let mut messages = messages.to_vec();
    for (at, message) in messages.iter_mut().enumerate() {
        let Value::Object(fields) = message else {
            continue;
        };
        if !knows_developer && fields.get("role").is_some_and(|role| role == "developer") {
            fields.insert("role".into(), "system".into());
        }
        if let Some(content) = fields.get_mut("content") {
            reshape(content, shape).map_err(|reason| TextError::Content { message: at, reason })?;
        }
        if let Some(Value::Array(calls)) = fields.get_mut("tool_calls") {
            calls.iter_mut().for_each(parse_arguments);
        }
    }
    Ok(messages)
}

fn reshape(content: &mut Value, shape: ContentShape) -> Result<(), String> {
    let changed = match (&*content, shape) {
        (Value::Array(parts), ContentShape::Text) => joined(parts)?.into(),
        (Value::String(text), ContentShape::Parts) => json!([{"type": "text", "text": text}]),
        _ => return Ok(()),
    };
    *content = changed;
    Ok(())
}

/// Text parts, each on a line of its own.
fn joined(parts: &[Value]) -> Result<String, String> {
    let texts: Result<Vec<&str>, String> = parts
        .iter()
        .map(|part| match part {
            Value::String(text) => Ok(&text[..]),
            _ => part.get("text").and_then(Value::as_str).ok_or_else(|| {
                let kind = part.get("type").and_then(Value::as_str).unwrap_or("?");
                format!("the model takes text only, and a part is of type {kind:?}")
            }),
        })
        .collect();
    Ok(texts?.join("\n"))
}

/// A call's `arguments` as an object, where they are the JSON text of one.
fn parse_arguments(call: &mut Value) {
    let arguments = match call.get("function") {
        Some(_) => call.pointer_mut("/function/arguments"),
        None => call.get_mut("arguments"),
    };
    if let Some(arguments) = arguments
        && let Value::String(text) = &*arguments
        && let Ok(parsed @ Value::Object(_)) = serde_json::from_str(text)
    {
        *arguments = parsed;
    }
}

/// Tries which forms of `content` come through a template.
pub(super) fn probe(render: impl Fn(&[Value]) -> Option<String>) -> ContentShape {
    let text = json!([{"role": "user", "content": PROBE}]);
    let parts = json!([{"role": "user", "content": [{"type": "text", "text": PROBE}]}]);
    let rendered = |messages: &Value| render(messages.as_array().map_or(&[], |m| &m[..]));
    let takes_text = rendered(&text).is_some_and(|out| out.contains(PROBE));
    // A template that knows strings only writes the list itself, with its keys.
    let takes_parts = rendered(&parts).is_some_and(|out| {
        out.contains(PROBE) && !out.contains("'type'") && !out.contains("\"type\"")
    });
    match (takes_text, takes_parts) {
        (false, true) => ContentShape::Parts,
        (true, true) => ContentShape::Both,
        (_, false) => ContentShape::Text,
    }
}

/// Marks the end of the last message and returns its text.
pub(super) fn mark_end(messages: &mut [Value]) -> Result<String, TextError> {
    let at = messages.len().saturating_sub(1);
    let nothing = || TextError::Content {
        message: at,
        reason: "continue_final_message needs a last message with text".into(),
    };
    let content =
        messages.last_mut().and_then(|message| message.get_mut("content")).ok_or_else(nothing)?;
    let text = match content {
        Value::Array(parts) => {
            parts.iter_mut().rev().find_map(|part| part.get_mut("text")).ok_or_else(nothing)?
        }
        text => text,
    };
    let original = text.as_str().ok_or_else(nothing)?.to_owned();
    *text = format!("{original}{END_MARK}").into();
    Ok(original)
}

/// Cuts a rendering at the mark.
pub(super) fn cut_at_mark(mut text: String, last: &str) -> Result<String, TextError> {
    let mark = END_MARK.trim_end();
    let found = text.rfind(mark).filter(|_| text.contains(last.trim()));
    let Some(at) = found else {
        return Err(TextError::Template(
            "it leaves out the last message, which was to be continued".into(),
        ));
    };
    let keeps_space = text[at..].starts_with(END_MARK);
    text.truncate(at);
    let kept: Cow<'_, str> = match keeps_space {
        true => Cow::Borrowed(&text),
        false => Cow::Borrowed(text.trim_end()),
    };
    Ok(kept.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_become_objects() {
        let messages = [json!({"role": "assistant", "tool_calls": [
            {"function": {"name": "f", "arguments": "{\"a\": 1}"}},
            {"function": {"name": "g", "arguments": "not json"}},
        ]})];
        let normal = normalise(&messages, ContentShape::Text, false).unwrap();
        assert_eq!(
            normal[0]["tool_calls"],
            json!([
                {"function": {"name": "f", "arguments": {"a": 1}}},
                {"function": {"name": "g", "arguments": "not json"}},
            ])
        );
    }

    #[test]
    fn a_part_that_is_no_text_is_named() {
        let messages = [json!({"role": "user", "content": [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": "x"}},
        ]})];
        let error = normalise(&messages, ContentShape::Text, true).unwrap_err();
        assert_eq!(
            error.to_string(),
            "messages[0].content: the model takes text only, and a part is of type \"image_url\""
        );
    }

    #[test]
    fn developer_is_system_for_a_template_that_does_not_know_it() {
        let messages = [json!({"role": "developer", "content": "x"})];
        let role =
            |knows| normalise(&messages, ContentShape::Text, knows).unwrap()[0]["role"].clone();
        assert_eq!((role(false), role(true)), ("system".into(), "developer".into()));
    }
}
