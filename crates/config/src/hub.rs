//! `[hub]`: where models are pulled from, and how patiently.

use crate::section::section;
use crate::value::{Optional, Truth, Word};

section! {
    /// Where models are pulled from, and how patiently.
    pub struct HubConfig in "hub" {
        /// The hub's address. Left out: `$HF_ENDPOINT` or `https://huggingface.co`.
        endpoint: Option<String> = None, Optional(Word("an address"));
        /// Whether the hub is never asked; `$HF_HUB_OFFLINE` says so too.
        offline: bool = false, Truth;
        /// Models pulled at once; a further pull is refused.
        pulls_max: usize = 4, 1..=64;
        /// Files fetched at once by one pull.
        files_at_once: usize = 4, 1..=32;
        /// How long finding a host and shaking hands with it may take.
        connect_timeout_ms: u64 = 10_000, 100..=600_000;
        /// Silence after which a connection is given up and the file gone on with over a new one.
        stall_timeout_ms: u64 = 30_000, 100..=600_000;
        /// Attempts in a row that gain nothing before a pull ends.
        attempts_max: u32 = 8, 1..=1_000;
        /// Bytes of the disk that a pull leaves free.
        disk_reserve_bytes: u64 = 1 << 30, 0..=1 << 50;
    }
}
