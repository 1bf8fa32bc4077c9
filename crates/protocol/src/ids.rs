//! Names of things that live on both sides of the process boundary.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A token's index in the model's vocabulary.
pub type TokenId = u32;

/// One sequence being generated, unique within one life of the front.
///
/// A chat request with `n = 3` has three of these, one per choice.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode, Serialize, Deserialize,
)]
pub struct RequestId(pub u64);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

/// One life of a worker process. Grows by one with every spawn of the front's life.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode, Serialize, Deserialize,
)]
pub struct Incarnation(pub u64);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "i{}", self.0)
    }
}

/// The name a client uses for a model: `mlxd-demo`, `mlx-community/Qwen3-0.6B-4bit`, `/models/mine`.
///
/// Checked once: 1 to [`ModelId::BYTES_MAX`] bytes, no control characters, no `..` path
/// segment. Whether such a model exists is for the store to say.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelId(String);

/// Why a text cannot be a model's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelIdError {
    /// Nothing was given.
    #[error("a model name may not be empty")]
    Empty,
    /// Longer than any real name.
    #[error("a model name has at most {max} bytes, this one has {got}", max = ModelId::BYTES_MAX)]
    TooLong {
        /// Bytes given.
        got: usize,
    },
    /// A control character, or a `..` segment.
    #[error("a model name may not hold {what}")]
    Forbidden {
        /// What was found.
        what: &'static str,
    },
}

impl ModelId {
    /// The longest accepted name, in bytes.
    pub const BYTES_MAX: usize = 512;

    /// Checks `name`.
    pub fn new(name: impl Into<String>) -> Result<Self, ModelIdError> {
        let name = name.into();
        if name.is_empty() {
            return Err(ModelIdError::Empty);
        }
        if name.len() > Self::BYTES_MAX {
            return Err(ModelIdError::TooLong { got: name.len() });
        }
        if name.chars().any(char::is_control) {
            return Err(ModelIdError::Forbidden { what: "control characters" });
        }
        if name.split(['/', '\\']).any(|part| part == "..") {
            return Err(ModelIdError::Forbidden { what: "a '..' segment" });
        }
        Ok(Self(name))
    }

    /// The name as given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ModelId {
    type Error = ModelIdError;
    fn try_from(name: String) -> Result<Self, ModelIdError> {
        Self::new(name)
    }
}

impl From<ModelId> for String {
    fn from(id: ModelId) -> Self {
        id.0
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert!(ModelId::new("mlx-community/Qwen3-0.6B-4bit").is_ok());
        assert!(ModelId::new("/models/mine..v2").is_ok());
        assert_eq!(ModelId::new(""), Err(ModelIdError::Empty));
        assert!(matches!(ModelId::new("a/../b"), Err(ModelIdError::Forbidden { .. })));
        assert!(matches!(ModelId::new("a\u{0}b"), Err(ModelIdError::Forbidden { .. })));
        assert!(matches!(ModelId::new("x".repeat(513)), Err(ModelIdError::TooLong { got: 513 })));
    }
}
