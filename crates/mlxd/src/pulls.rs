//! Pulls under way: one per model, however many ask for it.
//!
//! Each runs on a thread of its own. Whoever asked may go away: the pull goes on until it is done
//! or called off.

use futures_util::StreamExt;
use futures_util::stream::{BoxStream, unfold};
use mlxd_protocol::admin::{AdminErrorBody, PullFileStatus, PullRetry, PullStage, PullStatus};
use mlxd_store::{Pull, PullCancel, PullError, PullPhase, PullProgress, Pulled};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Between two statuses of a feed.
const STATUS_INTERVAL: Duration = Duration::from_millis(200);

type End = Option<Result<Pulled, AdminErrorBody>>;

/// One pull.
pub struct Running {
    model: String,
    progress: PullProgress,
    cancel: PullCancel,
    started_at: Instant,
    watchers: AtomicUsize,
    end: watch::Sender<End>,
}

/// All of them. Clones share it.
#[derive(Clone, Default)]
pub struct Pulls(Arc<Mutex<HashMap<String, Arc<Running>>>>);

/// Takes a pull from the list when its thread ends, however that comes about.
struct Ending {
    pulls: Pulls,
    running: Arc<Running>,
    outcome: End,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.pulls.lock().remove(key(&self.running.model));
        let broken = || Err(body("internal", "the pull broke off by a fault of mlxd's".into()));
        let outcome = self.outcome.take().unwrap_or_else(broken);
        self.running.end.send_replace(Some(outcome));
    }
}

impl Pulls {
    /// Begins a pull, or finds the one of this model. `done` runs once the model is there, before
    /// anybody is told.
    pub fn begin(
        &self,
        pull: Pull,
        pulls_max: usize,
        done: impl FnOnce(&Pulled) + Send + 'static,
    ) -> Result<Arc<Running>, AdminErrorBody> {
        let mut pulls = self.lock();
        if let Some(running) = pulls.get(key(&pull.name)) {
            return Ok(running.clone());
        }
        if pulls.len() >= pulls_max {
            let names: Vec<&str> = pulls.values().map(|running| running.model.as_str()).collect();
            return Err(body(
                "in_use",
                format!(
                    "{} models are being pulled, which is the most at once (hub.pulls_max): {}",
                    pulls.len(),
                    names.join(", ")
                ),
            ));
        }
        let running = Arc::new(Running {
            model: pull.name.clone(),
            progress: pull.progress.clone(),
            cancel: pull.cancel.clone(),
            started_at: Instant::now(),
            watchers: AtomicUsize::new(0),
            end: watch::Sender::new(None),
        });
        pulls.insert(key(&running.model).to_owned(), running.clone());
        drop(pulls);
        let ending = Ending { pulls: self.clone(), running: running.clone(), outcome: None };
        let work = move || {
            // Whole: its drop tells the end.
            let mut ending = ending;
            tracing::info!(model = pull.name, "pulling");
            let outcome = pull.run();
            match &outcome {
                Ok(pulled) => {
                    done(pulled);
                    tracing::info!(model = pulled.name, commit = pulled.commit, "pulled");
                }
                Err(error) => tracing::warn!(model = pull.name, %error, "not pulled"),
            }
            ending.outcome = Some(outcome.map_err(refusal));
        };
        // Without a thread the ending is dropped, and with it told.
        if let Err(error) = std::thread::Builder::new().name("pull".into()).spawn(work) {
            tracing::error!(%error, "no thread for a pull");
        }
        Ok(running)
    }

    /// Where each stands.
    pub fn statuses(&self) -> Vec<PullStatus> {
        let mut statuses: Vec<_> = self.lock().values().map(|running| running.status()).collect();
        statuses.sort_by(|a, b| a.model.cmp(&b.model));
        statuses
    }

    /// Calls a pull off, unless others watch it too and it is not forced.
    pub fn cancel(&self, model: &str, force: bool) -> Result<PullStatus, AdminErrorBody> {
        let running = self.lock().get(key(model)).cloned();
        let running =
            running.ok_or_else(|| body("not_pulling", format!("{model} is not being pulled")))?;
        if force || running.watchers.load(Ordering::Relaxed) <= 1 {
            running.cancel.cancel();
        }
        Ok(running.status())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Running>>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// `main` is what is meant when no revision is named.
fn key(model: &str) -> &str {
    model.strip_suffix("@main").unwrap_or(model)
}

/// Counts a feed for as long as it is read.
struct Watching(Arc<Running>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Running {
    /// A status now and then, and the last one at the end.
    pub fn feed(self: Arc<Self>) -> BoxStream<'static, PullStatus> {
        self.watchers.fetch_add(1, Ordering::Relaxed);
        let end = self.end.subscribe();
        let first = (Watching(self), end, Some(Duration::ZERO));
        unfold(first, |(watching, mut end, wait)| async move {
            let wait = wait?;
            let is_over = tokio::select! {
                _ = end.wait_for(Option::is_some) => true,
                () = tokio::time::sleep(wait) => false,
            };
            let status = watching.0.status();
            Some((status, (watching, end, (!is_over).then_some(STATUS_INTERVAL))))
        })
        .boxed()
    }

    fn status(&self) -> PullStatus {
        let state = self.progress.state();
        let end = self.end.borrow().clone();
        let stage = match (&end, state.phase) {
            (Some(Ok(_)), _) => PullStage::Done,
            (Some(Err(_)), _) => PullStage::Failed,
            (None, PullPhase::Asking) => PullStage::Asking,
            (None, PullPhase::Fetching) => PullStage::Fetching,
            (None, PullPhase::Finishing) => PullStage::Finishing,
        };
        let (pulled, error) = match end {
            Some(Ok(pulled)) => (Some(pulled), None),
            Some(Err(error)) => (None, Some(error)),
            None => (None, None),
        };
        let files = state.files.into_iter().map(|file| PullFileStatus {
            name: file.name,
            bytes_total: file.bytes_total,
            bytes_done: file.bytes_done,
            trouble: file.trouble,
        });
        let now = Instant::now();
        let retries = state.retries.into_iter().map(|retry| PullRetry {
            what: retry.what,
            file: retry.file,
            endpoint: retry.endpoint,
            fault: retry.fault,
            attempt: retry.attempt,
            attempts_max: retry.attempts_max,
            wait_ms: retry.at.saturating_duration_since(now).as_millis() as u64,
            number: retry.number,
        });
        PullStatus {
            model: self.model.clone(),
            stage,
            commit: state.commit.or_else(|| pulled.as_ref().map(|p| p.commit.clone())),
            files: files.collect(),
            bytes_fetched: state.bytes_fetched,
            retries: retries.collect(),
            elapsed_ms: self.started_at.elapsed().as_millis() as u64,
            watchers: self.watchers.load(Ordering::Relaxed),
            folder: pulled.map(|pulled| pulled.folder.display().to_string()),
            error,
        }
    }
}

fn refusal(error: PullError) -> AdminErrorBody {
    let code = match &error {
        PullError::Name(_) | PullError::Endpoint { .. } => "bad_request",
        PullError::Cancelled => "cancelled",
        _ => "pull_failed",
    };
    body(code, error.to_string())
}

fn body(code: &str, message: String) -> AdminErrorBody {
    AdminErrorBody { code: code.into(), message }
}
