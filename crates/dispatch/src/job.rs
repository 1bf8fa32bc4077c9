//! What a caller hands in, and what it gets back.

use crate::admission::{Admission, KeepAlive};
use crate::journal::{End, Entry, Journal};
use crate::link::Inbox;
use mlxd_protocol::admin::WorkerState;
use mlxd_protocol::{ModelId, Priority, Sampling, Started, TokenId};
use mlxd_supervisor::Worker;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

/// One sequence to generate, checked: the prompt is not empty and fits the model's context.
#[derive(Debug, Clone)]
pub struct Job {
    /// Which model.
    pub model: ModelId,
    /// The `x-request-id` of the request, for log lines on both sides.
    pub trace: Arc<str>,
    /// The prompt's tokens.
    pub prompt: Arc<[TokenId]>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Tokens to generate at the most.
    pub max_new: u32,
    /// Tokens that end the sequence.
    pub stop_tokens: Arc<[TokenId]>,
    /// Whether log-probabilities are wanted, and of how many alternatives.
    pub logprobs: Option<u8>,
    /// Wanted is the prompt's vector, and no tokens.
    pub embed: Option<EmbedJob>,
    /// Which queue it waits in.
    pub priority: Priority,
    /// Whose it is: among sequences of one priority, tenants take turns.
    pub tenant: Tenant,
    /// How long it may take from being taken in to its end.
    pub deadline: Option<Duration>,
    /// How long its model is to stay loaded after it; `None`: as configured.
    pub keep_alive: Option<KeepAlive>,
}

/// Who asks, as far as sharing a model goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tenant {
    /// 0 is everybody who is not told apart.
    pub id: u32,
    /// How large its share is beside those of others, 1 or more.
    pub weight: u32,
}

impl Default for Tenant {
    fn default() -> Self {
        Self { id: 0, weight: 1 }
    }
}

/// How a vector is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbedJob {
    /// So many of its leading numbers; `None` is all.
    pub dimensions: Option<u32>,
}

/// A sequence being generated. Dropping it before its end cancels it within one step.
#[derive(Debug)]
pub struct Generation {
    journal: Arc<Journal>,
    inbox: Inbox,
    cursor: usize,
    cancelled: bool,
    lookout: Lookout,
}

/// Where a sequence that has not begun can be seen to wait.
#[derive(Debug, Clone)]
pub(crate) struct Lookout {
    pub admission: Admission,
    pub worker: Worker,
}

impl Lookout {
    fn sees(&self, journal: &Journal) -> Option<String> {
        use WorkerState::{Backoff, Starting, Stopping};
        let model = &journal.job.model;
        let place = self.admission.read(|books| books.place(model, journal.request));
        if let Some((before, why)) = place {
            return Some(format!("waiting for memory, {before} before it: {why}"));
        }
        let view = self.worker.view();
        match view.state {
            Starting => {
                let percent = view.load_fraction().unwrap_or(0.0) * 100.0;
                Some(format!("{model} is being loaded, {percent:.0} %"))
            }
            Backoff => {
                let why = view.reason.unwrap_or_default();
                Some(format!("{model} is started again soon: {why}"))
            }
            Stopping => Some(format!("{model} is being unloaded, and loaded again then")),
            _ => None,
        }
    }
}

impl Generation {
    pub(crate) fn new(journal: Arc<Journal>, inbox: Inbox, lookout: Lookout) -> Self {
        Self { journal, inbox, cursor: 0, cancelled: false, lookout }
    }

    /// A reader of `journal` that has read as far as this one.
    pub(crate) fn read_on(&self, journal: Arc<Journal>, inbox: Inbox) -> Self {
        let (cursor, lookout) = (self.cursor, self.lookout.clone());
        Self { journal, inbox, cursor, cancelled: false, lookout }
    }

    pub(crate) fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// Stops generating within one step and keeps what there is, for
    /// [`Dispatch::resume`](crate::Dispatch::resume).
    pub fn cancel(&mut self) {
        if !self.cancelled && self.journal.end().is_none() {
            self.inbox.cancel(self.journal.request);
        }
        self.cancelled = true;
    }

    /// Waits for more and appends it to `out`: every token since the last call, so that a slow
    /// reader catches up in one go. `Some(end)` comes with the last of them.
    pub async fn next(&mut self, out: &mut Vec<Entry>) -> Option<End> {
        poll_fn(|cx| self.journal.poll_read(cx, &mut self.cursor, out)).await
    }

    /// How the prompt went, once the first token is there.
    pub fn started(&self) -> Option<Started> {
        self.journal.started()
    }

    /// How long it waited for its turn, once that is over: its model's loading, other sequences.
    pub fn queue_wait(&self) -> Option<Duration> {
        self.journal.queue_wait()
    }

    /// What it waits for before it can begin: memory, its model's loading. `None` once it has
    /// begun, and where its turn in the worker is all that is missing.
    pub fn waits_for(&self) -> Option<String> {
        let begun = self.journal.started().is_some() || self.journal.end().is_some();
        if begun { None } else { self.lookout.sees(&self.journal) }
    }

    /// What was asked.
    pub fn job(&self) -> &Job {
        &self.journal.job
    }

    /// Tokens generated so far.
    pub fn generated(&self) -> usize {
        self.journal.generated()
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.cancel();
    }
}
