//! `mlxctl tail`: the end of a worker's log.

use crate::arguments::Tail;
use crate::client::{Failure, Front, Patience, broken};
use crate::exit::Exit;
use crate::output::{harmless, is_terminal, piece};
use std::io::Write;
use tokio::signal::unix::{SignalKind, signal};

/// Shows the log; with `follow` until Ctrl-C, the end of mlxd, or a closed pipe.
pub(crate) async fn tail(front: &Front, arguments: &Tail) -> Result<Exit, Failure> {
    let bytes = arguments.bytes.to_string();
    let mut query = vec![("model", arguments.model.as_str()), ("bytes", bytes.as_str())];
    if arguments.follow {
        query.push(("follow", "true"));
    }
    // A log may stay silent for ever.
    let mut log = front.get_stream("/admin/v1/log", &query, Patience::Stream(None)).await?;
    let mut text = Text::default();
    // Registered before the first piece is shown: Ctrl-C is the ordinary end of `tail -f`.
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        let next = tokio::select! {
            next = log.chunk() => next.map_err(broken)?,
            _ = interrupt.recv() => None,
        };
        match next {
            Some(bytes) => text.show(&bytes)?,
            None => break,
        }
    }
    Ok(Exit::Success)
}

/// Bytes become text where a terminal shows them; elsewhere they pass as they are.
#[derive(Default)]
struct Text {
    /// The beginning of a character whose end has not come yet.
    rest: Vec<u8>,
}

impl Text {
    fn show(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        if !is_terminal() {
            let mut out = std::io::stdout().lock();
            out.write_all(bytes)?;
            out.flush()?;
            return Ok(());
        }
        piece(&harmless(&self.take(bytes)))
    }

    fn take(&mut self, bytes: &[u8]) -> String {
        self.rest.extend_from_slice(bytes);
        let whole = match std::str::from_utf8(&self.rest) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => self.rest.len(),
        };
        let rest = self.rest.split_off(whole);
        let text = String::from_utf8_lossy(&self.rest).into_owned();
        self.rest = rest;
        text
    }
}

#[cfg(test)]
mod tests {
    use super::Text;

    #[test]
    fn a_character_may_come_in_two_pieces() {
        let mut text = Text::default();
        assert_eq!(text.take(b"a\xc3"), "a");
        assert_eq!(text.take(b"\xa4b"), "äb");
        assert_eq!(text.take(b"\xff."), "\u{FFFD}.");
    }
}
