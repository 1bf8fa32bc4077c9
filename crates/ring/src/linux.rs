//! What Linux does its own way.

use nix::errno::Errno;
use nix::fcntl::{OFlag, posix_fallocate};
use nix::sys::mman::shm_open;
use nix::sys::stat::Mode;
use nix::time::ClockId;

/// The clock of the progress page: `CLOCK_MONOTONIC`, one for all processes, stands still while
/// the machine sleeps.
pub(crate) const MONOTONIC: ClockId = ClockId::CLOCK_MONOTONIC;

/// Makes the system set pages aside for the whole segment now. Without it a full `/dev/shm` shows
/// later, as SIGBUS at a write into the ring.
pub(crate) fn reserve(name: &str, bytes: usize) -> Result<(), Errno> {
    let fd = shm_open(name, OFlag::O_RDWR, Mode::empty())?;
    let bytes = i64::try_from(bytes).map_err(|_| Errno::EFBIG)?;
    loop {
        match posix_fallocate(&fd, 0, bytes) {
            // The front hears of its children by signal.
            Err(Errno::EINTR) => {}
            done => return done,
        }
    }
}
