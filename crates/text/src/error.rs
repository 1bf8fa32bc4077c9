//! What can go wrong with text, in words that a user can act on.

use std::path::PathBuf;

/// An error of the tokenizer or the chat template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// A file of the model folder is missing, too large or not what its name promises.
    #[error("{}: {reason}", path.display())]
    File {
        /// The offending file.
        path: PathBuf,
        /// What is wrong with it and what to do.
        reason: String,
    },
    /// The tokenizer's own file cannot be used.
    #[error("the tokenizer cannot be used: {0}")]
    Tokenizer(String),
    /// The text is longer than [`TokenizerLimits::text_bytes_max`](crate::TokenizerLimits).
    #[error("the text has {bytes} bytes, the limit is {bytes_max}; shorten it")]
    TextTooLong {
        /// Bytes given.
        bytes: usize,
        /// Bytes allowed.
        bytes_max: usize,
    },
    /// The tokenizer failed on this text.
    #[error("the text could not be tokenized: {0}")]
    Encode(String),
    /// The template called `raise_exception`: it does not take this conversation.
    #[error("the model's chat template refuses this conversation: {0}")]
    Refused(String),
    /// The template does not parse, or failed while it ran.
    #[error("the model's chat template failed: {0}")]
    Template(String),
    /// The template or its output went over a limit.
    #[error("the model's chat template went over its limit: {what}, at most {limit}")]
    TemplateLimit {
        /// What was exceeded.
        what: &'static str,
        /// The limit's value.
        limit: u64,
    },
    /// A template was asked for by a name that the model does not have.
    #[error("the model has no chat template named {name:?}; it has: {}", available.join(", "))]
    NoSuchTemplate {
        /// The name asked for.
        name: String,
        /// The names that exist.
        available: Vec<String>,
    },
    /// A message has a content that the template cannot take.
    #[error("messages[{message}].content: {reason}")]
    Content {
        /// Index of the message.
        message: usize,
        /// What is wrong.
        reason: String,
    },
}
