//! What is kept of earlier sequences, for those that begin alike: the bookkeeping.
//!
//! Sequences are cut into blocks of a fixed number of tokens; a block is found by a hash over its
//! parent's hash and all of its token ids, and what is found is compared id by id and parent by
//! parent before it is used: a hash alone never decides what a model has read. A block's payload
//! is whatever the engine puts there; the index knows only its bytes.
//!
//! Any beginning can be used, down to one token: of a block that agrees only in part, that part.
//! Blocks never change once they are in: sequences that part ways have a block each from there
//! on. Those in use are counted and stay; of the others, those that no other block builds on go
//! first, the longest unused before the rest.

mod hash;
mod index;

pub use hash::{BlockHash, CacheKey};
pub use index::{Hit, Lease, PrefixIndex, Tails};
