//! The frame: one header word, then the payload padded to whole words.
//!
//! ```text
//! bit 63        48 47        32 31                    0
//!     +-----------+------------+-----------------------+
//!     |   flags   |    kind    | payload bytes, unpadded|
//!     +-----------+------------+-----------------------+
//! ```
//! A record is one frame with FIRST and LAST set, or, when it is longer than a quarter of the
//! ring, a run of frames of one kind: FIRST, any number without flags, LAST. A writer that gave
//! up a record half-way says so with a single empty ABANDON frame.

use crate::memory::WORD_BYTES;

/// The frame begins a record.
pub(crate) const FIRST: u16 = 1;
/// The frame ends a record.
pub(crate) const LAST: u16 = 2;
/// The record begun is given up: forget its pieces. Stands alone, without payload.
pub(crate) const ABANDON: u16 = 4;

/// A frame's header, not yet believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) len: u32,
    pub(crate) kind: u16,
    pub(crate) flags: u16,
}

impl Header {
    pub(crate) fn to_word(self) -> u64 {
        u64::from(self.len) | u64::from(self.kind) << 32 | u64::from(self.flags) << 48
    }

    pub(crate) fn from_word(word: u64) -> Self {
        Self { len: word as u32, kind: (word >> 32) as u16, flags: (word >> 48) as u16 }
    }
}

/// Bytes that a payload of `len` bytes takes in the ring, with its header.
pub(crate) fn frame_bytes(len: u64) -> u64 {
    WORD_BYTES + len.next_multiple_of(WORD_BYTES)
}

/// Largest payload of one frame in a ring of `capacity` bytes: a quarter, less the header.
pub(crate) fn payload_bytes_max(capacity: u64) -> u64 {
    capacity / 4 - WORD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_its_word() {
        for header in [
            Header { len: 0, kind: 0, flags: 0 },
            Header { len: u32::MAX, kind: 0, flags: 0 },
            Header { len: 0, kind: u16::MAX, flags: 0 },
            Header { len: 0, kind: 0, flags: u16::MAX },
            Header { len: 24, kind: 7, flags: FIRST | LAST },
        ] {
            assert_eq!(Header::from_word(header.to_word()), header);
        }
    }

    #[test]
    fn frames_are_whole_words() {
        assert_eq!(frame_bytes(0), 8);
        assert_eq!(frame_bytes(1), 16);
        assert_eq!(frame_bytes(8), 16);
        assert_eq!(frame_bytes(9), 24);
        assert_eq!(frame_bytes(payload_bytes_max(4096)), 1024);
    }
}
