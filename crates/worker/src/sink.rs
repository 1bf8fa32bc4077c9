//! The scheduler's output, on its way into the tokens ring.

use mlxd_engine::Sink;
use mlxd_protocol::{Report, TokenRecord, kind};
use mlxd_ring::{SendError, Writer};
use std::time::Duration;

/// How long a full ring is waited for. The front's pump only appends to journals: when it makes
/// no room for so long, it never will.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(30);

/// Sends frames; keeps the first error until it is asked for, and sends nothing after it.
#[derive(Debug)]
pub(crate) struct RingSink {
    writer: Writer,
    bytes: Vec<u8>,
    failed: Option<SendError>,
}

impl RingSink {
    pub(crate) fn new(writer: Writer) -> Self {
        Self { writer, bytes: Vec::new(), failed: None }
    }

    /// Fails if anything could not be sent.
    pub(crate) fn check(&mut self) -> Result<(), SendError> {
        self.failed.take().map_or(Ok(()), Err)
    }
}

impl Sink for RingSink {
    fn report(&mut self, report: Report) {
        if self.failed.is_none() {
            report.encode_into(&mut self.bytes);
            let sent = self.writer.send(kind::REPORT, &self.bytes, Some(ROOM_WAIT_MAX));
            self.failed = sent.err();
        }
    }

    fn tokens(&mut self, records: &[TokenRecord]) {
        if self.failed.is_none() {
            let bytes = TokenRecord::as_bytes(records);
            self.failed = self.writer.send(kind::TOKENS, bytes, Some(ROOM_WAIT_MAX)).err();
        }
    }
}
