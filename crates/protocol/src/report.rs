//! Worker → front, over the tokens ring.
//!
//! A decode step publishes one frame of kind [`kind::TOKENS`](crate::kind::TOKENS): the step's
//! [`TokenRecord`]s, packed. Everything rarer is a [`Report`] in a frame of kind
//! [`kind::REPORT`](crate::kind::REPORT).

use crate::{Embedded, RequestId, TokenId};
use bincode::{Decode, Encode};
use bytemuck::{Pod, Zeroable};

/// One generated token. Plain bytes, native endianness: both ends are one machine.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct TokenRecord {
    /// The sequence.
    pub request: u64,
    /// Position among the generated tokens, from 0. The front insists on `index == generated so far`.
    pub index: u32,
    /// The token. With [`TokenFlags::STOP`] it is the stop token and no part of the text.
    pub token: TokenId,
    /// [`TokenFlags`].
    pub flags: u32,
    /// Natural logarithm of the token's probability; NaN when it was not asked for.
    pub logprob: f32,
}

/// Bits of [`TokenRecord::flags`]. A record with any of them is the sequence's last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenFlags;

impl TokenFlags {
    /// The token is one of the request's stop tokens.
    pub const STOP: u32 = 1;
    /// The token is the last that `max_new` or the context allows.
    pub const LENGTH: u32 = 2;
    /// Every bit a front knows; others condemn the incarnation.
    pub const ALL: u32 = Self::STOP | Self::LENGTH;
}

/// What a worker says of a sequence besides its tokens.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum Report {
    /// The engine takes the sequence from here: if the worker dies, it may be why. Those that
    /// still wait are not.
    Admitted(RequestId),
    /// The prompt is done; the first token follows.
    Started(Started),
    /// Alternatives for the token at `index`. Published before that token's record.
    TopLogprobs(TopLogprobs),
    /// The sequence ended without a last token.
    Ended(Ended),
    /// A text's vector.
    Embedded(Embedded),
}

/// How a sequence's prompt went.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Started {
    /// The sequence.
    pub request: RequestId,
    /// Prompt tokens whose KV was there already.
    pub cached_tokens: u32,
    /// Microseconds between reading the submit and starting the prefill.
    pub queued_us: u64,
    /// Microseconds of prefill.
    pub prefill_us: u64,
}

/// The likeliest tokens at one position.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct TopLogprobs {
    /// The sequence.
    pub request: RequestId,
    /// The generated position.
    pub index: u32,
    /// Likeliest first, at most as many as were asked for.
    pub top: Vec<(TokenId, f32)>,
}

/// A sequence that ended without a last token.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Ended {
    /// The sequence.
    pub request: RequestId,
    /// Why.
    pub refusal: Refusal,
}

/// A reason to end a sequence that lies in the request, not in the worker: never replayed.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// For the front's table of HTTP codes.
    pub code: RefusalCode,
    /// For the client: what is wrong, with numbers, and what to do.
    pub message: String,
}

/// Kinds of [`Refusal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum RefusalCode {
    /// More tokens than the model's context, or than the cache may hold.
    ContextOverflow,
    /// A value the engine cannot use: a token id out of range, a NaN temperature.
    Invalid,
    /// The worker's own queue is full.
    Busy,
    /// The worker is finishing its last sequences: another worker may take this one.
    Draining,
    /// Its turn did not come before its deadline.
    Deadline,
}
