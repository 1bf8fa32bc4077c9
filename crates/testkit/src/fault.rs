//! Carries out the faults of a [`Script`](crate::Script).

use crate::folder::asked_file;
use crate::script::{Fault, How, When};
use mlxd_engine::EngineFault;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, raise};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

/// What a process that is to run out of memory may have, in bytes.
const ADDRESS_SPACE_MAX: u64 = 64 << 20;

/// The faults that are still to come.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    faults: Vec<Armed>,
}

#[derive(Debug)]
struct Armed {
    fault: Fault,
    /// Holds one byte for every time that a counted fault has happened.
    counter: PathBuf,
    /// Is there when a fault is asked for.
    asked: PathBuf,
}

impl Faults {
    /// The faults of a plan for the model in `folder`.
    pub(crate) fn new(faults: &[Fault], folder: &Path) -> Self {
        let armed = |(index, fault): (usize, &Fault)| Armed {
            fault: fault.clone(),
            counter: folder.join(format!("scripted.fault-{index}")),
            asked: asked_file(folder, index),
        };
        Self { faults: faults.iter().enumerate().map(armed).collect() }
    }

    /// Fails now, if a fault is planned for now. Comes back with an engine's fault, and from
    /// outgrowing.
    pub(crate) fn strike(&self, now: When) -> Result<(), EngineFault> {
        for armed in &self.faults {
            if is_due(armed.fault.when, now) && armed.is_asked() && armed.counts_down() {
                return fail(armed.fault.how);
            }
        }
        Ok(())
    }
}

fn is_due(planned: When, now: When) -> bool {
    match (planned, now) {
        (When::Tokens(planned), When::Tokens(now)) => now >= planned,
        (planned, now) => planned == now,
    }
}

impl Armed {
    /// Whether the fault needs no asking, or was asked for: then it is not any more.
    fn is_asked(&self) -> bool {
        self.fault.when != When::Asked || std::fs::remove_file(&self.asked).is_ok()
    }

    /// Whether the fault may happen once more; notes that it does.
    fn counts_down(&self) -> bool {
        let Some(times_max) = self.fault.times_max else {
            return true;
        };
        let times = std::fs::metadata(&self.counter).map_or(0, |counter| counter.len());
        if times >= u64::from(times_max) {
            return false;
        }
        let mut counter = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.counter)
            .expect("a counted fault needs a model folder that can be written");
        counter.write_all(b"x").expect("one byte fits in the model folder");
        true
    }
}

fn fail(how: How) -> Result<(), EngineFault> {
    match how {
        How::Kill => die_by(Signal::SIGKILL),
        // The runtime's own handler takes the first one.
        How::Segv => die_by(Signal::SIGSEGV),
        How::Abort => std::process::abort(),
        How::Exit(code) => std::process::exit(code),
        How::Panic => panic!("the script says panic"),
        How::OutOfMemory => run_out_of_memory(),
        How::Outgrow(mib) => {
            // Written to, so that it is resident; never given back.
            std::mem::forget(vec![1_u8; mib << 20]);
            Ok(())
        }
        How::Hang => loop {
            std::thread::park();
        },
        How::Fault => Err(EngineFault {
            doing: "following the script",
            reason: "the script says fault".into(),
        }),
    }
}

/// Limits the process's address space and asks for more. Where the system knows no such limit, as
/// on macOS, the end is the same: Rust aborts when an allocation fails.
fn run_out_of_memory() -> ! {
    let (_, hard) = getrlimit(Resource::RLIMIT_AS).expect("a process may ask for its limits");
    setrlimit(Resource::RLIMIT_AS, ADDRESS_SPACE_MAX, hard).expect("a lower limit is allowed");
    // Optimised builds would leave out an allocation that nobody looks into.
    let more = std::hint::black_box(vec![1_u8; 2 * ADDRESS_SPACE_MAX as usize]);
    eprintln!("{} bytes were there after all", more.len());
    std::process::abort();
}

fn die_by(signal: Signal) -> ! {
    loop {
        raise(signal).expect("a process may signal itself");
    }
}
