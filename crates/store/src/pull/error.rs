//! Why a model was not fetched. Every message says what to do.

use crate::StoreError;
use mlxd_protocol::bytes_in_short;
use std::path::PathBuf;

/// Why a pull ended without the model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PullError {
    /// The name is no hub's.
    #[error(transparent)]
    Name(#[from] StoreError),
    /// The network may not be used.
    #[error(
        "{name:?} is not whole in the cache, and the hub may not be asked: offline is set \
         (HF_HUB_OFFLINE, or [hub] offline in mlxd.toml)"
    )]
    Offline {
        /// As asked for.
        name: String,
    },
    /// The hub's address cannot be used.
    #[error(
        "the hub's address {endpoint:?} cannot be used: {fault}; set HF_ENDPOINT or [hub] endpoint"
    )]
    Endpoint {
        /// As given.
        endpoint: String,
        /// What is wrong with it.
        fault: String,
    },
    /// The hub wants to know who asks.
    #[error("{endpoint} does not show {repository:?}: {}", token_advice(*had_token))]
    Unauthorized {
        /// Which hub.
        endpoint: String,
        /// Which repository.
        repository: String,
        /// Whether a token was sent.
        had_token: bool,
    },
    /// Its authors want to be asked first.
    #[error(
        "{repository:?} is gated: ask for access at {endpoint}/{repository}, then set HF_TOKEN to \
         a token of the account that has it"
    )]
    Gated {
        /// Which hub.
        endpoint: String,
        /// Which repository.
        repository: String,
    },
    /// There is no such repository, revision or file.
    #[error("{endpoint} has no {what}; look for the name at {endpoint}/models")]
    NotFound {
        /// Which hub.
        endpoint: String,
        /// What was asked for.
        what: String,
    },
    /// Nothing there that can be loaded.
    #[error(
        "{repository:?} holds no safetensors weights ({found}); take a conversion of it, for \
         instance one of mlx-community"
    )]
    NoWeights {
        /// Which repository.
        repository: String,
        /// What it holds instead.
        found: String,
    },
    /// The hub said no, for good or for too long.
    #[error("{endpoint} answered {status} for {what}{}", retry_advice(*status))]
    Refused {
        /// Which hub.
        endpoint: String,
        /// The HTTP status.
        status: u16,
        /// What was asked for.
        what: String,
    },
    /// The hub's answer is not one of a hub.
    #[error("{endpoint} gave an answer for {what} that is none of a model hub: {fault}")]
    BadAnswer {
        /// Which hub.
        endpoint: String,
        /// What was asked for.
        what: String,
        /// What is wrong.
        fault: String,
    },
    /// The connection failed again and again.
    #[error(
        "{what} could not be fetched from {endpoint}: {fault}, {attempts} times in a row; what has \
         come is kept, and the next pull goes on from there"
    )]
    Unreachable {
        /// Which hub.
        endpoint: String,
        /// What was asked for.
        what: String,
        /// The last failure.
        fault: String,
        /// Attempts without a byte gained.
        attempts: u32,
    },
    /// What came is not what the hub announced, twice.
    #[error("{file} came damaged twice: {fault}; nothing of it was kept, try again later")]
    Damaged {
        /// Which file.
        file: String,
        /// What differs.
        fault: String,
    },
    /// It would fill the disk.
    #[error(
        "{} has {} free; {} are to come and {} stay in reserve. Free some, for instance with \
         `mlxctl rm`, or set HF_HUB_CACHE to another disk",
        folder.display(),
        bytes_in_short(*free_bytes),
        bytes_in_short(*needed_bytes),
        bytes_in_short(*reserve_bytes)
    )]
    NoSpace {
        /// Where.
        folder: PathBuf,
        /// Bytes still to come.
        needed_bytes: u64,
        /// Bytes there are.
        free_bytes: u64,
        /// Bytes that must stay free.
        reserve_bytes: u64,
    },
    /// The operating system refuses a file.
    #[error("cannot write {path}: {error}", path = path.display())]
    Disk {
        /// Which.
        path: PathBuf,
        /// Why.
        error: String,
    },
    /// Somebody called it off.
    #[error("the pull was cancelled; what has come is kept, and the next pull goes on from there")]
    Cancelled,
}

fn token_advice(had_token: bool) -> &'static str {
    if had_token {
        "either there is no such repository, or the token's account may not see it"
    } else {
        "either there is no such repository, or it is private or gated; for those set HF_TOKEN"
    }
}

fn retry_advice(status: u16) -> &'static str {
    match status {
        429 => ": too many requests; wait some minutes, or set HF_TOKEN for a higher limit",
        500.. => "; try again later",
        _ => "",
    }
}
