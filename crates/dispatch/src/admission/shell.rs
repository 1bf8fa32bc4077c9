//! Performs what [`Books`] decide, and looks at the machine.

use super::account::{Account, Stage, Turn};
use super::books::{Act, Books, EngineMemory, Leave, Look, Seen, WorkerMemory};
use super::limits::{Lifetime, MemoryKeeping, MemoryLimits};
use super::words;
use crate::journal::{End, Failure, Journal};
use crate::link::Inbox;
use crate::metrics::{Metrics, ModelStats};
use mlxd_memory::{Level, Machine, MeasuredFile, Needs, Pressure};
use mlxd_protocol::admin::{DeathCause, Happening};
use mlxd_protocol::{ModelId, RequestId};
use mlxd_supervisor::{EventLog, Gate, Worker, WorkerView};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{Notify, oneshot};

/// A model's tasks, as far as admission has to do with them.
#[derive(Clone)]
pub(crate) struct Handle {
    pub worker: Worker,
    pub inbox: Inbox,
    pub stats: Arc<ModelStats>,
}

struct Shared {
    books: Mutex<Books>,
    handles: Mutex<HashMap<ModelId, Handle>>,
    machine: Arc<dyn Machine>,
    measured: Arc<Mutex<MeasuredFile>>,
    pressure: Mutex<Pressure>,
    began: Instant,
    /// Rung when a look at the machine should not wait.
    look_now: Notify,
    metrics: Arc<Metrics>,
    events: EventLog,
    runtime: tokio::runtime::Handle,
}

/// Lets sequences in. Clones share it.
#[derive(Clone)]
pub(crate) struct Admission(Arc<Shared>);

/// A model is in use while this lives.
pub(crate) struct Guest {
    admission: Admission,
    model: ModelId,
    /// Promised for it.
    bytes: u64,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut books = locked(&self.admission.0.books);
        let acts = books.guest_goes(&self.model, self.bytes, Instant::now());
        drop(books);
        self.admission.perform(acts);
    }
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Admission")
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Admission {
    /// Must be called on the runtime that runs the workers' tasks.
    pub(crate) fn new(keeping: MemoryKeeping, metrics: Arc<Metrics>, events: EventLog) -> Self {
        let memory = keeping.machine.memory();
        if let Err(error) = &memory {
            tracing::warn!(%error, "the machine's memory cannot be read");
        }
        let pressure = Pressure::new(keeping.limits.pressure.clone());
        let (file, problem) = MeasuredFile::open(keeping.measured);
        if let Some(problem) = problem {
            tracing::warn!("measured memory is forgotten: {problem}");
        }
        let this = Self(Arc::new(Shared {
            books: Mutex::new(Books::new(keeping.limits, memory.ok())),
            handles: Mutex::default(),
            machine: keeping.machine,
            measured: Arc::new(Mutex::new(file)),
            pressure: Mutex::new(pressure),
            began: Instant::now(),
            look_now: Notify::new(),
            metrics,
            events,
            runtime: tokio::runtime::Handle::current(),
        }));
        tokio::spawn(this.clone().watch_machine());
        this
    }

    /// Other limits from now on, those of processes that run included.
    pub(crate) fn set_limits(&self, limits: MemoryLimits) {
        locked(&self.0.pressure).set_thresholds(limits.pressure.clone());
        let mut books = locked(&self.0.books);
        let recontain = books.limits.overrun_percent != limits.overrun_percent;
        books.set_limits(limits);
        for (model, account) in books.accounts.iter().filter(|_| recontain) {
            if let (Stage::Alive { pid }, true) = (account.stage, is_contained(account)) {
                self.0.machine.contain(pid, books.containment(model));
            }
        }
        drop(books);
        self.0.look_now.notify_one();
    }

    /// Runs `with` on the books.
    pub(crate) fn read<T>(&self, with: impl FnOnce(&Books) -> T) -> T {
        with(&locked(&self.0.books))
    }

    /// A model that may be asked for, or how it is run from now on.
    pub(crate) fn register(&self, model: &ModelId, needs: Needs, lifetime: Lifetime) {
        let mut books = locked(&self.0.books);
        books.register(model, needs, lifetime, Instant::now());
        let file = locked(&self.0.measured);
        let known = file.latest(model.as_str(), env!("CARGO_PKG_VERSION"));
        if let (Some((key, measured)), Some(account)) = (known, books.accounts.get_mut(model))
            && account.key.is_none()
        {
            (account.key, account.measured) = (Some(key.clone()), measured.clone());
        }
    }

    /// Makes a model's tasks known. Once per model.
    pub(crate) fn attach(&self, model: &ModelId, handle: Handle) {
        let mut view = handle.worker.watch();
        locked(&self.0.handles).insert(model.clone(), handle);
        let (this, model) = (self.clone(), model.clone());
        self.0.runtime.spawn(async move {
            while view.changed().await.is_ok() {
                let seen = Seen::of(&view.borrow_and_update());
                this.saw(&model, &seen);
            }
        });
    }

    fn saw(&self, model: &ModelId, seen: &Seen) {
        let acts = locked(&self.0.books).saw(model, seen, Instant::now());
        self.perform(acts);
        if seen.info.is_some() {
            self.contain(model);
        }
        self.0.look_now.notify_one();
    }

    /// Takes a sequence that is counted as open already.
    pub(crate) fn ask(&self, model: &ModelId, journal: Arc<Journal>) -> Result<(), Failure> {
        let request = journal.request;
        let left = journal.time_left(Instant::now());
        self.take(model, Turn::Sequence(journal))?;
        if let Some(left) = left
            && self.read(|books| books.waits(model, request))
        {
            // The next look ends it, if it still waits then.
            let this = self.clone();
            self.0.runtime.spawn(async move {
                tokio::time::sleep(left).await;
                this.0.look_now.notify_one();
            });
        }
        Ok(())
    }

    fn take(&self, model: &ModelId, turn: Turn) -> Result<(), Failure> {
        let asked = locked(&self.0.books).ask(model, turn, Instant::now());
        let acts = asked.inspect_err(|failure| self.0.metrics.refused_memory(model, failure))?;
        self.perform(acts);
        Ok(())
    }

    /// Waits for the model's promise, for an admin who wants it loaded.
    pub(crate) async fn admit(&self, model: &ModelId) -> Result<(), Failure> {
        let (reply, answer) = oneshot::channel();
        self.take(model, Turn::Start(reply))?;
        answer.await.unwrap_or_else(|_| {
            Err(Failure {
                code: "shutting_down",
                message: "mlxd is shutting down".into(),
                retry: true,
            })
        })
    }

    /// A sequence ended and its pump forgot it.
    pub(crate) fn ended(&self, model: &ModelId, request: RequestId) {
        let acts = locked(&self.0.books).ended(model, request, Instant::now());
        self.perform(acts);
    }

    /// A reader is gone whose sequence the pump does not know.
    pub(crate) fn cancel(&self, model: &ModelId, request: RequestId) {
        let acts = locked(&self.0.books).cancel(model, request);
        self.perform(acts);
    }

    /// Ends everybody who waits for `model`, or for any.
    pub(crate) fn fail_waiting(&self, model: Option<&ModelId>, failure: &Failure) {
        let acts = locked(&self.0.books).fail_waiting(model, failure);
        self.perform(acts);
    }

    /// An admin stops the model: nobody is let in until it is gone. That goes on when the caller
    /// does not wait for it.
    pub(crate) async fn stop(&self, model: &ModelId) {
        locked(&self.0.books).leave(model);
        self.fail_waiting(Some(model), &words::stopped(model));
        if let Some(handle) = self.handle(model) {
            let (this, model) = (self.clone(), model.clone());
            let gone = self.0.runtime.spawn(async move { this.see_off(&model, &handle).await });
            // It does not panic, and is never aborted.
            let _ = gone.await;
        }
    }

    /// Ends the model's worker, and waits until it is gone.
    async fn see_off(&self, model: &ModelId, handle: &Handle) {
        handle.worker.stop().await;
        let seen = Seen::of(&handle.worker.view());
        let acts = locked(&self.0.books).left(model, &seen, Instant::now());
        self.perform(acts);
        self.0.look_now.notify_one();
    }

    /// Keeps the model loaded, with memory for sequences of `tokens`, while a direct run of its
    /// engine goes on.
    pub(crate) fn guest(&self, model: &ModelId, tokens: u64) -> Result<Guest, Failure> {
        let bytes = locked(&self.0.books).guest_comes(model, tokens, Instant::now())?;
        self.contain(model);
        Ok(Guest { admission: self.clone(), model: model.clone(), bytes })
    }

    /// Keeps a model loaded, or does so no longer.
    pub(crate) fn pin(&self, model: &ModelId, pinned: bool) {
        let acts = locked(&self.0.books).pin(model, pinned, Instant::now());
        self.perform(acts);
    }

    fn perform(&self, acts: Vec<Act>) {
        for act in acts {
            self.perform_one(act);
        }
    }

    fn handle(&self, model: &ModelId) -> Option<Handle> {
        locked(&self.0.handles).get(model).cloned()
    }

    fn perform_one(&self, act: Act) {
        match act {
            Act::Submit(model, journal) => {
                self.contain(&model);
                let handle = self.handle(&model);
                if !handle.is_some_and(|handle| handle.inbox.submit(journal.clone())) {
                    let message = "the model's task has ended; mlxd is shutting down".into();
                    let failure = Failure { code: "shutting_down", message, retry: true };
                    self.fail(&model, &journal, failure);
                }
            }
            Act::Start(reply) => drop(reply.send(Ok(()))),
            Act::Refuse(reply, failure) => drop(reply.send(Err(failure))),
            Act::Fail(model, journal, failure) => self.fail(&model, &journal, failure),
            Act::Forget(model) => {
                if let Some(handle) = self.handle(&model) {
                    handle.stats.closed();
                    self.0.metrics.ended(&model, "cancelled");
                }
            }
            Act::Cancel(model, request) => {
                if let Some(handle) = self.handle(&model) {
                    handle.inbox.cancel(request);
                }
            }
            Act::Trim(model) => {
                if let Some(handle) = self.handle(&model) {
                    handle.worker.trim();
                }
            }
            Act::Unload(model, reason) => self.unload(model, &reason),
            Act::Condemn(model, why) => {
                let handle = self.handle(&model);
                let of_life = handle.and_then(|h| Some((h.worker.view().incarnation?, h.worker)));
                if let Some((incarnation, worker)) = of_life {
                    worker.condemn(incarnation, DeathCause::Condemned { why });
                }
            }
        }
    }

    fn fail(&self, model: &ModelId, journal: &Arc<Journal>, failure: Failure) {
        self.0.metrics.refused_memory(model, &failure);
        let end = End::Failed(failure);
        journal.finish(end.clone());
        if let Some(handle) = self.handle(model) {
            handle.stats.closed();
            self.0.metrics.finished(model, journal, &end, Instant::now());
        }
    }

    fn unload(&self, model: ModelId, leave: &Leave) {
        let Some(handle) = self.handle(&model) else { return };
        self.0.metrics.unloaded(&model, leave.label());
        let reason = leave.words();
        tracing::info!(%model, reason, "unloading");
        self.0.events.push(Some(model.as_str()), Happening::Unloading { reason });
        let this = self.clone();
        self.0.runtime.spawn(async move { this.see_off(&model, &handle).await });
    }

    /// Looks at machine and workers, and acts on what it finds, for as long as the front lives.
    async fn watch_machine(self) {
        loop {
            let interval = self.read(|books| books.limits.look_interval);
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                () = self.0.look_now.notified() => {}
            }
            self.look().await;
        }
    }

    async fn look(&self) {
        let handles: Vec<Handle> = locked(&self.0.handles).values().cloned().collect();
        let workers: Vec<(u32, EngineMemory)> = handles.iter().filter_map(worker_figures).collect();
        let machine = self.0.machine.clone();
        let found = tokio::task::spawn_blocking(move || {
            let memory = |(pid, engine)| {
                let footprint = machine.footprint(pid)?;
                Some((pid, WorkerMemory { footprint, engine }))
            };
            let workers: HashMap<u32, WorkerMemory> =
                workers.into_iter().filter_map(memory).collect();
            (machine.look(), workers)
        });
        let Ok(((memory, reading), workers)) = found.await else { return };
        let (before, level) = {
            let mut pressure = locked(&self.0.pressure);
            (pressure.level(), pressure.read(&reading, self.0.began.elapsed()))
        };
        if level != before {
            self.tell_pressure(level);
        }
        let look = Look { memory, level, workers };
        let (acts, news) = locked(&self.0.books).look(&look, Instant::now());
        self.perform(acts);
        if news.is_empty() {
            return;
        }
        let unix_s =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let measured = self.0.measured.clone();
        let saved = tokio::task::spawn_blocking(move || {
            let mut file = locked(&measured);
            for (key, of_it) in news {
                file.put(key, of_it, unix_s);
            }
            file.save()
        });
        if let Ok(Err(error)) = saved.await {
            tracing::warn!(%error, "measured memory could not be written");
        }
    }

    fn tell_pressure(&self, level: Level) {
        tracing::warn!(level = level.name(), "memory pressure");
        self.0.events.push(None, Happening::MemoryPressure { level: level.name().to_owned() });
    }

    /// Tells the system, and the engine, how much the model's worker may take at the most.
    fn contain(&self, model: &ModelId) {
        let new = locked(&self.0.books).new_limit(model);
        if let (Some(bytes), Some(handle)) = (new, self.handle(model)) {
            handle.worker.limit_memory(bytes);
        }
        let books = locked(&self.0.books);
        let Some(account) = books.accounts.get(model) else { return };
        if let (Stage::Alive { pid }, Some(bytes)) =
            (account.stage, limit_of(&books, model, account))
        {
            self.0.machine.contain(pid, Some(bytes));
        }
    }
}

fn limit_of(books: &Books, model: &ModelId, account: &Account) -> Option<u64> {
    books.containment(model).filter(|_| is_contained(account))
}

/// Whether the worker's memory is the system's to count and to limit: a GPU's driver maps far more
/// than it uses.
fn is_contained(account: &Account) -> bool {
    account.needs.form == mlxd_memory::Form::Float32
}

/// A worker's process, and what its engine says of its memory.
fn worker_figures(handle: &Handle) -> Option<(u32, EngineMemory)> {
    let view = handle.worker.view();
    let engine = view.progress().map_or(EngineMemory::default(), |progress| EngineMemory {
        active: progress.memory_active_bytes,
        peak: progress.memory_peak_bytes,
        cache: progress.memory_cache_bytes,
        prefixes: progress.kept.bytes,
    });
    Some((view.pid?, engine))
}

impl Seen {
    fn of(view: &WorkerView) -> Self {
        Self { state: view.state, pid: view.pid, info: view.info.clone() }
    }
}

impl Gate for Admission {
    fn may_spawn(&self, model: &ModelId) -> Result<(), String> {
        let memory = self.0.machine.memory().ok();
        let allowed = locked(&self.0.books).may_spawn(model, memory);
        if let Err(why) = &allowed {
            tracing::warn!(%model, why, "no worker is started");
            self.0.events.push(Some(model.as_str()), Happening::NoRoom { reason: why.clone() });
        }
        allowed
    }

    fn spawned(&self, model: &ModelId, pid: u32) {
        let books = locked(&self.0.books);
        let account = books.accounts.get(model);
        if let Some(bytes) = account.and_then(|account| limit_of(&books, model, account)) {
            self.0.machine.contain(pid, Some(bytes));
        }
    }

    fn gone(&self, _model: &ModelId, pid: u32) {
        self.0.machine.release(pid);
    }
}
