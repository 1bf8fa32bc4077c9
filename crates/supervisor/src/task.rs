//! The shell around [`Life`]: one task per model owns its process and performs the actions.

use crate::crash::{After, Record};
use crate::life::{Action, Event, Life};
use crate::spawn::{self, Control, Spawned};
use crate::{EventLog, Gate, WorkerSpec};
use ipc_channel::ipc::IpcSender;
use mlxd_protocol::admin::{CrashReport, DeathCause, Deed, Happening, SignalName, WorkerState};

use mlxd_protocol::{
    BenchLeg, BenchSpec, Cleared, FromWorker, Hello, Incarnation, LoadFaultKind, ModelInfo,
    PROTOCOL_VERSION, Phase, ToWorker, exit_code,
};
use mlxd_ring::{Progress, ProgressReader, Reader, Writer};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::process::Child;
use tokio::sync::{mpsc, oneshot, watch};

/// Calls waiting for a task at the most.
const ASKS_MAX: usize = 256;
/// How long a dead worker's last control messages are waited for.
const LAST_WORDS: Duration = Duration::from_secs(2);

static NEXT_INCARNATION: AtomicU64 = AtomicU64::new(1);

/// What a task tells whoever routes requests.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // Seldom sent, once per life of a worker.
pub enum Notice {
    /// The model takes requests over this link.
    Up {
        /// Which life.
        incarnation: Incarnation,
        /// What was loaded.
        info: ModelInfo,
        /// To the worker.
        commands: Writer,
        /// From the worker.
        tokens: Reader,
    },
    /// The life is over. Records published before are still in the ring.
    Down(Down),
    /// No life will come until somebody starts one.
    GivenUp {
        /// Why, for the client. `None`: somebody stopped it.
        reason: Option<String>,
    },
}

/// A life that is over.
#[derive(Debug)]
pub struct Down {
    /// Which life.
    pub incarnation: Incarnation,
    /// In words.
    pub how: String,
    /// An admin, or the front's own end, wanted it down and nothing comes after it.
    pub stopped: bool,
    /// What is known of a death; `None` for an end that was asked for.
    pub report: Option<Box<CrashReport>>,
}

/// What is known of a worker now. Cheap to copy, always current.
#[derive(Debug, Clone)]
pub struct WorkerView {
    /// Supervisor's state name.
    pub state: WorkerState,
    /// Why, for BACKOFF, EXITED and FATAL.
    pub reason: Option<String>,
    /// The process.
    pub pid: Option<u32>,
    /// When it was spawned.
    pub since: Option<Instant>,
    /// Which life.
    pub incarnation: Option<Incarnation>,
    /// What is loaded.
    pub info: Option<ModelInfo>,
    /// Deaths so far.
    pub deaths: u32,
    progress: Option<ProgressReader>,
}

impl WorkerView {
    /// What the worker writes to its progress page.
    pub fn progress(&self) -> Option<Progress> {
        self.progress.as_ref().map(ProgressReader::snapshot)
    }

    /// The phase on that page.
    pub fn phase(&self) -> Option<Phase> {
        self.progress().and_then(|progress| Phase::from_word(progress.phase))
    }

    /// 0 to 1 while loading.
    pub fn load_fraction(&self) -> Option<f32> {
        let progress = self.progress().filter(|_| self.state == WorkerState::Starting)?;
        let total = progress.load_total.max(1) as f32;
        Some((progress.load_done as f32 / total).min(1.0))
    }

    /// Whether a process is there.
    pub fn is_alive(&self) -> bool {
        self.pid.is_some()
    }
}

enum Ask {
    Event(Event, Option<oneshot::Sender<()>>),
    Condemn(Incarnation, DeathCause),
    Reconfigure(Box<WorkerSpec>),
    Trim,
    ClearCache(oneshot::Sender<Cleared>),
    LimitMemory(u64),
    Bench(BenchSpec, oneshot::Sender<Result<BenchLeg, String>>),
    Signal(SignalName, oneshot::Sender<bool>),
}

/// A handle on one model's task. Clones share it.
#[derive(Debug, Clone)]
pub struct Worker {
    asks: mpsc::Sender<Ask>,
    view: watch::Receiver<WorkerView>,
}

impl Worker {
    /// Starts the task; no process yet. `gate` is asked before each process.
    pub fn new(
        spec: WorkerSpec,
        notices: mpsc::Sender<Notice>,
        events: EventLog,
        gate: std::sync::Arc<dyn Gate>,
    ) -> Self {
        let (asks, asked) = mpsc::channel(ASKS_MAX);
        let life = Life::new(spec.limits.clone(), fastrand::u64(..));
        let (publish, view) = watch::channel(WorkerView {
            state: life.state(),
            reason: None,
            pid: None,
            since: None,
            incarnation: None,
            info: None,
            deaths: 0,
            progress: None,
        });
        let task = Task {
            spec,
            life,
            asked,
            notices,
            events,
            gate,
            publish,
            alive: None,
            bench: None,
            clears: VecDeque::new(),
        };
        tokio::spawn(task.run());
        Self { asks, view }
    }

    /// What is known now.
    pub fn view(&self) -> WorkerView {
        self.view.borrow().clone()
    }

    /// What is known, for whoever waits for changes.
    pub fn watch(&self) -> watch::Receiver<WorkerView> {
        self.view.clone()
    }

    /// A request wants the model. Does not wait.
    pub fn demand(&self) {
        // A full channel already holds what will wake the worker or end it.
        let _ = self.asks.try_send(Ask::Event(Event::Demand, None));
    }

    /// Starts it and waits until it runs.
    ///
    /// # Errors
    /// Why it does not, in words.
    pub async fn start(&self) -> Result<(), String> {
        self.tell(Event::Start).await;
        self.settled_up().await
    }

    /// Stops it, and waits until the process is gone.
    pub async fn stop(&self) {
        let before = self.view().incarnation;
        self.tell(Event::Stop).await;
        let Some(stopped) = before.or(self.view().incarnation) else { return };
        let mut view = self.view.clone();
        // A request may have asked for the next one already.
        let is_gone = |view: &WorkerView| {
            view.incarnation != Some(stopped) && view.state != WorkerState::Stopping
        };
        let _ = view.wait_for(is_gone).await;
    }

    /// Stops it and starts it, and waits until it runs.
    ///
    /// # Errors
    /// Why it does not, in words.
    pub async fn restart(&self) -> Result<(), String> {
        self.tell(Event::Restart).await;
        self.settled_up().await
    }

    /// Ends a life that broke the protocol. Ignored when it is over already.
    pub fn condemn(&self, incarnation: Incarnation, cause: DeathCause) {
        let _ = self.asks.try_send(Ask::Condemn(incarnation, cause));
    }

    /// The next life is run as `spec` says; this one goes on as it is.
    pub fn reconfigure(&self, spec: WorkerSpec) {
        let _ = self.asks.try_send(Ask::Reconfigure(Box::new(spec)));
    }

    /// The worker is to give back what it only keeps for reuse. Does not wait.
    pub fn trim(&self) {
        let _ = self.asks.try_send(Ask::Trim);
    }

    /// The worker is to drop what it keeps for prompts that begin alike. `None` when there is no
    /// worker, or none any more.
    pub async fn clear_cache(&self) -> Option<Cleared> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(Ask::ClearCache(reply)).await.ok()?;
        answer.await.ok()
    }

    /// The worker's engine may take so many bytes. Does not wait.
    pub fn limit_memory(&self, bytes: u64) {
        let _ = self.asks.try_send(Ask::LimitMemory(bytes));
    }

    /// Runs the engine directly inside the worker.
    ///
    /// # Errors
    /// Why it did not run.
    pub async fn bench(&self, spec: BenchSpec) -> Result<BenchLeg, String> {
        let (reply, answer) = oneshot::channel();
        let gone = || "the worker's task has ended".to_owned();
        self.asks.send(Ask::Bench(spec, reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| "the worker ended during the run".to_owned())?
    }

    /// Sends the process a signal. `false` when there is none.
    pub async fn signal(&self, signal: SignalName) -> bool {
        let (reply, sent) = oneshot::channel();
        let asked = self.asks.send(Ask::Signal(signal, reply)).await;
        asked.is_ok() && sent.await.unwrap_or(false)
    }

    async fn tell(&self, event: Event) {
        let (done, taken) = oneshot::channel();
        if self.asks.send(Ask::Event(event, Some(done))).await.is_ok() {
            let _ = taken.await;
        }
    }

    async fn settled_up(&self) -> Result<(), String> {
        use WorkerState::{Backoff, Exited, Fatal, Running, Stopped};
        let mut view = self.view.clone();
        let settled =
            |view: &WorkerView| matches!(view.state, Running | Backoff | Fatal | Stopped | Exited);
        match view.wait_for(settled).await {
            Ok(view) if view.state == Running => Ok(()),
            Ok(view) => {
                let why = view.reason.clone();
                Err(why.unwrap_or_else(|| "it was stopped meanwhile".to_owned()))
            }
            Err(_) => Err("the front is shutting down".to_owned()),
        }
    }
}

/// A process and what belongs to its life.
struct Alive {
    incarnation: Incarnation,
    child: Child,
    pid: u32,
    control: mpsc::Receiver<Control>,
    to_worker: Option<IpcSender<ToWorker>>,
    server_name: String,
    link: Option<(Writer, Reader)>,
    segment_name: mlxd_ring::SegmentName,
    info: Option<ModelInfo>,
    record: Record,
}

struct Task {
    spec: WorkerSpec,
    life: Life,
    asked: mpsc::Receiver<Ask>,
    notices: mpsc::Sender<Notice>,
    events: EventLog,
    gate: std::sync::Arc<dyn Gate>,
    publish: watch::Sender<WorkerView>,
    alive: Option<Alive>,
    bench: Option<oneshot::Sender<Result<BenchLeg, String>>>,
    /// Who waits for the worker to have dropped what it keeps, in the order of asking.
    clears: VecDeque<oneshot::Sender<Cleared>>,
}

/// What the task wakes up for.
enum Wake {
    Ask(Option<Ask>),
    Control(Control),
    Exit(std::io::Result<ExitStatus>),
    Timer,
    Watch,
}

impl Task {
    async fn run(mut self) {
        loop {
            match self.wait().await {
                Wake::Ask(None) => return, // Every handle is gone; the child dies with `alive`.
                Wake::Ask(Some(Ask::Event(event, done))) => {
                    self.step(event).await;
                    if let Some(done) = done {
                        let _ = done.send(());
                    }
                }
                Wake::Ask(Some(Ask::Condemn(incarnation, cause))) => {
                    if self.alive.as_ref().is_some_and(|alive| alive.incarnation == incarnation) {
                        self.condemn(cause).await;
                    }
                }
                Wake::Ask(Some(Ask::Reconfigure(spec))) => {
                    self.life.set_limits(spec.limits.clone());
                    self.spec = *spec;
                }
                Wake::Ask(Some(Ask::Trim)) => self.send(ToWorker::Trim),
                // Nobody to ask: the reply's end says so.
                Wake::Ask(Some(Ask::ClearCache(reply))) => {
                    if self.life.state() == WorkerState::Running {
                        self.clears.push_back(reply);
                        self.send(ToWorker::ClearCache);
                    }
                }
                Wake::Ask(Some(Ask::LimitMemory(bytes))) => self.send(ToWorker::MemoryLimit(bytes)),
                Wake::Ask(Some(Ask::Bench(spec, reply))) => self.start_bench(spec, reply),
                // Here the process was not waited for yet, so its number is still its own.
                Wake::Ask(Some(Ask::Signal(signal, reply))) => {
                    if let Some(alive) = self.alive.as_mut() {
                        let signal = system_signal(signal).to_string();
                        alive.record.deeds.push(Deed::Passed { signal });
                    }
                    let _ = reply.send(self.signal(system_signal(signal)));
                }
                Wake::Control(control) => self.hear(control).await,
                Wake::Exit(status) => self.bury(status).await,
                Wake::Timer => self.step(Event::TimerFired).await,
                Wake::Watch => self.watch().await,
            }
        }
    }

    async fn wait(&mut self) -> Wake {
        let deadline = self.life.deadline();
        let timer = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        let running = self.life.state() == WorkerState::Running;
        let Some(alive) = self.alive.as_mut() else {
            return tokio::select! {
                ask = self.asked.recv() => Wake::Ask(ask),
                () = timer => Wake::Timer,
            };
        };
        tokio::select! {
            biased;
            Some(control) = alive.control.recv() => Wake::Control(control),
            status = alive.child.wait() => Wake::Exit(status),
            ask = self.asked.recv() => Wake::Ask(ask),
            () = timer => Wake::Timer,
            () = tokio::time::sleep(self.spec.limits.watch_interval), if running => Wake::Watch,
        }
    }

    /// Looks at the progress page: a worker whose last step is too long ago for its phase is hung.
    async fn watch(&mut self) {
        let Some(progress) = self.publish.borrow().progress() else {
            return;
        };
        if let Some(alive) = self.alive.as_mut() {
            alive.record.sample(&progress);
        }
        let limits = &self.spec.limits;
        let (limit, key) = match Phase::from_word(progress.phase) {
            Some(Phase::Prefill) => (limits.prefill_hang, "workers.prefill_hang_ms"),
            Some(Phase::Decode) => (limits.decode_hang, "workers.decode_hang_ms"),
            _ => return,
        };
        let since = progress.last_step_ns.max(progress.phase_since_ns);
        let still = Duration::from_nanos(mlxd_ring::monotonic_ns().saturating_sub(since));
        if still > limit {
            self.condemn(DeathCause::Hang {
                still_ms: still.as_millis() as u64,
                limit_ms: limit.as_millis() as u64,
                key: key.to_owned(),
            })
            .await;
        }
    }

    /// Ends a life that hung or broke the protocol.
    async fn condemn(&mut self, cause: DeathCause) {
        let why = match &cause {
            DeathCause::Hang { still_ms, limit_ms, key } => {
                format!("it hung: it stood still for {still_ms} ms ({key} = {limit_ms})")
            }
            DeathCause::Condemned { why } => why.clone(),
            DeathCause::Overdue { why } => why.clone(),
            DeathCause::Itself => "it died".to_owned(),
        };
        tracing::error!(model = %self.spec.model, why, "worker condemned");
        if let Some(alive) = self.alive.as_mut() {
            alive.record.cause = Some(cause);
        }
        self.step(Event::Condemned(why)).await;
    }

    /// Steps the state machine and performs what it says, and what follows from that.
    async fn step(&mut self, event: Event) {
        let actions = self.advance(event);
        self.perform_all(actions).await;
    }

    /// Steps the state machine and tells of a change of state.
    fn advance(&mut self, event: Event) -> Vec<Action> {
        let before = self.life.state();
        let actions = self.life.step(event, Instant::now());
        let state = self.life.state();
        if state != before {
            let reason = self.life.reason().unwrap_or_default();
            tracing::info!(model = %self.spec.model, from = before.name(), to = state.name(), reason, "worker state");
            let reason = self.life.reason().map(str::to_owned);
            self.happened(Happening::WorkerState { from: before, to: state, reason });
        }
        actions
    }

    async fn perform_all(&mut self, actions: Vec<Action>) {
        let mut actions = std::collections::VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            if let Some(event) = self.perform(action).await {
                actions.extend(self.advance(event));
            }
        }
        self.announce_view();
    }

    async fn perform(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Spawn => return Some(self.spawn()),
            Action::Drain => self.send(ToWorker::Drain),
            Action::Terminate => self.end_by(Signal::SIGTERM),
            Action::Kill => self.end_by(Signal::SIGKILL),
            Action::AnnounceUp => {
                if let Some(alive) = self.alive.as_mut()
                    && let (Some((commands, tokens)), Some(info)) = (alive.link.take(), &alive.info)
                {
                    let (incarnation, info) = (alive.incarnation, info.clone());
                    self.notify(Notice::Up { incarnation, info, commands, tokens }).await;
                }
            }
            Action::AnnounceDown => {} // `bury` does, with the incarnation at hand.
            Action::AnnounceGivenUp => {
                let reason = self.life.reason().map(str::to_owned);
                self.notify(Notice::GivenUp { reason }).await;
            }
        }
        None
    }

    fn end_by(&mut self, signal: Signal) {
        if let Some(alive) = self.alive.as_mut() {
            alive.record.deeds.push(Deed::Signalled { signal: signal.to_string() });
        }
        self.signal(signal);
    }

    async fn notify(&self, notice: Notice) {
        let _ = self.notices.send(notice).await;
    }

    fn spawn(&mut self) -> Event {
        if let Err(why) = self.gate.may_spawn(&self.spec.model) {
            return Event::NoRoom(why);
        }
        let incarnation = Incarnation(NEXT_INCARNATION.fetch_add(1, Ordering::Relaxed));
        match spawn::spawn(&self.spec, incarnation) {
            Ok(Spawned { child, link, control, server_name, tail }) => {
                let pid = child.id().unwrap_or_default();
                self.gate.spawned(&self.spec.model, pid);
                tracing::info!(model = %self.spec.model, %incarnation, pid, "worker spawned");
                self.happened(Happening::WorkerSpawned { pid });
                self.publish.send_modify(|view| {
                    view.pid = Some(pid);
                    view.since = Some(Instant::now());
                    view.incarnation = Some(incarnation);
                    view.progress = Some(link.progress);
                });
                self.alive = Some(Alive {
                    incarnation,
                    child,
                    pid,
                    control,
                    to_worker: None,
                    server_name,
                    link: Some((link.commands, link.tokens)),
                    segment_name: link.name,
                    info: None,
                    record: Record::new(tail),
                });
                Event::Spawned
            }
            Err(error) => Event::SpawnFailed(error.to_string()),
        }
    }

    async fn hear(&mut self, control: Control) {
        let Some(alive) = self.alive.as_mut() else {
            return;
        };
        match control {
            Control::Connected(sender) => {
                alive.to_worker = Some(sender);
                // The worker attached before it connected: nothing needs the name any more.
                alive.segment_name.unlink();
            }
            Control::Said(FromWorker::Hello(hello)) => match check_hello(&hello, alive) {
                Ok(()) => {
                    alive.record.worker_version = Some(hello.version);
                    self.send(ToWorker::Load(self.spec.load.clone()));
                    self.step(Event::Greeted).await;
                }
                Err(why) => self.condemn(DeathCause::Condemned { why }).await,
            },
            Control::Said(FromWorker::Ready(info)) => {
                alive.info = Some(info);
                self.step(Event::Ready).await;
            }
            Control::Said(FromWorker::LoadFailed(fault)) => match fault.kind {
                LoadFaultKind::Engine => {
                    self.condemn(DeathCause::Condemned { why: fault.message }).await;
                }
                _ => self.step(Event::LoadRefused(fault.message)).await,
            },
            Control::Said(FromWorker::Drained) => self.send(ToWorker::Shutdown),
            Control::Said(FromWorker::CacheCleared(cleared)) => {
                if let Some(reply) = self.clears.pop_front() {
                    let _ = reply.send(cleared);
                }
            }
            Control::Said(FromWorker::BenchDone(leg)) => self.end_bench(Ok(leg)),
            Control::Said(FromWorker::BenchFailed(why)) => self.end_bench(Err(why)),
        }
    }

    /// The process has ended: hears its last words, then clears up after it.
    async fn bury(&mut self, status: std::io::Result<ExitStatus>) {
        let Some(alive) = self.alive.as_mut() else {
            return;
        };
        if alive.to_worker.is_none() {
            spawn::release_listener(alive.server_name.clone());
        }
        let until = tokio::time::Instant::now() + LAST_WORDS;
        loop {
            let alive = self.alive.as_mut().expect("only this function takes it");
            match tokio::time::timeout_at(until, alive.control.recv()).await {
                Ok(Some(control)) => self.hear(control).await,
                Ok(None) | Err(_) => break,
            }
        }
        let Some(mut alive) = self.alive.take() else {
            return;
        };
        alive.segment_name.unlink();
        self.gate.gone(&self.spec.model, alive.pid);
        let status = status.ok();
        let (clean, how) = describe_exit(status);
        let incarnation = alive.incarnation;
        tracing::info!(model = %self.spec.model, %incarnation, pid = alive.pid, %how, "worker gone");
        self.happened(Happening::WorkerGone { pid: alive.pid, how: how.clone() });
        self.end_bench(Err(format!("the worker ended during the run: {how}")));
        self.clears.clear();
        let view = self.publish.borrow().clone();
        self.publish.send_modify(|view| {
            view.pid = None;
            view.since = None;
            view.incarnation = None;
            view.progress = None;
            view.info = None;
        });
        let told = self.life.ending().unwrap_or(&how).to_owned();
        if let (None, Some(why)) = (&alive.record.cause, self.life.fault()) {
            alive.record.cause = Some(DeathCause::Overdue { why: why.to_owned() });
        }
        let stopped = self.life.ends_stopped();
        let asked_for = self.life.ends_as_asked();
        let actions = self.advance(Event::Exited { clean, how });
        let report = (!asked_for).then(|| {
            let after = After {
                state: self.life.state(),
                reason: self.life.reason(),
                delay: self.life.deadline().map(|at| at.saturating_duration_since(Instant::now())),
                deaths: self.life.deaths(),
                deaths_recent: self.life.deaths_recent(),
                deaths_max: self.spec.limits.deaths_max,
            };
            Box::new(alive.record.report(self.spec.model.as_str(), &view, status, after))
        });
        // Down is told before anything that comes next is done, a new life included.
        self.notify(Notice::Down(Down { incarnation, how: told, stopped, report })).await;
        self.perform_all(actions).await;
    }

    fn start_bench(&mut self, spec: BenchSpec, reply: oneshot::Sender<Result<BenchLeg, String>>) {
        if self.life.state() != WorkerState::Running {
            let _ = reply.send(Err("the model is not running".into()));
        } else if self.bench.is_some() {
            let _ = reply.send(Err("another direct run is under way".into()));
        } else {
            self.bench = Some(reply);
            self.send(ToWorker::Bench(spec));
        }
    }

    fn end_bench(&mut self, result: Result<BenchLeg, String>) {
        if let Some(reply) = self.bench.take() {
            let _ = reply.send(result);
        }
    }

    fn send(&self, message: ToWorker) {
        let sender = self.alive.as_ref().and_then(|alive| alive.to_worker.as_ref());
        if let Some(Err(error)) = sender.map(|sender| sender.send(message)) {
            // The exit that explains it is on its way.
            tracing::warn!(model = %self.spec.model, %error, "control message not sent");
        }
    }

    /// Whether there was a process to send it to.
    fn signal(&self, signal: Signal) -> bool {
        let Some(alive) = &self.alive else {
            return false;
        };
        tracing::info!(model = %self.spec.model, pid = alive.pid, %signal, "signal");
        kill(Pid::from_raw(alive.pid as i32), signal).is_ok()
    }

    fn happened(&self, happening: Happening) {
        self.events.push(Some(self.spec.model.as_str()), happening);
    }

    fn announce_view(&self) {
        let (state, reason) = (self.life.state(), self.life.reason().map(str::to_owned));
        let info = self.alive.as_ref().and_then(|alive| alive.info.clone());
        self.publish.send_modify(|view| {
            view.state = state;
            view.reason = reason;
            view.deaths = self.life.deaths();
            view.info = info;
        });
    }
}

fn system_signal(name: SignalName) -> Signal {
    match name {
        SignalName::Term => Signal::SIGTERM,
        SignalName::Int => Signal::SIGINT,
        SignalName::Hup => Signal::SIGHUP,
        SignalName::Quit => Signal::SIGQUIT,
        SignalName::Abrt => Signal::SIGABRT,
        SignalName::Kill => Signal::SIGKILL,
        SignalName::Stop => Signal::SIGSTOP,
        SignalName::Cont => Signal::SIGCONT,
        SignalName::Usr1 => Signal::SIGUSR1,
        SignalName::Usr2 => Signal::SIGUSR2,
    }
}

fn check_hello(hello: &Hello, alive: &Alive) -> Result<(), String> {
    if hello.protocol != PROTOCOL_VERSION {
        return Err(format!(
            "mlxd speaks protocol {PROTOCOL_VERSION} and this mlxd-worker ({}) speaks {}; install both from one build",
            hello.version, hello.protocol
        ));
    }
    if hello.incarnation != alive.incarnation {
        return Err(format!("{} answered for {}", hello.incarnation, alive.incarnation));
    }
    Ok(())
}

fn describe_exit(status: Option<ExitStatus>) -> (bool, String) {
    let Some(status) = status else {
        return (false, "its end could not be read".to_owned());
    };
    if let Some(number) = status.signal() {
        let name = Signal::try_from(number)
            .map_or_else(|_| format!("signal {number}"), |signal| signal.to_string());
        return (false, format!("killed by {name}"));
    }
    let code = status.code().unwrap_or(-1);
    (code == 0, format!("exit code {code} ({})", exit_code::describe(code)))
}
