//! One choice of an answer: entries of its journal become text, log-probabilities and an end.

use crate::backend::{Backend, Tokens};
use crate::error::ApiError;
use crate::respond::logprobs::{LogprobQueue, TokenLogprob};
use mlxd_dispatch::{End, Entry};
use mlxd_text::{Decoder, Detokeniser, StopMatcher, Tokenizer};
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// Prompt tokens that the decoder looks back on.
const PROMPT_TAIL_TOKENS: usize = 16;

/// Why an answer ended, in the API's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finish {
    /// A stop token or a stop string.
    Stop,
    /// As many tokens as were allowed.
    Length,
}

impl Finish {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// A choice being made.
#[derive(Debug)]
pub(crate) struct Choice<T> {
    /// Dropped at the end, which cancels what a stop string made needless.
    tokens: Option<T>,
    /// Its sequence is cancelled, and may be started again.
    paused: bool,
    text: Detokeniser,
    logprobs: Option<LogprobQueue>,
    given_bytes: usize,
    cached_tokens: u32,
    queue_wait: Option<Duration>,
    /// Text that nobody has taken yet.
    pub(crate) delta: String,
    /// Log-probabilities that nobody has taken yet.
    pub(crate) delta_logprobs: Vec<TokenLogprob>,
    /// Set at the end.
    pub(crate) finish: Option<Finish>,
    /// Whether the end has been told to the client.
    pub(crate) finish_told: bool,
}

impl<T: Tokens> Choice<T> {
    pub(crate) fn new(
        tokens: T,
        tokenizer: &Tokenizer,
        prompt: &[u32],
        stops: &[String],
        logprobs: bool,
        shown_first: String,
    ) -> Self {
        let tail = &prompt[prompt.len().saturating_sub(PROMPT_TAIL_TOKENS)..];
        let decoder = Decoder::new(tokenizer, tail);
        Self {
            tokens: Some(tokens),
            paused: false,
            text: Detokeniser::new(decoder, StopMatcher::new(stops)),
            logprobs: logprobs.then(|| LogprobQueue::new(tokenizer, tail)),
            given_bytes: 0,
            cached_tokens: 0,
            queue_wait: None,
            delta: shown_first,
            delta_logprobs: Vec::new(),
            finish: None,
            finish_told: false,
        }
    }

    /// Takes in what was generated. Ready when there was anything; after the end and while
    /// paused, pending.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut Vec<Entry>,
    ) -> Poll<Result<(), ApiError>> {
        let Some(tokens) = self.tokens.as_mut().filter(|_| !self.paused) else {
            return Poll::Pending;
        };
        scratch.clear();
        let end = ready!(tokens.poll_next(cx, scratch));
        self.cached_tokens = tokens.cached_tokens();
        self.queue_wait = tokens.queue_wait();
        for entry in scratch.iter() {
            if let Some(queue) = &mut self.logprobs {
                queue.push(entry);
            }
            let delta = self.text.push(entry.token);
            self.delta.push_str(delta.text);
            self.given_bytes += delta.text.len();
            if delta.stop.is_some() {
                self.end(Finish::Stop, true);
                return Poll::Ready(Ok(()));
            }
        }
        if let Some(queue) = &mut self.logprobs {
            queue.release(self.given_bytes, &mut self.delta_logprobs);
        }
        match end {
            None => {}
            Some(End::Stop) => self.end_text(Finish::Stop),
            Some(End::Length) => self.end_text(Finish::Length),
            Some(other) => {
                self.tokens = None;
                return Poll::Ready(ApiError::from_end(&other).map_or(Ok(()), Err));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Gives the text that was held back; it may still complete a stop string.
    fn end_text(&mut self, finish: Finish) {
        let delta = self.text.finish();
        self.delta.push_str(delta.text);
        self.given_bytes += delta.text.len();
        match delta.stop {
            Some(_) => self.end(Finish::Stop, true),
            None => self.end(finish, false),
        }
    }

    fn end(&mut self, finish: Finish, cut: bool) {
        self.tokens = None;
        self.finish = Some(finish);
        if let Some(queue) = &mut self.logprobs {
            queue.finish(self.given_bytes, cut, &mut self.delta_logprobs);
        }
    }

    /// Stops generating.
    pub(crate) fn cancel(&mut self) {
        self.tokens = None;
    }

    /// Stops generating for now.
    pub(crate) fn pause(&mut self) {
        if let Some(tokens) = &mut self.tokens {
            tokens.cancel();
            self.paused = true;
        }
    }

    /// Generates on after a pause.
    pub(crate) fn resume<B>(&mut self, backend: &B) -> Result<(), ApiError>
    where
        B: Backend<Tokens = T>,
    {
        if let Some(tokens) = self.tokens.as_mut().filter(|_| self.paused) {
            *tokens = backend.resume(tokens)?;
            self.paused = false;
        }
        Ok(())
    }

    /// Tokens of the answer: a stop token is not counted, those of a stop string are.
    pub(crate) fn completion_tokens(&self) -> u32 {
        self.text.token_count() as u32
    }

    /// Prompt tokens that needed no computing.
    pub(crate) fn cached_tokens(&self) -> u32 {
        self.cached_tokens
    }

    /// How long its sequence waited for its turn, once that is known.
    pub(crate) fn queue_wait(&self) -> Option<Duration> {
        self.queue_wait
    }

    /// What its sequence waits for before it can begin.
    pub(crate) fn waits_for(&self) -> Option<String> {
        self.tokens.as_ref()?.waits_for()
    }

    /// Whether log-probabilities were asked for.
    pub(crate) fn has_logprobs(&self) -> bool {
        self.logprobs.is_some()
    }

    /// Whether there is something to tell the client.
    pub(crate) fn has_news(&self) -> bool {
        !self.delta.is_empty()
            || !self.delta_logprobs.is_empty()
            || (self.finish.is_some() && !self.finish_told)
    }
}
