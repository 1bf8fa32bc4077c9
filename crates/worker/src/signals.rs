//! Signals: noted by handlers, acted upon by a thread that waits for them.
//!
//! Blocking them instead, and waiting with `sigwait`, would not do: libraries that MLX links
//! start threads before `main`, which inherit no mask, and the system would end the process on
//! one of those.

use crate::inbox::{Event, Outbox};
use crate::os;
use mlxd_protocol::exit_code;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};
use signal_hook::iterator::Signals;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The signals that the thread takes. A terminal's SIGINT and SIGHUP reach the whole process
/// group: the front decides what they mean, here they mean nothing.
const TAKEN: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, os::PARENT_SIGNAL];

/// Signals noted from now on, for a thread that is started later.
#[derive(Debug)]
pub(crate) struct Noted {
    signals: Signals,
    parent: Pid,
}

/// Installs the handlers.
pub(crate) fn note() -> io::Result<Noted> {
    Ok(Noted { signals: Signals::new(TAKEN.map(|signal| signal as i32))?, parent: getppid() })
}

impl Noted {
    /// Starts the thread. Until `serving` is set SIGTERM ends the process at once: there is
    /// nothing to finish.
    pub(crate) fn watch(mut self, outbox: Outbox, serving: Arc<AtomicBool>) -> io::Result<()> {
        let body = move || {
            for signal in self.signals.forever() {
                match Signal::try_from(signal) {
                    Ok(Signal::SIGTERM) if serving.load(Ordering::Acquire) => {
                        outbox.put(Event::Terminate);
                    }
                    Ok(Signal::SIGTERM) => os::leave(exit_code::DONE),
                    // It also comes when merely the thread has ended that started us.
                    Ok(os::PARENT_SIGNAL) if getppid() != self.parent => {
                        tracing::warn!("the front died, leaving");
                        os::leave(exit_code::FRONT_GONE);
                    }
                    _ => {}
                }
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(body)?;
        Ok(())
    }
}
