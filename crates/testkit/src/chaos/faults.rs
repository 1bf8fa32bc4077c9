//! What is done to the workers, and which deaths came of it.

use super::{Engine, World, unix_ms};
use crate::script::{How, Script, When};
use crate::wait::{DEADLINE, until};
use fastrand::Rng;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What a scripted engine can be asked to do, by its place in the plan.
const ASKED: [(FaultKind, How); 5] = [
    (FaultKind::EngineFault, How::Fault),
    (FaultKind::Panic, How::Panic),
    (FaultKind::OutOfMemory, How::OutOfMemory),
    (FaultKind::Hang, How::Hang),
    (FaultKind::CleanExit, How::Exit(0)),
];

/// Between two looks at the front's events.
const LISTEN_EVERY: Duration = Duration::from_millis(500);

/// Events asked for at once: more than happen between two looks.
const EVENTS_MAX: usize = 1000;

/// Between two tries of a signal that the first does not kill by.
const AGAIN_AFTER: Duration = Duration::from_millis(2);

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// SIGKILL.
    Kill,
    /// SIGSEGV.
    Segv,
    /// SIGABRT.
    Abort,
    /// The engine reports that it failed.
    EngineFault,
    /// The engine panics.
    Panic,
    /// An allocation fails: the process is left no more memory to ask for.
    OutOfMemory,
    /// SIGSTOP and nothing more.
    Stop,
    /// The engine's thread never comes back.
    Hang,
    /// SIGSTOP, and SIGCONT a moment later.
    Pause,
    /// The process exits with code 0 although sequences run.
    CleanExit,
    /// SIGTERM from outside: the worker finishes what it has and ends.
    Terminate,
    /// An admin unloads the model.
    Unload,
    /// An admin unloads the model and loads it again at once.
    Reload,
    /// An admin restarts the worker.
    Restart,
    /// The front reads its configuration again.
    Reread,
}

/// One fault that was injected.
#[derive(Debug, Clone, Copy)]
pub(super) struct Disturbance {
    pub(super) model: usize,
    pub(super) kind: FaultKind,
    pub(super) at: Instant,
    pub(super) began_ms: u64,
    /// When an admin's call was answered.
    pub(super) ended_ms: u64,
}

impl FaultKind {
    const WEIGHTS: [(Self, u32); 15] = [
        (Self::Kill, 20),
        (Self::Segv, 10),
        (Self::Abort, 10),
        (Self::EngineFault, 10),
        (Self::Panic, 5),
        (Self::OutOfMemory, 10),
        (Self::Stop, 7),
        (Self::Hang, 4),
        (Self::Pause, 8),
        (Self::CleanExit, 4),
        (Self::Terminate, 4),
        (Self::Unload, 2),
        (Self::Reload, 2),
        (Self::Restart, 2),
        (Self::Reread, 2),
    ];

    /// Whether it can be done to such an engine.
    fn suits(self, engine: Engine) -> bool {
        match engine {
            Engine::Scripted => true,
            // Nobody can tell MLX to fail, but the system can refuse it memory.
            Engine::Mlx if self == Self::OutOfMemory => cfg!(target_os = "linux"),
            Engine::Mlx => self.place().is_none(),
        }
    }

    fn random(random: &mut Rng, engine: Engine) -> Self {
        let suitable: Vec<_> =
            Self::WEIGHTS.into_iter().filter(|(kind, _)| kind.suits(engine)).collect();
        let total: u32 = suitable.iter().map(|(_, weight)| weight).sum();
        let mut draw = random.u32(..total);
        for (kind, weight) in suitable {
            if draw < weight {
                return kind;
            }
            draw -= weight;
        }
        Self::Kill
    }

    /// Its place in the plan of a scripted engine.
    fn place(self) -> Option<usize> {
        ASKED.iter().position(|(kind, _)| *kind == self)
    }

    /// Whether the worker's process ends by it, or may. A pause may last too long on a busy
    /// machine.
    pub(super) fn may_kill(self) -> bool {
        self != Self::Reread
    }

    /// Whether another worker comes because of it.
    fn replaces(self) -> bool {
        !matches!(self, Self::Pause | Self::Reread)
    }

    /// Whether answers stand still by it until another worker goes on with them.
    pub(super) fn is_recovered_from(self) -> bool {
        self <= Self::Hang
    }

    /// Whether the time until it is noticed is part of the recovery.
    pub(super) fn is_hang(self) -> bool {
        matches!(self, Self::Stop | Self::Hang)
    }

    /// Whether the worker ends by it a while later, when it comes to it.
    pub(super) fn is_asked(self) -> bool {
        matches!(self, Self::EngineFault | Self::Panic | Self::OutOfMemory)
    }

    /// Whether an admin stops the worker by it.
    pub(super) fn stops(self) -> bool {
        matches!(self, Self::Unload | Self::Reload)
    }
}

/// What the disturbed workers follow.
pub(super) fn script() -> Script {
    let mut script =
        Script { step_us: 1500, prefill_token_us: 20, load_ms: 20, ..Script::default() };
    for (_, how) in ASKED {
        script = script.with_fault(When::Asked, how);
    }
    script
}

/// Injects faults into one model's worker until there were enough.
pub(super) fn inject_on_and_on(world: &World, model: usize) {
    let seed = world.plan.seed.wrapping_add(0x5eed + model as u64);
    let mut random = Rng::with_seed(seed);
    let Some(mut pid) = running(world, model, None) else {
        return world.trouble(format!("no worker of {} came up", world.names[model]));
    };
    while world.one_more_fault() {
        // Not in step with the restarts.
        std::thread::sleep(Duration::from_millis(random.u64(50..700)));
        let kind = FaultKind::random(&mut random, world.plan.engine);
        let (at, began_ms) = (Instant::now(), unix_ms());
        inject(world, model, kind, pid, &mut random);
        let done = Disturbance { model, kind, at, began_ms, ended_ms: unix_ms() };
        world.disturbances.lock().expect("no thread panicked").push(done);
        match running(world, model, kind.replaces().then_some(pid)) {
            Some(next) => pid = next,
            None => {
                let name = &world.names[model];
                return world.trouble(format!("{name} has no new worker after {kind:?} of {pid}"));
            }
        }
    }
}

/// Waits until another worker than `before` runs.
fn running(world: &World, model: usize, before: Option<Pid>) -> Option<Pid> {
    let deadline = Instant::now() + DEADLINE;
    while Instant::now() < deadline {
        let status = world.status_of(model);
        let pid = status["pid"].as_i64().map(|pid| Pid::from_raw(pid as i32));
        if status["state"] == "RUNNING" && pid.is_some() && pid != before {
            return pid;
        }
        std::thread::sleep(AGAIN_AFTER);
    }
    None
}

fn inject(world: &World, model: usize, kind: FaultKind, pid: Pid, random: &mut Rng) {
    // The process may have ended by itself meanwhile, by a pause that was too long.
    let signal = |signal| kill(pid, signal).is_ok();
    let admin = |call: &str| {
        let body = json!({"model": world.names[model]});
        world.front.admin().post(&format!("/admin/v1/{call}"), &body)
    };
    match kind {
        FaultKind::Kill => drop(signal(Signal::SIGKILL)),
        // The first one is taken by the handler of Rust's runtime, which then leaves the field.
        FaultKind::Segv => until("the worker's end", || {
            (!signal(Signal::SIGSEGV)).then_some(()).or_else(|| {
                std::thread::sleep(AGAIN_AFTER);
                None
            })
        }),
        FaultKind::Abort => drop(signal(Signal::SIGABRT)),
        FaultKind::Terminate => drop(signal(Signal::SIGTERM)),
        FaultKind::Stop => drop(signal(Signal::SIGSTOP)),
        FaultKind::Pause => {
            signal(Signal::SIGSTOP);
            std::thread::sleep(Duration::from_millis(random.u64(20..500)));
            signal(Signal::SIGCONT);
        }
        FaultKind::OutOfMemory if world.plan.engine == Engine::Mlx => leave_no_memory(pid),
        FaultKind::EngineFault
        | FaultKind::Panic
        | FaultKind::OutOfMemory
        | FaultKind::Hang
        | FaultKind::CleanExit => {
            world.folders[model].ask_fault(kind.place().expect("it is in the plan"));
        }
        FaultKind::Unload => drop(admin("stop")),
        FaultKind::Reload => {
            admin("stop");
            admin("start");
        }
        FaultKind::Restart => drop(admin("restart")),
        FaultKind::Reread => drop(admin("update")),
    }
}

/// From now on the system refuses the process any more memory. Linux alone can do that to a process
/// that runs.
pub fn leave_no_memory(pid: Pid) {
    let mut limit = Command::new("prlimit");
    limit.args(["--pid", &pid.to_string(), "--data=1:"]).stderr(Stdio::null());
    // Fails when the process has ended meanwhile.
    let _ = limit.status().expect("util-linux has prlimit");
}

/// The ends of workers, as the front told of them.
#[derive(Debug, Default)]
pub(super) struct Deaths {
    /// Model, unix milliseconds, how.
    pub(super) all: Vec<(usize, u64, String)>,
    /// Events that nobody saw.
    pub(super) missed: u64,
}

/// Keeps the ends of workers until the run is over.
pub(super) fn listen(world: &World) -> Deaths {
    let mut deaths = Deaths::default();
    let mut next = 1;
    loop {
        let is_last = world.is_over();
        let path = format!("/admin/v1/events?last={EVENTS_MAX}");
        for line in world.front.admin().get(&path).text().lines() {
            let event: Value = serde_json::from_str(line).expect("an event in JSON");
            let sequence = event["sequence"].as_u64().expect("a number");
            if sequence < next {
                continue;
            }
            deaths.missed += sequence - next;
            next = sequence + 1;
            let model = world.names.iter().position(|name| event["model"] == **name);
            if let (Some(model), Some("worker_gone")) = (model, event["event"].as_str()) {
                let at = event["unix_ms"].as_u64().expect("a time");
                let how = event["how"].as_str().unwrap_or_default().to_owned();
                deaths.all.push((model, at, how));
            }
        }
        if is_last {
            return deaths;
        }
        std::thread::sleep(LISTEN_EVERY);
    }
}
