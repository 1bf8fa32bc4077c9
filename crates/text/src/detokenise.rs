//! From generated ids to the text that a client may see: decode, then stop strings.

use crate::decode::Decoder;
use crate::stop::StopMatcher;

/// The response side of one generation: a [`Decoder`] and a [`StopMatcher`].
///
/// After a worker was replaced, pushing the same ids into a new one rebuilds the same state.
#[derive(Debug, Clone)]
pub struct Detokeniser {
    decoder: Decoder,
    stops: StopMatcher,
    tokens: usize,
    decoded: String,
    text: String,
}

/// What one token brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delta<'a> {
    /// New text, often empty.
    pub text: &'a str,
    /// The stop string that is now complete: the generation is over.
    pub stop: Option<StopHit>,
}

/// A stop string was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopHit {
    /// Its place in the request's list.
    pub index: usize,
    /// How many tokens had been pushed when it was complete, that token included.
    pub tokens: usize,
}

impl Detokeniser {
    /// Joins a decoder and a matcher.
    pub fn new(decoder: Decoder, stops: StopMatcher) -> Detokeniser {
        Detokeniser { decoder, stops, tokens: 0, decoded: String::new(), text: String::new() }
    }

    /// Takes the next token. After a stop string nothing more comes.
    pub fn push(&mut self, id: u32) -> Delta<'_> {
        self.text.clear();
        if self.stops.hit().is_none() {
            self.tokens += 1;
            self.decoded.clear();
            self.decoder.push_into(id, &mut self.decoded);
            self.stops.push(&self.decoded, &mut self.text);
        }
        self.delta()
    }

    /// Ends the generation: the text that was held back. It may complete a stop string.
    pub fn finish(&mut self) -> Delta<'_> {
        self.text.clear();
        if self.stops.hit().is_none() {
            let rest = self.decoder.finish();
            self.stops.push(&rest, &mut self.text);
            self.stops.flush(&mut self.text);
        }
        self.delta()
    }

    /// Tokens pushed, up to and including the one that completed a stop string.
    pub fn token_count(&self) -> usize {
        self.tokens
    }

    fn delta(&self) -> Delta<'_> {
        Delta {
            text: &self.text,
            stop: self.stops.hit().map(|index| StopHit { index, tokens: self.tokens }),
        }
    }
}
