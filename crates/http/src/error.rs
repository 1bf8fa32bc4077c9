//! One table from what went wrong to what a client of the OpenAI API sees.
//!
//! Every error of the API leaves through [`ApiError`]: status, `type`, `code`, `param` and a text
//! that says what to do, in OpenAI's shape `{"error": {message, type, param, code}}`.

use actix_web::body::BoxBody;
use actix_web::http::{StatusCode, header};
use actix_web::{HttpResponse, ResponseError};
use mlxd_dispatch::{End, Failure, ModelFault};
use mlxd_protocol::{Refusal, RefusalCode};
use mlxd_text::TextError;
use serde_json::json;

/// The code of an answer that was not there in the time that its request gave it.
const DEADLINE_EXCEEDED: &str = "deadline_exceeded";

/// The code of a request that the machine can never have the memory for.
pub(crate) const INSUFFICIENT_MEMORY: &str = "insufficient_memory";

/// What a client is told when there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ApiError {
    /// A field's value cannot be used, or the whole body cannot.
    #[error("{message}")]
    Invalid { param: Option<String>, code: Option<&'static str>, message: String },
    /// Nobody has the model.
    #[error("{message}")]
    UnknownModel { message: String },
    /// The model exists and its files cannot be used.
    #[error("{message}")]
    BrokenModel { message: String },
    /// More tokens than the model takes.
    #[error("{message}")]
    ContextLength { param: &'static str, message: String },
    /// The body goes over its limit.
    #[error(
        "the request's body is longer than {bytes_max} bytes; shorten the request, or raise \
         body_bytes_max under [http] in mlxd.toml"
    )]
    BodyTooLarge { bytes_max: usize },
    /// The body did not come in time.
    #[error("the request's body did not arrive within {seconds} s; send the request again")]
    BodyTimeout { seconds: u64 },
    /// The connection broke while the body came.
    #[error("the request's body ended early; send the request again")]
    BodyCut,
    /// No stream of this id is kept.
    #[error("{message}")]
    UnknownStream { message: String },
    /// A stream, or the part of it that was asked for, is kept no longer.
    #[error("{message}")]
    StreamGone { code: &'static str, message: String },
    /// A stream of this id is kept already.
    #[error(
        "a stream with the id {id} is kept already: read it with GET /v1/streams/{id}, end it with \
         DELETE, or send the request with another x-request-id"
    )]
    StreamExists { id: String },
    /// A browser page of another origin sent something that is not JSON.
    #[error("a request that names an Origin must have the content type application/json")]
    NotJson,
    /// No such path.
    #[error("there is nothing at {method} {path}; the API is under /v1, see /v1/models")]
    NoRoute { method: String, path: String },
    /// The path exists, with another method.
    #[error("{path} does not take {method}, but {allowed}")]
    Method { method: String, path: String, allowed: &'static str },
    /// No room now.
    #[error("{message}")]
    Overloaded { message: String, retry_after_s: u64 },
    /// A sequence could not be finished.
    #[error("{}", .failure.message)]
    Failed { failure: Failure, retry_after_s: u64 },
    /// Its turn did not come before its deadline.
    #[error("{message}")]
    Deadline { message: String, retry_after_s: u64 },
    /// A defect of the front.
    #[error("{message}")]
    Internal { message: String },
}

impl ApiError {
    /// A field's value cannot be used.
    pub(crate) fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid {
            param: Some(param.into()),
            code: Some("invalid_value"),
            message: message.into(),
        }
    }

    /// A field or a value that a later version will know.
    pub(crate) fn unsupported(param: &str, message: impl Into<String>) -> Self {
        Self::Invalid {
            param: Some(param.to_owned()),
            code: Some("unsupported_parameter"),
            message: message.into(),
        }
    }

    /// How a sequence ended, if that is no answer.
    pub(crate) fn from_end(end: &End) -> Option<Self> {
        match end {
            End::Stop | End::Length | End::Embedded(_) => None,
            End::Refused(refusal) => Some(refusal.clone().into()),
            End::Failed(failure) => Some(failure.clone().into()),
        }
    }

    /// The same error; where it asks the client to come back, it does so after so many seconds.
    pub(crate) fn come_back_after(mut self, seconds: impl FnOnce() -> u64) -> Self {
        match &mut self {
            Self::Failed { failure, retry_after_s } if failure.retry => *retry_after_s = seconds(),
            Self::Overloaded { retry_after_s, .. } | Self::Deadline { retry_after_s, .. } => {
                *retry_after_s = seconds();
            }
            _ => {}
        }
        self
    }

    /// Whether the same request may succeed a moment later.
    pub(crate) fn asks_to_come_back(&self) -> bool {
        self.retry_after_s().is_some()
    }

    /// The HTTP status.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Invalid { .. } | Self::ContextLength { .. } | Self::BodyCut => {
                StatusCode::BAD_REQUEST
            }
            Self::UnknownModel { .. } | Self::NoRoute { .. } | Self::UnknownStream { .. } => {
                StatusCode::NOT_FOUND
            }
            Self::StreamGone { .. } => StatusCode::GONE,
            Self::StreamExists { .. } => StatusCode::CONFLICT,
            Self::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTimeout { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::NotJson => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Overloaded { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Deadline { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::Failed { failure, .. } if failure.code == DEADLINE_EXCEEDED => {
                StatusCode::GATEWAY_TIMEOUT
            }
            Self::Failed { failure, .. } if failure.code == INSUFFICIENT_MEMORY => {
                StatusCode::INSUFFICIENT_STORAGE
            }
            Self::Failed { failure, .. } if failure.retry => StatusCode::SERVICE_UNAVAILABLE,
            Self::Failed { .. } | Self::BrokenModel { .. } | Self::Internal { .. } => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }

    /// OpenAI's `type`.
    fn kind(&self) -> &'static str {
        match self.status() {
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        }
    }

    /// OpenAI's `code`.
    pub(crate) fn code(&self) -> Option<&'static str> {
        match self {
            Self::Invalid { code, .. } => *code,
            Self::UnknownModel { .. } => Some("model_not_found"),
            Self::BrokenModel { .. } => Some("model_unusable"),
            Self::ContextLength { .. } => Some("context_length_exceeded"),
            Self::BodyTooLarge { .. } => Some("request_too_large"),
            Self::BodyTimeout { .. } => Some("request_timeout"),
            Self::BodyCut => Some("request_incomplete"),
            Self::UnknownStream { .. } => Some("stream_not_found"),
            Self::StreamGone { code, .. } => Some(code),
            Self::StreamExists { .. } => Some("stream_exists"),
            Self::NotJson => Some("unsupported_media_type"),
            Self::NoRoute { .. } => Some("unknown_url"),
            Self::Method { .. } => Some("method_not_allowed"),
            Self::Overloaded { .. } => Some("overloaded"),
            Self::Failed { failure, .. } => Some(failure.code),
            Self::Deadline { .. } => Some(DEADLINE_EXCEEDED),
            Self::Internal { .. } => Some("internal_error"),
        }
    }

    /// OpenAI's `param`.
    pub(crate) fn param(&self) -> Option<&str> {
        match self {
            Self::Invalid { param, .. } => param.as_deref(),
            Self::UnknownModel { .. } | Self::BrokenModel { .. } => Some("model"),
            Self::ContextLength { param, .. } => Some(param),
            _ => None,
        }
    }

    /// The body, which is also the data of an error event inside a stream.
    pub(crate) fn body(&self) -> serde_json::Value {
        json!({"error": {
            "message": self.to_string(),
            "type": self.kind(),
            "param": self.param(),
            "code": self.code(),
        }})
    }

    fn retry_after_s(&self) -> Option<u64> {
        match self {
            Self::Overloaded { retry_after_s, .. } | Self::Deadline { retry_after_s, .. } => {
                Some(*retry_after_s)
            }
            Self::Failed { failure, retry_after_s } => failure.retry.then_some(*retry_after_s),
            _ => None,
        }
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        self.status()
    }

    fn error_response(&self) -> HttpResponse<BoxBody> {
        let mut response = HttpResponse::build(self.status());
        if let Some(seconds) = self.retry_after_s() {
            response.insert_header((header::RETRY_AFTER, seconds));
        }
        if self.status() == StatusCode::INSUFFICIENT_STORAGE {
            // OpenAI's clients repeat what failed with a 5xx unless they are told not to.
            response.insert_header(("x-should-retry", "false"));
        }
        if let Self::Method { allowed, .. } = self {
            response.insert_header((header::ALLOW, *allowed));
        }
        response.json(self.body())
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        Self::Failed { failure, retry_after_s: 1 }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.message;
        match refusal.code {
            RefusalCode::ContextOverflow => Self::ContextLength { param: "messages", message },
            RefusalCode::Invalid => {
                Self::Invalid { param: None, code: Some("invalid_value"), message }
            }
            RefusalCode::Busy | RefusalCode::Draining => {
                Self::Overloaded { message, retry_after_s: 1 }
            }
            RefusalCode::Deadline => Self::Deadline { message, retry_after_s: 1 },
        }
    }
}

impl From<ModelFault> for ApiError {
    fn from(fault: ModelFault) -> Self {
        match fault {
            ModelFault::Broken { message } => Self::BrokenModel { message },
            ModelFault::Unknown { name, known, nearest } => {
                Self::UnknownModel { message: unknown_model(&name, &known, nearest.as_deref()) }
            }
        }
    }
}

/// Names listed in a message at the most.
const NAMES_LISTED_MAX: usize = 20;

fn unknown_model(name: &str, known: &[String], nearest: Option<&str>) -> String {
    let mut message = format!("there is no model {name:?} here");
    if let Some(nearest) = nearest {
        message.push_str(&format!("; did you mean {nearest:?}?"));
    }
    let listed: Vec<&str> = known.iter().take(NAMES_LISTED_MAX).map(String::as_str).collect();
    match (listed.is_empty(), known.len().saturating_sub(listed.len())) {
        (true, _) => message.push_str("; no model is known yet"),
        (false, 0) => message.push_str(&format!("; these exist: {}", listed.join(", "))),
        (false, more) => {
            message.push_str(&format!("; these exist: {} and {more} more", listed.join(", ")));
        }
    }
    message
}

impl From<TextError> for ApiError {
    fn from(error: TextError) -> Self {
        let message = error.to_string();
        match &error {
            TextError::Refused(_) => Self::field("messages", message),
            TextError::Content { message: index, .. } => {
                Self::field(format!("messages[{index}].content"), message)
            }
            TextError::TextTooLong { .. } => Self::ContextLength { param: "messages", message },
            TextError::Encode(_) | TextError::TemplateLimit { .. } => {
                Self::field("messages", message)
            }
            TextError::File { .. }
            | TextError::Tokenizer(_)
            | TextError::Template(_)
            | TextError::NoSuchTemplate { .. } => Self::BrokenModel { message },
        }
    }
}
