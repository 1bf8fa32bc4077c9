//! Transport between the front and one worker.

mod clock;
mod consumer;
mod doorbell;
mod error;
mod frame;
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
pub use progress::{Progress, ProgressReader, ProgressWriter};
pub use reader::{RECORD_BYTES_MAX, Reader};
pub use segment::{
    FrontLink, NAME_BYTES_MAX, NAME_PREFIX, RING_BYTES_MAX, RING_BYTES_MIN, Segment, SegmentName,
    SegmentSpec, WorkerFds, WorkerLink,
};
pub use writer::{PendingSend, Writer};

#[cfg(test)]
mod tests;
