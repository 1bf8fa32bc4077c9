//! What can go wrong, by side: making a segment, sending, receiving.

use std::io;
use std::path::PathBuf;

/// The peer wrote something that no peer of this version writes. The incarnation behind it is
/// not to be trusted any further; this side is unharmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Corrupt {
    /// What was wrong.
    pub what: &'static str,
}

/// Why nothing can be received any more.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The peer closed its end or died, and every record that it published has been read.
    #[error("the process at the other end of the ring is gone; start a new incarnation")]
    PeerGone,
    /// The ring holds something that no peer writes. Final: every later call says so again.
    #[error("the ring is corrupt ({what}); end the incarnation at its other end")]
    Corrupt {
        /// What was wrong.
        what: &'static str,
    },
    /// The doorbell's descriptor failed.
    #[error("waiting on the ring's doorbell failed: {0}")]
    Doorbell(#[source] io::Error),
}

/// Why a record was not sent, or not wholly.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// No room now. Nothing of this record was published by this call.
    #[error("the ring is full; wait for the reader to drain it and send again")]
    Full,
    /// Another record is part-way in; finish it or abandon it first.
    #[error("another record is part-way into the ring; finish or abandon it first")]
    Busy,
    /// The record is longer than this call may carry.
    #[error(
        "a record of {bytes} bytes is over the limit of {bytes_max}; send it in pieces or make it smaller"
    )]
    TooLarge {
        /// Length asked for.
        bytes: usize,
        /// Length allowed.
        bytes_max: usize,
    },
    /// The time ran out. A part-way record was abandoned: the reader sees nothing of it.
    #[error("the reader did not make room in time")]
    TimedOut,
    /// The reader closed its end or died.
    #[error("the process at the other end of the ring is gone; start a new incarnation")]
    Closed,
    /// The reader's cursor is impossible. Final: every later call says so again.
    #[error("the ring is corrupt ({what}); end the incarnation at its other end")]
    Corrupt {
        /// What was wrong.
        what: &'static str,
    },
    /// The doorbell's descriptor failed.
    #[error("waiting on the ring's doorbell failed: {0}")]
    Doorbell(#[source] io::Error),
}

/// Why a segment could not be made, attached to or forgotten.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// A size in the [`SegmentSpec`](crate::SegmentSpec) is not allowed.
    #[error("{name} = {bytes}: must be a power of two from {bytes_min} to {bytes_max}")]
    BadSize {
        /// The field.
        name: &'static str,
        /// Its value.
        bytes: usize,
        /// Smallest value allowed.
        bytes_min: usize,
        /// Largest value allowed.
        bytes_max: usize,
    },
    /// The system refused the shared memory.
    #[error("shared memory {name} of {bytes} bytes: {reason}; is there room for shared memory?")]
    Create {
        /// The segment's name.
        name: String,
        /// Its size.
        bytes: usize,
        /// What the system said.
        reason: String,
    },
    /// The segment to attach to is not there or not readable.
    #[error(
        "cannot open shared memory {name}: {reason}; was its front killed, or is it attached already?"
    )]
    Open {
        /// The segment's name.
        name: String,
        /// What the system said.
        reason: String,
    },
    /// The name is not one that [`Segment::create`](crate::Segment::create) gives.
    #[error("{0:?} is not the name of a segment")]
    BadName(String),
    /// The header is not that of a segment of this version.
    #[error(
        "shared memory {name} is no segment of this version: {what}; front and worker must be of one build"
    )]
    BadHeader {
        /// The segment's name.
        name: String,
        /// What was wrong.
        what: &'static str,
    },
    /// Somebody attached before: a ring has one reader and one writer.
    #[error("shared memory {0} has a worker attached already")]
    AlreadyAttached(String),
    /// The note that lets the next front find the segment could not be written.
    #[error("cannot keep a record of the segment in {dir}: {source}")]
    Record {
        /// The folder.
        dir: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// Making or preparing a doorbell failed.
    #[error("the segment's doorbells could not be prepared: {0}")]
    Doorbell(#[source] io::Error),
}

impl From<Corrupt> for RingError {
    fn from(corrupt: Corrupt) -> Self {
        Self::Corrupt { what: corrupt.what }
    }
}

impl From<Corrupt> for SendError {
    fn from(corrupt: Corrupt) -> Self {
        Self::Corrupt { what: corrupt.what }
    }
}
