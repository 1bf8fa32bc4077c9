//! The writing half of the ring core: cuts records into frames and publishes them.
//!
//! Owned by [`Writer`](crate::Writer), which adds the doorbell. It makes no system call, keeps
//! its own tail in private memory, and believes nothing of the reader's head before checking it.

use std::sync::atomic::Ordering;

use crate::error::Corrupt;
use crate::frame::{ABANDON, FIRST, Header, LAST, frame_bytes, payload_bytes_max};
use crate::memory::{Control, RingMemory, WORD_BYTES};

/// How far a record has been cut into frames.
#[derive(Debug, Default)]
pub(crate) struct Cut {
    /// Tells records apart; 0 as long as nothing was published.
    id: u64,
    sent: usize,
    done: bool,
}

/// What a push came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// The whole record is published.
    Done,
    /// The ring is full; what the cut says is in stays in.
    Full,
    /// Another record is part-way in.
    Busy,
}

/// The writing half of one ring.
pub(crate) struct Producer<M> {
    memory: M,
    tail: u64,
    head_seen: u64,
    /// Bytes that the last refused frame needed.
    wanted: u64,
    /// The record that is part-way in.
    part_sent: Option<u64>,
    ids_given: u64,
    /// A part-way record was given up and the reader does not know yet.
    abandon_owed: bool,
    bell_due: bool,
    condemned: Option<Corrupt>,
}

impl<M: RingMemory> Producer<M> {
    /// The writer of an empty ring whose cursors stand at `start`.
    pub(crate) fn new(memory: M, start: u64) -> Self {
        Self {
            memory,
            tail: start,
            head_seen: start,
            wanted: 0,
            part_sent: None,
            ids_given: 0,
            abandon_owed: false,
            bell_due: false,
            condemned: None,
        }
    }

    /// Largest payload that goes in as one frame, all or nothing.
    pub(crate) fn payload_bytes_max(&self) -> usize {
        payload_bytes_max(self.memory.capacity()) as usize
    }

    /// True once after a push published something for a reader that had said it was asleep.
    pub(crate) fn take_bell_due(&mut self) -> bool {
        std::mem::take(&mut self.bell_due)
    }

    /// Publishes as much of a record as there is room for.
    pub(crate) fn push(
        &mut self,
        kind: u16,
        payload: &[u8],
        cut: &mut Cut,
    ) -> Result<Pushed, Corrupt> {
        if let Some(corrupt) = self.condemned {
            return Err(corrupt);
        }
        if self.part_sent.is_some_and(|id| id != cut.id) {
            return Ok(Pushed::Busy);
        }
        let piece_max = self.payload_bytes_max();
        while !cut.done {
            let piece = &payload[cut.sent..payload.len().min(cut.sent + piece_max)];
            let first = cut.id == 0;
            let last = cut.sent + piece.len() == payload.len();
            let flags = if first { FIRST } else { 0 } | if last { LAST } else { 0 };
            if !self.push_frame(kind, flags, piece)? {
                return Ok(Pushed::Full);
            }
            if first {
                self.ids_given += 1;
                cut.id = self.ids_given;
            }
            cut.sent += piece.len();
            cut.done = last;
            self.part_sent = (!last).then_some(cut.id);
        }
        Ok(Pushed::Done)
    }

    /// Gives up a record; the reader will see nothing of it. No effect on a record that is wholly
    /// in, or of which nothing is in.
    pub(crate) fn abandon(&mut self, cut: Cut) {
        if cut.id != 0 && self.part_sent == Some(cut.id) {
            self.part_sent = None;
            self.abandon_owed = true;
        }
    }

    fn push_frame(&mut self, kind: u16, flags: u16, piece: &[u8]) -> Result<bool, Corrupt> {
        let abandon = if self.abandon_owed { frame_bytes(0) } else { 0 };
        let bytes = abandon + frame_bytes(piece.len() as u64);
        if !self.has_room(bytes)? {
            self.wanted = bytes;
            return Ok(false);
        }
        let mut cursor = self.tail;
        if self.abandon_owed {
            let header = Header { len: 0, kind: 0, flags: ABANDON };
            self.memory.put(cursor, header.to_word());
            cursor = cursor.wrapping_add(abandon);
            self.abandon_owed = false;
        }
        let header = Header { len: piece.len() as u32, kind, flags };
        self.memory.put(cursor, header.to_word());
        self.memory.put_bytes(cursor.wrapping_add(WORD_BYTES), piece);
        self.publish(self.tail.wrapping_add(bytes));
        Ok(true)
    }

    fn publish(&mut self, tail: u64) {
        self.tail = tail;
        // SYNC POINT: record published (pairs with Consumer::refresh_tail)
        self.memory.store(Control::Tail, tail, Ordering::Release);
        // SYNC POINT: reader asleep (pairs with Consumer::prepare_sleep). Either this fence comes
        // first and the reader, looking once more, sees the new tail; or the reader's comes first
        // and we see that it sleeps.
        self.memory.fence();
        if self.memory.load(Control::ReaderAsleep, Ordering::Relaxed) != 0
            && self.memory.swap(Control::ReaderAsleep, 0, Ordering::Relaxed) != 0
        {
            self.bell_due = true;
        }
    }

    fn has_room(&mut self, bytes: u64) -> Result<bool, Corrupt> {
        if self.free() < bytes {
            self.refresh_head()?;
        }
        Ok(self.free() >= bytes)
    }

    fn free(&self) -> u64 {
        self.memory.capacity() - self.tail.wrapping_sub(self.head_seen)
    }

    fn refresh_head(&mut self) -> Result<(), Corrupt> {
        // SYNC POINT: space released (pairs with Consumer::release)
        let head = self.memory.load(Control::Head, Ordering::Acquire);
        let advance = head.wrapping_sub(self.head_seen);
        if !advance.is_multiple_of(WORD_BYTES) {
            return Err(self.condemn("the reader's cursor is not on a word"));
        }
        if advance > self.tail.wrapping_sub(self.head_seen) {
            return Err(self.condemn("the reader's cursor is outside the published bytes"));
        }
        self.head_seen = head;
        Ok(())
    }

    fn condemn(&mut self, what: &'static str) -> Corrupt {
        let corrupt = Corrupt { what };
        self.condemned = Some(corrupt);
        corrupt
    }

    /// Tells the reader that the writer is about to wait for the room that the last push lacked.
    /// False: the room is there now, do not wait.
    pub(crate) fn prepare_wait(&mut self) -> Result<bool, Corrupt> {
        if let Some(corrupt) = self.condemned {
            return Err(corrupt);
        }
        let head_wanted = self.tail.wrapping_add(self.wanted).wrapping_sub(self.memory.capacity());
        // Cursors are whole words, so the lowest bit is free to say "somebody waits".
        self.memory.store(Control::WriterWaits, head_wanted | 1, Ordering::Relaxed);
        // SYNC POINT: writer waits (pairs with Consumer::release)
        self.memory.fence();
        if self.has_room(self.wanted)? {
            self.end_wait();
            return Ok(false);
        }
        Ok(true)
    }

    /// Takes back what [`Self::prepare_wait`] said.
    pub(crate) fn end_wait(&mut self) {
        self.memory.store(Control::WriterWaits, 0, Ordering::Relaxed);
    }
}
