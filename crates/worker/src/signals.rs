//! Signals, without handlers: blocked in every thread, taken by one that waits for them.

use crate::inbox::{Event, Outbox};
use crate::os;
use mlxd_protocol::exit_code;
use nix::sys::signal::{SigSet, Signal};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The signals that the thread takes. SIGINT and SIGHUP of a terminal reach the whole process
/// group: the front decides what they mean, here they mean nothing.
fn taken() -> SigSet {
    [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        os::PARENT_SIGNAL,
    ]
    .into_iter()
    .collect()
}

/// Blocks the signals. To be called before any other thread is started, so that all inherit it.
pub(crate) fn block() -> io::Result<()> {
    Ok(taken().thread_block()?)
}

/// Starts the thread. Until `serving` is set SIGTERM ends the process at once: there is nothing
/// to finish.
pub(crate) fn spawn(outbox: Outbox, serving: Arc<AtomicBool>) -> io::Result<()> {
    let parent = nix::unistd::getppid();
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            loop {
                match taken().wait() {
                    Ok(Signal::SIGTERM) if serving.load(Ordering::Acquire) => {
                        outbox.put(Event::Terminate);
                    }
                    Ok(Signal::SIGTERM) => os::leave(exit_code::DONE),
                    // The signal also comes when only the thread that started us has ended.
                    Ok(signal)
                        if signal == os::PARENT_SIGNAL && nix::unistd::getppid() != parent =>
                    {
                        tracing::warn!("the front died, leaving");
                        os::leave(exit_code::FRONT_GONE);
                    }
                    Ok(_) => {}
                    Err(error) => tracing::error!("waiting for signals failed: {error}"),
                }
            }
        })?;
    Ok(())
}
