//! The main loop: events, commands, one unit of work, progress; asleep when there is nothing.

use crate::control::Finished;
use crate::inbox::{Event, Inbox};
use crate::page::Page;
use crate::run::tell;
use crate::sink::RingSink;
use ipc_channel::ipc::IpcSender;
use mlxd_engine::{BenchError, EmbedQueue, Engine, EngineFault, Scheduler, bench_direct};
use mlxd_protocol::{BenchSpec, Cleared, Command, FromWorker, Phase, ToWorker, kind};
use mlxd_ring::{Reader, RingError, SendError};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Commands read between two units of work at the most.
const COMMANDS_PER_TICK_MAX: usize = 1024;

/// How long an idle worker looks at the commands ring before it sleeps: about what a sleep and a
/// wake cost.
const SPIN: Duration = Duration::from_micros(20);

/// Units of work between two looks at the doorbell for the front's end.
const TICKS_PER_DOORBELL: u64 = 256;

/// Why serving ended before it should.
#[derive(Debug)]
pub(crate) enum End {
    /// The engine failed while these requests ran.
    Fault { fault: EngineFault, traces: String },
    /// Nobody is left to serve.
    FrontGone,
    /// A record that no front writes.
    Corrupt(String),
}

impl From<RingError> for End {
    fn from(error: RingError) -> Self {
        match error {
            RingError::PeerGone => Self::FrontGone,
            error => Self::Corrupt(error.to_string()),
        }
    }
}

impl From<SendError> for End {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Closed | SendError::TimedOut => Self::FrontGone,
            error => Self::Corrupt(error.to_string()),
        }
    }
}

/// A loaded worker.
pub(crate) struct Server<E> {
    pub(crate) scheduler: Scheduler<E>,
    /// Texts that wait for their vectors.
    pub(crate) texts: EmbedQueue,
    pub(crate) commands: Reader,
    pub(crate) sink: RingSink,
    pub(crate) page: Page,
    pub(crate) inbox: Inbox,
    pub(crate) to_front: IpcSender<FromWorker>,
    pub(crate) finished: Finished,
}

/// How far a drain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Drain {
    No,
    /// Say so when nothing runs any more, then wait for the front's next word.
    ThenWait,
    /// Say so when nothing runs any more, then end.
    ThenEnd,
    /// Said; waiting.
    Done,
}

impl<E: Engine> Server<E> {
    /// Serves until it has drained and was told to end after that.
    ///
    /// # Errors
    /// Why nothing can be served any more. After a fault the engine must not even be dropped.
    pub(crate) fn serve(&mut self) -> Result<(), End> {
        let mut drain = Drain::No;
        let mut record = Vec::new();
        let mut idle_since = None;
        loop {
            while let Some(event) = self.inbox.try_next() {
                self.event(event, &mut drain)?;
            }
            self.read_commands(&mut record)?;
            if self.embed()? {
                idle_since = None;
            }
            match self.scheduler.next_phase(Instant::now()) {
                Phase::Idle if !self.texts.is_empty() => {}
                Phase::Idle if matches!(drain, Drain::ThenWait | Drain::ThenEnd) => {
                    self.rest();
                    self.finished.store(true, Ordering::Release);
                    tell(&self.to_front, FromWorker::Drained);
                    if drain == Drain::ThenEnd {
                        return Ok(());
                    }
                    drain = Drain::Done;
                }
                Phase::Idle => {
                    let since: Instant = *idle_since.get_or_insert_with(|| {
                        self.rest();
                        Instant::now()
                    });
                    if since.elapsed() >= SPIN {
                        self.sleep()?;
                    }
                }
                phase => {
                    idle_since = None;
                    let draining = drain != Drain::No;
                    self.work(if draining { Phase::Draining } else { phase })?;
                }
            }
        }
    }

    fn event(&mut self, event: Event, drain: &mut Drain) -> Result<(), End> {
        match event {
            Event::Control(ToWorker::Drain) if *drain == Drain::No => *drain = Drain::ThenWait,
            Event::Control(ToWorker::Drain) => {}
            Event::Terminate => *drain = Drain::ThenEnd,
            Event::Control(ToWorker::Bench(spec)) => self.bench(&spec)?,
            Event::Control(ToWorker::Load(_)) => {
                tracing::error!("told to load a second model, ignored");
            }
            Event::Control(ToWorker::Trim) => self.scheduler.trim(),
            Event::Control(ToWorker::ClearCache) => self.clear_cache(),
            Event::Control(ToWorker::MemoryLimit(bytes)) => self.scheduler.limit_memory(bytes),
            // The `control` thread's business; it never comes here.
            Event::Control(ToWorker::Shutdown) => {}
        }
        if *drain != Drain::No {
            self.scheduler.drain();
        }
        Ok(())
    }

    fn read_commands(&mut self, record: &mut Vec<u8>) -> Result<(), End> {
        for _ in 0..COMMANDS_PER_TICK_MAX {
            let Some(kind) = self.commands.try_recv(record)? else {
                break;
            };
            if kind != kind::COMMAND {
                return Err(End::Corrupt(format!("a record of kind {kind} among the commands")));
            }
            let command =
                Command::decode(record).map_err(|error| End::Corrupt(error.to_string()))?;
            let draining = self.scheduler.is_draining();
            if let Some(command) = self.texts.take(command, draining, &mut self.sink) {
                self.scheduler.command(command, Instant::now(), &mut self.sink);
            }
        }
        Ok(self.sink.check()?)
    }

    /// One unit of work.
    fn work(&mut self, phase: Phase) -> Result<(), End> {
        self.page.enter(phase);
        if let Err(fault) = self.scheduler.tick(Instant::now(), &mut self.sink) {
            return Err(self.fault(fault));
        }
        self.sink.check()?;
        let counts = self.scheduler.counts();
        self.page.step(counts, self.scheduler.engine(), Instant::now());
        if counts.steps.is_multiple_of(TICKS_PER_DOORBELL) {
            self.commands.woken()?;
        }
        Ok(())
    }

    fn rest(&mut self) {
        self.page.idle(self.scheduler.counts(), self.scheduler.engine(), Instant::now());
    }

    /// Waits for a command or an event, without ever waking for nothing.
    fn sleep(&mut self) -> Result<(), End> {
        if !self.commands.prepare_sleep()? {
            return Ok(());
        }
        let mut fds = [
            PollFd::new(self.commands.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.inbox.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(End::Corrupt(format!("waiting on the doorbell: {errno}"))),
        }
        self.inbox.woken();
        Ok(self.commands.woken()?)
    }

    fn clear_cache(&mut self) {
        let before = self.scheduler.engine().cache_figures();
        let engine = self.scheduler.engine_mut();
        engine.clear_cache();
        engine.clear_disk();
        let after = self.scheduler.engine().cache_figures();
        let cleared = Cleared {
            bytes: before.bytes - after.bytes.min(before.bytes),
            disk_bytes: before.disk.bytes - after.disk.bytes.min(before.disk.bytes),
        };
        tell(&self.to_front, FromWorker::CacheCleared(cleared));
        if self.scheduler.is_idle() {
            self.rest();
        }
    }

    fn bench(&mut self, spec: &BenchSpec) -> Result<(), End> {
        let chunk = self.scheduler.limits().prefill_chunk_tokens;
        let Some(engine) = self.scheduler.idle_engine() else {
            let busy = "requests are running; a direct run needs the engine for itself";
            tell(&self.to_front, FromWorker::BenchFailed(busy.into()));
            return Ok(());
        };
        self.page.enter(Phase::Decode);
        let page = &self.page;
        let run = bench_direct(engine, spec, chunk, &mut || page.alive());
        self.rest();
        match run {
            Ok(leg) => tell(&self.to_front, FromWorker::BenchDone(leg)),
            Err(BenchError::Refused(refusal)) => {
                tell(&self.to_front, FromWorker::BenchFailed(refusal.message));
            }
            Err(BenchError::Fault(fault)) => {
                tell(&self.to_front, FromWorker::BenchFailed(fault.to_string()));
                return Err(self.fault(fault));
            }
        }
        Ok(())
    }

    fn fault(&self, fault: EngineFault) -> End {
        let traces: Vec<_> = self.scheduler.running_traces().collect();
        End::Fault { fault, traces: traces.join(" ") }
    }
}
