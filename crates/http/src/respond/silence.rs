//! Comment lines that fill silence, so that proxies and clients keep a stream open.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// What fills it.
pub(crate) const COMMENT: &[u8] = b": still at work\n\n";

/// How long a stream has been silent.
#[derive(Debug)]
pub(crate) struct Silence {
    longest: Duration,
    last_write: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Silence {
    pub(crate) fn new(longest: Duration) -> Self {
        Self { longest, last_write: Instant::now(), timer: Box::pin(tokio::time::sleep(longest)) }
    }

    /// It may last so long from now on.
    pub(crate) fn set_longest(&mut self, longest: Duration) {
        self.longest = longest;
    }

    /// Something was written.
    pub(crate) fn broken(&mut self) {
        self.last_write = Instant::now();
    }

    /// Pending until it has lasted long enough for a comment.
    pub(crate) fn poll_long(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match self.timer.as_mut().poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(()) => {
                    let due = self.last_write + self.longest;
                    let now = Instant::now();
                    if due <= now {
                        self.timer.as_mut().reset(now + self.longest);
                        return Poll::Ready(());
                    }
                    // Something was written meanwhile: the silence began then.
                    self.timer.as_mut().reset(due);
                }
            }
        }
    }
}
