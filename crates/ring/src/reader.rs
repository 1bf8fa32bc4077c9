//! The reading end of a ring, as the front and the worker hold it.
//!
//! Adds the doorbell to the core: sleeps until the writer rings, rings for a writer that waits
//! for room, and tells that the writer is gone, after its last record and not before.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use crate::consumer::Consumer;
use crate::doorbell::Doorbell;
use crate::error::RingError;
use crate::memory::RingWords;

/// Longest record that travels in pieces, unless [`Reader::set_record_bytes_max`] says less.
pub const RECORD_BYTES_MAX: usize = 64 << 20;

/// Looks at the ring between two looks at the clock, while spinning.
const SPINS_PER_CLOCK: u32 = 64;

/// The reading end of a ring: one thread of one process holds it.
///
/// `AsFd` is the doorbell, for an event loop: take records with [`Self::try_recv`] until there is
/// none, call [`Self::prepare_sleep`], and if that says so wait until the doorbell is readable,
/// then call [`Self::woken`]. tokio watches a second descriptor of the doorbell, as in
/// `tests/event_loop.rs`.
pub struct Reader {
    core: Consumer<RingWords>,
    doorbell: Doorbell,
    spin: Duration,
}

impl Reader {
    pub(crate) fn new(ring: RingWords, doorbell: Doorbell) -> Self {
        Self { core: Consumer::new(ring, 0, RECORD_BYTES_MAX), doorbell, spin: Duration::ZERO }
    }

    /// Sets how long [`Self::recv`] looks at the ring before it sleeps. Off (zero) by default:
    /// spinning costs a whole core.
    pub fn set_spin(&mut self, spin: Duration) {
        self.spin = spin;
    }

    /// Sets the longest record that this side puts together; a longer one condemns the writer.
    pub fn set_record_bytes_max(&mut self, bytes: usize) {
        self.core.set_record_bytes_max(bytes.min(RECORD_BYTES_MAX));
    }

    /// Takes the next record into `out`, replacing what it held, and gives its kind. `None`:
    /// nothing there now. Makes no system call unless the writer waits for room. A short record
    /// costs no allocation once `out` has grown to its size.
    ///
    /// A caller that polls and never sleeps must call [`Self::woken`] now and then: only the
    /// doorbell tells that the writer is gone.
    ///
    /// # Errors
    /// [`RingError::PeerGone`] when the writer is known to be gone and its last record was taken;
    /// [`RingError::Corrupt`].
    pub fn try_recv(&mut self, out: &mut Vec<u8>) -> Result<Option<u16>, RingError> {
        // Before the look at the records: what was published before the end of file is still seen.
        let gone = self.seal_if_gone()?;
        let taken = self.core.try_recv(out);
        if self.core.take_bell_due() {
            self.doorbell.ring().map_err(RingError::Doorbell)?;
        }
        match taken? {
            None if gone => Err(RingError::PeerGone),
            taken => Ok(taken),
        }
    }

    /// Takes the next record into `out`, waiting for it at most `timeout` (`None`: as long as the
    /// writer lives). `None`: the time passed.
    ///
    /// # Errors
    /// As [`Self::try_recv`], and [`RingError::Doorbell`].
    pub fn recv(
        &mut self,
        out: &mut Vec<u8>,
        timeout: Option<Duration>,
    ) -> Result<Option<u16>, RingError> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            if let Some(kind) = self.try_recv(out)? {
                return Ok(Some(kind));
            }
            if self.spin_for_record(deadline)? || !self.prepare_sleep()? {
                continue;
            }
            let woken = self.doorbell.wait(deadline);
            self.woken()?;
            if !woken.map_err(RingError::Doorbell)? {
                return self.try_recv(out);
            }
        }
    }

    /// Says that this side is about to sleep. True: nothing is there, wait until the doorbell is
    /// readable, then call [`Self::woken`]. False: something came in the meantime.
    ///
    /// # Errors
    /// As [`Self::try_recv`].
    pub fn prepare_sleep(&mut self) -> Result<bool, RingError> {
        if self.seal_if_gone()? && self.core.is_empty()? {
            return Err(RingError::PeerGone);
        }
        Ok(self.core.prepare_sleep()?)
    }

    /// To be called after a sleep, however it ended: takes the rings out of the doorbell and
    /// notices when the writer is gone. Never blocks; may be called at any time.
    ///
    /// # Errors
    /// [`RingError::PeerGone`] when the writer is gone and nothing is left to take; while records
    /// are left it says nothing, and [`Self::try_recv`] tells after the last one.
    pub fn woken(&mut self) -> Result<(), RingError> {
        self.core.end_sleep();
        self.doorbell.drain().map_err(RingError::Doorbell)?;
        if self.seal_if_gone()? && self.core.is_empty()? {
            return Err(RingError::PeerGone);
        }
        Ok(())
    }

    /// True while the first pieces of a long record are here and its last is not.
    pub fn mid_record(&self) -> bool {
        self.core.mid_record()
    }

    fn seal_if_gone(&mut self) -> Result<bool, RingError> {
        let gone = self.doorbell.peer_gone();
        if gone {
            self.core.seal()?;
        }
        Ok(gone)
    }

    fn spin_for_record(&mut self, deadline: Option<Instant>) -> Result<bool, RingError> {
        if self.spin.is_zero() {
            return Ok(false);
        }
        let mut end = Instant::now() + self.spin;
        if let Some(deadline) = deadline {
            end = end.min(deadline);
        }
        loop {
            for _ in 0..SPINS_PER_CLOCK {
                if !self.core.is_empty()? {
                    return Ok(true);
                }
                std::hint::spin_loop();
            }
            if Instant::now() >= end {
                return Ok(false);
            }
        }
    }
}

impl AsFd for Reader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.doorbell.as_fd()
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("doorbell", &self.doorbell).finish_non_exhaustive()
    }
}
