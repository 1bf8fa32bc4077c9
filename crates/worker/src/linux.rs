//! What only Linux does this way: dying with the parent, leaving at once, inherited descriptors.

#![allow(unsafe_code)] // Two calls that the standard library leaves to libc.

use nix::sys::signal::Signal;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Comes when the parent dies. Not SIGKILL: the kernel also sends it when merely the parent's
/// thread ends that started this process, and that must be told apart.
pub(crate) const PARENT_SIGNAL: Signal = Signal::SIGUSR1;

/// Asks for [`PARENT_SIGNAL`]; the `signals` thread does the rest.
pub(crate) fn watch_parent() -> io::Result<()> {
    Ok(nix::sys::prctl::set_pdeathsig(PARENT_SIGNAL)?)
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
