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
use std::task::{Context, Poll};
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
}

impl<T: Tokens> SseBody<T> {
    /// Streams `answer`, with a comment line after each `ping` of silence.
    pub(crate) fn new(answer: Answer<T>, ping: Duration) -> Self {
        Self {
            answer,
            stage: Stage::Opening,
            buffer: BytesMut::with_capacity(BUFFER_BYTES),
            silence: Silence::new(ping),
        }
    }

    fn write_news(&mut self) {
        self.stage = match write_news(&mut self.answer, &mut self.buffer) {
            Written::GoesOn => Stage::Running,
            Written::Whole => Stage::Done,
            Written::BrokenOff => Stage::Flushing,
        };
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
            if this.silence.poll_long(cx).is_pending() {
                return Poll::Pending;
            }
            this.buffer.extend_from_slice(COMMENT);
        }
        this.silence.broken();
        Poll::Ready(Some(Ok(this.buffer.split().freeze())))
    }
}
