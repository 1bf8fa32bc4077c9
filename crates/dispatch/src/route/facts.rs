//! What a decision goes by.

use mlxd_protocol::{ModelId, Priority};
use std::collections::HashMap;

/// A kind of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Modality {
    /// Words.
    Text,
    /// Pictures.
    Image,
    /// Moving pictures.
    Video,
    /// Sound.
    Audio,
}

impl Modality {
    /// As in `mlxd.toml`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Image => "image",
            Self::Video => "video",
            Self::Audio => "audio",
        }
    }
}

/// What is known of a request without any model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestFacts {
    /// What it holds besides text, each once.
    pub holds: Vec<Modality>,
    /// Whether it brings tools.
    pub tools: bool,
    /// Whether it wants JSON.
    pub json: bool,
    /// Whether it is a conversation, which only a model with a chat template takes.
    pub chat: bool,
    /// Which queue it waits in.
    pub priority: Priority,
}

/// What is known of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFacts {
    /// Its own name.
    pub id: ModelId,
    /// Whether its worker takes requests now.
    pub loaded: bool,
    /// Why its worker is not started, when it is FATAL.
    pub fatal: Option<String>,
    /// What it takes besides text.
    pub takes: Vec<Modality>,
    /// Whether it has a chat template.
    pub chat: bool,
}

/// Everything known so far.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Of the request.
    pub request: RequestFacts,
    /// Of models, by the names that rules use; the error says why one cannot be used at all.
    pub models: HashMap<String, Result<ModelFacts, String>>,
    /// Tokens of the prompt, as a model counts them.
    pub prompt_tokens: HashMap<ModelId, u32>,
    /// Models that did not take this request, and why.
    pub refused: HashMap<ModelId, String>,
}
