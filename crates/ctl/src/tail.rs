//! `mlxctl tail` and `mlxctl maintail`: the end of a log.

use crate::arguments::Maintail;
use crate::client::{Failure, Front, Patience};
use crate::exit::Exit;
use crate::lines::Pieces;
use crate::output::{harmless, is_terminal, line, piece};
use serde_json::json;
use std::io::Write;

/// Shows a model's log, or mlxd's own; with `follow` until Ctrl-C, the end of mlxd, or a closed
/// pipe.
pub(crate) async fn tail(
    front: &Front,
    model: Option<&str>,
    end: &Maintail,
    as_json: bool,
) -> Result<Exit, Failure> {
    let bytes = end.bytes.to_string();
    let mut query = vec![("bytes", bytes.as_str())];
    query.extend(model.map(|model| ("model", model)));
    if end.follow {
        query.push(("follow", "true"));
    }
    // A log may stay silent for ever.
    let response = front.get_stream("/admin/v1/log", &query, Patience::Stream(None)).await?;
    let mut log = Pieces::new(response)?;
    let mut text = Text::default();
    while let Some(bytes) = log.next().await? {
        match as_json {
            true => line(&json!({"model": model, "text": text.take(bytes.as_ref())}).to_string())?,
            false => text.show(bytes.as_ref())?,
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
