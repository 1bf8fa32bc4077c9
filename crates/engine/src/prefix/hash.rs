//! The hash chain.

use mlxd_protocol::TokenId;
use sha2::{Digest, Sha256};

/// What a cached state depends on besides the tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheKey<'a> {
    /// The model's weights and config.
    pub model: &'a str,
    /// What turned text into tokens.
    pub tokenizer: &'a str,
    /// The form of the weights and of the state.
    pub quantization: &'a str,
    /// The program that computed.
    pub build: &'a str,
}

/// Stands for a block and everything before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockHash([u8; 32]);

impl BlockHash {
    /// Where all chains of one key begin.
    pub fn root(key: &CacheKey) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"mlxd prefix 1");
        for part in [key.model, key.tokenizer, key.quantization, key.build] {
            // With its length, so that no two keys run together.
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }

    /// The hash of a block of `tokens` after this one.
    pub fn then(&self, tokens: &[TokenId]) -> Self {
        let mut hash = Sha256::new();
        hash.update(self.0);
        for token in tokens {
            hash.update(token.to_le_bytes());
        }
        Self(hash.finalize().into())
    }

    /// The hash's bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Display for BlockHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: CacheKey = CacheKey { model: "m", tokenizer: "t", quantization: "q", build: "b" };

    #[test]
    fn everything_counts() {
        let root = BlockHash::root(&KEY);
        for other in [
            CacheKey { model: "n", ..KEY },
            CacheKey { tokenizer: "n", ..KEY },
            CacheKey { quantization: "n", ..KEY },
            CacheKey { build: "n", ..KEY },
            CacheKey { model: "mt", tokenizer: "", ..KEY },
        ] {
            assert_ne!(BlockHash::root(&other), root, "{other:?}");
        }
        let block = root.then(&[1, 2]);
        // The parent; every byte of an id; the order; the length.
        assert_ne!(block.then(&[3, 4]), root.then(&[3, 4]));
        for other in [[1, 2 + (1 << 8)], [1, 2 + (1 << 16)], [1, 2 + (1 << 31)], [2, 1]] {
            assert_ne!(root.then(&other), block, "{other:?}");
        }
        assert_ne!(root.then(&[1, 2, 0]), block);
        assert_eq!(block.to_string().len(), 64);
    }
}
