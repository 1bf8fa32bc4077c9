//! The body of a streamed answer that has not begun: it is not known yet which model gives it.
//!
//! Comments fill the wait. Then comes the answer, or an error event and a connection that is cut.

use crate::backend::Tokens;
use crate::error::ApiError;
use crate::openai::answer::error_event;
use crate::request_id::TraceId;
use crate::respond::answer::Answer;
use crate::respond::silence::{COMMENT, Silence};
use crate::respond::sse::{BrokenOff, SseBody};
use actix_web::body::{BodySize, MessageBody};
use bytes::{Bytes, BytesMut};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

type Begun<T> = Pin<Box<dyn Future<Output = Result<Answer<T>, ApiError>>>>;

enum Stage<T: Tokens> {
    Waiting(Begun<T>),
    Running(Box<SseBody<T>>),
    /// As in [`SseBody`]: the error event is sent before the connection is cut.
    Flushing,
    BreakingOff,
}

/// A streamed answer that is still to begin.
pub(crate) struct LateBody<T: Tokens> {
    stage: Stage<T>,
    trace: TraceId,
    ping: Duration,
    silence: Silence,
}

impl<T: Tokens> LateBody<T> {
    /// Streams what `begun` gives to this request.
    pub(crate) fn new(begun: Begun<T>, trace: TraceId, ping: Duration) -> Self {
        Self { stage: Stage::Waiting(begun), trace, ping, silence: Silence::new(ping) }
    }
}

impl<T: Tokens> MessageBody for LateBody<T> {
    type Error = BrokenOff;

    fn size(&self) -> BodySize {
        BodySize::Stream
    }

    fn poll_next(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, BrokenOff>>> {
        let this = self.get_mut();
        loop {
            match &mut this.stage {
                Stage::Running(body) => return Pin::new(body.as_mut()).poll_next(cx),
                Stage::BreakingOff => return Poll::Ready(Some(Err(BrokenOff))),
                Stage::Flushing => {
                    this.stage = Stage::BreakingOff;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Stage::Waiting(begun) => match begun.as_mut().poll(cx) {
                    Poll::Ready(Ok(answer)) => {
                        let body = SseBody::new(answer, this.ping, None);
                        this.stage = Stage::Running(Box::new(body));
                    }
                    Poll::Ready(Err(error)) => {
                        let id: &str = &this.trace.0;
                        tracing::warn!(id, %error, "a stream breaks off before its first token");
                        let mut event = BytesMut::new();
                        error_event(&mut event, &error.body());
                        this.stage = Stage::Flushing;
                        return Poll::Ready(Some(Ok(event.freeze())));
                    }
                    Poll::Pending => {
                        if this.silence.poll_long(cx).is_pending() {
                            return Poll::Pending;
                        }
                        this.silence.broken();
                        return Poll::Ready(Some(Ok(Bytes::from_static(COMMENT))));
                    }
                },
            }
        }
    }
}
