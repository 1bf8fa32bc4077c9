//! Embeddings: a text's tokens to the worker, its vector back.

use crate::{Priority, RequestId, TokenId};
use bincode::{Decode, Encode};

/// A text to turn into a vector.
///
/// It counts as a sequence: it can be cancelled, refused with
/// [`Ended`](crate::Ended), and sent again to another worker.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Embed {
    /// Its name in every later record.
    pub request: RequestId,
    /// The `x-request-id` that the client saw, for the worker's log lines.
    pub trace: String,
    /// Its tokens, special ones included. At least one.
    pub tokens: Vec<TokenId>,
    /// Leading numbers of the vector that are wanted; `None` is all of them.
    pub dimensions: Option<u32>,
    /// Which queue it waits in.
    pub priority: Priority,
}

/// A text's vector: the last that is said of it.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Embedded {
    /// Which text.
    pub request: RequestId,
    /// Of length 1, where the model's authors normalise.
    pub values: Vec<f32>,
}
