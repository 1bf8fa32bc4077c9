//! What admission knows of one model.

use super::limits::{KeepAlive, Lifetime};
use crate::journal::{Failure, Journal};
use mlxd_memory::{Footprint, Load, Measured, MeasuredKey, Needs, Promise, Why};
use mlxd_protocol::RequestId;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Told once an admin's start has its promise, or why it will not get it.
pub(crate) type Reply = oneshot::Sender<Result<(), Failure>>;

/// What waits for memory.
#[derive(Debug)]
pub(crate) enum Turn {
    /// A sequence.
    Sequence(Arc<Journal>),
    /// An admin who wants the model loaded.
    Start(Reply),
}

#[derive(Debug)]
pub(crate) struct Waiting {
    pub turn: Turn,
    pub since: Instant,
    /// Its place in the order of arrival, over all models.
    pub arrival: u64,
}

impl Waiting {
    /// Whether it is this request's sequence.
    pub(crate) fn is_of(&self, request: RequestId) -> bool {
        matches!(&self.turn, Turn::Sequence(journal) if journal.request == request)
    }
}

/// A sequence that its model's pump has.
#[derive(Debug)]
pub(crate) struct Running {
    pub bytes: u64,
    pub journal: Arc<Journal>,
}

/// Where a model is between not being there and being gone again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It holds nothing.
    Absent,
    /// It has a promise; its process is not there yet.
    Granted,
    /// Its process is there.
    Alive { pid: u32 },
    /// Its process died; it keeps its promise for the next one.
    Between,
    /// It is being unloaded.
    Leaving,
}

/// The most that ran at one moment since the model was idle.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct High {
    pub rows: u64,
    pub tokens: u64,
}

#[derive(Debug)]
pub(crate) struct Account {
    pub needs: Needs,
    pub lifetime: Lifetime,
    /// An admin's word, over the configuration's.
    pub pinned: Option<bool>,
    /// The last request's wish.
    pub keep_alive: Option<KeepAlive>,
    pub key: Option<MeasuredKey>,
    pub measured: Measured,
    pub stage: Stage,
    /// It gave up: the pump says so to whoever asks.
    pub fatal: bool,
    pub waiting: VecDeque<Waiting>,
    pub running: HashMap<u64, Running>,
    /// Who else uses the worker: direct runs of its engine.
    pub guests: usize,
    pub used_at: Instant,
    pub loaded_at: Option<Instant>,
    pub load_cost: Duration,
    /// What the process that is there was promised for being there when it was made.
    pub planned: u64,
    /// The limit that its engine was told, of this life.
    pub told_limit: Option<u64>,
    /// What its process took at the last look.
    pub footprint: Option<Footprint>,
    /// The highest peak that is written down already, of this life.
    pub peak_seen: u64,
    pub high: High,
    /// Something ran in this life.
    pub has_run: bool,
    /// The process of this life was ended for what it took.
    pub condemned: bool,
    /// Why the first in line waits.
    pub why: Option<Why>,
    /// Why it was not loaded when that was asked for last.
    pub refused: Option<Refused>,
}

/// Why a model was not loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    /// In a few words.
    pub brief: String,
    /// In all of them.
    pub message: String,
}

impl Account {
    pub(crate) fn new(needs: Needs, lifetime: Lifetime, now: Instant) -> Self {
        Self {
            needs,
            lifetime,
            pinned: None,
            keep_alive: None,
            key: None,
            measured: Measured::default(),
            stage: Stage::Absent,
            fatal: false,
            waiting: VecDeque::new(),
            running: HashMap::new(),
            guests: 0,
            used_at: now,
            loaded_at: None,
            load_cost: Duration::ZERO,
            planned: 0,
            told_limit: None,
            footprint: None,
            peak_seen: 0,
            high: High::default(),
            has_run: false,
            condemned: false,
            why: None,
            refused: None,
        }
    }

    pub(crate) fn promise(&self) -> Promise<'_> {
        Promise { needs: &self.needs, measured: &self.measured }
    }

    /// What is known of a model that is not there but for what it was seen to take at rest, if that
    /// is known.
    pub(crate) fn unrested(&self) -> Option<Measured> {
        let known = self.stage == Stage::Absent && self.measured.resting_bytes.is_some();
        known.then(|| Measured { resting_bytes: None, ..self.measured.clone() })
    }

    /// What the first in line needs besides the `held` bytes that the model has, or will have for
    /// being there.
    pub(crate) fn turn_bytes(&self, turn: &Turn, held: u64) -> u64 {
        let Turn::Sequence(journal) = turn else { return 0 };
        let tokens = tokens_max(journal);
        self.promise().more_bytes(tokens, self.load_with(Some(tokens)), held)
    }

    /// What runs and one more sequence of so many tokens, each as long as it may become. A worker
    /// takes as much for sequences of different lengths as for as many of their mean.
    pub(crate) fn load_with(&self, more: Option<u64>) -> Load {
        let running = self.running.values().map(|running| tokens_max(&running.journal));
        let (batch, tokens) =
            running.chain(more).fold((0, 0), |(batch, sum), tokens| (batch + 1, sum + tokens));
        Load { context: tokens.div_ceil(batch.max(1)), batch }
    }

    pub(crate) fn is_pinned(&self) -> bool {
        self.pinned.unwrap_or(self.lifetime.pinned)
    }

    /// After how long an idle time it goes; `None` never.
    pub(crate) fn ttl(&self) -> Option<Duration> {
        match self.keep_alive {
            Some(KeepAlive::For(time)) => Some(time),
            Some(KeepAlive::Forever) => None,
            None => self.lifetime.ttl,
        }
    }

    /// Whether anything uses its worker, or waits to.
    pub(crate) fn is_used(&self) -> bool {
        !self.running.is_empty() || !self.waiting.is_empty() || self.guests > 0
    }

    pub(crate) fn is_loaded(&self) -> bool {
        matches!(self.stage, Stage::Alive { .. }) && self.loaded_at.is_some()
    }

    /// Notes how much runs now, if that is more than before.
    pub(crate) fn note_load(&mut self) {
        let tokens: u64 = self.running.values().map(|running| tokens_now(&running.journal)).sum();
        if tokens > self.high.tokens {
            self.high = High { rows: self.running.len() as u64, tokens };
        }
    }
}

/// Tokens that a sequence may come to.
pub(crate) fn tokens_max(journal: &Journal) -> u64 {
    journal.job.prompt.len() as u64 + u64::from(journal.job.max_new)
}

fn tokens_now(journal: &Journal) -> u64 {
    (journal.job.prompt.len() + journal.generated()) as u64
}
