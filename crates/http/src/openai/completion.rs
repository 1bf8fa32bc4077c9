//! `POST /v1/completions`: a body becomes a [`ValidCompletion`] or a 400 that names the field.

use crate::error::ApiError;
use crate::limits::RequestLimits;
use crate::openai::common::Common;
use crate::openai::fields::{Fields, kind_of, whole};
use serde_json::Value;

/// Tokens generated when a text completion names no `max_tokens`, as OpenAI's API has it.
pub(crate) const MAX_TOKENS_DEFAULT: u32 = 16;

/// One prompt, as text or as tokens.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Prompt {
    /// To be encoded.
    Text(String),
    /// Encoded by the client.
    Tokens(Vec<u32>),
}

/// A text completion whose every known field has been checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ValidCompletion {
    /// What it shares with a chat request.
    pub(crate) common: Common,
    /// At least one; each gets `n` choices.
    pub(crate) prompts: Vec<Prompt>,
    /// Whether the answer begins with the prompt.
    pub(crate) echo: bool,
}

impl ValidCompletion {
    /// Reads and checks a request's body.
    pub(crate) fn parse(body: &[u8], limits: &RequestLimits) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let mut common = Common::take(&mut fields, limits)?;
        let top = fields.integer("logprobs", 0..=i64::from(limits.top_logprobs_max))?;
        common.logprobs = top.map(|top| top as u8);
        common.max_tokens = common.max_tokens.or(Some(MAX_TOKENS_DEFAULT));
        let echo = fields.flag("echo")?.unwrap_or(false);
        if echo && common.logprobs.is_some() {
            return Err(ApiError::unsupported(
                "echo",
                "'echo' with 'logprobs' is not supported: the prompt's own log-probabilities are \
                 not computed; leave one of them out",
            ));
        }
        if fields.text("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
            return Err(ApiError::unsupported("suffix", "'suffix' is not supported; leave it out"));
        }
        let best_of = fields.integer("best_of", 1..=128)?;
        if best_of.is_some_and(|best_of| best_of != i64::from(common.n)) {
            return Err(ApiError::unsupported(
                "best_of",
                "'best_of' is supported only when it equals 'n'; leave it out",
            ));
        }
        let prompts = take_prompts(&mut fields, "prompt")?;
        let choices = prompts.len().saturating_mul(common.n as usize);
        if choices > limits.n_max as usize {
            let max = limits.n_max;
            return Err(ApiError::field(
                "prompt",
                format!("'prompt' times 'n' makes {choices} choices, at most {max} are taken"),
            ));
        }
        Ok(Self { common, prompts, echo })
    }
}

/// The field's texts, each as text or as tokens.
pub(crate) fn take_prompts(fields: &mut Fields, name: &str) -> Result<Vec<Prompt>, ApiError> {
    let list = match fields.take(name) {
        None => return Err(ApiError::field(name, format!("'{name}' is missing"))),
        Some(Value::String(text)) => return Ok(vec![Prompt::Text(text)]),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(expected(name, &other)),
    };
    match list.first() {
        None => Err(ApiError::field(name, format!("'{name}' is an empty list"))),
        Some(Value::Number(_)) => Ok(vec![tokens(name, &list)?]),
        Some(_) => {
            let one = |(index, value)| one_of_list(&format!("{name}[{index}]"), value);
            list.into_iter().enumerate().map(one).collect()
        }
    }
}

fn one_of_list(name: &str, value: Value) -> Result<Prompt, ApiError> {
    match value {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(ids) => tokens(name, &ids),
        other => Err(expected(name, &other)),
    }
}

fn tokens(name: &str, ids: &[Value]) -> Result<Prompt, ApiError> {
    if ids.is_empty() {
        return Err(ApiError::field(name, format!("'{name}' is an empty list of tokens")));
    }
    let id = |(at, value): (usize, &Value)| {
        whole(value).and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
            let name = format!("{name}[{at}]");
            ApiError::field(&name, format!("'{name}' must be a token id, got {}", kind_of(value)))
        })
    };
    Ok(Prompt::Tokens(ids.iter().enumerate().map(id).collect::<Result<_, _>>()?))
}

fn expected(name: &str, got: &Value) -> ApiError {
    ApiError::field(
        name,
        format!(
            "'{name}' must be a string, a list of strings, a list of token ids or a list of such \
             lists, got {}",
            kind_of(got)
        ),
    )
}
