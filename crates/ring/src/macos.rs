//! What macOS does its own way.

use nix::errno::Errno;
use nix::libc;
use nix::time::ClockId;

/// The clock of the progress page: `CLOCK_UPTIME_RAW`, one for all processes, stands still while
/// the machine sleeps (`CLOCK_MONOTONIC` runs on there).
pub(crate) const MONOTONIC: ClockId = ClockId::from_raw(libc::CLOCK_UPTIME_RAW);

/// Nothing to do: shared memory is backed by swap, not by a file system of fixed size.
pub(crate) fn reserve(_name: &str, _bytes: usize) -> Result<(), Errno> {
    Ok(())
}
