//! A reader's response: the events of a kept stream from one of them on.

use crate::error::ApiError;
use crate::openai::answer::error_event;
use crate::respond::events::Written;
use crate::respond::silence::{COMMENT, Silence};
use crate::respond::sse::BrokenOff;
use crate::streams::log::{Read, Reader};
use crate::streams::registry::gone;
use actix_web::body::{BodySize, MessageBody};
use bytes::{Bytes, BytesMut};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// Bytes given to the connection at once.
const PIECE_BYTES: usize = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Reading,
    /// The last event is in the connection's buffer; one poll is left out so that it is sent.
    Flushing,
    BreakingOff,
    Done,
}

/// The events of a kept stream.
#[derive(Debug)]
pub(crate) struct KeptBody {
    id: String,
    reader: Reader,
    stage: Stage,
    silence: Silence,
}

impl KeptBody {
    /// Reads with `reader`; a comment line goes out after each `ping` of silence.
    pub(crate) fn new(id: String, reader: Reader, ping: Duration) -> Self {
        Self { id, reader, stage: Stage::Reading, silence: Silence::new(ping) }
    }

    /// An event of this response alone, which says why it ends here.
    fn break_off(&mut self, error: &ApiError, out: &mut BytesMut) {
        tracing::warn!(stream = self.id, %error, "a kept stream breaks off");
        error_event(out, &error.body());
        self.stage = Stage::BreakingOff;
    }

    /// Ready with bytes, or with none once the stage is another.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        let mut out = BytesMut::new();
        match self.reader.poll_read(cx, &mut out, PIECE_BYTES) {
            Poll::Ready(Read::Events) => {}
            Poll::Ready(Read::End(Written::BrokenOff)) => self.stage = Stage::BreakingOff,
            Poll::Ready(Read::End(_)) => self.stage = Stage::Done,
            Poll::Ready(Read::Refused(error)) => self.break_off(&error, &mut out),
            Poll::Ready(Read::Gone(why)) => self.break_off(&gone(&self.id, why, None), &mut out),
            Poll::Pending => {
                ready!(self.silence.poll_long(cx));
                out.extend_from_slice(COMMENT);
            }
        }
        self.silence.broken();
        Poll::Ready(out.freeze())
    }
}

impl MessageBody for KeptBody {
    type Error = BrokenOff;

    fn size(&self) -> BodySize {
        BodySize::Stream
    }

    fn poll_next(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, BrokenOff>>> {
        let this = self.get_mut();
        if this.stage == Stage::Reading {
            let piece = ready!(this.poll_piece(cx));
            if !piece.is_empty() {
                return Poll::Ready(Some(Ok(piece)));
            }
        }
        match this.stage {
            Stage::BreakingOff => {
                this.stage = Stage::Flushing;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Stage::Flushing => Poll::Ready(Some(Err(BrokenOff))),
            Stage::Reading | Stage::Done => Poll::Ready(None),
        }
    }
}
