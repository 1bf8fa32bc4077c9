//! One sequence's history: what was asked, every token generated, how it ended.
//!
//! The pump appends, the response reads through a cursor. A slow reader delays itself alone.
//! The journal is stream buffer, usage counter and source of a replay in one, so nothing about a
//! sequence is kept anywhere else.

use crate::Job;
use futures_util::task::AtomicWaker;
use mlxd_protocol::{Refusal, RequestId, Started, TokenId};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// One generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The token.
    pub token: TokenId,
    /// Its log-probability; NaN when it was not asked for.
    pub logprob: f32,
    /// The likeliest alternatives, when they were asked for.
    pub top: Vec<(TokenId, f32)>,
}

/// How a sequence ended.
#[derive(Debug, Clone, PartialEq)]
pub enum End {
    /// One of its stop tokens came. The token itself is not among the entries.
    Stop,
    /// It has all the tokens it may have.
    Length,
    /// It was a text, and this is its vector.
    Embedded(Arc<[f32]>),
    /// The worker refused it, for a reason in the request.
    Refused(Refusal),
    /// Nothing can finish it: the text says what happened and what to do.
    Failed(Failure),
}

/// Why a sequence could not be finished, in words for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Stable word for the API's error code: `worker_died`, `load_failed`, `overloaded`, `shutting_down`.
    pub code: &'static str,
    /// What happened, and what to do.
    pub message: String,
    /// Whether the same request may succeed a moment later.
    pub retry: bool,
}

#[derive(Debug, Default)]
struct History {
    entries: Vec<Entry>,
    pending_top: Vec<(TokenId, f32)>,
    started: Option<Started>,
    queue_wait: Option<Duration>,
    first_token_at: Option<Instant>,
    admitted: bool,
    deaths: u32,
    recovering_since: Option<Instant>,
    end: Option<End>,
}

/// A sequence's journal. Shared by the pump and one reader.
#[derive(Debug)]
pub struct Journal {
    /// The sequence's name on the rings.
    pub request: RequestId,
    /// What was asked.
    pub job: Job,
    /// When it was taken in.
    pub opened_at: Instant,
    history: Mutex<History>,
    reader: AtomicWaker,
}

/// What an appended token ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Appended {
    /// The wait for the first token, which came at this moment.
    pub first_token_at: Option<Instant>,
    /// A recovery, which began with a worker's death so long ago.
    pub recovered_after: Option<Duration>,
}

/// A record that does not continue its journal: the worker that sent it is not to be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("token {got} of {request} came where token {expected} was due")]
pub struct OutOfOrder {
    request: RequestId,
    expected: usize,
    got: u32,
}

impl Journal {
    /// Opens a journal with nothing generated.
    pub fn open(request: RequestId, job: Job) -> Arc<Self> {
        Arc::new(Self {
            request,
            job,
            opened_at: Instant::now(),
            history: Mutex::default(),
            reader: AtomicWaker::new(),
        })
    }

    /// Opens a journal that begins with everything `old` has: the same sequence again, after it
    /// was cancelled in the middle. Its name is new, so that a late token of the old one cannot
    /// get in.
    pub fn continue_from(request: RequestId, old: &Self) -> Arc<Self> {
        let opened_at = Instant::now();
        let history = {
            let old = old.history();
            History {
                entries: old.entries.clone(),
                started: old.started.clone(),
                queue_wait: old.queue_wait,
                // Who waits here has had a first token, or waited for it before.
                first_token_at: old.first_token_at.map(|_| opened_at),
                ..History::default()
            }
        };
        let (job, history) = (old.job.clone(), Mutex::new(history));
        Arc::new(Self { request, job, opened_at, history, reader: AtomicWaker::new() })
    }

    fn history(&self) -> MutexGuard<'_, History> {
        // A panic while the lock is held cannot leave a half-written entry behind.
        self.history.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Appends the token with position `index`, wakes the reader.
    pub fn append(
        &self,
        index: u32,
        token: TokenId,
        logprob: f32,
        end: Option<End>,
    ) -> Result<Appended, OutOfOrder> {
        let mut history = self.history();
        let expected = history.entries.len();
        if history.end.is_some() || index as usize != expected {
            return Err(OutOfOrder { request: self.request, expected, got: index });
        }
        let top = std::mem::take(&mut history.pending_top);
        if end != Some(End::Stop) {
            history.entries.push(Entry { token, logprob, top });
        }
        let first = history.first_token_at.is_none().then(Instant::now);
        history.first_token_at = history.first_token_at.or(first);
        let recovered_after = history.recovering_since.take().map(|since| since.elapsed());
        history.end = end;
        drop(history);
        self.reader.wake();
        Ok(Appended { first_token_at: first, recovered_after })
    }

    /// Keeps alternatives for the token that comes next.
    pub fn expect_top(&self, index: u32, top: Vec<(TokenId, f32)>) -> Result<(), OutOfOrder> {
        let mut history = self.history();
        if index as usize != history.entries.len() {
            let expected = history.entries.len();
            return Err(OutOfOrder { request: self.request, expected, got: index });
        }
        history.pending_top = top;
        Ok(())
    }

    /// Notes how the prompt went. False when it was noted before: this is a replay's.
    pub fn note_started(&self, started: Started) -> bool {
        let mut history = self.history();
        let first = history.started.is_none();
        if first {
            let prefill = Duration::from_micros(started.prefill_us);
            history.queue_wait = Some(self.opened_at.elapsed().saturating_sub(prefill));
            history.started = Some(started);
        }
        first
    }

    /// Notes that the worker computes it from now on.
    pub fn note_admitted(&self) {
        self.history().admitted = true;
    }

    /// Notes that the worker died while it had this sequence. Says whether it was being computed,
    /// and how many workers died computing it so far.
    pub fn note_death(&self) -> (bool, u32) {
        let mut history = self.history();
        // Alternatives whose token did not come will come again with it.
        history.pending_top.clear();
        let admitted = std::mem::take(&mut history.admitted);
        if admitted {
            history.recovering_since.get_or_insert_with(Instant::now);
            history.deaths += 1;
        }
        (admitted, history.deaths)
    }

    /// Since when it waits for another worker, after a death.
    pub fn recovering_since(&self) -> Option<Instant> {
        self.history().recovering_since
    }

    /// Ends the sequence, unless it has ended. Says whether this call did it.
    pub fn finish(&self, end: End) -> bool {
        let mut history = self.history();
        if history.end.is_some() {
            return false;
        }
        history.end = Some(end);
        drop(history);
        self.reader.wake();
        true
    }

    /// How it ended, if it has.
    pub fn end(&self) -> Option<End> {
        self.history().end.clone()
    }

    /// Tokens generated so far, the stop token not counted.
    pub fn generated(&self) -> usize {
        self.history().entries.len()
    }

    /// When the first token came.
    pub fn first_token_at(&self) -> Option<Instant> {
        self.history().first_token_at
    }

    /// The prompt and everything generated: what another worker needs to go on.
    pub fn tokens_so_far(&self) -> Vec<TokenId> {
        let history = self.history();
        self.job.prompt.iter().copied().chain(history.entries.iter().map(|e| e.token)).collect()
    }

    /// How long it waited before its prompt was begun, once the prompt is done.
    pub fn queue_wait(&self) -> Option<Duration> {
        self.history().queue_wait
    }

    /// What is left of its deadline at `now`; zero when it has passed.
    pub fn time_left(&self, now: Instant) -> Option<Duration> {
        let age = now.saturating_duration_since(self.opened_at);
        self.job.deadline.map(|deadline| deadline.saturating_sub(age))
    }

    /// Its deadline, if that has passed at `now`.
    pub fn deadline_passed(&self, now: Instant) -> Option<Duration> {
        self.job.deadline.filter(|_| self.time_left(now) == Some(Duration::ZERO))
    }

    /// How the prompt went, once it is done.
    pub fn started(&self) -> Option<Started> {
        self.history().started.clone()
    }

    /// Copies the entries from `cursor` on into `out`. Ready when there is at least one, or when
    /// the sequence has ended and all were read; then with its end.
    pub fn poll_read(
        &self,
        cx: &mut Context<'_>,
        cursor: &mut usize,
        out: &mut Vec<Entry>,
    ) -> Poll<Option<End>> {
        self.reader.register(cx.waker());
        let history = self.history();
        let new = &history.entries[(*cursor).min(history.entries.len())..];
        out.extend_from_slice(new);
        *cursor += new.len();
        match &history.end {
            Some(end) => Poll::Ready(Some(end.clone())),
            None if new.is_empty() => Poll::Pending,
            None => Poll::Ready(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tenant;
    use futures_util::task::noop_waker_ref;
    use mlxd_protocol::{ModelId, Priority, Sampling};

    fn job() -> Job {
        Job {
            model: ModelId::new("m").unwrap(),
            trace: "t".into(),
            prompt: [7, 8].into(),
            sampling: Sampling::default(),
            max_new: 9,
            stop_tokens: [2].into(),
            logprobs: None,
            embed: None,
            priority: Priority::Normal,
            tenant: Tenant::default(),
            deadline: None,
            keep_alive: None,
        }
    }

    fn read(journal: &Journal, cursor: &mut usize) -> (Vec<TokenId>, Poll<Option<End>>) {
        let mut entries = Vec::new();
        let mut cx = Context::from_waker(noop_waker_ref());
        let end = journal.poll_read(&mut cx, cursor, &mut entries);
        (entries.into_iter().map(|entry| entry.token).collect(), end)
    }

    #[test]
    fn a_reader_gets_everything_once_and_the_end_last() {
        let journal = Journal::open(RequestId(1), job());
        let mut cursor = 0;
        assert_eq!(read(&journal, &mut cursor), (vec![], Poll::Pending));
        let first = journal.append(0, 10, f32::NAN, None).unwrap();
        assert!(first.first_token_at.is_some());
        assert_eq!(journal.append(1, 11, f32::NAN, None).unwrap(), Appended::default());
        assert_eq!(read(&journal, &mut cursor), (vec![10, 11], Poll::Ready(None)));
        assert_eq!(read(&journal, &mut cursor), (vec![], Poll::Pending));
        journal.append(2, 2, f32::NAN, Some(End::Stop)).unwrap();
        assert_eq!(read(&journal, &mut cursor), (vec![], Poll::Ready(Some(End::Stop))));
        assert_eq!(journal.tokens_so_far(), [7, 8, 10, 11], "the stop token is no part of it");
        assert!(!journal.finish(End::Length), "an end is final");
        assert_eq!(journal.end(), Some(End::Stop));
    }

    #[test]
    fn a_token_out_of_order_is_refused_and_changes_nothing() {
        let journal = Journal::open(RequestId(1), job());
        journal.append(0, 10, f32::NAN, None).unwrap();
        for index in [0, 2, u32::MAX] {
            let refused = journal.append(index, 11, f32::NAN, None).unwrap_err();
            assert_eq!((refused.expected, refused.got), (1, index));
        }
        assert!(journal.expect_top(2, vec![]).is_err());
        assert_eq!(journal.generated(), 1);
        journal.append(1, 12, f32::NAN, Some(End::Length)).unwrap();
        assert!(journal.append(2, 13, f32::NAN, None).is_err(), "nothing comes after the end");
    }

    #[test]
    fn alternatives_belong_to_the_token_after_them() {
        let journal = Journal::open(RequestId(1), job());
        journal.expect_top(0, vec![(10, -0.1), (11, -3.0)]).unwrap();
        journal.append(0, 10, -0.1, None).unwrap();
        journal.append(1, 12, -0.2, None).unwrap();
        let mut entries = Vec::new();
        let mut cx = Context::from_waker(noop_waker_ref());
        let _ = journal.poll_read(&mut cx, &mut 0, &mut entries);
        assert_eq!(entries[0].top, [(10, -0.1), (11, -3.0)]);
        assert!(entries[1].top.is_empty());
    }

    #[test]
    fn a_journal_that_continues_another_begins_where_that_is() {
        let old = Journal::open(RequestId(1), job());
        old.append(0, 10, f32::NAN, None).unwrap();
        old.append(1, 11, f32::NAN, None).unwrap();
        let new = Journal::continue_from(RequestId(2), &old);
        assert_eq!(new.tokens_so_far(), [7, 8, 10, 11]);
        assert!(new.append(0, 10, f32::NAN, None).is_err(), "those it has already");
        let next = new.append(2, 12, f32::NAN, None).unwrap();
        assert_eq!(next.first_token_at, None, "nobody waits for a first token twice");
        let mut cursor = 1;
        assert_eq!(read(&new, &mut cursor), (vec![11, 12], Poll::Ready(None)));
        assert_eq!(old.generated(), 2);
    }

    #[test]
    fn a_death_is_counted_and_over_with_the_next_token() {
        let journal = Journal::open(RequestId(1), job());
        journal.append(0, 10, f32::NAN, None).unwrap();
        journal.expect_top(1, vec![(9, -1.0)]).unwrap();
        journal.note_admitted();
        assert_eq!(journal.note_death(), (true, 1));
        assert!(journal.recovering_since().is_some());
        assert_eq!(journal.tokens_so_far(), [7, 8, 10], "what a new worker goes on from");
        let next = journal.append(1, 11, f32::NAN, None).unwrap();
        assert!(next.recovered_after.is_some() && next.first_token_at.is_none());
        assert_eq!(journal.recovering_since(), None);
        assert_eq!(journal.note_death(), (false, 1), "it only waited in the second worker");
        assert_eq!(journal.recovering_since(), None);
        journal.note_admitted();
        assert_eq!(journal.note_death(), (true, 2));
        let mut entries = Vec::new();
        let mut cx = Context::from_waker(noop_waker_ref());
        let _ = journal.poll_read(&mut cx, &mut 0, &mut entries);
        assert!(entries[1].top.is_empty(), "alternatives of the life before are forgotten");
    }
}
