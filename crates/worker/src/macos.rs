//! What only macOS does this way: dying with the parent, leaving at once.

#![allow(unsafe_code)] // One call that the standard library leaves to libc.

use mlxd_protocol::exit_code;
use nix::sys::event::{EvFlags, EventFilter, FilterFlag, KEvent, Kqueue};
use nix::sys::signal::Signal;
use std::io;

/// Not sent by the system here; taken so that both systems block the same signals.
pub(crate) const PARENT_SIGNAL: Signal = Signal::SIGUSR1;

/// Starts the `parent` thread, which ends the process when the parent exits.
pub(crate) fn watch_parent() -> io::Result<()> {
    let queue = Kqueue::new()?;
    let parent = nix::unistd::getppid();
    let parent_exits = KEvent::new(
        parent.as_raw() as usize,
        EventFilter::EVFILT_PROC,
        EvFlags::EV_ADD,
        FilterFlag::NOTE_EXIT,
        0,
        0,
    );
    // Fails when the parent is gone already, which ends this process too.
    queue.kevent(&[parent_exits], &mut [], None)?;
    std::thread::Builder::new().name("parent".into()).spawn(move || {
        let mut events = [parent_exits];
        while !matches!(queue.kevent(&[], &mut events, None), Ok(1..)) {}
        tracing::warn!("the front died, leaving");
        leave(exit_code::FRONT_GONE);
    })?;
    Ok(())
}

/// Ends the process without running anything more, neither destructors nor exit handlers: MLX's
/// would wait for a device that may hang.
pub(crate) fn leave(code: i32) -> ! {
    // SAFETY: _exit only ends the process; it has no precondition.
    unsafe { nix::libc::_exit(code) }
}

/// Large buffers that are freed go back to the system at once as it is.
pub(crate) fn give_back_freed() {}
