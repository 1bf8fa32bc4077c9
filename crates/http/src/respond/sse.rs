//! The body of a streamed answer.
//!
//! Whatever arrived since the last poll becomes one piece of bytes, so a client that reads slowly
//! gets fewer, longer deltas and costs less. Silence is filled with comment lines. An answer that
//! breaks off gets an error event, and then the connection is cut without the closing chunk:
//! nobody can take it for a whole answer.

use crate::backend::Tokens;
use crate::respond::answer::Answer;
use crate::respond::events::{BUFFER_BYTES, Written, write_news, write_opening};
use crate::respond::silence::{COMMENT, Silence};
use actix_web::body::{BodySize, MessageBody};
use bytes::{Bytes, BytesMut};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// Why a streamed body ended without its closing chunk.
#[derive(Debug, thiserror::Error)]
#[error("the answer broke off; the client was told why")]
pub(crate) struct BrokenOff;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Opening,
    Running,
    /// The error event is in the connection's buffer; one poll is left out so that it is sent.
    Flushing,
    BreakingOff,
    Done,
}

/// A streamed answer.
#[derive(Debug)]
pub(crate) struct SseBody<T: Tokens> {
    answer: Answer<T>,
    stage: Stage,
    buffer: BytesMut,
    silence: Silence,
    ping: Duration,
    /// What it waits for is told in the comments.
    tells: bool,
}

impl<T: Tokens> SseBody<T> {
    /// Streams `answer`, with a comment line after each `ping` of silence; with `progress`, after
    /// each of that while it waits for memory or for its model, and with what it waits for.
    pub(crate) fn new(answer: Answer<T>, ping: Duration, progress: Option<Duration>) -> Self {
        Self {
            ping,
            tells: progress.is_some(),
            answer,
            stage: Stage::Opening,
            buffer: BytesMut::with_capacity(BUFFER_BYTES),
            silence: Silence::new(progress.unwrap_or(ping)),
        }
    }

    /// Ready with a comment once the silence has lasted too long.
    fn poll_comment(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        ready!(self.silence.poll_long(cx));
        if self.tells {
            if let Some(text) = self.answer.waits_for() {
                let text = text.replace(char::is_control, " ");
                self.buffer.extend_from_slice(format!(": {text}\n\n").as_bytes());
                return Poll::Ready(());
            }
            // It has begun: from here on only long silence is filled.
            self.tells = false;
            self.silence.set_longest(self.ping);
            ready!(self.silence.poll_long(cx));
        }
        self.buffer.extend_from_slice(COMMENT);
        Poll::Ready(())
    }

    fn write_news(&mut self) {
        self.stage = match write_news(&mut self.answer, &mut self.buffer) {
            Written::GoesOn => Stage::Running,
            Written::Whole => Stage::Done,
            Written::BrokenOff => Stage::Flushing,
        };
    }
}

impl<T: Tokens> Drop for SseBody<T> {
    fn drop(&mut self) {
        if matches!(self.stage, Stage::Opening | Stage::Running) {
            let Answer { trace, model, .. } = &self.answer;
            let (id, elapsed_ms) = (&**trace, self.answer.elapsed_ms());
            let tokens = self.answer.usage().completion_tokens;
            tracing::info!(id, %model, tokens, elapsed_ms, "a stream's client is gone");
        }
    }
}

impl<T: Tokens> MessageBody for SseBody<T> {
    type Error = BrokenOff;

    fn size(&self) -> BodySize {
        BodySize::Stream
    }

    fn poll_next(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, BrokenOff>>> {
        let this = self.get_mut();
        match this.stage {
            Stage::Done => return Poll::Ready(None),
            Stage::BreakingOff => return Poll::Ready(Some(Err(BrokenOff))),
            Stage::Flushing => {
                this.stage = Stage::BreakingOff;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Stage::Opening => {
                // What came before the first byte is in the choices already.
                write_opening(&this.answer, &mut this.buffer);
                this.write_news();
            }
            Stage::Running => {}
        }
        // Tokens may come without any text to show for them yet.
        while this.buffer.is_empty() && this.answer.poll_news(cx).is_ready() {
            this.write_news();
        }
        if this.buffer.is_empty() {
            ready!(this.poll_comment(cx));
        }
        this.silence.broken();
        Poll::Ready(Some(Ok(this.buffer.split().freeze())))
    }
}
