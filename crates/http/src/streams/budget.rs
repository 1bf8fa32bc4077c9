//! Bytes of the events of all kept streams.
//!
//! Three quarters of them are for whoever comes first; the last quarter is in equal shares, so
//! that streams with slow readers cannot hold up all the others.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::task::Waker;

/// The bytes that there are and those that are taken.
#[derive(Debug)]
pub(crate) struct Budget {
    /// For whoever comes first.
    common_max: usize,
    /// A stream with less may always grow.
    share: usize,
    taken: AtomicUsize,
    /// Streams that wait for room.
    waiting: Mutex<Vec<Waker>>,
}

impl Budget {
    pub(crate) fn new(bytes_max: usize, streams_max: usize) -> Self {
        Self {
            common_max: bytes_max / 4 * 3,
            share: bytes_max / 4 / streams_max.max(1),
            taken: AtomicUsize::new(0),
            waiting: Mutex::default(),
        }
    }

    /// Bytes that every stream may have.
    pub(crate) fn share(&self) -> usize {
        self.share
    }

    /// Bytes taken now.
    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Whether something should be dropped.
    pub(crate) fn is_over(&self) -> bool {
        self.taken() > self.common_max
    }

    /// Whether a stream that has `own` bytes may grow. If not, `waker` is told when it may be so.
    pub(crate) fn has_room(&self, own: usize, waker: &Waker) -> bool {
        if own < self.share || !self.is_over() {
            return true;
        }
        let mut waiting = self.waiting();
        if !waiting.iter().any(|known| known.will_wake(waker)) {
            waiting.push(waker.clone());
        }
        drop(waiting);
        // What was given back in between woke nobody.
        !self.is_over()
    }

    pub(crate) fn take(&self, bytes: usize) {
        self.taken.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn give_back(&self, bytes: usize) {
        self.taken.fetch_sub(bytes, Ordering::Relaxed);
        if !self.is_over() {
            std::mem::take(&mut *self.waiting()).into_iter().for_each(Waker::wake);
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
