//! A chat's messages, checked. The text crate brings them into the form that a template reads.

use crate::error::ApiError;
use crate::limits::RequestLimits;
use crate::openai::fields::{kind_of, wrong};
use serde_json::{Map, Value, json};

const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];

/// Checks all messages. Each keeps its fields, with the content as a string or as text parts.
pub(crate) fn check(list: Vec<Value>, limits: &RequestLimits) -> Result<Vec<Value>, ApiError> {
    if list.is_empty() {
        return Err(ApiError::field("messages", "'messages' is empty; give at least one message"));
    }
    if list.len() > limits.messages_max {
        let (got, max) = (list.len(), limits.messages_max);
        return Err(ApiError::field(
            "messages",
            format!("'messages' has {got} entries, at most {max} are taken"),
        ));
    }
    list.into_iter().enumerate().map(|(index, value)| check_one(index, value)).collect()
}

fn check_one(index: usize, value: Value) -> Result<Value, ApiError> {
    let at = |field: &str| format!("messages[{index}].{field}");
    let Value::Object(mut message) = value else {
        return Err(wrong(&format!("messages[{index}]"), "an object", &value));
    };
    let role = match message.get("role") {
        Some(Value::String(role)) if ROLES.contains(&role.as_str()) => role.clone(),
        other => {
            let got = other.unwrap_or(&Value::Null);
            return Err(wrong(&at("role"), &format!("one of {}", ROLES.join(", ")), got));
        }
    };
    let calls = message.get("tool_calls").is_some_and(|calls| !calls.is_null());
    let content = match message.remove("content") {
        Some(text @ Value::String(_)) => text,
        Some(Value::Array(parts)) => Value::Array(text_parts(&at("content"), parts)?),
        // Templates put texts together, so nothing said is the empty text.
        None | Some(Value::Null) if role == "assistant" && (calls || message.len() > 1) => {
            Value::from("")
        }
        other => {
            let got = other.unwrap_or(Value::Null);
            return Err(wrong(&at("content"), "a string or a list of parts", &got));
        }
    };
    message.insert("content".to_owned(), content);
    if calls {
        check_tool_calls(index, &message)?;
    } else {
        message.remove("tool_calls");
    }
    Ok(Value::Object(message))
}

/// Every part as a text part. This version's models take text alone.
fn text_parts(at: &str, parts: Vec<Value>) -> Result<Vec<Value>, ApiError> {
    let one = |(number, part): (usize, Value)| {
        let name = format!("{at}[{number}]");
        let (kind, body) = match &part {
            Value::String(body) => ("text", Some(body.as_str())),
            Value::Object(part) => {
                let kind = part.get("type").and_then(Value::as_str).unwrap_or("");
                let key = if kind == "refusal" { "refusal" } else { "text" };
                (kind, part.get(key).and_then(Value::as_str))
            }
            other => return Err(wrong(&name, "a content part", other)),
        };
        match (kind, body) {
            ("text" | "input_text" | "output_text" | "refusal", Some(body)) => {
                Ok(json!({"type": "text", "text": body}))
            }
            ("text" | "input_text" | "output_text" | "refusal", None) => {
                let name = format!("{name}.text");
                Err(wrong(&name, "a string", &Value::Null))
            }
            _ => Err(ApiError::unsupported(
                &format!("{name}.type"),
                format!("'{name}' has the type {kind:?}: this model takes text only"),
            )),
        }
    };
    parts.into_iter().enumerate().map(one).collect()
}

fn check_tool_calls(index: usize, message: &Map<String, Value>) -> Result<(), ApiError> {
    let name = format!("messages[{index}].tool_calls");
    let calls = match message.get("tool_calls") {
        Some(Value::Array(calls)) => calls,
        other => {
            let got = other.map_or("null", kind_of);
            return Err(ApiError::field(&name, format!("'{name}' must be a list, got {got}")));
        }
    };
    for (number, call) in calls.iter().enumerate() {
        if !call.pointer("/function/name").is_some_and(Value::is_string) {
            let name = format!("{name}[{number}].function.name");
            return Err(ApiError::field(&name, format!("'{name}' must be a string")));
        }
    }
    Ok(())
}
