//! What only Linux does this way: dying with the parent, leaving at once, memory
//! that goes back when it is freed.

#![allow(unsafe_code)] // Calls that the standard library leaves to libc.

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

/// Buffers that are freed go back to the system at once. By default glibc keeps ever larger ones, up
/// to 64 MiB, and what a worker takes then depends on the order of all it ever did.
pub(crate) fn give_back_freed() {
    #[cfg(target_env = "gnu")]
    for parameter in [nix::libc::M_MMAP_THRESHOLD, nix::libc::M_TRIM_THRESHOLD] {
        // SAFETY: mallopt takes two numbers and has no precondition; no thread runs yet.
        unsafe { nix::libc::mallopt(parameter, 128 << 10) };
    }
}
