//! `[http]`: where the front listens, and how much of everything it takes.

use crate::section::section;
use crate::value::{Optional, Word};

section! {
    /// Where the front listens, and how much of everything it takes.
    pub struct HttpConfig in "http" {
        /// Address or host name to listen on. Anything but a loopback address lets other
        /// machines use the models.
        host: String = "127.0.0.1".to_owned(), Word("an address or a host name");
        /// TCP port. 0 takes a free one, which the log names.
        port: u16 = 11440, 0..=65535;
        /// Threads that serve connections.
        threads: usize = 2, 1..=256;
        /// Threads for work that would block an event loop: templates, tokenising, files.
        blocking_threads_max: usize = 4, 1..=256;
        /// Connections open at once; more wait in the operating system's queue.
        connections_max: usize = 1024, 1..=65536;
        /// Answers being streamed at once; a further request gets 503.
        streams_max: usize = 256, 1..=65536;
        /// Bytes of a request's body; a longer one gets 413.
        body_bytes_max: usize = 32 * 1024 * 1024, 1024..=1024 * 1024 * 1024;
        /// How long a client may take to send a request's head.
        header_timeout_ms: u64 = 10_000, 100..=600_000;
        /// How long a client may take to send a request's body.
        body_timeout_ms: u64 = 60_000, 100..=3_600_000;
        /// How long an idle connection stays open.
        keep_alive_s: u64 = 75, 1..=86_400;
        /// A comment line goes down a stream that has been silent so long, so that proxies
        /// and clients keep it open.
        stream_ping_ms: u64 = 15_000, 100..=600_000;
        /// How often a stream is told, in comment lines, what it waits for before it begins: memory,
        /// its model's loading. Its head then goes out at the first of them. Left out: never.
        stream_progress_ms: Option<u64> = None, Optional(100..=600_000);
        /// The least that a refusal for lack of room names in `Retry-After`.
        retry_after_s: u64 = 1, 0..=3_600;
        /// The most that it names; in between is when a place should be free, by the pace at
        /// which places came free lately.
        retry_after_max_s: u64 = 60, 1..=86_400;
        /// How long running answers may go on after a first Ctrl-C or SIGTERM.
        shutdown_grace_ms: u64 = 10_000, 0..=3_600_000;
    }
}

impl HttpConfig {
    /// Whether only this machine can reach the port.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost"
            || self.host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}
