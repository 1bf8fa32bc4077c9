//! What only Linux does this way: dying with the parent, leaving at once.

#![allow(unsafe_code)] // One call that the standard library leaves to libc.

use nix::sys::signal::Signal;
use std::io;

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
