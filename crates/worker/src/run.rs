//! The life of a worker, from its command line to its exit code.

use crate::arguments::{self, Arguments, Invocation};
use crate::connection::Connection;
use crate::control::{self, Finished};
use crate::inbox::{self, Event, Inbox};
use crate::loader::Loader;
use crate::page::Page;
use crate::serve::{End, Server};
use crate::signals::Noted;
use crate::sink::RingSink;
use crate::{log, os, signals};
use ipc_channel::ipc::IpcSender;
use mlxd_engine::{EmbedQueue, Engine, Limits, Scheduler};
use mlxd_protocol::{FromWorker, LoadFault, LoadSpec, Phase, ToWorker, exit_code};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// What a worker program calls itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    /// Its name.
    pub name: &'static str,
    /// Its crate's version.
    pub version: &'static str,
    /// The protocol it claims to speak: [`PROTOCOL_VERSION`](mlxd_protocol::PROTOCOL_VERSION),
    /// except where a test wants to be refused.
    pub protocol: u32,
}

/// Runs a worker to its end, on the thread that calls, and leaves the process with one of
/// [`exit_code`]'s codes.
pub fn run(program: Program, loader: impl Loader) -> ! {
    let arguments = match arguments::parse(std::env::args().skip(1)) {
        Invocation::Run(arguments) => arguments,
        Invocation::Version => {
            println!("{} {}", program.name, program.version);
            os::leave(exit_code::DONE);
        }
        Invocation::Wrong(wrong) => {
            eprintln!(
                "{} is started by mlxd, one for each loaded model, and does nothing on its own \
                 ({wrong}).\nRun `mlxd serve` to start the server.",
                program.name
            );
            os::leave(exit_code::USAGE);
        }
    };
    log::start();
    log::end_on_panic();
    // The handlers first: the parent's death must not find the signal's default action.
    let signals = signals::note().and_then(|noted| os::watch_parent().map(|()| noted));
    match signals {
        Ok(signals) => os::leave(live(&program, &arguments, signals, loader)),
        Err(error) => {
            tracing::error!("cannot watch signals or the front's process: {error}");
            os::leave(exit_code::ATTACH_FAILED)
        }
    }
}

/// Everything between the command line and the exit code. What it owns is dropped before the
/// process leaves.
fn live(program: &Program, arguments: &Arguments, signals: Noted, mut loader: impl Loader) -> i32 {
    let connection = match Connection::open(arguments, program) {
        Ok(connection) => connection,
        Err(error) => {
            tracing::error!("cannot join the front: {error}");
            return exit_code::ATTACH_FAILED;
        }
    };
    let Connection { link, to_front, from_front } = connection;
    let serving = Arc::new(AtomicBool::new(false));
    let finished = Finished::default();
    let inbox = inbox::pair().and_then(|(outbox, inbox)| {
        signals.watch(outbox.clone(), Arc::clone(&serving))?;
        control::spawn(from_front, outbox, Arc::clone(&finished))?;
        Ok(inbox)
    });
    let inbox = match inbox {
        Ok(inbox) => inbox,
        Err(error) => {
            tracing::error!("cannot start the worker's threads: {error}");
            return exit_code::ATTACH_FAILED;
        }
    };
    let mut page = Page::new(link.progress, Instant::now());
    let Some(spec) = await_load(&inbox) else {
        return exit_code::DONE;
    };
    let scheduler = match load(&mut loader, &spec, &mut page, &to_front) {
        Ok(scheduler) => scheduler,
        Err(fault) => {
            tracing::error!(kind = ?fault.kind, "cannot load {}: {fault}", spec.folder.display());
            finished.store(true, Ordering::Release);
            tell(&to_front, FromWorker::LoadFailed(fault));
            return exit_code::LOAD_FAILED;
        }
    };
    serving.store(true, Ordering::Release);
    let mut server = Server {
        scheduler,
        texts: EmbedQueue::from(&spec),
        commands: link.commands,
        sink: RingSink::new(link.tokens),
        page,
        inbox,
        to_front,
        finished,
    };
    match server.serve() {
        Ok(()) => exit_code::DONE,
        Err(end) => leave_after(end),
    }
}

/// Waits for the front to say what to load. `None`: told to end instead.
fn await_load(inbox: &Inbox) -> Option<LoadSpec> {
    loop {
        match inbox.next()? {
            Event::Control(ToWorker::Load(spec)) => return Some(spec),
            Event::Control(_) => tracing::error!("told something before what to load, ignored"),
            Event::Terminate => return None,
        }
    }
}

fn load<L: Loader>(
    loader: &mut L,
    spec: &LoadSpec,
    page: &mut Page,
    to_front: &IpcSender<FromWorker>,
) -> Result<Scheduler<L::Engine>, LoadFault> {
    let begun = Instant::now();
    page.enter(Phase::Loading);
    let engine = loader.load(spec, &mut |done, total| page.loaded(done, total))?;
    let mut info = engine.info().clone();
    info.load_ms = begun.elapsed().as_millis() as u64;
    tracing::info!(
        architecture = info.architecture,
        backend = info.backend,
        quantization = info.quantization,
        load_ms = info.load_ms,
        "loaded {}",
        spec.folder.display()
    );
    let scheduler = Scheduler::new(engine, Limits::from(spec));
    page.idle(scheduler.counts(), scheduler.engine(), Instant::now());
    tell(to_front, FromWorker::Ready(info));
    Ok(scheduler)
}

/// Sends a message. A front that is gone is the `control` thread's business.
pub(crate) fn tell(to_front: &IpcSender<FromWorker>, message: FromWorker) {
    if let Err(error) = to_front.send(message) {
        tracing::warn!("the front does not listen: {error}");
    }
}

/// Logs why serving ended and leaves, with everything as it is: an engine that failed might wait
/// for its device when dropped.
fn leave_after(end: End) -> ! {
    let code = match end {
        End::Fault { fault, traces } => {
            tracing::error!(running = traces, "the engine failed, {fault}");
            exit_code::FAULT
        }
        End::FrontGone => {
            tracing::warn!("the front is gone, leaving");
            exit_code::FRONT_GONE
        }
        End::Corrupt(what) => {
            tracing::error!("the front's records make no sense: {what}");
            exit_code::RING_CORRUPT
        }
    };
    os::leave(code)
}
