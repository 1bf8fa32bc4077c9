//! `POST /v1/embeddings`: a body becomes a [`ValidEmbeddings`] or a 400 that names the field, and
//! vectors become an answer.

use crate::error::ApiError;
use crate::limits::RequestLimits;
use crate::openai::common::{take_deadline, take_model};
use crate::openai::completion::{Prompt, take_prompts};
use crate::openai::fields::{Fields, wrong};
use crate::openai::keep_alive;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use mlxd_dispatch::KeepAlive;
use serde::{Serialize, Serializer};
use serde_json::Value;
use std::time::Duration;

/// A request for vectors whose every known field has been checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ValidEmbeddings {
    /// The model asked for.
    pub(crate) model: String,
    /// At least one, each with its name in the request.
    pub(crate) inputs: Vec<(String, Prompt)>,
    /// How vectors are written.
    pub(crate) encoding: Encoding,
    /// Leading numbers of each vector that are wanted.
    pub(crate) dimensions: Option<u32>,
    /// How long the answer may take.
    pub(crate) deadline: Option<Duration>,
    /// How long the model is to stay loaded afterwards.
    pub(crate) keep_alive: Option<KeepAlive>,
}

/// How vectors are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// As a list of numbers.
    Float,
    /// As their float32 bytes, little end first, in base64.
    Base64,
}

impl ValidEmbeddings {
    /// Reads and checks a request's body.
    pub(crate) fn parse(body: &[u8], limits: &RequestLimits) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let model = take_model(&mut fields, limits)?;
        let encoding = match fields.text("encoding_format")?.as_deref() {
            None | Some("float") => Encoding::Float,
            Some("base64") => Encoding::Base64,
            Some(other) => {
                let expected = "\"float\" or \"base64\"";
                return Err(wrong("encoding_format", expected, &Value::from(other)));
            }
        };
        let dimensions = fields.integer("dimensions", 1..=i64::from(u32::MAX))?;
        let single = !matches!(fields.peek("input"), Some(Value::Array(list)) if is_several(list));
        let inputs = take_prompts(&mut fields, "input")?;
        if inputs.len() > limits.embedding_inputs_max {
            let (got, max) = (inputs.len(), limits.embedding_inputs_max);
            return Err(ApiError::field(
                "input",
                format!("'input' has {got} texts, at most {max} are taken"),
            ));
        }
        let named = |(index, input)| match single {
            true => ("input".to_owned(), input),
            false => (format!("input[{index}]"), input),
        };
        let inputs: Vec<(String, Prompt)> = inputs.into_iter().enumerate().map(named).collect();
        let empty =
            |(_, input): &&(String, Prompt)| matches!(input, Prompt::Text(text) if text.is_empty());
        if let Some((name, _)) = inputs.iter().find(empty) {
            return Err(ApiError::field(name, format!("'{name}' is an empty text")));
        }
        Ok(Self {
            model,
            inputs,
            encoding,
            dimensions: dimensions.map(|wanted| wanted as u32),
            deadline: take_deadline(&mut fields)?,
            keep_alive: keep_alive::take(&mut fields)?,
        })
    }
}

/// Whether a list is one of inputs, and not one input of token ids.
fn is_several(list: &[Value]) -> bool {
    !list.first().is_some_and(Value::is_number)
}

#[derive(Serialize)]
struct Answer<'a> {
    object: &'static str,
    data: Vec<One<'a>>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
struct One<'a> {
    object: &'static str,
    index: usize,
    embedding: Written<'a>,
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: u64,
    total_tokens: u64,
}

struct Written<'a>(&'a [f32], Encoding);

impl Serialize for Written<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.1 {
            Encoding::Float => self.0.serialize(serializer),
            Encoding::Base64 => {
                let bytes: Vec<u8> = self.0.iter().flat_map(|value| value.to_le_bytes()).collect();
                serializer.serialize_str(&STANDARD.encode(bytes))
            }
        }
    }
}

/// The answer's body: a vector for each input, in order.
pub(crate) fn answer(
    model: &str,
    vectors: &[impl AsRef<[f32]>],
    prompt_tokens: u64,
    encoding: Encoding,
) -> Result<Bytes, ApiError> {
    let one = |(index, vector)| One {
        object: "embedding",
        index,
        embedding: Written(AsRef::as_ref(vector), encoding),
    };
    let answer = Answer {
        object: "list",
        data: vectors.iter().enumerate().map(one).collect(),
        model,
        usage: Usage { prompt_tokens, total_tokens: prompt_tokens },
    };
    let body = serde_json::to_vec(&answer);
    body.map(Bytes::from).map_err(|error| ApiError::Internal { message: error.to_string() })
}
