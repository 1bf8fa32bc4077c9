//! Log-probabilities of generated tokens, kept until the text they stand for is let go.
//!
//! A token whose text a stop string cut away is not part of the answer, and neither is its
//! log-probability; so each waits until its text has been given.

use mlxd_dispatch::Entry;
use mlxd_text::{Decoder, Tokenizer};
use std::collections::VecDeque;

/// One token with its log-probability and those of its alternatives.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TokenLogprob {
    /// The token.
    pub(crate) token: u32,
    /// Its log-probability.
    pub(crate) logprob: f32,
    /// The likeliest alternatives.
    pub(crate) top: Vec<(u32, f32)>,
    /// Characters of the answer before it.
    pub(crate) offset_chars: usize,
}

#[derive(Debug)]
pub(crate) struct LogprobQueue {
    decoder: Decoder,
    scratch: String,
    bytes: usize,
    chars: usize,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    start: usize,
    end: usize,
    token: TokenLogprob,
}

impl LogprobQueue {
    pub(crate) fn new(tokenizer: &Tokenizer, prompt_tail: &[u32]) -> Self {
        Self {
            decoder: Decoder::new(tokenizer, prompt_tail),
            scratch: String::new(),
            bytes: 0,
            chars: 0,
            waiting: VecDeque::new(),
        }
    }

    pub(crate) fn push(&mut self, entry: &Entry) {
        self.scratch.clear();
        self.decoder.push_into(entry.token, &mut self.scratch);
        let (start, offset_chars) = (self.bytes, self.chars);
        self.bytes += self.scratch.len();
        self.chars += self.scratch.chars().count();
        let token = TokenLogprob {
            token: entry.token,
            logprob: entry.logprob,
            top: entry.top.clone(),
            offset_chars,
        };
        self.waiting.push_back(Waiting { start, end: self.bytes, token });
    }

    /// Lets go what belongs to the first `given` bytes of text.
    pub(crate) fn release(&mut self, given: usize, out: &mut Vec<TokenLogprob>) {
        while self.waiting.front().is_some_and(|first| first.end <= given) {
            out.extend(self.waiting.pop_front().map(|first| first.token));
        }
    }

    /// Ends the answer after `given` bytes of text, of which a stop string may have cut off more.
    pub(crate) fn finish(&mut self, given: usize, cut: bool, out: &mut Vec<TokenLogprob>) {
        self.release(given, out);
        let rest = self.waiting.drain(..).filter(|waiting| !cut || waiting.start < given);
        out.extend(rest.map(|waiting| waiting.token));
    }
}
