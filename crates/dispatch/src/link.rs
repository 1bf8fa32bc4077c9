//! One model's pump: the task that owns the link to its worker.
//!
//! Everything about a model's requests comes through one loop: submits and cancels from the
//! responses, notices from the supervisor, records from the tokens ring. The worker never waits
//! on a client: the pump appends to journals and goes on.

use crate::admission::Admission;
use crate::crash::{self, CrashFolder};
use crate::journal::{End, Failure, Journal};
use crate::metrics::{Metrics, ModelStats};
use crate::models::DispatchLimits;
use mlxd_protocol::admin::{CrashReport, DeathCause, Deed, Happening};
use mlxd_protocol::{
    Command, Embed, Embedded, Incarnation, ModelId, Phase, RefusalCode, Report, RequestId, Submit,
    TokenFlags, TokenRecord, kind,
};
use mlxd_ring::{PendingSend, Reader, RingError, SendError, Writer};
use mlxd_supervisor::{Down, EventLog, Notice, Worker};
use std::collections::{HashMap, VecDeque};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

/// Records taken from the ring before other events get their turn.
const RECORDS_PER_TURN: usize = 256;

/// How often overdue sequences are looked for while any is open.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// A deadline is looked at so long after it has passed.
const LOOK_MARGIN: Duration = Duration::from_millis(1);

/// What responses tell a pump.
#[derive(Debug)]
pub(crate) enum Input {
    Submit(Arc<Journal>),
    Cancel(RequestId),
    FailAll(Failure),
}

/// A handle on a pump. Unbounded, but every sequence sends at most one of each input, and the
/// number of sequences is limited where they are taken in.
#[derive(Debug, Clone)]
pub(crate) struct Inbox(mpsc::UnboundedSender<Input>);

impl Inbox {
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<Input>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), receiver)
    }

    /// False when the pump has ended.
    pub(crate) fn submit(&self, journal: Arc<Journal>) -> bool {
        self.0.send(Input::Submit(journal)).is_ok()
    }

    pub(crate) fn fail_all(&self, failure: Failure) {
        let _ = self.0.send(Input::FailAll(failure));
    }

    pub(crate) fn cancel(&self, request: RequestId) {
        let _ = self.0.send(Input::Cancel(request));
    }
}

/// An end of a ring and its doorbell on the event loop. The doorbell is a second descriptor of
/// the end's own socket: tokio wakes for it, the end itself empties it.
struct Belled<T> {
    end: T,
    bell: UnixStream,
}

impl<T: AsFd> Belled<T> {
    fn new(end: T) -> std::io::Result<Self> {
        let socket = std::os::unix::net::UnixStream::from(end.as_fd().try_clone_to_owned()?);
        Ok(Self { end, bell: UnixStream::from_std(socket)? })
    }

    /// Waits for the bell, then lets `woken` empty it.
    async fn heard(&mut self, woken: impl FnOnce(&mut T)) {
        if self.bell.readable().await.is_ok() {
            let Self { end, bell } = self;
            // Saying "would block" makes tokio forget the readiness that `woken` has used up,
            // and only that.
            let _ = bell.try_io(Interest::READABLE, || -> std::io::Result<()> {
                woken(end);
                Err(std::io::ErrorKind::WouldBlock.into())
            });
        }
    }
}

/// The live end of a worker.
struct Link {
    incarnation: Incarnation,
    commands: Belled<Writer>,
    tokens: Belled<Reader>,
    outbox: VecDeque<PendingSend>,
    broken: bool,
    /// It finishes what it has and takes nothing new.
    draining: bool,
    /// The oldest sequence that an idle worker had at the last look, and at how many before.
    unheard: Option<(u64, u32)>,
}

impl Link {
    fn new(incarnation: Incarnation, commands: Writer, tokens: Reader) -> std::io::Result<Self> {
        Ok(Self {
            incarnation,
            commands: Belled::new(commands)?,
            tokens: Belled::new(tokens)?,
            outbox: VecDeque::new(),
            broken: false,
            draining: false,
            unheard: None,
        })
    }

    fn queue(&mut self, command: &Command) {
        let mut bytes = Vec::new();
        command.encode_into(&mut bytes);
        self.outbox.push_back(PendingSend::new(kind::COMMAND, bytes));
    }

    /// Sends what there is room for. True when something is left.
    fn flush(&mut self) -> Result<bool, SendError> {
        while let Some(pending) = self.outbox.front_mut() {
            if !self.commands.end.try_send_piece(pending)? {
                return Ok(true);
            }
            self.outbox.pop_front();
        }
        Ok(false)
    }
}

/// The task.
pub(crate) struct Pump {
    pub model: ModelId,
    pub worker: Worker,
    pub notices: mpsc::Receiver<Notice>,
    pub inbox: mpsc::UnboundedReceiver<Input>,
    pub stats: Arc<ModelStats>,
    pub metrics: Arc<Metrics>,
    pub limits: DispatchLimits,
    pub crashes: CrashFolder,
    pub events: EventLog,
    pub admission: Admission,
}

struct State {
    pump: Pump,
    link: Option<Link>,
    /// Every open sequence: waiting for a worker, or submitted to the one there is.
    open: HashMap<u64, Arc<Journal>>,
    /// Those not submitted yet, in order of arrival.
    waiting: VecDeque<RequestId>,
    record: Vec<u8>,
    /// When overdue sequences are looked for next.
    look_at: Instant,
    /// When a worker that reads nothing is looked for next: those looks are counted.
    deaf_look_at: Instant,
}

impl Pump {
    pub(crate) async fn run(self) {
        let mut state = State {
            pump: self,
            link: None,
            open: HashMap::new(),
            waiting: VecDeque::new(),
            record: Vec::new(),
            look_at: Instant::now(),
            deaf_look_at: Instant::now(),
        };
        while state.turn().await {}
        state.fail_all(&Failure {
            code: "shutting_down",
            message: "mlxd is shutting down; send the request again when it is back".into(),
            retry: true,
        });
    }
}

/// What a turn woke up for.
#[allow(clippy::large_enum_variant)] // One at a time, on the stack.
enum Wake {
    Notice(Option<Notice>),
    Input(Option<Input>),
    Tokens,
    Room,
    MoreRecords,
    Look,
}

impl State {
    async fn turn(&mut self) -> bool {
        let wake = self.wait().await;
        match wake {
            Wake::Notice(None) | Wake::Input(None) => return false,
            Wake::Notice(Some(notice)) => self.heed(notice),
            Wake::Input(Some(input)) => self.take(input),
            Wake::Tokens | Wake::Room | Wake::MoreRecords => {}
            Wake::Look => {
                let now = Instant::now();
                self.end_overdue(now);
                if now >= self.deaf_look_at {
                    self.deaf_look_at = now + LOOK_INTERVAL;
                    self.look_for_deaf_worker();
                }
            }
        }
        self.service();
        true
    }

    /// Sends and receives what is possible without waiting.
    fn service(&mut self) {
        // Inputs that came together go out together.
        while let Ok(input) = self.pump.inbox.try_recv() {
            self.take(input);
        }
        let Some(link) = self.link.as_mut().filter(|link| !link.broken) else {
            return;
        };
        match link.flush() {
            Ok(_) => {}
            Err(SendError::Closed) => {} // The supervisor's notice says more.
            Err(error) => self.condemn(error.to_string()),
        }
        self.take_records(RECORDS_PER_TURN);
    }

    async fn wait(&mut self) -> Wake {
        let open = !self.open.is_empty();
        let Some(link) = self.link.as_mut().filter(|link| !link.broken) else {
            return tokio::select! {
                biased;
                notice = self.pump.notices.recv() => Wake::Notice(notice),
                input = self.pump.inbox.recv() => Wake::Input(input),
                () = tokio::time::sleep_until(self.look_at.into()), if open => Wake::Look,
            };
        };
        match link.tokens.end.prepare_sleep() {
            Ok(true) => {}
            Ok(false) => {
                // Let the responses run before more is taken.
                tokio::task::yield_now().await;
                return Wake::MoreRecords;
            }
            Err(_) => {
                // Found again, and acted on, by the next look at the ring.
                link.broken = true;
                return Wake::MoreRecords;
            }
        }
        let full = !link.outbox.is_empty() && link.commands.end.prepare_wait().unwrap_or(false);
        tokio::select! {
            biased;
            notice = self.pump.notices.recv() => Wake::Notice(notice),
            () = link.tokens.heard(|tokens| { let _ = tokens.woken(); }) => Wake::Tokens,
            () = link.commands.heard(|commands| { let _ = commands.woken(); }), if full => Wake::Room,
            input = self.pump.inbox.recv() => Wake::Input(input),
            () = tokio::time::sleep_until(self.look_at.into()), if open => Wake::Look,
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Submit(journal) => self.submit(journal),
            Input::Cancel(request) => self.cancel(request),
            Input::FailAll(failure) => {
                let submitted =
                    self.open.keys().filter(|id| !self.waiting.contains(&RequestId(**id)));
                if let Some(link) = self.link.as_mut() {
                    submitted.for_each(|id| link.queue(&Command::Cancel(RequestId(*id))));
                }
                self.fail_all(&failure);
            }
        }
    }

    fn submit(&mut self, journal: Arc<Journal>) {
        let now = Instant::now();
        if let Some(left) = journal.time_left(now) {
            self.look_at = self.look_at.min(now + left + LOOK_MARGIN);
        }
        self.open.insert(journal.request.0, journal.clone());
        self.waiting.push_back(journal.request);
        if self.link.as_ref().is_some_and(|link| !link.draining) {
            self.submit_waiting();
        } else {
            let view = self.pump.worker.view();
            if view.state == mlxd_protocol::admin::WorkerState::Fatal {
                self.give_up(&view.reason.unwrap_or_default());
            } else {
                self.pump.worker.demand();
            }
        }
    }

    fn submit_waiting(&mut self) {
        let Some(link) = self.link.as_mut() else { return };
        let now = Instant::now();
        for request in self.waiting.drain(..) {
            let Some(journal) = self.open.get(&request.0) else {
                continue;
            };
            let job = &journal.job;
            if let Some(embed) = job.embed {
                link.queue(&Command::Embed(Embed {
                    request,
                    trace: job.trace.to_string(),
                    tokens: job.prompt.to_vec(),
                    dimensions: embed.dimensions,
                    priority: job.priority,
                }));
                continue;
            }
            link.queue(&Command::Submit(Submit {
                request,
                trace: job.trace.to_string(),
                tokens: journal.tokens_so_far(),
                prompt_len: job.prompt.len() as u32,
                max_new: job.max_new,
                stop_tokens: job.stop_tokens.to_vec(),
                sampling: job.sampling.clone(),
                logprobs: job.logprobs,
                priority: job.priority,
                tenant: job.tenant.id,
                weight: job.tenant.weight,
                deadline_ms: journal.time_left(now).map(|left| left.as_millis() as u32),
            }));
        }
    }

    fn cancel(&mut self, request: RequestId) {
        if self.open.remove(&request.0).is_none() {
            // It may still wait for memory.
            self.pump.admission.cancel(&self.pump.model, request);
            return;
        }
        self.pump.stats.closed();
        self.pump.admission.ended(&self.pump.model, request);
        self.pump.metrics.ended(&self.pump.model, "cancelled");
        if let Some(at) = self.waiting.iter().position(|waiting| *waiting == request) {
            self.waiting.remove(at);
        } else if let Some(link) = self.link.as_mut() {
            link.queue(&Command::Cancel(request));
        }
    }

    /// Ends what has waited or run for too long.
    fn end_overdue(&mut self, now: Instant) {
        let deadlines = self.open.values().filter_map(|journal| journal.time_left(now));
        let next = deadlines.filter(|left| !left.is_zero()).min();
        let next = next.map_or(LOOK_INTERVAL, |left| left + LOOK_MARGIN);
        self.look_at = now + next.min(LOOK_INTERVAL);
        let limits = &self.pump.limits;
        let overdue = |journal: &Arc<Journal>| {
            let age = now - journal.opened_at;
            let recovering = journal.recovering_since().map(|since| now - since);
            if recovering.is_some_and(|since| since > limits.recovery_timeout) {
                let after = limits.recovery_timeout.as_millis();
                Some((
                    journal.request,
                    "recovery_timeout",
                    format!(
                        "the worker died and no other went on with the answer within recovery_timeout_ms = {after}"
                    ),
                ))
            } else if let Some(deadline) = journal.deadline_passed(now) {
                Some((
                    journal.request,
                    "deadline_exceeded",
                    format!(
                        "the answer took longer than the {} ms that its request gave it",
                        deadline.as_millis()
                    ),
                ))
            } else if age > limits.total_timeout {
                let after = limits.total_timeout.as_millis();
                Some((
                    journal.request,
                    "timeout",
                    format!("the answer took longer than total_timeout_ms = {after}"),
                ))
            } else if age > limits.queue_timeout
                && recovering.is_none()
                && journal.first_token_at().is_none()
            {
                let after = limits.queue_timeout.as_millis();
                Some((
                    journal.request,
                    "queue_timeout",
                    format!(
                        "no token came within queue_timeout_ms = {after}: the model is loading or busy; try again later"
                    ),
                ))
            } else {
                None
            }
        };
        let overdue: Vec<_> = self.open.values().filter_map(overdue).collect();
        for (request, code, message) in overdue {
            if let Some(journal) = self.open.get(&request.0) {
                journal.finish(End::Failed(Failure { code, message, retry: true }));
            }
            self.cancel(request);
        }
    }

    /// A worker that has been idle through several looks although sequences were sent to it does
    /// not read its ring. A hang while it computes is the supervisor's to notice.
    fn look_for_deaf_worker(&mut self) {
        let idle = self.pump.worker.view().phase() == Some(Phase::Idle);
        let submitted = self.open.keys().filter(|id| !self.waiting.contains(&RequestId(**id)));
        let oldest = submitted.min().copied().filter(|_| idle);
        let Some(link) = self.link.as_mut() else { return };
        // A busy model may well be found idle at every look, each time with a new sequence that
        // it has not read yet: one and the same must have been there.
        link.unheard = oldest.map(|oldest| match link.unheard {
            Some((before, looks)) if before == oldest => (oldest, looks + 1),
            _ => (oldest, 0),
        });
        let deaf = LOOK_INTERVAL * link.unheard.map_or(0, |(_, looks)| looks);
        if deaf >= self.pump.limits.idle_hang && !link.broken {
            self.condemn_for(DeathCause::Hang {
                still_ms: deaf.as_millis() as u64,
                limit_ms: self.pump.limits.idle_hang.as_millis() as u64,
                key: "workers.idle_hang_ms".to_owned(),
            });
        }
    }

    fn heed(&mut self, notice: Notice) {
        match notice {
            Notice::Up { incarnation, commands, tokens, .. } => {
                match Link::new(incarnation, commands, tokens) {
                    Ok(link) => {
                        self.link = Some(link);
                        self.submit_waiting();
                    }
                    Err(error) => {
                        let why = error.to_string();
                        self.pump.worker.condemn(incarnation, DeathCause::Condemned { why });
                    }
                }
            }
            Notice::Down(down) => self.went_down(down),
            Notice::GivenUp { reason: Some(reason) } => self.give_up(&reason),
            Notice::GivenUp { reason: None } => self.stopped(),
        }
    }

    fn stopped(&mut self) {
        let model = &self.pump.model;
        self.fail_all(&Failure {
            code: "model_stopped",
            message: format!("the model {model} was stopped before the answer was complete; `mlxctl start {model}` brings it back"),
            retry: true,
        });
    }

    fn went_down(&mut self, down: Down) {
        if self.link.as_ref().is_some_and(|link| link.incarnation == down.incarnation) {
            // What it published before it died is good.
            self.take_records(usize::MAX);
            self.link = None;
        }
        if down.stopped {
            self.stopped();
            return;
        }
        let lost = self.lost();
        match down.report {
            Some(report) => self.replay_after_death(&lost, &down.how, *report),
            // Asked for: nobody's fault.
            None => lost.iter().for_each(|journal| self.waiting.push_front(journal.request)),
        }
        if !self.waiting.is_empty() {
            self.pump.worker.demand();
        }
    }

    /// What the worker had, the latest first.
    fn lost(&self) -> Vec<Arc<Journal>> {
        let had = |journal: &&Arc<Journal>| !self.waiting.contains(&journal.request);
        let mut lost: Vec<_> = self.open.values().filter(had).cloned().collect();
        lost.sort_by_key(|journal| std::cmp::Reverse(journal.request));
        lost
    }

    fn happened(&self, happening: Happening) {
        self.pump.events.push(Some(self.pump.model.as_str()), happening);
    }

    /// Puts what the dead worker had before what waits, in order of arrival. A sequence that was
    /// there at too many deaths may be their cause: it ends, so that the others can go on.
    fn replay_after_death(&mut self, lost: &[Arc<Journal>], how: &str, mut report: CrashReport) {
        let waited: Vec<_> =
            self.waiting.iter().filter_map(|id| self.open.get(&id.0).cloned()).collect();
        let (mut shapes, mut deeds, mut replayed) = (Vec::new(), Vec::new(), 0);
        let prompts = self.pump.crashes.prompts;
        for journal in lost {
            let (running, deaths) = journal.note_death();
            shapes.push(crash::shape(journal, running, deaths, prompts));
            if deaths < self.pump.limits.request_deaths_max {
                self.waiting.push_front(journal.request);
                replayed += 1;
                continue;
            }
            let request = journal.job.trace.to_string();
            deeds.push(Deed::Quarantine { request: request.clone() });
            let message = format!(
                "the worker of {0} died {deaths} times in a row while it had this request, the last time: {how}; \
                 the request is not tried again, since it may be the cause. Change it, or see `mlxctl why {0}`",
                self.pump.model
            );
            self.happened(Happening::Quarantined { request, reason: message.clone() });
            self.end(
                journal.request.0,
                End::Failed(Failure { code: "quarantined", message, retry: false }),
            );
        }
        // They are ended as soon as the supervisor says that no worker will come.
        let given_up = report.deeds.iter().find_map(|deed| match deed {
            Deed::GiveUp { why } => Some(why.clone()),
            _ => None,
        });
        let left = self.waiting.len() as u32;
        match given_up {
            Some(why) if left > 0 => deeds.push(Deed::Fail { requests: left, why }),
            Some(_) => {}
            None if replayed > 0 => {
                deeds.push(Deed::Replay { requests: replayed });
                self.happened(Happening::Replayed { requests: replayed });
                tracing::info!(model = %self.pump.model, how, replayed, "sequences go on with the next worker");
            }
            None => {}
        }
        shapes.extend(waited.iter().map(|journal| crash::shape(journal, false, 0, prompts)));
        crash::complete(&mut report, shapes, deeds);
        let crashes = self.pump.crashes.clone();
        tokio::task::spawn_blocking(move || match crashes.write(&report) {
            Ok(folder) => {
                tracing::warn!(model = report.model, report = %folder.display(), "crash report")
            }
            Err(error) => tracing::warn!(model = report.model, %error, "no crash report"),
        });
    }

    fn give_up(&mut self, reason: &str) {
        let model = &self.pump.model;
        self.fail_all(&Failure {
            code: "load_failed",
            message: format!("the model {model} is not available: {reason}. After mending that, `mlxctl start {model}` tries again"),
            retry: false,
        });
    }

    fn fail_all(&mut self, failure: &Failure) {
        self.waiting.clear();
        for request in self.open.keys().copied().collect::<Vec<_>>() {
            self.end(request, End::Failed(failure.clone()));
        }
    }

    fn condemn(&mut self, why: String) {
        self.condemn_for(DeathCause::Condemned { why });
    }

    fn condemn_for(&mut self, cause: DeathCause) {
        if let Some(link) = self.link.as_mut() {
            link.broken = true;
            self.pump.worker.condemn(link.incarnation, cause);
        }
    }

    /// Reads at most `records_max` records into their journals.
    fn take_records(&mut self, records_max: usize) {
        let mut record = std::mem::take(&mut self.record);
        for _ in 0..records_max {
            let Some(link) = self.link.as_mut() else {
                break;
            };
            match link.tokens.end.try_recv(&mut record) {
                Ok(Some(kind)) => {
                    if let Err(why) = self.apply(kind, &record) {
                        self.condemn(why);
                        break;
                    }
                }
                Ok(None) => break,
                Err(RingError::PeerGone) => {
                    link.broken = true;
                    break;
                }
                Err(error) => {
                    self.condemn(error.to_string());
                    break;
                }
            }
        }
        self.record = record;
    }

    fn apply(&mut self, record_kind: u16, bytes: &[u8]) -> Result<(), String> {
        match record_kind {
            kind::TOKENS => {
                for record in TokenRecord::read_all(bytes).map_err(|error| error.to_string())? {
                    self.apply_token(&record)?;
                }
                Ok(())
            }
            kind::REPORT => match Report::decode(bytes).map_err(|error| error.to_string())? {
                Report::Started(started) => {
                    if let Some(journal) = self.open.get(&started.request.0)
                        && journal.note_started(started.clone())
                    {
                        self.pump.metrics.started(&self.pump.model, &journal.job, &started);
                    }
                    Ok(())
                }
                Report::TopLogprobs(top) => match self.open.get(&top.request.0) {
                    Some(journal) => {
                        journal.expect_top(top.index, top.top).map_err(|error| error.to_string())
                    }
                    None => Ok(()),
                },
                Report::Embedded(Embedded { request, values }) => {
                    self.end(request.0, End::Embedded(values.into()));
                    Ok(())
                }
                Report::Admitted(request) => {
                    if let Some(journal) = self.open.get(&request.0) {
                        journal.note_admitted();
                    }
                    Ok(())
                }
                Report::Ended(ended) if ended.refusal.code == RefusalCode::Draining => {
                    self.leave_to_the_next(ended.request);
                    Ok(())
                }
                Report::Ended(ended) => {
                    self.end(ended.request.0, End::Refused(ended.refusal));
                    Ok(())
                }
            },
            other => Err(format!("a record of unknown kind {other}")),
        }
    }

    /// The worker finishes what it has and did not take this one.
    fn leave_to_the_next(&mut self, request: RequestId) {
        if let Some(link) = self.link.as_mut() {
            link.draining = true;
        }
        if self.open.contains_key(&request.0) {
            self.waiting.push_back(request);
            self.pump.worker.demand();
        }
    }

    /// A record for a sequence that is not open is one on its way when the sequence was cancelled.
    fn apply_token(&mut self, record: &TokenRecord) -> Result<(), String> {
        let Some(journal) = self.open.get(&record.request) else {
            return Ok(());
        };
        let end = match record.flags {
            0 => None,
            TokenFlags::STOP => Some(End::Stop),
            TokenFlags::LENGTH => Some(End::Length),
            other => return Err(format!("token flags {other:#x}")),
        };
        let appended = journal
            .append(record.index, record.token, record.logprob, end.clone())
            .map_err(|error| error.to_string())?;
        self.pump.stats.count_token();
        if let Some(at) = appended.first_token_at {
            self.pump.metrics.first_token(&self.pump.model, at - journal.opened_at);
        }
        if let Some(after) = appended.recovered_after {
            self.pump.metrics.recovered(&self.pump.model, after);
        }
        if let Some(end) = end {
            self.forget(record.request, &end);
        }
        Ok(())
    }

    fn end(&mut self, request: u64, end: End) {
        if let Some(journal) = self.open.get(&request) {
            journal.finish(end.clone());
            self.forget(request, &end);
        }
    }

    fn forget(&mut self, request: u64, end: &End) {
        if let Some(journal) = self.open.remove(&request) {
            self.pump.stats.closed();
            self.pump.admission.ended(&self.pump.model, journal.request);
            self.pump.metrics.finished(&self.pump.model, &journal, end, Instant::now());
        }
    }
}
