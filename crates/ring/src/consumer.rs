//! The reading half of the ring core: copies frames out, checks them, joins pieces.
//!
//! Owned by [`Reader`](crate::Reader), which adds the doorbell. It makes no system call, keeps
//! its own head in private memory, and believes nothing of what the writer wrote: a header is
//! copied out once and checked, a length is held against what is published before a byte moves.

use std::sync::atomic::Ordering;

use crate::error::Corrupt;
use crate::frame::{ABANDON, FIRST, Header, LAST, frame_bytes, payload_bytes_max};
use crate::memory::{Control, RingMemory, WORD_BYTES};

/// The reading half of one ring.
pub(crate) struct Consumer<M> {
    memory: M,
    head: u64,
    tail_seen: u64,
    /// The record of which some pieces are here: its kind.
    partial: Option<u16>,
    pieces: Vec<u8>,
    record_bytes_max: usize,
    bell_due: bool,
    /// The writer is gone: what was published when that was noticed is all there will be.
    sealed: bool,
    condemned: Option<Corrupt>,
}

impl<M: RingMemory> Consumer<M> {
    /// The reader of an empty ring whose cursors stand at `start`.
    pub(crate) fn new(memory: M, start: u64, record_bytes_max: usize) -> Self {
        Self {
            memory,
            head: start,
            tail_seen: start,
            partial: None,
            pieces: Vec::new(),
            record_bytes_max,
            bell_due: false,
            sealed: false,
            condemned: None,
        }
    }

    /// The writer is gone: looks at its cursor one last time, and never again.
    pub(crate) fn seal(&mut self) -> Result<(), Corrupt> {
        if !self.sealed && self.condemned.is_none() {
            self.refresh_tail()?;
            self.sealed = true;
        }
        Ok(())
    }

    /// Sets the longest record that is put together from pieces.
    pub(crate) fn set_record_bytes_max(&mut self, bytes: usize) {
        self.record_bytes_max = bytes;
    }

    /// True once after something was consumed that a waiting writer had asked to hear of.
    pub(crate) fn take_bell_due(&mut self) -> bool {
        std::mem::take(&mut self.bell_due)
    }

    /// True while the first pieces of a record are here and its last is not.
    pub(crate) fn mid_record(&self) -> bool {
        self.partial.is_some()
    }

    /// Takes the next whole record into `out`; gives its kind.
    ///
    /// Looks at the tail once, so that the work of one call is bounded by the ring's size
    /// whatever the writer does meanwhile.
    pub(crate) fn try_recv(&mut self, out: &mut Vec<u8>) -> Result<Option<u16>, Corrupt> {
        if let Some(corrupt) = self.condemned {
            return Err(corrupt);
        }
        if self.head == self.tail_seen && !self.sealed {
            self.refresh_tail()?;
        }
        while self.head != self.tail_seen {
            let header = self.checked_header()?;
            let complete = self.take_frame(header, out)?;
            self.release(frame_bytes(u64::from(header.len)));
            if complete {
                return Ok(Some(header.kind));
            }
        }
        Ok(None)
    }

    /// True when nothing is published that has not been taken.
    pub(crate) fn is_empty(&mut self) -> Result<bool, Corrupt> {
        if let Some(corrupt) = self.condemned {
            return Err(corrupt);
        }
        if self.head == self.tail_seen && !self.sealed {
            self.refresh_tail()?;
        }
        Ok(self.head == self.tail_seen)
    }

    fn refresh_tail(&mut self) -> Result<(), Corrupt> {
        // SYNC POINT: record published (pairs with Producer::publish)
        let tail = self.memory.load(Control::Tail, Ordering::Acquire);
        let published = tail.wrapping_sub(self.head);
        if published > self.memory.capacity() {
            return Err(self.condemn("more bytes are published than the ring holds"));
        }
        if !published.is_multiple_of(WORD_BYTES) {
            return Err(self.condemn("the writer's cursor is not on a word"));
        }
        self.tail_seen = tail;
        Ok(())
    }

    /// Copies the header at the head out of shared memory, once, and checks the copy.
    fn checked_header(&mut self) -> Result<Header, Corrupt> {
        let header = Header::from_word(self.memory.get(self.head));
        let len = u64::from(header.len);
        let published = self.tail_seen.wrapping_sub(self.head);
        if len > payload_bytes_max(self.memory.capacity()) {
            return Err(self.condemn("a frame is longer than a quarter of the ring"));
        }
        if frame_bytes(len) > published {
            return Err(self.condemn("a frame is longer than what is published"));
        }
        if header.flags & !(FIRST | LAST | ABANDON) != 0 {
            return Err(self.condemn("a frame has unknown flags"));
        }
        Ok(header)
    }

    /// Copies one frame's payload to where it belongs. True: `out` holds a whole record.
    fn take_frame(&mut self, header: Header, out: &mut Vec<u8>) -> Result<bool, Corrupt> {
        let len = header.len as usize;
        let cursor = self.head.wrapping_add(WORD_BYTES);
        match (header.flags, self.partial) {
            (flags, None) if flags == FIRST | LAST => {
                if len > self.record_bytes_max {
                    return Err(self.condemn("a record is over the size limit"));
                }
                out.clear();
                self.memory.append_bytes(cursor, len, out);
                return Ok(true);
            }
            (ABANDON, Some(_)) if len == 0 => {
                self.partial = None;
                self.pieces.clear();
                return Ok(false);
            }
            (FIRST, None) => {
                self.partial = Some(header.kind);
                self.pieces.clear();
            }
            (0 | LAST, Some(kind)) if kind == header.kind => {}
            _ => {
                return Err(
                    self.condemn("a frame's flags or kind do not follow from the last frame's")
                );
            }
        }
        let last = header.flags & LAST != 0;
        if len == 0 && !last {
            return Err(self.condemn("a piece of a record is empty"));
        }
        if self.pieces.len() + len > self.record_bytes_max {
            return Err(self.condemn("a record is over the size limit"));
        }
        let mut pieces = std::mem::take(&mut self.pieces);
        self.memory.append_bytes(cursor, len, &mut pieces);
        self.pieces = pieces;
        if last {
            self.partial = None;
            std::mem::swap(out, &mut self.pieces);
            self.pieces.clear();
        }
        Ok(last)
    }

    fn release(&mut self, bytes: u64) {
        self.head = self.head.wrapping_add(bytes);
        // SYNC POINT: space released (pairs with Producer::refresh_head)
        self.memory.store(Control::Head, self.head, Ordering::Release);
        // SYNC POINT: writer waits (pairs with Producer::prepare_wait). Either this fence comes
        // first and the writer, looking once more, sees the room; or the writer's comes first
        // and we see that it waits.
        self.memory.fence();
        let wanted = self.memory.load(Control::WriterWaits, Ordering::Relaxed);
        if wanted != 0
            && self.head.wrapping_sub(wanted & !1) as i64 >= 0
            && self.memory.swap(Control::WriterWaits, 0, Ordering::Relaxed) != 0
        {
            self.bell_due = true;
        }
    }

    fn condemn(&mut self, what: &'static str) -> Corrupt {
        let corrupt = Corrupt { what };
        self.condemned = Some(corrupt);
        corrupt
    }

    /// Tells the writer that the reader is about to sleep. False: something is there now, do not
    /// sleep.
    pub(crate) fn prepare_sleep(&mut self) -> Result<bool, Corrupt> {
        self.memory.store(Control::ReaderAsleep, 1, Ordering::Relaxed);
        // SYNC POINT: reader asleep (pairs with Producer::publish)
        self.memory.fence();
        if !self.is_empty()? {
            self.end_sleep();
            return Ok(false);
        }
        Ok(true)
    }

    /// Takes back what [`Self::prepare_sleep`] said.
    pub(crate) fn end_sleep(&mut self) {
        self.memory.store(Control::ReaderAsleep, 0, Ordering::Relaxed);
    }
}
