//! `POST /v1/chat/completions`: a body becomes a [`ValidChat`] or a 400 that names the field.

use crate::error::ApiError;
use crate::limits::RequestLimits;
use crate::openai::common::Common;
use crate::openai::fields::{Fields, wrong};
use crate::openai::messages;
use serde_json::{Map, Value};

/// A chat request whose every known field has been checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ValidChat {
    /// What it shares with a text completion.
    pub(crate) common: Common,
    /// The conversation, each content a string or text parts.
    pub(crate) messages: Vec<Value>,
    /// Tools, as the template takes them.
    pub(crate) tools: Option<Value>,
    /// Further variables for the template.
    pub(crate) template_arguments: Map<String, Value>,
}

impl ValidChat {
    /// Reads and checks a request's body.
    pub(crate) fn parse(body: &[u8], limits: &RequestLimits) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let mut common = Common::take(&mut fields, limits)?;
        common.logprobs = take_logprobs(&mut fields, limits)?;
        let list = fields
            .list("messages")?
            .ok_or_else(|| ApiError::field("messages", "'messages' is missing"))?;
        let messages = messages::check(list, limits)?;
        refuse_older_functions(&fields)?;
        let tools = take_tools(&mut fields, limits)?;
        let template_arguments = take_template_arguments(&mut fields)?;
        Ok(Self { common, messages, tools, template_arguments })
    }
}

fn take_logprobs(fields: &mut Fields, limits: &RequestLimits) -> Result<Option<u8>, ApiError> {
    let wanted = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=i64::from(limits.top_logprobs_max))?;
    match (wanted, top) {
        (true, top) => Ok(Some(top.unwrap_or(0) as u8)),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => {
            Err(ApiError::field("top_logprobs", "'top_logprobs' goes with 'logprobs': true only"))
        }
    }
}

fn refuse_older_functions(fields: &Fields) -> Result<(), ApiError> {
    match ["functions", "function_call"].into_iter().find(|name| fields.has(name)) {
        None => Ok(()),
        Some(name) => Err(ApiError::unsupported(
            name,
            format!("'{name}' is not supported; use 'tools' and 'tool_choice'"),
        )),
    }
}

/// The tools, unless `tool_choice` is `none`.
fn take_tools(fields: &mut Fields, limits: &RequestLimits) -> Result<Option<Value>, ApiError> {
    let tools = fields.list("tools")?.filter(|tools| !tools.is_empty());
    for (index, tool) in tools.iter().flatten().enumerate() {
        let named = tool.get("function").and_then(|f| f.get("name")).is_some_and(Value::is_string);
        if tool.get("type").and_then(Value::as_str) != Some("function") || !named {
            let name = format!("tools[{index}]");
            return Err(wrong(&name, "an object of type \"function\" with function.name", tool));
        }
    }
    let count = tools.as_ref().map_or(0, Vec::len);
    if count > limits.tools_max {
        let max = limits.tools_max;
        return Err(ApiError::field(
            "tools",
            format!("'tools' has {count} entries, at most {max} are taken"),
        ));
    }
    let tools = tools.map(Value::Array);
    match fields.take("tool_choice") {
        None => Ok(tools),
        Some(Value::String(choice)) if choice == "auto" => Ok(tools),
        Some(Value::String(choice)) if choice == "none" => Ok(None),
        Some(Value::String(choice)) if choice == "required" => Err(forced_tool()),
        Some(Value::Object(_)) => Err(forced_tool()),
        Some(other) => {
            Err(wrong("tool_choice", "\"none\", \"auto\", \"required\" or an object", &other))
        }
    }
}

fn forced_tool() -> ApiError {
    ApiError::unsupported(
        "tool_choice",
        "a 'tool_choice' that forces a call is not supported yet by this version; use \"auto\" \
         or \"none\"",
    )
}

fn take_template_arguments(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let mut arguments = fields.object("chat_template_kwargs")?.unwrap_or_default();
    for own in ["messages", "tools", "add_generation_prompt"] {
        if arguments.contains_key(own) {
            let name = format!("chat_template_kwargs.{own}");
            return Err(ApiError::field(&name, format!("'{name}' is set by the request itself")));
        }
    }
    if let Some(thinking) = fields.flag("enable_thinking")? {
        arguments.insert("enable_thinking".to_owned(), Value::Bool(thinking));
    }
    Ok(arguments)
}
