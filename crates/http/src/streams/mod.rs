//! Streams that are kept, so that a client whose connection broke can read on.
//!
//! | what | where |
//! |---|---|
//! | events with their ids, cursors of the readers, what is dropped when | [`log`] |
//! | bytes of all streams together | [`budget`] |
//! | streams by id, and why one is gone | [`registry`] |
//! | the task that turns an answer into events | [`drive`] |
//! | a reader's response | [`body`] |
//!
//! An answer's events are written once, by its own task, and read by any number of responses: so
//! whoever reads on gets the very bytes that the first reader would have got. A kept stream that
//! nobody reads stands still, its sequences cancelled, unless its request asked for `background`;
//! the next reader has them generated on from their journals.

pub(crate) mod body;
mod budget;
pub(crate) mod drive;
pub(crate) mod log;
pub(crate) mod registry;
