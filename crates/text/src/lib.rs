//! Text on both ends of a model: encode, chat template, incremental decode, stop strings.
//!
//! Pure: no configuration, no async, no clock beyond what a template asks for, and no files
//! except the `load` functions, which read a model folder once. Everything loaded is immutable
//! and cheap to share.
//!
//! The way of a request through this crate:
//!
//! 1. [`ChatTemplate::render`] turns a conversation into the prompt text.
//! 2. [`Tokenizer::encode_cached`] turns the text into token ids, within [`TokenizerLimits`]; what a
//!    [`SegmentCache`] has of it is not tokenised again.
//! 3. [`Detokeniser::push`] takes the generated ids one by one and gives the text that is
//!    certain: whole characters, and nothing that may yet turn out to be part of a stop string.
//!    It is a [`Decoder`] followed by a [`StopMatcher`].
//!
//! All of it is deterministic: the state of a [`Detokeniser`] is rebuilt by pushing the same ids.

mod decode;
mod detokenise;
mod error;
mod folder;
mod pieces;
mod segments;
mod stop;
mod template;
mod tokenizer;

pub use decode::{Decoder, SpecialText};
pub use detokenise::{Delta, Detokeniser, StopHit};
pub use error::TextError;
pub use segments::{SegmentCache, SegmentFigures};
pub use stop::StopMatcher;
pub use template::{ChatTemplate, ContentShape, RenderInput, TemplateLimits};
pub use tokenizer::{SpecialTokens, Tokenizer, TokenizerLimits};

/// What is loaded once is used by every request, and a request may move between threads.
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_can_be_shared() {
        fn shared<T: Send + Sync + Clone + 'static>() {}
        shared::<Tokenizer>();
        shared::<ChatTemplate>();
        shared::<Decoder>();
        shared::<StopMatcher>();
        shared::<Detokeniser>();
    }
}
