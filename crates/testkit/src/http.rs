//! A small blocking HTTP/1.1 client, one request a connection, in which nothing happens behind
//! the test's back: bytes are read when they are asked for, and dropping it hangs up.

use crate::sse::Events;
use crate::wait::DEADLINE;
use serde_json::Value;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// Where requests go.
#[derive(Debug, Clone)]
pub enum Client {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

/// An open connection, for tests that write their bytes themselves.
#[derive(Debug)]
pub enum Connection {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a Unix socket.
    Unix(UnixStream),
}

impl Client {
    /// Opens a connection. A read or write that takes longer than [`DEADLINE`] fails.
    pub fn connect(&self) -> io::Result<Connection> {
        Ok(match self {
            Self::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, DEADLINE)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(DEADLINE))?;
                stream.set_write_timeout(Some(DEADLINE))?;
                Connection::Tcp(stream)
            }
            Self::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(DEADLINE))?;
                stream.set_write_timeout(Some(DEADLINE))?;
                Connection::Unix(stream)
            }
        })
    }

    /// A GET, up to the end of the response's head.
    pub fn get(&self, path: &str) -> Response {
        self.request("GET", path, &[], b"")
    }

    /// A POST of JSON, up to the end of the response's head.
    pub fn post(&self, path: &str, body: &Value) -> Response {
        let headers = [("content-type", "application/json")];
        self.request("POST", path, &headers, body.to_string().as_bytes())
    }

    /// Any request. Panics when the server gives no response: for tests that expect none there
    /// is [`try_request`](Self::try_request).
    pub fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response {
        self.try_request(method, path, headers, body)
            .unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// Any request.
    ///
    /// # Errors
    /// When the server does not accept, hangs up before its response, or sends no HTTP.
    pub fn try_request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Response> {
        let mut head =
            format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() || method == "POST" {
            head += &format!("content-length: {}\r\n", body.len());
        }
        head += "\r\n";
        let mut connection = self.connect()?;
        let mut request = head.into_bytes();
        request.extend_from_slice(body);
        connection.write_all(&request)?;
        connection.response()
    }
}

impl Connection {
    /// Reads the head of a response.
    ///
    /// # Errors
    /// End of file, or no HTTP.
    pub fn response(self) -> io::Result<Response> {
        let mut reader = BufReader::new(self);
        let status = line(&mut reader)?;
        let code = status.split(' ').nth(1).and_then(|code| code.parse().ok());
        let code = code.ok_or_else(|| broken(format!("{status:?} is no status line")))?;
        let mut headers = Vec::new();
        loop {
            let header = line(&mut reader)?;
            if header.is_empty() {
                break;
            }
            let (name, value) =
                header.split_once(':').ok_or_else(|| broken(format!("{header:?} is no header")))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let framing = Framing::of(&headers)?;
        Ok(Response { status: code, headers, body: Body { reader, framing } })
    }
}

impl Read for Connection {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(out),
            Self::Unix(stream) => stream.read(out),
        }
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A response whose body is still to be read.
#[derive(Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    headers: Vec<(String, String)>,
    body: Body,
}

impl Response {
    /// The first header of this name, in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The whole body. An end that is not the body's own is an error.
    pub fn bytes(mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.body.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// The whole body as text.
    pub fn text(self) -> String {
        let bytes = self.bytes().expect("a whole body");
        String::from_utf8(bytes).expect("a body in UTF-8")
    }

    /// The whole body as JSON.
    pub fn json(self) -> Value {
        let text = self.text();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
    }

    /// The body as server-sent events.
    pub fn events(self) -> Events<Body> {
        Events::new(self.body)
    }

    /// The body, to be read a little at a time.
    pub fn body(self) -> Body {
        self.body
    }
}

/// A body being read. Dropping it closes the connection.
#[derive(Debug)]
pub struct Body {
    reader: BufReader<Connection>,
    framing: Framing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// So many bytes are left.
    Length(u64),
    /// So many bytes are left of the current chunk; `None` before the next chunk's size.
    Chunks(Option<u64>),
    /// Everything up to the end of the connection.
    ToEnd,
}

impl Framing {
    fn of(headers: &[(String, String)]) -> io::Result<Self> {
        for (name, value) in headers {
            match name.as_str() {
                "transfer-encoding" if value == "chunked" => return Ok(Self::Chunks(None)),
                "content-length" => {
                    let length = value.parse();
                    return length
                        .map(Self::Length)
                        .map_err(|_| broken(format!("content-length {value:?}")));
                }
                _ => {}
            }
        }
        Ok(Self::ToEnd)
    }
}

impl Read for Body {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let left = match self.framing {
            Framing::ToEnd => return self.reader.read(out),
            Framing::Length(left) => left,
            Framing::Chunks(Some(left)) => left,
            Framing::Chunks(None) => {
                let size = line(&mut self.reader)?;
                let size = u64::from_str_radix(size.split(';').next().unwrap_or(""), 16)
                    .map_err(|_| broken(format!("{size:?} is no chunk size")))?;
                if size == 0 {
                    line(&mut self.reader)?;
                    self.framing = Framing::Length(0);
                } else {
                    self.framing = Framing::Chunks(Some(size));
                }
                size
            }
        };
        if left == 0 || out.is_empty() {
            return Ok(0);
        }
        let wanted = out.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = self.reader.read(&mut out[..wanted])?;
        if count == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("the connection ended {left} bytes before the body's end"),
            ));
        }
        let left = left - count as u64;
        self.framing = match self.framing {
            Framing::Chunks(_) if left == 0 => {
                line(&mut self.reader)?;
                Framing::Chunks(None)
            }
            Framing::Chunks(_) => Framing::Chunks(Some(left)),
            _ => Framing::Length(left),
        };
        Ok(count)
    }
}

/// A line without its CRLF. End of file inside it is an error.
fn line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    match line.strip_suffix("\r\n") {
        Some(line) => Ok(line.to_owned()),
        None => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("the connection ended after {line:?}"),
        )),
    }
}

fn broken(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
