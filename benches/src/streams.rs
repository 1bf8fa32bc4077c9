//! Many chat streams at once, read by one thread that costs little: it shares the machine with
//! what it measures.

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use mlxd_ring::monotonic_ns;
use mlxd_testkit::Script;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::json;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;

/// Streams at once.
pub const STREAMS: usize = 64;

/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;

/// Bytes of a stream's end that are kept: its usage and its closing chunk are in them.
const TAIL_BYTES: usize = 1024;

/// Comes before a delta's text.
const OPEN: &[u8] = b"\"delta\":{\"content\":\"";

/// The end of a whole answer: the API's end mark, then the closing chunk of its body.
const END: &[u8] = b"data: [DONE]\n\n\r\n0\r\n\r\n";

/// What came over all streams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Tokens, by the usage at each stream's end.
    pub tokens: u64,
    /// Server-sent events.
    pub events: u64,
    /// Bytes.
    pub bytes: u64,
    /// Reads that brought some.
    pub reads: u64,
}

/// Ages of tokens that tell when they were made, in nanoseconds.
#[derive(Debug)]
pub struct Ages {
    /// The histogram.
    pub histogram: Histogram<u64>,
    /// Streams that have given their first token: until all have, nothing is recorded, for the
    /// requests are still being taken in.
    begun: usize,
}

impl Default for Ages {
    fn default() -> Self {
        let histogram = Histogram::new(3).expect("three digits are allowed");
        Self { histogram, begun: 0 }
    }
}

struct Stream {
    socket: TcpStream,
    /// The last bytes; with ages at least those of the event that is being read.
    tail: Vec<u8>,
    begun: bool,
    open: bool,
}

/// Chat streams that were asked for and are not read yet.
pub struct Streams {
    streams: Vec<Stream>,
    counted: Counted,
}

impl Streams {
    /// Asks for [`STREAMS`] answers of so many tokens.
    ///
    /// # Errors
    /// When the front does not take them.
    pub fn ask(address: SocketAddr, model: &str, tokens: u64) -> Result<Self> {
        let streams = (0..STREAMS).map(|number| Stream::ask(address, model, tokens, number));
        let streams = streams.collect::<Result<_>>()?;
        Ok(Self { streams, counted: Counted::default() })
    }

    /// Reads them to their ends. With `ages`, the answers are the scripted engine's clock.
    ///
    /// # Errors
    /// When one of them does not end well.
    pub fn read(mut self, mut ages: Option<&mut Ages>) -> Result<Counted> {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let open: Vec<usize> =
                (0..self.streams.len()).filter(|&at| self.streams[at].open).collect();
            if open.is_empty() {
                break;
            }
            for at in self.readable(&open)? {
                let stream = &mut self.streams[at];
                stream.take_in(&mut buffer, &mut self.counted, ages.as_deref_mut())?;
            }
        }
        for stream in &self.streams {
            self.counted.tokens += stream.tokens()?;
        }
        Ok(self.counted)
    }

    fn readable(&self, open: &[usize]) -> Result<Vec<usize>> {
        let watch = |at: &usize| PollFd::new(self.streams[*at].socket.as_fd(), PollFlags::POLLIN);
        let mut watched: Vec<_> = open.iter().map(watch).collect();
        poll(&mut watched, PollTimeout::NONE)?;
        let ready = open.iter().zip(&watched).filter(|(_, fd)| fd.any() == Some(true));
        Ok(ready.map(|(&at, _)| at).collect())
    }
}

impl Stream {
    fn ask(address: SocketAddr, model: &str, tokens: u64, number: usize) -> Result<Self> {
        let body = json!({
            "model": model,
            "stream": true,
            "stream_options": {"include_usage": true},
            "max_tokens": tokens,
            "seed": number,
            "messages": [{"role": "user", "content": "Go on."}],
        });
        let body = body.to_string();
        let mut socket = TcpStream::connect(address)?;
        write!(
            socket,
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, tail: Vec::new(), begun: false, open: true })
    }

    fn take_in(
        &mut self,
        buffer: &mut [u8],
        counted: &mut Counted,
        ages: Option<&mut Ages>,
    ) -> Result<()> {
        let bytes = match self.socket.read(buffer) {
            Ok(0) => {
                let tail = String::from_utf8_lossy(&self.tail);
                ensure!(self.tail.ends_with(END), "a stream ended with {tail:?}");
                self.open = false;
                return Ok(());
            }
            Ok(count) => &buffer[..count],
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => bail!("a stream broke: {error}"),
        };
        let now_ns = monotonic_ns();
        counted.reads += 1;
        counted.bytes += bytes.len() as u64;
        // Each event has exactly one of these, since scripted answers have none in their text.
        counted.events += bytes.iter().filter(|&&byte| byte == b']').count() as u64;
        match ages {
            Some(ages) => self.note_ages(bytes, now_ns, ages)?,
            None => self.keep_tail(bytes),
        }
        Ok(())
    }

    fn keep_tail(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(&bytes[bytes.len().saturating_sub(TAIL_BYTES)..]);
        self.tail.drain(..self.tail.len().saturating_sub(TAIL_BYTES));
    }

    /// Looks for clock words in what came in whole lines.
    fn note_ages(&mut self, bytes: &[u8], now_ns: u64, ages: &mut Ages) -> Result<()> {
        let seen = self.tail.len();
        let cut = self.tail.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        self.tail.extend_from_slice(bytes);
        let whole = self.tail[seen..].iter().rposition(|&byte| byte == b'\n');
        let Some(whole) = whole.map(|at| seen + at) else { return Ok(()) };
        for text in texts(&self.tail[cut..whole]) {
            if !text.is_empty() && !self.begun {
                self.begun = true;
                ages.begun += 1;
            }
            for word in text.chunks(Script::CLOCK_WORD_BYTES) {
                if let Some(age) = Script::clock_age_ns(word, now_ns)
                    && ages.begun == STREAMS
                {
                    ages.histogram.record(age)?;
                }
            }
        }
        let unread = self.tail.len() - whole;
        let kept = unread.max(TAIL_BYTES).min(self.tail.len());
        self.tail.drain(..self.tail.len() - kept);
        Ok(())
    }

    fn tokens(&self) -> Result<u64> {
        let tail = String::from_utf8_lossy(&self.tail);
        let (_, after) = tail.rsplit_once("\"completion_tokens\":").context("no usage")?;
        let digits = after.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        Ok(digits.parse()?)
    }
}

/// The texts of the deltas in whole lines of a stream.
fn texts(lines: &[u8]) -> impl Iterator<Item = &[u8]> {
    lines.split(|&byte| byte == b'\n').filter_map(|line| {
        let at = line.windows(OPEN.len()).position(|window| window == OPEN)?;
        let text = &line[at + OPEN.len()..];
        let end = text.iter().position(|&byte| byte == b'"')?;
        Some(&text[..end])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_found_in_lines() {
        let lines = br#"data: {"choices":[{"index":0,"delta":{"content":"aab"}}]}

60
data: {"choices":[{"delta":{}}]}
data: {"choices":[{"index":0,"delta":{"content":""}}]}
data: {"choices":[{"index":0,"delta":{"content":"cd"#;
        assert_eq!(texts(lines).collect::<Vec<_>>(), [b"aab".as_slice(), b""]);
    }
}
