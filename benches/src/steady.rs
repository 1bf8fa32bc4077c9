//! So many chat streams open all the time: when one ends, the next begins in its place.

use anyhow::{Result, bail, ensure};
use hdrhistogram::Histogram;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::json;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;

/// Different questions: so few that whatever is kept of words and texts has them all soon.
const QUESTIONS: u64 = 500;

/// How long one look at the sockets waits.
const LOOK_MS: u16 = 100;

/// What is asked, over and over.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Where.
    pub address: SocketAddr,
    /// Of which model.
    pub model: String,
    /// Tokens of every answer.
    pub tokens: u64,
}

/// What came since somebody last asked.
#[derive(Debug)]
pub struct Interval {
    /// Microseconds between two deltas of a stream, and to its first.
    pub gaps_us: Histogram<u64>,
    /// Microseconds to the first delta alone.
    pub first_us: Histogram<u64>,
    /// Tokens of the answers that ended, by their usage.
    pub tokens: u64,
    /// Answers that ended.
    pub answers: u64,
    /// Deltas.
    pub deltas: u64,
}

impl Default for Interval {
    fn default() -> Self {
        let histogram = || Histogram::new(3).expect("three digits are allowed");
        Self { gaps_us: histogram(), first_us: histogram(), tokens: 0, answers: 0, deltas: 0 }
    }
}

impl Interval {
    /// Adds what came in another.
    ///
    /// # Errors
    /// Never, since both count alike.
    pub fn add(&mut self, other: &Self) -> Result<()> {
        self.gaps_us.add(&other.gaps_us)?;
        self.first_us.add(&other.first_us)?;
        self.tokens += other.tokens;
        self.answers += other.answers;
        self.deltas += other.deltas;
        Ok(())
    }
}

struct Stream {
    socket: TcpStream,
    /// What came after the last whole line.
    pending: Vec<u8>,
    /// When it was asked for, or its last delta came.
    since: Instant,
    begun: bool,
    tokens: Option<u64>,
    done: bool,
    /// Deltas in this place since the start, all answers together.
    deltas: u64,
}

/// The streams.
pub struct Steady {
    asked: Asked,
    streams: Vec<Stream>,
    /// Answers asked for so far: every prompt is another.
    number: u64,
    interval: Interval,
}

impl Steady {
    /// Opens so many.
    ///
    /// # Errors
    /// When the front does not take them.
    pub fn open(asked: Asked, count: usize) -> Result<Self> {
        let mut this =
            Self { asked, streams: Vec::new(), number: 0, interval: Interval::default() };
        for _ in 0..count {
            let stream = this.ask(0)?;
            this.streams.push(stream);
        }
        Ok(this)
    }

    fn ask(&mut self, deltas: u64) -> Result<Stream> {
        self.number += 1;
        let body = json!({
            "model": self.asked.model,
            "stream": true,
            "stream_options": {"include_usage": true},
            "max_tokens": self.asked.tokens,
            "ignore_eos": true,
            "temperature": 0.8,
            "seed": self.number,
            "messages": [{"role": "user", "content": format!("Question {}: go on.", self.number % QUESTIONS)}],
        });
        let body = body.to_string();
        let mut socket = TcpStream::connect(self.asked.address)?;
        write!(
            socket,
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )?;
        socket.set_nonblocking(true)?;
        Ok(Stream {
            socket,
            pending: Vec::new(),
            since: Instant::now(),
            begun: false,
            tokens: None,
            done: false,
            deltas,
        })
    }

    /// Reads until then, and tells what came.
    ///
    /// # Errors
    /// When a stream does not end well.
    pub fn read_until(&mut self, deadline: Instant) -> Result<Interval> {
        let mut buffer = vec![0; READ_BYTES];
        while Instant::now() < deadline {
            for at in self.readable()? {
                if !self.streams[at].take_in(&mut buffer, &mut self.interval)? {
                    let tokens = self.streams[at].tokens.unwrap_or(0);
                    ensure!(
                        tokens == self.asked.tokens,
                        "an answer of {tokens} tokens instead of {}",
                        self.asked.tokens
                    );
                    self.interval.tokens += tokens;
                    self.interval.answers += 1;
                    let deltas = self.streams[at].deltas;
                    self.streams[at] = self.ask(deltas)?;
                }
            }
        }
        Ok(std::mem::take(&mut self.interval))
    }

    /// The longest that a stream now waits for its next delta.
    pub fn longest_wait(&self) -> Duration {
        self.streams.iter().map(|stream| stream.since.elapsed()).max().unwrap_or_default()
    }

    /// Deltas of the place that has had the fewest, and of that with the most.
    pub fn extremes(&self) -> (u64, u64) {
        let deltas = || self.streams.iter().map(|stream| stream.deltas);
        (deltas().min().unwrap_or(0), deltas().max().unwrap_or(0))
    }

    fn readable(&self) -> Result<Vec<usize>> {
        let watch = |stream| PollFd::new(AsFd::as_fd(stream), PollFlags::POLLIN);
        let mut watched: Vec<_> = self.streams.iter().map(|s| watch(&s.socket)).collect();
        poll(&mut watched, PollTimeout::from(LOOK_MS))?;
        let ready = watched.iter().enumerate().filter(|(_, fd)| fd.any() == Some(true));
        Ok(ready.map(|(at, _)| at).collect())
    }
}

impl Stream {
    /// Takes what there is. Says whether the stream goes on.
    fn take_in(&mut self, buffer: &mut [u8], interval: &mut Interval) -> Result<bool> {
        let bytes = match self.socket.read(buffer) {
            Ok(0) if self.done => return Ok(false),
            Ok(0) => {
                let pending = String::from_utf8_lossy(&self.pending);
                bail!("a stream ended without its end mark, after {pending:?}")
            }
            Ok(count) => &buffer[..count],
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
            Err(error) => bail!("a stream broke: {error}"),
        };
        let now = Instant::now();
        self.pending.extend_from_slice(bytes);
        let Some(whole) = self.pending.iter().rposition(|&byte| byte == b'\n') else {
            return Ok(true);
        };
        let lines: Vec<u8> = self.pending.drain(..=whole).collect();
        for line in lines.split(|&byte| byte == b'\n') {
            self.line(line, now, interval)?;
        }
        Ok(true)
    }

    fn line(&mut self, line: &[u8], now: Instant, interval: &mut Interval) -> Result<()> {
        let line = String::from_utf8_lossy(line);
        if line.starts_with("HTTP/1.1 ") {
            ensure!(line.starts_with("HTTP/1.1 200"), "the front answered {line}");
        }
        let Some(data) = line.strip_prefix("data: ") else { return Ok(()) };
        if data.starts_with("[DONE]") {
            self.done = true;
            return Ok(());
        }
        ensure!(!data.starts_with("{\"error\""), "a stream broke: {data}");
        if let Some((_, after)) = data.split_once("\"completion_tokens\":") {
            let digits = after.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
            self.tokens = Some(digits.parse()?);
        }
        let content = data.split_once("\"delta\":{\"content\":\"").map(|(_, text)| text);
        if content.is_some_and(|text| !text.starts_with('"')) {
            let gap = (now - self.since).as_micros() as u64;
            interval.gaps_us.record(gap)?;
            if !self.begun {
                interval.first_us.record(gap)?;
            }
            interval.deltas += 1;
            self.deltas += 1;
            self.begun = true;
            self.since = now;
        }
        Ok(())
    }
}
