//! Tests of the ring core over memory that is no mapping: loom's, and the heap.

mod against_queue;
mod hostile;
mod loom_model;
mod wrap;
