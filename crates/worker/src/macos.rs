//! What only macOS does this way: dying with the parent, leaving at once, inherited descriptors.

#![allow(unsafe_code)] // Two calls that the standard library leaves to libc.

use mlxd_protocol::exit_code;
use nix::sys::event::{EvFlags, EventFilter, FilterFlag, KEvent, Kqueue};
use nix::sys::signal::Signal;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

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
    std::thread::Builder::new()
        .name("parent".into())
        .spawn(move || {
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

/// Takes over a descriptor that came through exec.
pub(crate) fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    if fd <= 2 {
        return Err(io::Error::other(
            "descriptors 0 to 2 are the standard streams",
        ));
    }
    // SAFETY: borrowed for one call that only asks whether the descriptor is open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    nix::fcntl::fcntl(borrowed, nix::fcntl::FcntlArg::F_GETFD)?;
    // SAFETY: it is open, and nothing else here owns it: this is called once per descriptor,
    // before anything else opens one, with numbers that the front set up for it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
