//! A client small enough to see every byte.

use serde_json::Value;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// A response as it came.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) status: u16,
    head: String,
    pub(super) body: String,
    /// Whether the body ended as its framing says, rather than with the connection.
    pub(super) whole: bool,
}

impl Response {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// The data of each event, `[DONE]` included, comments left out.
    pub(super) fn events(&self) -> Vec<String> {
        self.body
            .split("\n\n")
            .filter_map(|e| e.strip_prefix("data: "))
            .map(str::to_owned)
            .collect()
    }

    pub(super) fn chunks(&self) -> Vec<Value> {
        let events = self.events();
        let json = events.iter().filter(|event| *event != "[DONE]");
        json.map(|event| serde_json::from_str(event).unwrap()).collect()
    }

    fn read(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let (head, rest) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status line");
        let mut response =
            Self { status, head: head.to_owned(), body: String::new(), whole: false };
        if response.header("transfer-encoding") == Some("chunked") {
            let mut rest = rest;
            while let Some((size, after)) = rest.split_once("\r\n") {
                let size = usize::from_str_radix(size, 16).unwrap();
                response.whole = size == 0;
                response.body.push_str(after.get(..size).expect("a whole chunk"));
                rest = after.get(size + 2..).unwrap_or("");
            }
        } else {
            response.body = rest.to_owned();
            let length = response.header("content-length").and_then(|l| l.parse().ok());
            response.whole = length == Some(rest.len());
        }
        response
    }
}

fn head(method: &str, path: &str, headers: &str, length: usize) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: \
         {length}\r\n{headers}\r\n"
    )
}

async fn to_the_end(mut stream: impl AsyncReadExt + Unpin) -> Response {
    let mut bytes = Vec::new();
    let all = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut bytes)).await;
    // A cut connection may show as an error; what came before it counts.
    let _ = all.expect("the server closes within twenty seconds");
    Response::read(&bytes)
}

/// Sends a request; the response is read from the connection later.
pub(super) async fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = head(method, path, headers, body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    stream
}

pub(super) async fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> Response {
    to_the_end(send(address, method, path, headers, body).await).await
}

pub(super) async fn get(address: SocketAddr, path: &str) -> Response {
    request(address, "GET", path, "", "").await
}

pub(super) async fn post(address: SocketAddr, path: &str, body: &str) -> Response {
    request(address, "POST", path, "content-type: application/json\r\n", body).await
}

pub(super) async fn over_socket(
    socket: &std::path::Path,
    method: &str,
    path: &str,
    body: &str,
) -> Response {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    let head = head(method, path, "", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    to_the_end(stream).await
}

/// Reads until `text` has come.
pub(super) async fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let mut seen = Vec::new();
    let reading = async {
        while !String::from_utf8_lossy(&seen).contains(text) {
            let mut piece = [0; 4096];
            let read = stream.read(&mut piece).await.unwrap();
            assert!(read > 0, "closed before {text:?}: {}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&piece[..read]);
        }
    };
    tokio::time::timeout(Duration::from_secs(20), reading).await.expect("within twenty seconds");
    String::from_utf8_lossy(&seen).into_owned()
}

/// The rest of a response whose beginning was read.
pub(super) async fn finish(begun: String, mut stream: TcpStream) -> Response {
    let mut bytes = begun.into_bytes();
    let all = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut bytes)).await;
    let _ = all.expect("the server closes within twenty seconds");
    Response::read(&bytes)
}
