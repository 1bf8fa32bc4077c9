//! From an answer's news to events: what a plain stream and a kept one write alike.

use crate::backend::Tokens;
use crate::openai::answer::error_event;
use crate::respond::answer::Answer;
use bytes::{Bytes, BytesMut};
use std::fmt::Write as _;

/// A first size for buffers that events are written into.
pub(crate) const BUFFER_BYTES: usize = 4096;

/// Where events go.
pub(crate) trait EventSink {
    /// Takes what `write` writes: one event, or nothing.
    fn event(&mut self, write: impl FnOnce(&mut BytesMut));
}

/// Events one behind the other.
impl EventSink for BytesMut {
    fn event(&mut self, write: impl FnOnce(&mut BytesMut)) {
        write(self);
    }
}

/// Events apart, each with an `id` of its own: 1, 2, 3…
#[derive(Debug)]
pub(crate) struct Numbered {
    next: u64,
    scratch: BytesMut,
    /// Those that nobody has taken yet.
    pub(crate) events: Vec<Bytes>,
}

impl Numbered {
    pub(crate) fn new() -> Self {
        Self { next: 1, scratch: BytesMut::with_capacity(BUFFER_BYTES), events: Vec::new() }
    }
}

impl EventSink for Numbered {
    fn event(&mut self, write: impl FnOnce(&mut BytesMut)) {
        writeln!(self.scratch, "id: {}", self.next).expect("a BytesMut grows");
        let head = self.scratch.len();
        write(&mut self.scratch);
        if self.scratch.len() == head {
            self.scratch.clear();
        } else {
            self.next += 1;
            self.events.push(self.scratch.split().freeze());
        }
    }
}

/// Where an answer stands once its news are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// There is more to come.
    GoesOn,
    /// All of it, the end mark included.
    Whole,
    /// There will be no more; the last event says why.
    BrokenOff,
}

/// Writes what begins a stream.
pub(crate) fn write_opening<T: Tokens>(answer: &Answer<T>, sink: &mut impl EventSink) {
    for index in 0..answer.choices.len() {
        sink.event(|out| answer.head.role_chunk(out, index));
    }
}

/// Writes what nobody was told yet.
pub(crate) fn write_news<T: Tokens>(answer: &mut Answer<T>, sink: &mut impl EventSink) -> Written {
    let Answer { head, choices, .. } = answer;
    for (index, choice) in choices.iter_mut().enumerate() {
        if !choice.has_news() {
            continue;
        }
        if !choice.delta.is_empty() || !choice.delta_logprobs.is_empty() {
            let logprobs = choice.has_logprobs().then_some(&choice.delta_logprobs[..]);
            sink.event(|out| head.delta_chunk(out, index, &choice.delta, logprobs));
            choice.delta.clear();
            choice.delta_logprobs.clear();
        }
        if let Some(finish) = choice.finish.filter(|_| !choice.finish_told) {
            sink.event(|out| head.finish_chunk(out, index, finish));
            choice.finish_told = true;
        }
    }
    if let Some(error) = &answer.error {
        let (id, model, elapsed_ms) = (&*answer.trace, &answer.model, answer.elapsed_ms());
        let tokens = answer.usage().completion_tokens;
        tracing::warn!(id, %model, tokens, elapsed_ms, %error, "a stream breaks off");
        sink.event(|out| error_event(out, &error.body()));
        return Written::BrokenOff;
    }
    if !answer.is_finished() {
        return Written::GoesOn;
    }
    let usage = answer.usage();
    let (id, model, elapsed_ms) = (&*answer.trace, &answer.model, answer.elapsed_ms());
    tracing::info!(id, %model, tokens = usage.completion_tokens, elapsed_ms, "a stream is complete");
    sink.event(|out| answer.head.usage_chunk(out, usage));
    sink.event(|out| answer.head.end_mark(out));
    Written::Whole
}
