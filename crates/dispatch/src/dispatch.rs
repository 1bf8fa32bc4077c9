//! The face of the crate: models by name, sequences by journal, workers by state.

mod cache;

use crate::admission::{Admission, Books, Handle, MemoryKeeping, MemoryLimits};
use crate::crash::CrashFolder;
use crate::job::{Generation, Job, Lookout};
use crate::journal::{Failure, Journal};
use crate::link::{Inbox, Pump};
use crate::metrics::{Metrics, ModelStats};
use crate::models::{
    DispatchLimits, FoundModel, ListedModel, ModelFault, ModelSource, OpenModel, StandsFor,
};
use crate::route::Route;
use mlxd_memory::Load;
use mlxd_protocol::admin::{
    AdminErrorBody, Estimate, EstimateCall, GuessStatus, ModelStatus, Residence, SignalName,
    Status, Version, Why, WorkerState,
};
use mlxd_protocol::{BenchLeg, BenchSpec, ModelId, PROTOCOL_VERSION, RequestId};
use mlxd_ring::Guessed;
use mlxd_supervisor::{EventLog, Worker, WorkerView};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};
use tokio::sync::mpsc;

/// What an estimate is made for when the call does not say: tokens of a sequence.
const ESTIMATE_CONTEXT: u32 = 4096;
/// More sequences at once no model is configured for.
const ESTIMATE_BATCH_MAX: u32 = 1024;

/// Notices on their way from a worker's task to its pump.
const NOTICES_MAX: usize = 16;

/// One model: its texts, and the tasks that run it.
struct Slot {
    open: OpenModel,
    log_file: PathBuf,
    inbox: Inbox,
    worker: Worker,
    /// Where its workers keep prefixes on the disk.
    prefix_folder: Option<PathBuf>,
    stats: Arc<ModelStats>,
    open_max: usize,
    /// False once its files may have changed: the next request reads them again.
    fresh: AtomicBool,
}

struct Shared {
    source: Arc<dyn ModelSource>,
    /// By the model's own name.
    slots: Mutex<BTreeMap<ModelId, Arc<Slot>>>,
    /// Names and aliases asked for, so that the source is not asked again.
    names: Mutex<HashMap<String, ModelId>>,
    /// Held while files are read, by the name asked for: of many requests for a new model one
    /// reads them.
    reading: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Why the files of a configured model could not be used when they were read last, by the name
    /// asked for.
    unusable: Mutex<HashMap<String, String>>,
    metrics: Arc<Metrics>,
    events: EventLog,
    next_request: AtomicU64,
    shutting_down: AtomicBool,
    started_at: Instant,
    base_url: String,
    limits: DispatchLimits,
    crashes: CrashFolder,
    admission: Admission,
    runtime: tokio::runtime::Handle,
}

/// Routes sequences to workers. Clones share it.
///
/// Tasks run on the runtime that made it, whose threads must live as long as the process.
#[derive(Clone)]
pub struct Dispatch(Arc<Shared>);

/// Whether requests can be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// Whether a request sent now would be taken.
    pub ready: bool,
    /// In words.
    pub reason: String,
}

/// A model of `/v1/models`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogEntry {
    /// Name, age, owner.
    pub listed: ListedModel,
    /// Whether its worker takes requests now.
    pub loaded: bool,
    /// Tokens of context, where the model was opened before.
    pub context_tokens: Option<u32>,
}

/// How a model that was opened stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Whether its worker takes requests now.
    pub loaded: bool,
    /// Why its worker is not started, when it is FATAL.
    pub fatal: Option<String>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn admin_error(code: &str, message: impl Into<String>) -> AdminErrorBody {
    AdminErrorBody { code: code.into(), message: message.into() }
}

impl From<ModelFault> for AdminErrorBody {
    fn from(fault: ModelFault) -> Self {
        match &fault {
            ModelFault::Unknown { known, .. } => {
                let known = known.join(", ");
                admin_error("unknown_model", format!("{fault}. Models here: {known}"))
            }
            ModelFault::Broken { .. } => admin_error("load_failed", fault.to_string()),
        }
    }
}

impl Dispatch {
    /// Must be called on the runtime that is to run the workers' tasks.
    pub fn new(
        source: Arc<dyn ModelSource>,
        base_url: String,
        limits: DispatchLimits,
        crashes: CrashFolder,
        memory: MemoryKeeping,
    ) -> Self {
        let metrics = Arc::new(Metrics::new());
        let events = EventLog::new(limits.events_kept_max);
        let admission = Admission::new(memory, metrics.clone(), events.clone());
        Self(Arc::new(Shared {
            source,
            slots: Mutex::default(),
            names: Mutex::default(),
            reading: Mutex::default(),
            unusable: Mutex::default(),
            metrics,
            events,
            admission,
            next_request: AtomicU64::new(1),
            shutting_down: AtomicBool::new(false),
            started_at: Instant::now(),
            base_url,
            limits,
            crashes,
            runtime: tokio::runtime::Handle::current(),
        }))
    }

    /// Keeps memory within other limits from now on. Whoever is busy or pinned stays.
    pub fn set_memory_limits(&self, limits: MemoryLimits) {
        self.0.admission.set_limits(limits);
    }

    /// Opens a model for requests: finds it and reads its tokenizer, template and defaults. Does
    /// not start its worker.
    ///
    /// # Errors
    /// See [`ModelFault`].
    pub async fn open_model(&self, name: &str) -> Result<OpenModel, ModelFault> {
        Ok(self.slot(name).await?.open.clone())
    }

    /// The virtual model of this name or alias.
    pub fn route(&self, name: &str) -> Option<Arc<Route>> {
        self.0.source.route(name)
    }

    /// How a model stands that was opened before.
    pub fn standing(&self, model: &ModelId) -> Standing {
        let slot = locked(&self.0.slots).get(model).cloned();
        let Some(view) = slot.map(|slot| slot.worker.view()) else {
            return Standing::default();
        };
        let fatal = (view.state == WorkerState::Fatal).then(|| view.reason.unwrap_or_default());
        Standing { loaded: view.state == WorkerState::Running, fatal }
    }

    /// The model's slot; its files are read again when they may have changed and no worker runs
    /// on the old ones.
    async fn slot(&self, name: &str) -> Result<Arc<Slot>, ModelFault> {
        let usable =
            |slot: &Arc<Slot>| slot.fresh.load(Ordering::Relaxed) || slot.worker.view().is_alive();
        if let Some(slot) = self.known_slot(name).filter(usable) {
            return Ok(slot);
        }
        let turn = {
            let mut reading = locked(&self.0.reading);
            reading.retain(|_, turn| Arc::strong_count(turn) > 1);
            reading.entry(name.to_owned()).or_default().clone()
        };
        let _turn = turn.lock().await;
        match self.known_slot(name).filter(usable) {
            Some(slot) => Ok(slot),
            None => self.read_slot(name).await,
        }
    }

    async fn read_slot(&self, name: &str) -> Result<Arc<Slot>, ModelFault> {
        tracing::debug!(name, "a model's files are read");
        let source = self.0.source.clone();
        let asked = name.to_owned();
        let read = move || {
            let found = source.find(&asked)?;
            let open = OpenModel::read(&found)?;
            Ok((found, open))
        };
        let read = tokio::task::spawn_blocking(read).await.unwrap_or_else(|error| {
            Err(ModelFault::broken(format!("reading {name} failed: {error}")))
        });
        let (found, open) = read.inspect_err(|fault| self.note_unusable(name, fault))?;
        locked(&self.0.unusable).remove(name);
        Ok(self.install(name, found, open))
    }

    /// Kept for the status of configured models alone: other names are anybody's.
    fn note_unusable(&self, name: &str, fault: &ModelFault) {
        if self.0.source.configured().iter().any(|configured| configured == name) {
            locked(&self.0.unusable).insert(name.to_owned(), fault.to_string());
        }
    }

    fn known_slot(&self, name: &str) -> Option<Arc<Slot>> {
        let id = locked(&self.0.names).get(name).cloned()?;
        locked(&self.0.slots).get(&id).cloned()
    }

    /// Puts a model that was just read in its place. Of two requests that read it at once the
    /// second takes what the first made.
    fn install(&self, name: &str, found: FoundModel, open: OpenModel) -> Arc<Slot> {
        let id = found.id.clone();
        self.0.admission.register(&id, found.needs.clone(), found.lifetime);
        let mut slots = locked(&self.0.slots);
        let old = slots.get(&id).cloned();
        let slot = match old {
            Some(slot) if slot.fresh.load(Ordering::Relaxed) => slot,
            Some(old) => {
                let log_file = found.worker.log.path();
                let prefix_folder = cache::folder(&found.worker);
                old.worker.reconfigure(found.worker);
                Arc::new(Slot {
                    open,
                    log_file,
                    inbox: old.inbox.clone(),
                    worker: old.worker.clone(),
                    prefix_folder,
                    stats: old.stats.clone(),
                    open_max: found.open_max,
                    fresh: AtomicBool::new(true),
                })
            }
            None => self.start_tasks(found, open),
        };
        slots.insert(id.clone(), slot.clone());
        drop(slots);
        locked(&self.0.names).insert(name.to_owned(), id);
        slot
    }

    fn start_tasks(&self, found: FoundModel, open: OpenModel) -> Arc<Slot> {
        let _on_runtime = self.0.runtime.enter();
        let (notify, notices) = mpsc::channel(NOTICES_MAX);
        let log_file = found.worker.log.path();
        let prefix_folder = cache::folder(&found.worker);
        let worker = Worker::new(
            found.worker,
            notify,
            self.0.events.clone(),
            Arc::new(self.0.admission.clone()),
        );
        let (inbox, inputs) = Inbox::new();
        let stats = Arc::new(ModelStats::default());
        let handle = Handle { worker: worker.clone(), inbox: inbox.clone(), stats: stats.clone() };
        self.0.admission.attach(&found.id, handle);
        let pump = Pump {
            admission: self.0.admission.clone(),
            model: found.id,
            worker: worker.clone(),
            notices,
            inbox: inputs,
            stats: stats.clone(),
            metrics: self.0.metrics.clone(),
            limits: self.0.limits.clone(),
            crashes: self.0.crashes.clone(),
            events: self.0.events.clone(),
        };
        tokio::spawn(pump.run());
        Arc::new(Slot {
            open,
            log_file,
            inbox,
            worker,
            prefix_folder,
            stats,
            open_max: found.open_max,
            fresh: AtomicBool::new(true),
        })
    }

    /// Takes a sequence in. Its model is loaded if it is not.
    ///
    /// # Errors
    /// A [`Failure`] when it cannot be taken now.
    pub fn generate(&self, job: Job) -> Result<Generation, Failure> {
        let (journal, inbox) =
            self.take_in(&job.model.clone(), |request| Journal::open(request, job))?;
        let worker = self.opened(&journal.job.model)?.worker.clone();
        let lookout = Lookout { admission: self.0.admission.clone(), worker };
        Ok(Generation::new(journal, inbox, lookout))
    }

    /// Takes a sequence in again that was cancelled in the middle: the reader goes on where `old`
    /// is. One that had ended before it could be cancelled is read on as it is.
    ///
    /// # Errors
    /// A [`Failure`] when it cannot be taken now.
    pub fn resume(&self, old: &Generation) -> Result<Generation, Failure> {
        let journal = old.journal();
        let ended = journal.end().is_some();
        let (journal, inbox) = match ended {
            true => (journal.clone(), self.inbox_of(&journal.job.model)?),
            false => self
                .take_in(&journal.job.model, |request| Journal::continue_from(request, journal))?,
        };
        Ok(old.read_on(journal, inbox))
    }

    /// After how long a client that was just refused a place with this model should come back, by
    /// the pace at which places come free. `None` when nothing has ended there yet.
    pub fn retry_after(&self, model: &ModelId) -> Option<Duration> {
        let slot = locked(&self.0.slots).get(model).cloned()?;
        slot.stats.pace().refuse(Instant::now())
    }

    fn inbox_of(&self, model: &ModelId) -> Result<Inbox, Failure> {
        Ok(self.opened(model)?.inbox.clone())
    }

    fn opened(&self, model: &ModelId) -> Result<Arc<Slot>, Failure> {
        locked(&self.0.slots).get(model).cloned().ok_or_else(|| Failure {
            code: "load_failed",
            message: format!("the model {model} was not opened"),
            retry: false,
        })
    }

    fn take_in(
        &self,
        model: &ModelId,
        open: impl FnOnce(RequestId) -> Arc<Journal>,
    ) -> Result<(Arc<Journal>, Inbox), Failure> {
        if self.0.shutting_down.load(Ordering::Relaxed) {
            return Err(Failure {
                code: "shutting_down",
                message: "mlxd is shutting down; send the request again when it is back".into(),
                retry: true,
            });
        }
        let slot = self.opened(model)?;
        slot.stats.try_open(slot.open_max).map_err(|open| Failure {
            code: "overloaded",
            message: format!(
                "{open} sequences are open for {}, which is the limit; try again in a moment, or raise running_max or queued_max",
                model
            ),
            retry: true,
        })?;
        slot.stats.count_request();
        let request = RequestId(self.0.next_request.fetch_add(1, Ordering::Relaxed));
        let journal = open(request);
        let asked = self.0.admission.ask(model, journal.clone());
        asked.inspect_err(|_| slot.stats.closed())?;
        Ok((journal, slot.inbox.clone()))
    }

    /// Every model that a request could name.
    pub async fn catalog(&self) -> Vec<CatalogEntry> {
        let source = self.0.source.clone();
        let listed = tokio::task::spawn_blocking(move || source.list()).await.unwrap_or_default();
        let slots = locked(&self.0.slots);
        let slot = |name: &str| slots.iter().find(|(id, _)| id.as_str() == name).map(|(_, s)| s);
        let entry = |listed: ListedModel| {
            let names = listed.stands_for.as_ref().map(StandsFor::models);
            let names = names.unwrap_or(std::slice::from_ref(&listed.id));
            let behind = || names.iter().filter_map(|name| slot(name));
            CatalogEntry {
                loaded: behind().any(|s| s.worker.view().state == WorkerState::Running),
                context_tokens: behind().map(|slot| slot.open.context_tokens).max(),
                listed,
            }
        };
        listed.into_iter().map(entry).collect()
    }

    /// The front and every model that was asked for.
    pub async fn status(&self) -> Status {
        let slots: Vec<_> =
            locked(&self.0.slots).iter().map(|(id, slot)| (id.clone(), slot.clone())).collect();
        let pids = slots.iter().filter_map(|(_, slot)| slot.worker.view().pid).collect();
        let memory =
            tokio::task::spawn_blocking(move || resident_bytes(pids)).await.unwrap_or_default();
        let mut models: Vec<_> =
            slots.iter().map(|(id, slot)| self.model_status(id, slot, &memory)).collect();
        for name in self.0.source.configured() {
            if !models.iter().any(|model| model.name == name) {
                models.push(never_asked_for(name));
            }
        }
        for model in &mut models {
            model.groups = self.0.source.groups(&model.name);
            if model.state == WorkerState::Stopped && model.reason.is_none() {
                model.reason = locked(&self.0.unusable).get(&model.name).cloned();
            }
        }
        models.sort_by(|a, b| a.name.cmp(&b.name));
        Status {
            server: self.version(),
            uptime_s: self.0.started_at.elapsed().as_secs(),
            memory_bytes: memory.get(&std::process::id()).copied().unwrap_or(0),
            base_url: self.0.base_url.clone(),
            shutting_down: self.0.shutting_down.load(Ordering::Relaxed),
            memory: self.0.admission.read(Books::status),
            models,
        }
    }

    /// Names of the models whose worker is there.
    pub fn running(&self) -> Vec<String> {
        let slots = locked(&self.0.slots);
        let alive = slots.iter().filter(|(_, slot)| slot.worker.view().is_alive());
        alive.map(|(id, _)| id.to_string()).collect()
    }

    /// Who answers.
    pub fn version(&self) -> Version {
        Version {
            version: env!("CARGO_PKG_VERSION").into(),
            protocol: PROTOCOL_VERSION,
            pid: std::process::id(),
        }
    }

    /// Starts a model's worker, clearing BACKOFF and FATAL, and waits until it runs.
    ///
    /// # Errors
    /// `unknown_model`, `already_started`, `load_failed`.
    pub async fn start(&self, name: &str) -> Result<ModelStatus, AdminErrorBody> {
        let slot = self.slot(name).await?;
        if slot.worker.view().state == WorkerState::Running {
            return Err(admin_error("already_started", format!("{} is running", slot.open.id)));
        }
        self.load(&slot).await?;
        self.settled(&slot, Ok(())).await
    }

    /// Loads a model that is not running, once there is memory for it.
    async fn load(&self, slot: &Slot) -> Result<(), AdminErrorBody> {
        let id = &slot.open.id;
        let refused = |failure: Failure| admin_error(failure.code, failure.message);
        self.0.admission.admit(id).await.map_err(refused)?;
        let started = slot.worker.start().await;
        started.map_err(|why| admin_error("load_failed", format!("{id} did not start: {why}")))
    }

    /// Stops a model's worker once it has finished what runs, and waits until it is gone.
    ///
    /// # Errors
    /// `unknown_model`, `not_running`.
    pub async fn stop(&self, name: &str) -> Result<ModelStatus, AdminErrorBody> {
        let slot = self.slot(name).await?;
        if slot.worker.view().state == WorkerState::Stopped {
            return Err(admin_error("not_running", format!("{} is not running", slot.open.id)));
        }
        self.0.admission.stop(&slot.open.id).await;
        slot.fresh.store(false, Ordering::Relaxed);
        self.settled(&slot, Ok(())).await
    }

    /// Replaces a model's worker, and waits until the new one runs.
    ///
    /// # Errors
    /// `unknown_model`, `load_failed`.
    pub async fn restart(&self, name: &str) -> Result<ModelStatus, AdminErrorBody> {
        self.forget_files(name);
        let slot = self.read_slot(name).await?;
        if !slot.worker.view().is_alive() {
            self.load(&slot).await?;
            return self.settled(&slot, Ok(())).await;
        }
        let started = slot.worker.restart().await;
        self.settled(&slot, started).await
    }

    /// Sends the model's worker a signal.
    ///
    /// # Errors
    /// `unknown_model`, `not_running`.
    pub async fn signal(
        &self,
        name: &str,
        signal: SignalName,
    ) -> Result<ModelStatus, AdminErrorBody> {
        let slot = self.slot(name).await?;
        if !slot.worker.signal(signal).await {
            return Err(admin_error(
                "not_running",
                format!("{} has no process to send a signal to", slot.open.id),
            ));
        }
        self.settled(&slot, Ok(())).await
    }

    /// What happened lately, and what happens.
    pub fn events(&self) -> &EventLog {
        &self.0.events
    }

    /// Models' files and settings are looked at again before the next worker of each.
    pub fn forget_all_files(&self) {
        locked(&self.0.names).clear();
        locked(&self.0.unusable).clear();
        let slots = locked(&self.0.slots);
        slots.values().for_each(|slot| slot.fresh.store(false, Ordering::Relaxed));
    }

    fn forget_files(&self, name: &str) {
        if let Some(slot) = self.known_slot(name) {
            slot.fresh.store(false, Ordering::Relaxed);
        }
    }

    async fn settled(
        &self,
        slot: &Slot,
        outcome: Result<(), String>,
    ) -> Result<ModelStatus, AdminErrorBody> {
        let id = &slot.open.id;
        outcome.map_err(|why| admin_error("load_failed", format!("{id} did not start: {why}")))?;
        let pids = slot.worker.view().pid.into_iter().collect();
        let memory =
            tokio::task::spawn_blocking(move || resident_bytes(pids)).await.unwrap_or_default();
        Ok(self.model_status(id, slot, &memory))
    }

    fn model_status(&self, id: &ModelId, slot: &Slot, memory: &HashMap<u32, u64>) -> ModelStatus {
        let now = Instant::now();
        let (residence, refusal) =
            self.0.admission.read(|books| (books.residence(id, now), books.refusal(id)));
        let status = worker_status(id, slot, memory);
        let refusal = refusal.filter(|_| status.state == WorkerState::Stopped);
        ModelStatus { residence, reason: status.reason.or(refusal), ..status }
    }

    /// Keeps a model loaded whatever others need, or does so no longer. It is not loaded by that.
    ///
    /// # Errors
    /// `unknown_model`.
    pub async fn pin(&self, name: &str, pinned: bool) -> Result<ModelStatus, AdminErrorBody> {
        let slot = self.slot(name).await?;
        self.0.admission.pin(&slot.open.id, pinned);
        self.settled(&slot, Ok(())).await
    }

    /// What a model would need, part by part, and whether that fits. Loads nothing.
    ///
    /// # Errors
    /// `unknown_model`, `bad_request`.
    pub async fn estimate(&self, call: EstimateCall) -> Result<Estimate, AdminErrorBody> {
        let slot = self.slot(&call.model).await?;
        let (id, context_max) = (&slot.open.id, slot.open.context_tokens);
        let context = call.context.unwrap_or(ESTIMATE_CONTEXT.min(context_max));
        if !(1..=context_max).contains(&context) {
            let message = format!("{id} has a context of {context_max} tokens, not {context}");
            return Err(admin_error("bad_request", message));
        }
        let batch = call.batch.unwrap_or(1);
        if !(1..=ESTIMATE_BATCH_MAX).contains(&batch) {
            let message = format!("a batch has 1 to {ESTIMATE_BATCH_MAX} sequences, not {batch}");
            return Err(admin_error("bad_request", message));
        }
        let load = Load { context: context.into(), batch: batch.into() };
        let estimate = self.0.admission.read(|books| books.estimate(id, load, Instant::now()));
        estimate.ok_or_else(|| admin_error("internal", format!("{id} has no account")))
    }

    /// Runs a model's engine directly inside its worker, with no ring, text or HTTP.
    ///
    /// # Errors
    /// `unknown_model`, `load_failed`, or why the run failed.
    pub async fn bench(&self, name: &str, spec: BenchSpec) -> Result<BenchLeg, AdminErrorBody> {
        let slot = self.slot(name).await?;
        if slot.worker.view().state != WorkerState::Running {
            self.load(&slot).await?;
        }
        let tokens = spec.prompt.len() as u64 + u64::from(spec.new_tokens);
        let refused = |failure: Failure| admin_error(failure.code, failure.message);
        let _guest = self.0.admission.guest(&slot.open.id, tokens).map_err(refused)?;
        slot.worker.bench(spec).await.map_err(|why| admin_error("internal", why))
    }

    /// A model's last death.
    ///
    /// # Errors
    /// `unknown_model`.
    pub async fn why(&self, name: &str) -> Result<Why, AdminErrorBody> {
        let slot = self.slot(name).await?;
        let id = slot.open.id.clone();
        let crashes = self.0.crashes.clone();
        let model = id.to_string();
        let newest = tokio::task::spawn_blocking(move || crashes.newest(&model)).await;
        let (newest, reports) = newest.unwrap_or((None, 0));
        let (report, folder) = newest.unzip();
        Ok(Why {
            status: self.model_status(&id, &slot, &HashMap::new()),
            report,
            folder: folder.map(|folder| folder.display().to_string()),
            reports: reports as u32,
        })
    }

    /// Where a model's worker writes its log.
    ///
    /// # Errors
    /// `unknown_model` for a model that nobody asked for.
    pub fn log_file(&self, name: &str) -> Result<PathBuf, AdminErrorBody> {
        let slot = self.known_slot(name);
        slot.map(|slot| slot.log_file.clone()).ok_or_else(|| {
            admin_error(
                "unknown_model",
                format!(
                    "{name} was not started since mlxd was, so it has no log; see `mlxctl status`"
                ),
            )
        })
    }

    /// Whether a request sent now would be taken.
    pub fn readiness(&self) -> Readiness {
        if self.0.shutting_down.load(Ordering::Relaxed) {
            return Readiness { ready: false, reason: "shutting down".into() };
        }
        let fatal: Vec<_> = locked(&self.0.slots)
            .iter()
            .filter(|(_, slot)| slot.worker.view().state == WorkerState::Fatal)
            .map(|(id, _)| id.to_string())
            .collect();
        let reason = match fatal.is_empty() {
            true => "requests are taken".into(),
            false => format!("requests are taken, but not for {} (FATAL)", fatal.join(", ")),
        };
        Readiness { ready: true, reason }
    }

    /// Dispatch's families.
    pub fn metrics(&self) -> Arc<Metrics> {
        self.0.metrics.clone()
    }

    /// Brings the gauges up to date and gives all families in the text format.
    pub async fn encode_metrics(&self) -> String {
        let status = self.status().await;
        self.0.metrics.observe(&status);
        self.0.metrics.encode()
    }

    /// Takes no further sequence.
    pub fn refuse_new(&self) {
        self.0.shutting_down.store(true, Ordering::Relaxed);
    }

    /// Ends every open sequence with this failure.
    pub fn fail_all(&self, failure: &Failure) {
        self.0.admission.fail_waiting(None, failure);
        let slots: Vec<_> = locked(&self.0.slots).values().cloned().collect();
        slots.iter().for_each(|slot| slot.inbox.fail_all(failure.clone()));
    }

    /// Sequences open over all models.
    pub fn open_sequences(&self) -> usize {
        locked(&self.0.slots).values().map(|slot| slot.stats.open()).sum()
    }

    /// Stops every worker in order: each finishes what runs, within its own limits.
    pub async fn stop_all(&self) {
        self.refuse_new();
        let slots: Vec<_> = locked(&self.0.slots).values().cloned().collect();
        let stops = slots.iter().map(|slot| slot.worker.stop());
        futures_util::future::join_all(stops).await;
    }
}

/// The status of a model that is configured and was not asked for yet.
fn never_asked_for(name: String) -> ModelStatus {
    ModelStatus {
        name,
        groups: Vec::new(),
        state: WorkerState::Stopped,
        reason: None,
        pid: None,
        uptime_s: None,
        load_progress: None,
        memory_bytes: None,
        phase: None,
        requests_total: 0,
        tokens_total: 0,
        running: 0,
        queued: 0,
        preemptions: 0,
        tokens_per_s: 0.0,
        deaths: 0,
        residence: Residence::default(),
        architecture: None,
        quantization: None,
        mlx: None,
        context_tokens: None,
        cache: None,
        guesses: None,
    }
}

/// Resident bytes of the front and of `pids`. Blocks for some milliseconds.
fn resident_bytes(mut pids: Vec<u32>) -> HashMap<u32, u64> {
    pids.push(std::process::id());
    let wanted: Vec<_> = pids.iter().map(|pid| Pid::from_u32(*pid)).collect();
    let Ok(mut system) = System::new() else {
        return HashMap::new();
    };
    let kind = ProcessRefreshKind::nothing().with_memory();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&wanted), false, kind);
    let bytes = |pid: &Pid| system.process(*pid).map(|process| (pid.as_u32(), process.memory()));
    wanted.iter().filter_map(bytes).collect()
}

/// All but what admission knows.
fn worker_status(id: &ModelId, slot: &Slot, memory: &HashMap<u32, u64>) -> ModelStatus {
    let view: WorkerView = slot.worker.view();
    let progress = view.progress();
    let page = |read: fn(&mlxd_ring::Progress) -> u64| progress.as_ref().map_or(0, read);
    let running = page(|p| p.sequences_running) as u32;
    let idle = running == 0;
    ModelStatus {
        name: id.to_string(),
        groups: Vec::new(),
        state: view.state,
        reason: view.reason.clone(),
        pid: view.pid,
        uptime_s: view.since.map(|since| since.elapsed().as_secs()),
        load_progress: view.load_fraction(),
        memory_bytes: view.pid.and_then(|pid| memory.get(&pid).copied()),
        phase: view.phase().map(|phase| phase.name().to_owned()),
        requests_total: slot.stats.requests(),
        tokens_total: slot.stats.tokens(),
        running,
        queued: (slot.stats.open() as u32).saturating_sub(running),
        preemptions: page(|p| p.preemptions),
        tokens_per_s: if idle { 0.0 } else { page(|p| p.milli_tokens_per_second) as f32 / 1000.0 },
        deaths: view.deaths,
        residence: Residence::default(),
        architecture: view.info.as_ref().map(|info| info.architecture.clone()),
        quantization: view.info.as_ref().map(|info| info.quantization.clone()),
        mlx: view.info.as_ref().and_then(|info| info.mlx.clone()),
        context_tokens: view.info.as_ref().map(|info| info.context_tokens),
        cache: progress
            .as_ref()
            .filter(|_| view.info.is_some())
            .map(|page| cache::status(&page.kept)),
        guesses: progress.as_ref().filter(|_| view.info.is_some()).map(|page| {
            let Guessed { text, text_right, draft, draft_right } = page.guessed;
            GuessStatus { text, text_right, draft, draft_right }
        }),
    }
}
