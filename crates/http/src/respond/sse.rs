//! The body of a streamed answer.
//!
//! Whatever arrived since the last poll becomes one piece of bytes, so a client that reads slowly
//! gets fewer, longer deltas and costs less. Silence is filled with comment lines. An answer that
//! breaks off gets an error event, and then the connection is cut without the closing chunk:
//! nobody can take it for a whole answer.

use crate::backend::Tokens;
use crate::openai::answer::error_event;
use crate::respond::answer::Answer;
use actix_web::body::{BodySize, MessageBody};
use bytes::{Bytes, BytesMut};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// A first size for the buffer that chunks are written into.
const BUFFER_BYTES: usize = 4096;

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
    ping: Duration,
    last_write: Instant,
    timer: Pin<Box<Sleep>>,
}

impl<T: Tokens> SseBody<T> {
    /// Streams `answer`, with a comment line after each `ping` of silence.
    pub(crate) fn new(answer: Answer<T>, ping: Duration) -> Self {
        Self {
            answer,
            stage: Stage::Opening,
            buffer: BytesMut::with_capacity(BUFFER_BYTES),
            ping,
            last_write: Instant::now(),
            timer: Box::pin(tokio::time::sleep(ping)),
        }
    }

    fn open(&mut self) {
        self.stage = Stage::Running;
        for index in 0..self.answer.choices.len() {
            self.answer.head.role_chunk(&mut self.buffer, index);
        }
    }

    fn write_news(&mut self) {
        let Self { answer, buffer, .. } = self;
        for (index, choice) in answer.choices.iter_mut().enumerate() {
            if !choice.has_news() {
                continue;
            }
            if !choice.delta.is_empty() || !choice.delta_logprobs.is_empty() {
                let logprobs = choice.has_logprobs().then_some(&choice.delta_logprobs[..]);
                answer.head.delta_chunk(buffer, index, &choice.delta, logprobs);
                choice.delta.clear();
                choice.delta_logprobs.clear();
            }
            if let Some(finish) = choice.finish.filter(|_| !choice.finish_told) {
                answer.head.finish_chunk(buffer, index, finish);
                choice.finish_told = true;
            }
        }
        if let Some(error) = &answer.error {
            tracing::warn!(answer = %answer.head.id, %error, "a stream breaks off");
            error_event(buffer, &error.body());
            self.stage = Stage::Flushing;
        } else if answer.is_finished() {
            answer.head.stream_end(buffer, answer.usage());
            self.stage = Stage::Done;
        }
    }

    /// Fills silence. Pending unless it has lasted long enough.
    fn poll_ping(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match self.timer.as_mut().poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(()) => {
                    let due = self.last_write + self.ping;
                    let now = Instant::now();
                    if due <= now {
                        self.timer.as_mut().reset(now + self.ping);
                        self.buffer.extend_from_slice(b": still at work\n\n");
                        return Poll::Ready(());
                    }
                    // Something was written meanwhile: the silence began then.
                    self.timer.as_mut().reset(due);
                }
            }
        }
    }

    fn take_buffer(&mut self) -> Bytes {
        self.last_write = Instant::now();
        self.buffer.split().freeze()
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
                this.open();
                this.write_news();
            }
            Stage::Running => {}
        }
        // Tokens may come without any text to show for them yet.
        while this.buffer.is_empty() && this.answer.poll_news(cx).is_ready() {
            this.write_news();
        }
        if this.buffer.is_empty() && this.poll_ping(cx).is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(Some(Ok(this.take_buffer())))
    }
}
