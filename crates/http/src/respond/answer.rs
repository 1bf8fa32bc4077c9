//! All choices of one request, made side by side.

use crate::backend::{Backend, Tokens};
use crate::error::ApiError;
use crate::metrics::InFlight;
use crate::openai::answer::{Head, Usage, Whole};
use crate::respond::choice::Choice;
use bytes::{Bytes, BytesMut};
use mlxd_dispatch::Entry;
use mlxd_protocol::ModelId;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// An answer being made. Dropping it cancels what is unfinished.
#[derive(Debug)]
pub(crate) struct Answer<T: Tokens> {
    pub(crate) head: Head,
    /// The request's id.
    pub(crate) trace: Arc<str>,
    /// Who makes it.
    pub(crate) model: ModelId,
    pub(crate) choices: Vec<Choice<T>>,
    /// Why there will be no whole answer.
    pub(crate) error: Option<ApiError>,
    prompt_tokens: u32,
    choices_per_prompt: usize,
    scratch: Vec<Entry>,
    started_at: Instant,
    /// Room among the answers that may be made at once; none while it is paused.
    place: Option<InFlight>,
}

impl<T: Tokens> Answer<T> {
    pub(crate) fn new(
        head: Head,
        trace: Arc<str>,
        model: ModelId,
        choices: Vec<Choice<T>>,
        prompt_tokens: u32,
        choices_per_prompt: usize,
        place: Option<InFlight>,
    ) -> Self {
        Self {
            head,
            trace,
            model,
            choices,
            error: None,
            prompt_tokens,
            choices_per_prompt,
            scratch: Vec::new(),
            started_at: Instant::now(),
            place,
        }
    }

    /// Ends it for another one to be made in its place, which this gives up.
    pub(crate) fn give_up(mut self) -> Option<InFlight> {
        self.choices.iter_mut().for_each(Choice::cancel);
        self.place.take()
    }

    /// Takes in what was generated. Ready when any choice has news, or there is an error.
    pub(crate) fn poll_news(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut news = false;
        for choice in &mut self.choices {
            if let Poll::Ready(outcome) = choice.poll(cx, &mut self.scratch) {
                news = true;
                if let Err(error) = outcome {
                    self.error.get_or_insert(error);
                }
            }
        }
        if self.error.is_some() {
            self.choices.iter_mut().for_each(Choice::cancel);
        }
        if news { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Stops generating for now, and gives up its room.
    pub(crate) fn pause(&mut self) {
        self.choices.iter_mut().for_each(Choice::pause);
        self.place = None;
    }

    /// Generates on after a pause.
    pub(crate) fn resume<B>(&mut self, backend: &B, place: InFlight) -> Result<(), ApiError>
    where
        B: Backend<Tokens = T>,
    {
        self.place = Some(place);
        let resumed = self.choices.iter_mut().try_for_each(|choice| choice.resume(backend));
        if resumed.is_err() {
            self.pause();
        }
        resumed
    }

    /// Whether something came that nobody was told.
    pub(crate) fn has_news(&self) -> bool {
        self.error.is_some() || self.choices.iter().any(Choice::has_news)
    }

    /// Whether every choice has ended.
    pub(crate) fn is_finished(&self) -> bool {
        self.choices.iter().all(|choice| choice.finish.is_some())
    }

    /// How long the last of its sequences to begin waited for its turn, as far as it is known.
    pub(crate) fn queue_wait(&self) -> Option<Duration> {
        self.choices.iter().filter_map(Choice::queue_wait).max()
    }

    /// What the first of its sequences that has not begun waits for.
    pub(crate) fn waits_for(&self) -> Option<String> {
        self.choices.iter().find_map(Choice::waits_for)
    }

    /// Waits for the whole answer.
    pub(crate) async fn collect(&mut self) -> Result<Bytes, ApiError> {
        while !self.is_finished() {
            poll_fn(|cx| self.poll_news(cx)).await;
            if let Some(error) = self.error.take() {
                return Err(error);
            }
        }
        let whole: Vec<Whole<'_>> = self
            .choices
            .iter()
            .filter_map(|choice| {
                Some(Whole {
                    text: &choice.delta,
                    logprobs: choice.has_logprobs().then_some(&choice.delta_logprobs[..]),
                    finish: choice.finish?,
                })
            })
            .collect();
        let mut out = BytesMut::new();
        self.head.answer(&mut out, &whole, self.usage());
        Ok(out.freeze())
    }

    /// Milliseconds since it was started.
    pub(crate) fn elapsed_ms(&self) -> u64 {
        self.started_at.elapsed().as_millis() as u64
    }

    /// Tokens so far. A prompt counts once however many choices it has.
    pub(crate) fn usage(&self) -> Usage {
        let firsts = self.choices.iter().step_by(self.choices_per_prompt.max(1));
        Usage {
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.choices.iter().map(Choice::completion_tokens).sum(),
            cached_tokens: firsts.map(Choice::cached_tokens).sum(),
        }
    }
}

impl<T: Tokens> Drop for Answer<T> {
    fn drop(&mut self) {
        let usage = self.usage();
        let outcome = match &self.error {
            _ if self.is_finished() => "finished",
            Some(_) => "failed",
            None => "abandoned",
        };
        tracing::debug!(
            answer = %self.head.id,
            outcome,
            prompt_tokens = usage.prompt_tokens,
            completion_tokens = usage.completion_tokens,
            elapsed_ms = self.started_at.elapsed().as_millis() as u64,
            "answer ended"
        );
    }
}
