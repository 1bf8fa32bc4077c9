//! The writing end of a ring, as the front and the worker hold it.
//!
//! Adds the doorbell to the core: rings for a reader that sleeps, waits for a reader to make
//! room, notices that the reader is gone.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use crate::doorbell::Doorbell;
use crate::error::SendError;
use crate::memory::RingWords;
use crate::producer::{Cut, Producer, Pushed};
use crate::reader::RECORD_BYTES_MAX;

/// A record on its way into a ring, piece by piece.
///
/// Made once per record, handed to [`Writer::try_send_piece`] until that says it is in. To give
/// up a record, hand it to [`Writer::abandon`]; while one is part-way in, no other can be sent.
#[derive(Debug)]
pub struct PendingSend {
    kind: u16,
    payload: Vec<u8>,
    cut: Cut,
}

impl PendingSend {
    /// A record to be sent.
    pub fn new(kind: u16, payload: Vec<u8>) -> Self {
        Self { kind, payload, cut: Cut::default() }
    }

    /// The record's kind.
    pub fn kind(&self) -> u16 {
        self.kind
    }
}

/// The writing end of a ring: one thread of one process holds it.
///
/// `AsFd` is the doorbell, readable when the reader made room or is gone: see
/// [`Self::prepare_wait`].
pub struct Writer {
    core: Producer<RingWords>,
    doorbell: Doorbell,
}

impl Writer {
    pub(crate) fn new(ring: RingWords, doorbell: Doorbell) -> Self {
        Self { core: Producer::new(ring, 0), doorbell }
    }

    /// Largest payload that [`Self::try_send`] takes: a quarter of the ring, less 8 bytes.
    pub fn payload_bytes_max(&self) -> usize {
        self.core.payload_bytes_max()
    }

    /// Sends a record now, whole, or not at all.
    ///
    /// # Errors
    /// [`SendError::Full`] when there is no room, [`SendError::TooLarge`] over
    /// [`Self::payload_bytes_max`], [`SendError::Busy`] while another record is part-way in,
    /// [`SendError::Closed`] when the reader is known to be gone.
    pub fn try_send(&mut self, kind: u16, payload: &[u8]) -> Result<(), SendError> {
        let bytes_max = self.payload_bytes_max();
        check_size(payload, bytes_max)?;
        if self.push(kind, payload, &mut Cut::default())? { Ok(()) } else { Err(SendError::Full) }
    }

    /// Sends a record, in pieces where it is longer than a quarter of the ring, and waits while
    /// the ring is full. `timeout` covers the whole record; `None` waits as long as the reader
    /// lives.
    ///
    /// # Errors
    /// As [`Self::try_send`], and [`SendError::TimedOut`] instead of `Full`: then the reader sees
    /// nothing of the record.
    pub fn send(
        &mut self,
        kind: u16,
        payload: &[u8],
        timeout: Option<Duration>,
    ) -> Result<(), SendError> {
        check_size(payload, RECORD_BYTES_MAX)?;
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut cut = Cut::default();
        loop {
            if self.push(kind, payload, &mut cut)? {
                return Ok(());
            }
            if !self.prepare_wait()? {
                continue;
            }
            let woken = self.doorbell.wait(deadline);
            self.woken()?;
            if !woken.map_err(SendError::Doorbell)? {
                self.core.abandon(cut);
                return Err(SendError::TimedOut);
            }
        }
    }

    /// Sends as much of a record as there is room for, without waiting. True: all of it is in.
    /// False: call again when there is room ([`Self::prepare_wait`], then the doorbell, then
    /// [`Self::woken`]).
    ///
    /// # Errors
    /// As [`Self::try_send`], except `Full`.
    pub fn try_send_piece(&mut self, pending: &mut PendingSend) -> Result<bool, SendError> {
        check_size(&pending.payload, RECORD_BYTES_MAX)?;
        self.push(pending.kind, &pending.payload, &mut pending.cut)
    }

    /// Gives up a record. If some pieces of it are in, the reader is told to forget them before
    /// the next record.
    pub fn abandon(&mut self, pending: PendingSend) {
        self.core.abandon(pending.cut);
    }

    /// Says that this side is about to wait for room. True: wait until the doorbell is readable,
    /// then call [`Self::woken`]. False: there is room now.
    ///
    /// # Errors
    /// [`SendError::Closed`], [`SendError::Corrupt`].
    pub fn prepare_wait(&mut self) -> Result<bool, SendError> {
        self.check_open()?;
        Ok(self.core.prepare_wait()?)
    }

    /// To be called after a wait, however it ended: takes the rings out of the doorbell and
    /// notices when the reader is gone. Cheap enough to be called at any time; never blocks.
    ///
    /// # Errors
    /// [`SendError::Closed`], [`SendError::Doorbell`].
    pub fn woken(&mut self) -> Result<(), SendError> {
        self.core.end_wait();
        self.doorbell.drain().map_err(SendError::Doorbell)?;
        self.check_open()
    }

    /// The doorbell: readable when the reader made room that was asked for, or is gone.
    pub fn space_doorbell(&self) -> BorrowedFd<'_> {
        self.doorbell.as_fd()
    }

    /// True when the reader is known to be gone.
    pub fn is_closed(&self) -> bool {
        self.doorbell.peer_gone()
    }

    fn check_open(&self) -> Result<(), SendError> {
        if self.doorbell.peer_gone() {
            return Err(SendError::Closed);
        }
        Ok(())
    }

    fn push(&mut self, kind: u16, payload: &[u8], cut: &mut Cut) -> Result<bool, SendError> {
        self.check_open()?;
        let pushed = self.core.push(kind, payload, cut);
        if self.core.take_bell_due() {
            self.doorbell.ring().map_err(SendError::Doorbell)?;
        }
        match pushed? {
            Pushed::Done => Ok(true),
            Pushed::Full => Ok(false),
            Pushed::Busy => Err(SendError::Busy),
        }
    }
}

impl AsFd for Writer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.doorbell.as_fd()
    }
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("doorbell", &self.doorbell).finish_non_exhaustive()
    }
}

fn check_size(payload: &[u8], bytes_max: usize) -> Result<(), SendError> {
    if payload.len() > bytes_max {
        return Err(SendError::TooLarge { bytes: payload.len(), bytes_max });
    }
    Ok(())
}
