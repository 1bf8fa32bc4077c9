//! Server-sent events, one at a time, with the time each was read.
//!
//! The format is that of the HTML standard, section 9.2; of its fields only `event` and `data`
//! are kept.

use serde_json::Value;
use std::io::{self, BufRead, BufReader, Read};
use std::time::Instant;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The `event` field.
    pub name: Option<String>,
    /// The `data` fields, joined by newlines.
    pub data: String,
    /// When its last line was read.
    pub at: Instant,
}

impl Event {
    /// The data as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("{error} in {}", self.data))
    }
}

/// The events of a body. Dropping it hangs up.
#[derive(Debug)]
pub struct Events<R> {
    reader: BufReader<R>,
    comments: usize,
}

impl<R: Read> Events<R> {
    /// The events in `body`.
    pub fn new(body: R) -> Self {
        // Small, so that a slow reader is slow on the wire too.
        let reader = BufReader::with_capacity(512, body);
        Self { reader, comments: 0 }
    }

    /// Comment lines seen so far.
    pub fn comments(&self) -> usize {
        self.comments
    }

    /// The next event. `None`: the body ended where it should, between two events.
    ///
    /// # Errors
    /// When the connection ended before the body did, or the body inside an event.
    pub fn next_event(&mut self) -> io::Result<Option<Event>> {
        let mut name = None;
        let mut data: Vec<String> = Vec::new();
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line)? == 0 {
                if name.is_none() && data.is_empty() {
                    return Ok(None);
                }
                let what = "the body ended inside an event";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
            }
            let line = line.trim_end_matches(['\r', '\n']);
            if line.is_empty() {
                if name.is_none() && data.is_empty() {
                    continue;
                }
                let data = data.join("\n");
                let at = Instant::now();
                return Ok(Some(Event { name, data, at }));
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "" => self.comments += 1,
                "event" => name = Some(value.to_owned()),
                "data" => data.push(value.to_owned()),
                _ => {}
            }
        }
    }

    /// The next event of a stream that must go on. Panics at its end.
    pub fn expect_event(&mut self) -> Event {
        self.next_event().expect("the stream goes on").expect("another event")
    }

    /// Every event up to a clean end.
    ///
    /// # Errors
    /// As [`next_event`](Self::next_event); what was read before is lost.
    pub fn all(mut self) -> io::Result<Vec<Event>> {
        std::iter::from_fn(|| self.next_event().transpose()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(body: &str) -> io::Result<Vec<(Option<String>, String)>> {
        let events = Events::new(body.as_bytes()).all()?;
        Ok(events.into_iter().map(|event| (event.name, event.data)).collect())
    }

    #[test]
    fn events_are_split_and_joined() {
        let body = ": ping\n\ndata: {\"a\":1}\n\nevent: error\ndata: x\ndata:y\nid: 3\r\n\r\ndata: [DONE]\n\n";
        let expected = [
            (None, "{\"a\":1}".to_owned()),
            (Some("error".to_owned()), "x\ny".to_owned()),
            (None, "[DONE]".to_owned()),
        ];
        assert_eq!(texts(body).unwrap(), expected);
        assert_eq!(texts("").unwrap(), []);
    }

    #[test]
    fn an_event_cut_short_is_no_end() {
        assert!(texts("data: a\n\ndata: b\n").is_err());
    }
}
