//! Admission: who may have memory, who waits for it, who goes to make room.
//!
//! [`books`] holds the state: the ledger, one account per model, everybody who waits. It is pure:
//! events and times go in, [`Act`](books::Act)s come out, so that tests drive it with a simulated
//! machine. [`report`] tells what they hold, [`shell`] performs the acts, looks at the machine once a second, and answers the
//! supervisor's question whether a process may be made.
//!
//! A sequence reaches its model's pump only with a promise in the ledger: for the model, if it was
//! not loaded, and for what the sequence will keep.

mod account;
mod books;
#[cfg(test)]
mod books_tests;
mod limits;
pub(crate) mod metrics;
mod report;
mod shell;
mod words;

pub(crate) use books::Books;
pub use limits::{KeepAlive, Lifetime, MemoryKeeping, MemoryLimits};
pub(crate) use shell::{Admission, Handle};
pub(crate) use words::is_about_memory;
