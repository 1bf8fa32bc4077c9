//! What others see of a running pull, and how they end it.

use super::PullError;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// What a pull is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PullPhase {
    /// Asks the hub which files there are.
    #[default]
    Asking,
    /// Fetches them.
    Fetching,
    /// Writes links and references.
    Finishing,
}

/// One file of a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullFile {
    /// Its name in the repository.
    pub name: String,
    /// Bytes it has.
    pub bytes_total: u64,
    /// Bytes that are here.
    pub bytes_done: u64,
    /// Trouble that it is being tried again after.
    pub trouble: Option<String>,
}

/// A request that failed and is made again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullRetry {
    /// What is asked for.
    pub what: String,
    /// Which file's bytes these are, once the files are known.
    pub file: Option<String>,
    /// The hub.
    pub endpoint: String,
    /// Why the last attempt gave nothing.
    pub fault: String,
    /// Which attempt comes next; they count anew once one gains anything.
    pub attempt: u32,
    /// Which one is the last.
    pub attempts_max: u32,
    /// When it is made.
    pub at: Instant,
    /// Which retry of the pull this is, from 1 on.
    pub number: u64,
}

/// Where a pull stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PullState {
    /// What it is doing.
    pub phase: PullPhase,
    /// The commit, once it is known.
    pub commit: Option<String>,
    /// The files, once they are known.
    pub files: Vec<PullFile>,
    /// Bytes that came over the network in this pull.
    pub bytes_fetched: u64,
    /// Requests that failed and did not succeed since, the latest failure last.
    pub retries: Vec<PullRetry>,
    /// How many failed so far.
    pub retries_total: u64,
}

/// Shared between a pull and those who watch it.
#[derive(Debug, Clone, Default)]
pub struct PullProgress(Arc<Mutex<PullState>>);

impl PullProgress {
    /// Where it stands now.
    pub fn state(&self) -> PullState {
        self.lock().clone()
    }

    pub(crate) fn phase(&self, phase: PullPhase) {
        self.lock().phase = phase;
    }

    pub(crate) fn commit(&self, commit: &str) {
        self.lock().commit = Some(commit.to_owned());
    }

    pub(crate) fn files(&self, files: Vec<PullFile>) {
        self.lock().files = files;
    }

    pub(crate) fn done(&self, file: usize, bytes: u64) {
        if let Some(file) = self.lock().files.get_mut(file) {
            file.bytes_done = bytes;
        }
    }

    pub(crate) fn fetched(&self, file: usize, bytes: u64) {
        let state = &mut *self.lock();
        state.bytes_fetched += bytes;
        if let Some(file) = state.files.get_mut(file) {
            file.bytes_done += bytes;
            if file.trouble.take().is_some() {
                state.retries.retain(|retry| retry.file.as_ref() != Some(&file.name));
            }
        }
    }

    /// A request is made again. `file` is the place of the file whose bytes it is for.
    pub(crate) fn retry(&self, file: Option<usize>, mut retry: PullRetry) {
        let mut state = self.lock();
        state.retries_total += 1;
        retry.number = state.retries_total;
        if let Some(file) = file.and_then(|file| state.files.get_mut(file)) {
            file.trouble = Some(retry.fault.clone());
            retry.file = Some(file.name.clone());
        }
        state.retries.retain(|earlier| earlier.what != retry.what);
        state.retries.push(retry);
    }

    /// What was asked for comes.
    pub(crate) fn answered(&self, what: &str) {
        self.lock().retries.retain(|retry| retry.what != what);
    }

    pub(crate) fn trouble(&self, file: usize, trouble: String) {
        if let Some(file) = self.lock().files.get_mut(file) {
            file.trouble = Some(trouble);
        }
    }

    fn lock(&self) -> MutexGuard<'_, PullState> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[derive(Default)]
struct Cancelled {
    cancelled: bool,
    agents: Vec<ureq::Agent>,
}

/// Ends a pull from another thread. Clones share it.
#[derive(Clone, Default)]
pub struct PullCancel(Arc<(Mutex<Cancelled>, Condvar)>);

impl PullCancel {
    /// Ends the pull: what is blocked on the network returns at once.
    pub fn cancel(&self) {
        let agents = {
            let mut state = self.lock();
            state.cancelled = true;
            std::mem::take(&mut state.agents)
        };
        self.0.1.notify_all();
        agents.into_iter().for_each(ureq::Agent::shutdown);
    }

    /// Whether it was called off.
    pub fn is_cancelled(&self) -> bool {
        self.lock().cancelled
    }

    /// Ends this agent's connections too when the pull is called off.
    pub(crate) fn covers(&self, agent: &ureq::Agent) -> Result<(), PullError> {
        let mut state = self.lock();
        if state.cancelled {
            return Err(PullError::Cancelled);
        }
        state.agents.push(agent.clone());
        Ok(())
    }

    pub(crate) fn check(&self) -> Result<(), PullError> {
        if self.is_cancelled() { Err(PullError::Cancelled) } else { Ok(()) }
    }

    /// Waits so long, or until it is called off.
    pub(crate) fn wait(&self, time: Duration) -> Result<(), PullError> {
        let end = Instant::now() + time;
        let mut state = self.lock();
        while !state.cancelled {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let woken = self.0.1.wait_timeout(state, left);
            state = woken.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
        Err(PullError::Cancelled)
    }

    fn lock(&self) -> MutexGuard<'_, Cancelled> {
        self.0.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl std::fmt::Debug for PullCancel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("PullCancel").field(&self.is_cancelled()).finish()
    }
}
