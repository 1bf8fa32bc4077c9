//! What the benches over the whole program share: many cheap streams at once, and what a process
//! has used.

mod process;
mod steady;
mod streams;

pub use process::{CpuTimes, Memory};
pub use steady::{Asked, Interval, Steady};
pub use streams::{Ages, Counted, STREAMS, Streams};
