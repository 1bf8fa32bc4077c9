//! Transport between the front and one worker: a segment of shared memory with two rings of
//! framed records, a doorbell for each, and a page on which the worker tells how it is doing.
//!
//! The front makes a [`Segment`] per worker incarnation and hands its name and two descriptors to
//! the child; the child calls [`WorkerLink::attach`], which unlinks the name. From then on the
//! memory lives exactly as long as the two processes have it. This crate carries bytes of a kind
//! from one side to the other. It knows nothing of what the kinds mean, of configuration or of
//! processes.
//!
//! # Layout
//!
//! ```text
//!      0  header      magic, layout version, sizes · 128: "attached"
//!   4096  progress    one word per figure, written by the worker
//!   8192  commands    ┌ +0    tail         bytes published     written by the writer
//!                     │ +128  head         bytes consumed      written by the reader
//!                     │ +256  asleep       the reader sleeps   written by both
//!                     │ +384  waits        the writer waits    written by both
//!                     └ +512  data         commands_bytes, a power of two
//!         tokens      the same, with tokens_bytes
//! ```
//!
//! Cursors count bytes since the beginning, 64 bits wide, and never go back; a position in the
//! data is the cursor modulo the size. Each is written by one side alone and has a 128-byte line
//! to itself. A frame is a header word (length, kind, flags), then the payload padded to 8 bytes;
//! it may cross the end of the data. A frame takes a quarter of the ring at most, so that a
//! waiting side always has something to do; a longer record travels as several frames and is put
//! together at the other side, up to [`RECORD_BYTES_MAX`].
//!
//! # Publishing
//!
//! The writer fills a frame behind the tail and stores the new tail with Release; the reader loads
//! it with Acquire and copies the frame out (SYNC POINT "record published"). The reader stores the
//! new head with Release; the writer loads it with Acquire and may write there again (SYNC POINT
//! "space released"). A writer that dies half-way through a frame has published nothing of it.
//!
//! # Sleeping and ringing
//!
//! ```text
//! reader                              writer
//!   asleep := 1                         tail := new        (Release)
//!   fence                               fence
//!   tail ≠ head? then go on reading     asleep ≠ 0? then asleep := 0 and ring
//!   wait for the doorbell
//! ```
//!
//! Of two sequentially consistent fences one comes first. If it is the reader's, the writer sees
//! that it sleeps and rings; if it is the writer's, the reader sees the record and does not sleep.
//! While nobody sleeps nobody makes a system call. A writer that finds the ring full does the same
//! the other way round: it leaves the head that it waits for in `waits`, looks once more, and
//! sleeps; the reader rings when its head has come that far. A superfluous ring does no harm: who
//! is woken looks, and sleeps again.
//!
//! A doorbell is a socket pair, one end in each process. A byte means "look"; end of file means
//! that the peer is gone, however it went, and comes at once. Records published before are still
//! read; [`RingError::PeerGone`] follows after the last one.
//!
//! # The peer is not trusted
//!
//! - Each side keeps its own cursor, the sizes and the offsets in private memory; from the segment
//!   it takes the peer's cursor, frame headers and payloads, nothing else.
//! - It copies out, once, then checks the copy. A cursor that is off, a length over the limit,
//!   flags that do not follow from the last frame's: the ring is condemned, for good
//!   ([`RingError::Corrupt`], [`SendError::Corrupt`]), and the incarnation with it. This side is
//!   unharmed.
//! - Every access is to an atomic word of a slice whose bounds Rust checks, so a peer that writes
//!   while we read gives us wrong values and nothing worse.
//! - The work of one call is bounded by the ring's size, whatever the peer does meanwhile.
//!
//! One thing a process of the same user can do that this cannot catch: shrink the memory object
//! itself, which ends whoever touches it with SIGBUS on Linux.
//!
//! # Absent on purpose
//!
//! eventfd, memfd and futex, which macOS does not have. Several readers or writers: a ring joins
//! two threads. Kinds: the protocol gives them their meaning and checks them.

mod clock;
mod consumer;
mod doorbell;
mod error;
mod frame;
mod inherited;
pub mod leftovers;
mod memory;
mod producer;
mod progress;
mod reader;
mod segment;
mod writer;

#[cfg(target_os = "linux")]
#[path = "linux.rs"]
mod os;
#[cfg(target_os = "macos")]
#[path = "macos.rs"]
mod os;

pub use clock::monotonic_ns;
pub use error::{RingError, SegmentError, SendError};
pub use inherited::take_inherited_fd;
pub use progress::{Guessed, Kept, Progress, ProgressReader, ProgressWriter};
pub use reader::{RECORD_BYTES_MAX, Reader};
pub use segment::{
    FrontLink, NAME_BYTES_MAX, NAME_PREFIX, RING_BYTES_MAX, RING_BYTES_MIN, Segment, SegmentName,
    SegmentSpec, WorkerFds, WorkerLink,
};
pub use writer::{PendingSend, Writer};

#[cfg(test)]
mod tests;
