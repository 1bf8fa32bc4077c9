//! `[streams]`: how long and how much of resumable streams is kept.

use crate::section::section;

section! {
    /// How long and how much of the streams that their clients can come back to is kept.
    pub struct StreamsConfig in "streams" {
        /// Resumable streams at once, read or waiting for their reader.
        kept_max: usize = 256, 1..=65_536;
        /// How long one that nobody reads is kept, from its end or from its reader's leaving.
        retention_s: u64 = 300, 1..=604_800;
        /// Bytes of events of all of them.
        bytes_max: usize = 64 * 1024 * 1024, 65_536..=64 * 1024 * 1024 * 1024;
        /// Bytes of events of one of them.
        stream_bytes_max: usize = 8 * 1024 * 1024, 16_384..=1024 * 1024 * 1024;
    }
}
