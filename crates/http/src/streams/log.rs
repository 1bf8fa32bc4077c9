//! One kept stream: its events, its readers, its end.
//!
//! The stream's task appends, readers read through cursors of their own. Nothing here waits or
//! does I/O: every call takes the lock for a moment.

use crate::error::ApiError;
use crate::limits::StreamLimits;
use crate::openai::common::Keep;
use crate::respond::events::Written;
use crate::streams::budget::Budget;
use bytes::{Bytes, BytesMut};
use prometheus_client::metrics::gauge::Gauge;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::time::Instant;

/// What an event costs besides its bytes.
const EVENT_OVERHEAD_BYTES: usize = 64;

/// Why a stream is kept no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gone {
    /// Nobody read it for too long.
    Expired(Duration),
    /// The bytes were needed for others.
    OverBudget,
    /// Its place was needed for another.
    Displaced,
    /// A client said so.
    Deleted,
}

/// Why a stream cannot be read from a certain event on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NotThere {
    /// It has had only so many events so far.
    Ahead { events: u64 },
    /// The oldest that is kept.
    Dropped { oldest: u64 },
    /// It ended, and that was its last event.
    NoMore,
    /// The whole stream is gone.
    Gone(Gone),
}

/// What a reader finds.
#[derive(Debug)]
pub(crate) enum Read {
    /// Events were read, and there may be more.
    Events,
    /// Everything was read: how the stream ended.
    End(Written),
    /// Everything that is there was read, and it cannot go on now.
    Refused(ApiError),
    /// The stream was dropped.
    Gone(Gone),
}

#[derive(Debug)]
struct Cursor {
    reader: u64,
    /// The event that it reads next.
    next: u64,
    waker: Option<Waker>,
}

#[derive(Debug)]
struct State {
    events: VecDeque<Bytes>,
    /// The id of the first of `events`.
    oldest: u64,
    bytes: usize,
    end: Option<Written>,
    /// An error that came before anything else.
    stillborn: Option<ApiError>,
    queue_wait: Option<Duration>,
    model: Option<String>,
    /// Why it does not go on for the readers of now.
    refused: Option<ApiError>,
    gone: Option<Gone>,
    cursors: Vec<Cursor>,
    readers_so_far: u64,
    /// Since when nobody reads, or nothing is left to come.
    quiet_since: Instant,
    /// Counts what the task must know of.
    changes: u64,
    task: Option<Waker>,
}

/// A kept stream.
#[derive(Debug)]
pub(crate) struct Stream {
    /// What it can be asked for by.
    pub(crate) id: Arc<str>,
    keep: Keep,
    bytes_max: usize,
    retention: Duration,
    budget: Arc<Budget>,
    /// Readers of all streams.
    readers: Gauge,
    state: Mutex<State>,
}

/// What the stream's task is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Orders {
    changes: u64,
    room: bool,
    /// Whether the answer is to be generated.
    pub(crate) generate: bool,
    /// Whether what was generated is to be written.
    pub(crate) write: bool,
    /// Whether the stream is no longer kept.
    pub(crate) gone: bool,
    /// When it is to be forgotten if nothing changes.
    pub(crate) forget_at: Option<Instant>,
}

impl Stream {
    pub(crate) fn new(
        id: Arc<str>,
        keep: Keep,
        limits: &StreamLimits,
        budget: Arc<Budget>,
        readers: Gauge,
    ) -> Self {
        let state = State {
            events: VecDeque::new(),
            oldest: 1,
            bytes: 0,
            end: None,
            stillborn: None,
            queue_wait: None,
            model: None,
            refused: None,
            gone: None,
            cursors: Vec::new(),
            readers_so_far: 0,
            quiet_since: Instant::now(),
            changes: 0,
            task: None,
        };
        Self {
            id,
            keep,
            bytes_max: limits.stream_bytes_max,
            retention: limits.retention,
            budget,
            readers,
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    // ---- the task's side ----

    /// What the task is to do now. Told again by [`poll_new_orders`](Self::poll_new_orders).
    pub(crate) fn orders(&self, cx: &mut Context<'_>) -> Orders {
        let mut state = self.state();
        state.task = Some(cx.waker().clone());
        let read = !state.cursors.is_empty();
        let ended = state.end.is_some();
        let room = state.bytes < self.bytes_max && self.budget.has_room(state.bytes, cx.waker());
        let generate = !ended && state.refused.is_none() && (read || self.keep == Keep::GoingOn);
        Orders {
            changes: state.changes,
            room,
            generate,
            write: generate && room,
            gone: state.gone.is_some(),
            forget_at: (!read && !generate).then(|| state.quiet_since + self.retention),
        }
    }

    /// Ready when they are no longer `known`.
    pub(crate) fn poll_new_orders(&self, cx: &mut Context<'_>, known: Orders) -> Poll<()> {
        match self.orders(cx) == known {
            true => Poll::Pending,
            false => Poll::Ready(()),
        }
    }

    /// Appends what the task wrote.
    pub(crate) fn append(&self, events: &mut Vec<Bytes>, written: Written) {
        let mut state = self.state();
        let cost: usize = events.iter().map(cost).sum();
        state.bytes += cost;
        state.events.extend(events.drain(..));
        if written != Written::GoesOn {
            state.end = Some(written);
            state.quiet_since = Instant::now();
        }
        self.budget.take(cost);
        if state.gone.is_some() {
            state.empty(&self.budget);
        } else if state.bytes > self.bytes_max {
            state.drop_read(&self.budget, self.bytes_max);
        }
        state.wake_readers();
    }

    /// Notes how long the answer's sequences waited for their turn.
    pub(crate) fn note_queue_wait(&self, wait: Option<Duration>) {
        self.state().queue_wait = wait;
    }

    /// How long the answer's sequences waited for their turn, once that is known.
    pub(crate) fn queue_wait(&self) -> Option<Duration> {
        self.state().queue_wait
    }

    /// Notes who makes the answer.
    pub(crate) fn note_model(&self, model: &str) {
        self.state().model = Some(model.to_owned());
    }

    /// Who makes the answer, where that was noted.
    pub(crate) fn model(&self) -> Option<String> {
        self.state().model.clone()
    }

    /// Notes an error that came before anything else, for the one who waits for a status.
    pub(crate) fn note_stillborn(&self, error: ApiError) {
        self.state().stillborn = Some(error);
    }

    /// The answer cannot go on for the readers of now; the next may try again.
    pub(crate) fn refuse(&self, error: ApiError) {
        let mut state = self.state();
        state.refused = Some(error);
        state.changes += 1;
        state.wake_readers();
    }

    // ---- the registry's side ----

    /// Whether an error came before anything else.
    pub(crate) fn is_stillborn(&self) -> bool {
        self.state().stillborn.is_some()
    }

    /// Streams that nobody reads, the finished before the others, then the longest quiet first.
    pub(crate) fn rank(&self) -> Option<(bool, Instant)> {
        let state = self.state();
        state.cursors.is_empty().then_some((state.end.is_none(), state.quiet_since))
    }

    /// Drops everything; readers are told why.
    pub(crate) fn drop_for(&self, why: Gone) {
        let mut state = self.state();
        state.gone.get_or_insert(why);
        state.changes += 1;
        state.empty(&self.budget);
        state.wake_readers();
        state.wake_task();
    }

    /// Drops events that all of its readers were given, down to its share. The last ones may be
    /// on their way to a client whose connection is about to break.
    pub(crate) fn drop_what_was_read(&self) {
        self.state().drop_read(&self.budget, self.budget.share());
    }

    // ---- the readers' side ----

    /// A reader whose first event is number `from`.
    pub(crate) fn attach(self: &Arc<Self>, from: u64) -> Result<Reader, NotThere> {
        let mut state = self.state();
        if let Some(gone) = state.gone {
            return Err(NotThere::Gone(gone));
        }
        let next = state.oldest + state.events.len() as u64;
        let from = from.max(1);
        match () {
            () if from > next => return Err(NotThere::Ahead { events: next - 1 }),
            () if from < state.oldest => {
                return Err(NotThere::Dropped { oldest: state.oldest });
            }
            () if from == next && state.end.is_some() => return Err(NotThere::NoMore),
            () => {}
        }
        Ok(self.reader(&mut state, from))
    }

    /// A reader of all that is kept and all that comes.
    pub(crate) fn read(self: &Arc<Self>) -> Reader {
        let mut state = self.state();
        let oldest = state.oldest;
        self.reader(&mut state, oldest)
    }

    fn reader(self: &Arc<Self>, state: &mut State, next: u64) -> Reader {
        state.readers_so_far += 1;
        let reader = state.readers_so_far;
        state.cursors.push(Cursor { reader, next, waker: None });
        state.refused = None;
        state.changes += 1;
        state.wake_task();
        self.readers.inc();
        Reader { stream: self.clone(), reader }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let budget = self.budget.clone();
        self.state().empty(&budget);
    }
}

fn cost(event: &Bytes) -> usize {
    event.len() + EVENT_OVERHEAD_BYTES
}

impl State {
    fn wake_readers(&mut self) {
        self.cursors.iter_mut().filter_map(|cursor| cursor.waker.take()).for_each(Waker::wake);
    }

    fn wake_task(&mut self) {
        if let Some(waker) = self.task.take() {
            waker.wake();
        }
    }

    fn empty(&mut self, budget: &Budget) {
        self.oldest += self.events.len() as u64;
        self.events = VecDeque::new();
        budget.give_back(std::mem::take(&mut self.bytes));
    }

    /// Drops the oldest events that all readers have read, until `bytes_max` are left.
    fn drop_read(&mut self, budget: &Budget, bytes_max: usize) {
        let Some(read) = self.cursors.iter().map(|cursor| cursor.next).min() else {
            return;
        };
        let mut dropped = 0;
        while self.bytes - dropped > bytes_max && self.oldest < read {
            let Some(event) = self.events.pop_front() else { break };
            self.oldest += 1;
            dropped += cost(&event);
        }
        if dropped > 0 {
            self.bytes -= dropped;
            self.changes += 1;
            budget.give_back(dropped);
            self.wake_task();
        }
    }
}

/// A reader. Dropping it may make the stream stand still.
#[derive(Debug)]
pub(crate) struct Reader {
    stream: Arc<Stream>,
    reader: u64,
}

impl Reader {
    /// Copies events into `out`, about `bytes_max` of them, or says why there are none.
    pub(crate) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        out: &mut BytesMut,
        bytes_max: usize,
    ) -> Poll<Read> {
        let stream = &self.stream;
        let mut guard = stream.state();
        let state = &mut *guard;
        if let Some(gone) = state.gone {
            return Poll::Ready(Read::Gone(gone));
        }
        let Some(cursor) = state.cursors.iter_mut().find(|cursor| cursor.reader == self.reader)
        else {
            return Poll::Ready(Read::Gone(Gone::Deleted));
        };
        let unread = (cursor.next - state.oldest) as usize;
        let mut read = 0;
        for event in state.events.range(unread..) {
            if read > 0 && out.len() + event.len() > bytes_max {
                break;
            }
            out.extend_from_slice(event);
            read += 1;
        }
        cursor.next += read;
        if read > 0 {
            if state.bytes >= stream.bytes_max {
                // Down to half, so that it is not done again for each event.
                state.drop_read(&stream.budget, stream.bytes_max / 2);
            } else if stream.budget.is_over() {
                state.drop_read(&stream.budget, stream.budget.share());
            }
            return Poll::Ready(Read::Events);
        }
        if let Some(end) = state.end {
            return Poll::Ready(Read::End(end));
        }
        if let Some(error) = &state.refused {
            return Poll::Ready(Read::Refused(error.clone()));
        }
        cursor.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Ready when there is something to read, or a reason why not. The error is one that came
    /// before anything else.
    pub(crate) fn poll_first(&self, cx: &mut Context<'_>) -> Poll<Result<(), ApiError>> {
        let mut guard = self.stream.state();
        let state = &mut *guard;
        if let Some(error) = &state.stillborn {
            return Poll::Ready(Err(error.clone()));
        }
        let next = state.oldest + state.events.len() as u64;
        let (gone, end) = (state.gone.is_some(), state.end.is_some());
        let Some(cursor) = state.cursors.iter_mut().find(|cursor| cursor.reader == self.reader)
        else {
            return Poll::Ready(Ok(()));
        };
        if gone || end || cursor.next < next {
            return Poll::Ready(Ok(()));
        }
        if let Some(error) = &state.refused {
            return Poll::Ready(Err(error.clone()));
        }
        cursor.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.stream.state();
        state.cursors.retain(|cursor| cursor.reader != self.reader);
        self.stream.readers.dec();
        if state.cursors.is_empty() {
            state.quiet_since = Instant::now();
        }
        state.changes += 1;
        state.wake_task();
    }
}
