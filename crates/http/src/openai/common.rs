//! What chat and text completions have in common: sampling, limits, stops, streaming.

use crate::error::ApiError;
use crate::limits::RequestLimits;
use crate::openai::fields::{Fields, whole, wrong};
use crate::openai::{facts, keep_alive};
use mlxd_dispatch::KeepAlive;
use mlxd_dispatch::route::RequestFacts;
use serde_json::Value;
use std::time::Duration;

/// The longest deadline that a request may name: a day. `total_timeout_ms` bounds it further.
pub(crate) const DEADLINE_S_MAX: f64 = 86_400.0;

/// The checked part that both kinds of request share. `None` is "not said".
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Common {
    /// The model asked for.
    pub(crate) model: String,
    /// Choices per prompt.
    pub(crate) n: u32,
    /// Whether the answer is streamed.
    pub(crate) stream: bool,
    /// Whether the stream can be read again, and what becomes of it when nobody reads.
    pub(crate) keep: Option<Keep>,
    /// How long the model is to stay loaded afterwards.
    pub(crate) keep_alive: Option<KeepAlive>,
    /// Whether a streamed answer ends with its usage.
    pub(crate) include_usage: bool,
    /// Stop strings, none empty.
    pub(crate) stops: Vec<String>,
    /// Tokens to generate at the most.
    pub(crate) max_tokens: Option<u32>,
    /// How long the answer may take.
    pub(crate) deadline: Option<Duration>,
    /// Goes on past the model's end-of-turn tokens, to `max_tokens`: for measuring.
    pub(crate) ignore_eos: bool,
    /// Where the random draws start.
    pub(crate) seed: Option<u64>,
    /// Log-probabilities wanted, and of how many alternatives.
    pub(crate) logprobs: Option<u8>,
    /// Added to single tokens' logits.
    pub(crate) logit_bias: Vec<(u32, f32)>,
    /// How tokens are chosen.
    pub(crate) sampling: SamplingAsked,
    /// For the rules of virtual models.
    pub(crate) facts: RequestFacts,
}

/// What becomes of a stream that is kept when nobody reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// `resumable`: it stands still until somebody reads on.
    Paused,
    /// `background`: it goes on.
    GoingOn,
}

/// What the request says of sampling.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct SamplingAsked {
    pub(crate) temperature: Option<f32>,
    pub(crate) top_p: Option<f32>,
    pub(crate) top_k: Option<u32>,
    pub(crate) min_p: Option<f32>,
    pub(crate) repetition_penalty: Option<f32>,
    pub(crate) repetition_window: Option<u32>,
    pub(crate) presence_penalty: Option<f32>,
    pub(crate) frequency_penalty: Option<f32>,
}

/// Ways to ask for constrained output, here and at peers. Refused rather than ignored.
const CONSTRAINTS: [&str; 8] = [
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
    "json_schema",
    "grammar",
    "ebnf",
];

impl Common {
    /// Takes the shared fields. `logprobs` differs between the two kinds and is the caller's.
    pub(crate) fn take(fields: &mut Fields, limits: &RequestLimits) -> Result<Self, ApiError> {
        let facts = facts::of_body(fields.left());
        let model = take_model(fields, limits)?;
        refuse_constraints(fields)?;
        let n = fields.integer("n", 1..=i64::from(limits.n_max))?.unwrap_or(1);
        let stream = fields.flag("stream")?.unwrap_or(false);
        Ok(Self {
            model,
            n: n as u32,
            stream,
            keep: take_keep(fields, stream)?,
            keep_alive: keep_alive::take(fields)?,
            include_usage: take_stream_options(fields, stream)?,
            stops: take_stops(fields, limits)?,
            max_tokens: take_max_tokens(fields)?,
            deadline: take_deadline(fields)?,
            ignore_eos: fields.flag("ignore_eos")?.unwrap_or(false),
            seed: take_seed(fields)?,
            logprobs: None,
            logit_bias: take_logit_bias(fields, limits)?,
            sampling: SamplingAsked::take(fields)?,
            facts,
        })
    }
}

impl SamplingAsked {
    fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let window = fields.integer("repetition_context_size", 0..=1_000_000)?;
        let mut asked = Self {
            temperature: fields.number("temperature", 0.0..=2.0)?,
            top_p: fields.number("top_p", 0.0..=1.0)?,
            // -1 is how some clients say "all".
            top_k: fields.integer("top_k", -1..=1_000_000)?.map(|k| k.max(0) as u32),
            min_p: fields.number("min_p", 0.0..=1.0)?,
            repetition_penalty: fields.number("repetition_penalty", 0.01..=10.0)?,
            repetition_window: window.map(|tokens| tokens as u32),
            presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?,
            frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?,
        };
        if asked.top_p == Some(0.0) {
            // The smallest set that reaches probability 0 is the likeliest token alone.
            asked.top_p = None;
            asked.temperature = Some(0.0);
        }
        Ok(asked)
    }
}

fn refuse_constraints(fields: &mut Fields) -> Result<(), ApiError> {
    if let Some(name) = CONSTRAINTS.iter().find(|name| fields.has(name)) {
        return Err(ApiError::unsupported(
            name,
            format!("'{name}' is not supported yet by this version; leave it out"),
        ));
    }
    let Some(format) = fields.object("response_format")? else {
        return Ok(());
    };
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(()),
        Some(kind @ ("json_object" | "json_schema")) => Err(ApiError::unsupported(
            "response_format",
            format!(
                "'response_format' of type {kind:?} is not supported yet by this version; leave \
                 it out or use \"text\""
            ),
        )),
        _ => Err(ApiError::field(
            "response_format.type",
            "'response_format.type' must be \"text\", \"json_object\" or \"json_schema\"",
        )),
    }
}

fn take_stream_options(fields: &mut Fields, stream: bool) -> Result<bool, ApiError> {
    let Some(options) = fields.object("stream_options")? else {
        return Ok(false);
    };
    if !stream {
        return Err(ApiError::field(
            "stream_options",
            "'stream_options' goes with 'stream': true only",
        ));
    }
    match options.get("include_usage") {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(wanted)) => Ok(*wanted),
        Some(other) => Err(wrong("stream_options.include_usage", "true or false", other)),
    }
}

/// `resumable` and `background`, which is resumable as well.
fn take_keep(fields: &mut Fields, stream: bool) -> Result<Option<Keep>, ApiError> {
    let resumable = fields.flag("resumable")?;
    let background = fields.flag("background")?;
    for (name, wanted) in [("resumable", resumable), ("background", background)] {
        if wanted == Some(true) && !stream {
            return Err(ApiError::field(name, format!("'{name}' goes with 'stream': true only")));
        }
    }
    match (resumable, background) {
        (Some(false), Some(true)) => Err(ApiError::field(
            "resumable",
            "'background': true makes a stream resumable; leave 'resumable' out or make it true",
        )),
        (_, Some(true)) => Ok(Some(Keep::GoingOn)),
        (Some(true), _) => Ok(Some(Keep::Paused)),
        _ => Ok(None),
    }
}

/// The model asked for, else the one that is meant by none.
pub(crate) fn take_model(fields: &mut Fields, limits: &RequestLimits) -> Result<String, ApiError> {
    fields
        .text("model")?
        .filter(|model| !model.is_empty())
        .or_else(|| limits.model_default.clone())
        .ok_or_else(|| ApiError::field("model", "'model' is missing; name one of GET /v1/models"))
}

fn take_max_tokens(fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    let range = 1..=i64::from(u32::MAX);
    let newer = fields.integer("max_completion_tokens", range.clone())?;
    let older = fields.integer("max_tokens", range)?;
    Ok(newer.or(older).map(|tokens| tokens as u32))
}

/// `timeout`, in seconds.
pub(crate) fn take_deadline(fields: &mut Fields) -> Result<Option<Duration>, ApiError> {
    let seconds = fields.number("timeout", 0.001..=DEADLINE_S_MAX)?;
    Ok(seconds.map(Duration::from_secs_f32))
}

fn take_seed(fields: &mut Fields) -> Result<Option<u64>, ApiError> {
    let Some(value) = fields.take("seed") else {
        return Ok(None);
    };
    let seed = value.as_u64().or_else(|| whole(&value).map(|seed| seed as u64));
    match seed {
        Some(seed) => Ok(Some(seed)),
        None => Err(wrong("seed", "a whole number of 64 bits", &value)),
    }
}

fn take_stops(fields: &mut Fields, limits: &RequestLimits) -> Result<Vec<String>, ApiError> {
    let list = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(one @ Value::String(_)) => vec![one],
        Some(other) => return Err(wrong("stop", "a string or a list of strings", &other)),
    };
    if list.len() > limits.stop_strings_max {
        let (got, max) = (list.len(), limits.stop_strings_max);
        return Err(ApiError::field(
            "stop",
            format!("'stop' has {got} strings, at most {max} are taken"),
        ));
    }
    let mut stops = Vec::with_capacity(list.len());
    for (index, value) in list.into_iter().enumerate() {
        let Value::String(stop) = value else {
            return Err(wrong(&format!("stop[{index}]"), "a string", &value));
        };
        if stop.len() > limits.stop_bytes_max {
            let (got, max) = (stop.len(), limits.stop_bytes_max);
            return Err(ApiError::field(
                format!("stop[{index}]"),
                format!("'stop[{index}]' has {got} bytes, at most {max} are taken"),
            ));
        }
        if !stop.is_empty() {
            stops.push(stop);
        }
    }
    Ok(stops)
}

fn take_logit_bias(
    fields: &mut Fields,
    limits: &RequestLimits,
) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(map) = fields.object("logit_bias")? else {
        return Ok(Vec::new());
    };
    if map.len() > limits.logit_bias_max {
        let (got, max) = (map.len(), limits.logit_bias_max);
        return Err(ApiError::field(
            "logit_bias",
            format!("'logit_bias' has {got} entries, at most {max} are taken"),
        ));
    }
    let entry = |(token, bias): (&String, &Value)| {
        let name = format!("logit_bias.{token}");
        let id: u32 = token.parse().map_err(|_| {
            ApiError::field(&name, format!("'logit_bias' has token ids as keys, got {token:?}"))
        })?;
        match bias.as_f64() {
            Some(value) if (-100.0..=100.0).contains(&value) => Ok((id, value as f32)),
            _ => Err(wrong(&name, "a number from -100 to 100", bias)),
        }
    };
    map.iter().map(entry).collect()
}
