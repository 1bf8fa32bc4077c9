//! What the ring core stands on: four control words and a circle of data words.
//!
//! The core ([`Producer`](crate::producer::Producer), [`Consumer`](crate::consumer::Consumer))
//! is generic over [`RingMemory`], so that the very same code runs over the shared mapping, over
//! plain heap memory in property tests, and over loom's atomics in the model.
//!
//! Every access to shared memory is an access to an atomic 64-bit word. A peer that scribbles
//! while we read can therefore give us wrong values, never undefined behaviour.

#![allow(unsafe_code)] // The one place that turns a mapping into a slice of atomics.

use std::any::Any;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Bytes of one word, the unit of every cursor, frame and copy.
pub(crate) const WORD_BYTES: u64 = 8;

/// Bytes of the line that each control word has to itself: two 64-byte lines on x86, which
/// prefetches in pairs, one line on Apple Silicon.
pub(crate) const LINE_BYTES: usize = 128;

/// The control words of one ring, in the order of their lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    /// Bytes ever published. Written by the writer alone.
    Tail = 0,
    /// Bytes ever consumed. Written by the reader alone.
    Head = 1,
    /// Not 0: the reader sleeps, or is about to. Set by the reader, taken back by either side.
    ReaderAsleep = 2,
    /// Not 0: the writer waits until `Head` has reached this value, less its lowest bit, which is
    /// always set. Set by the writer, taken back by either side.
    WriterWaits = 3,
}

/// Bytes of a ring's control lines.
pub(crate) const CONTROL_BYTES: usize = 4 * LINE_BYTES;

/// Memory that can carry one ring.
pub(crate) trait RingMemory {
    /// Bytes of the data circle, a power of two.
    fn capacity(&self) -> u64;
    /// Reads a control word.
    fn load(&self, control: Control, order: Ordering) -> u64;
    /// Writes a control word.
    fn store(&self, control: Control, value: u64, order: Ordering);
    /// Replaces a control word and gives what it held.
    fn swap(&self, control: Control, value: u64, order: Ordering) -> u64;
    /// A sequentially consistent fence.
    fn fence(&self);
    /// Reads the data word at a cursor.
    fn get(&self, cursor: u64) -> u64;
    /// Writes the data word at a cursor.
    fn put(&self, cursor: u64, value: u64);

    /// Writes bytes from a cursor on, the last word padded with zeros.
    fn put_bytes(&self, mut cursor: u64, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(WORD_BYTES as usize);
        for word in &mut words {
            let mut raw = [0; WORD_BYTES as usize];
            raw.copy_from_slice(word);
            self.put(cursor, u64::from_ne_bytes(raw));
            cursor = cursor.wrapping_add(WORD_BYTES);
        }
        let rest = words.remainder();
        if !rest.is_empty() {
            let mut raw = [0; WORD_BYTES as usize];
            raw[..rest.len()].copy_from_slice(rest);
            self.put(cursor, u64::from_ne_bytes(raw));
        }
    }

    /// Appends `len` bytes from a cursor on to `out`.
    fn append_bytes(&self, mut cursor: u64, len: usize, out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + len, 0);
        let mut words = out[start..].chunks_exact_mut(WORD_BYTES as usize);
        for word in &mut words {
            word.copy_from_slice(&self.get(cursor).to_ne_bytes());
            cursor = cursor.wrapping_add(WORD_BYTES);
        }
        let rest = words.into_remainder();
        if !rest.is_empty() {
            let raw = self.get(cursor).to_ne_bytes();
            rest.copy_from_slice(&raw[..rest.len()]);
        }
    }
}

/// A run of atomic words in memory that something else keeps alive.
#[derive(Clone)]
pub(crate) struct Words {
    base: NonNull<AtomicU64>,
    len: usize,
    /// Owns the memory behind `base`.
    keep: Arc<dyn Any + Send + Sync>,
}

// SAFETY: `Words` gives out nothing but `&AtomicU64` into memory that `keep`, itself Send + Sync,
// keeps alive; atomics may be used from any thread.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    /// Words over a mapping.
    ///
    /// # Safety
    /// `base` must be aligned to 8 bytes and point to `len` words that are readable, writable
    /// and never moved or unmapped before `keep` is dropped. Whoever else writes them, in this
    /// process, does it through atomics.
    pub(crate) unsafe fn from_mapping(
        base: NonNull<AtomicU64>,
        len: usize,
        keep: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        Self { base, len, keep }
    }

    /// Zeroed words on the heap.
    #[cfg(test)]
    pub(crate) fn on_heap(len: usize) -> Self {
        let memory: Arc<Vec<AtomicU64>> = Arc::new((0..len).map(|_| AtomicU64::new(0)).collect());
        let base = NonNull::from(memory.as_slice()).cast();
        Self { base, len, keep: memory }
    }

    /// The words.
    #[inline]
    pub(crate) fn as_slice(&self) -> &[AtomicU64] {
        // SAFETY: `base` and `len` come from a constructor, which vouched for them, or from
        // `part`, which stays inside; `keep` lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }

    /// A part of the words. Panics when the range lies outside: ranges are computed from checked
    /// sizes, never from what a peer wrote.
    pub(crate) fn part(&self, range: Range<usize>) -> Self {
        let slice = &self.as_slice()[range];
        Self { base: NonNull::from(slice).cast(), len: slice.len(), keep: Arc::clone(&self.keep) }
    }
}

/// One ring in ordinary or shared memory.
pub(crate) struct RingWords {
    control: Words,
    data: Words,
    mask: u64,
}

impl RingWords {
    /// A ring over `CONTROL_BYTES` of control lines followed by the data.
    pub(crate) fn new(words: &Words) -> Self {
        let control_words = CONTROL_BYTES / WORD_BYTES as usize;
        let data = words.part(control_words..words.as_slice().len());
        let data_words = data.as_slice().len();
        assert!(data_words.is_power_of_two(), "ring data: {data_words} words");
        Self { control: words.part(0..control_words), data, mask: data_words as u64 - 1 }
    }

    /// An empty ring of `capacity` bytes on the heap, and a second handle on it.
    #[cfg(test)]
    pub(crate) fn pair_on_heap(capacity: usize) -> (Self, Self) {
        let words = Words::on_heap((CONTROL_BYTES + capacity) / WORD_BYTES as usize);
        (Self::new(&words), Self::new(&words))
    }

    #[inline]
    fn control(&self, control: Control) -> &AtomicU64 {
        &self.control.as_slice()[control as usize * (LINE_BYTES / WORD_BYTES as usize)]
    }

    #[inline]
    fn data(&self, cursor: u64) -> &AtomicU64 {
        &self.data.as_slice()[((cursor / WORD_BYTES) & self.mask) as usize]
    }
}

impl RingMemory for RingWords {
    #[inline]
    fn capacity(&self) -> u64 {
        (self.mask + 1) * WORD_BYTES
    }

    #[inline]
    fn load(&self, control: Control, order: Ordering) -> u64 {
        self.control(control).load(order)
    }

    #[inline]
    fn store(&self, control: Control, value: u64, order: Ordering) {
        self.control(control).store(value, order);
    }

    #[inline]
    fn swap(&self, control: Control, value: u64, order: Ordering) -> u64 {
        self.control(control).swap(value, order)
    }

    #[inline]
    fn fence(&self) {
        fence(Ordering::SeqCst);
    }

    #[inline]
    fn get(&self, cursor: u64) -> u64 {
        self.data(cursor).load(Ordering::Relaxed)
    }

    #[inline]
    fn put(&self, cursor: u64, value: u64) {
        self.data(cursor).store(value, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Words {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Words").field("len", &self.len).finish_non_exhaustive()
    }
}
