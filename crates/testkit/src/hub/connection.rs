//! One connection: requests in, answers out, until one of them is to break it off.

use super::answer::{Answer, Ending, Kind, answer};
use super::{HubRequest, Shared};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

/// Longer request lines and headers are not a test's.
const LINE_BYTES_MAX: u64 = 64 * 1024;

/// Serves until the other side, or a fault, ends it.
pub(super) fn serve(stream: TcpStream, shared: &Shared, kind: Kind) {
    let Ok(mut writer) = stream.try_clone() else { return };
    let mut reader = BufReader::new(stream);
    while let Ok(Some(request)) = read_request(&mut reader, kind) {
        shared.lock().requests.push(request.clone());
        if request.method == "CONNECT" {
            // A tunnel to any host ends here.
            if writer.write_all(b"HTTP/1.1 200 OK\r\n\r\n").is_err() {
                return;
            }
            continue;
        }
        let answer = answer(shared, &request, kind);
        match send(&mut writer, &mut reader, shared, &request, &answer) {
            Ok(true) => {}
            Ok(false) | Err(_) => return,
        }
    }
}

/// Whether the connection goes on.
fn send(
    writer: &mut TcpStream,
    reader: &mut impl Read,
    shared: &Shared,
    request: &HubRequest,
    answer: &Answer,
) -> io::Result<bool> {
    let mut head = format!("HTTP/1.1 {} Told\r\n", answer.status);
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", answer.body.len()));
    writer.write_all(head.as_bytes())?;
    if request.method == "HEAD" {
        return Ok(true);
    }
    let end = |bytes: usize| bytes.min(answer.body.len());
    match answer.ending {
        Ending::Whole => writer.write_all(&answer.body)?,
        Ending::Break(bytes) => {
            writer.write_all(&answer.body[..end(bytes)])?;
            writer.shutdown(std::net::Shutdown::Both)?;
            return Ok(false);
        }
        Ending::Stall(bytes) => {
            writer.write_all(&answer.body[..end(bytes)])?;
            // Until the other side has enough of it.
            let _ = reader.read(&mut [0; 1]);
            return Ok(false);
        }
        Ending::Hold(bytes) => {
            writer.write_all(&answer.body[..end(bytes)])?;
            shared.wait_for_release();
            writer.write_all(&answer.body[end(bytes)..])?;
        }
    }
    Ok(true)
}

fn read_request(reader: &mut impl BufRead, kind: Kind) -> io::Result<Option<HubRequest>> {
    let first = read_line(reader)?;
    let mut words = first.split_whitespace();
    let (Some(method), Some(path)) = (words.next(), words.next()) else {
        return Ok(None);
    };
    let mut request = HubRequest {
        method: method.to_owned(),
        path: path.to_owned(),
        at_storage: kind == Kind::Storage,
        host: String::new(),
        range: None,
        authorization: None,
    };
    loop {
        let line = read_line(reader)?;
        let Some((name, value)) = line.split_once(':') else {
            return Ok(Some(request));
        };
        let value = value.trim().to_owned();
        match name.to_lowercase().as_str() {
            "host" => request.host = value,
            "range" => request.range = Some(value),
            "authorization" => request.authorization = Some(value),
            _ => {}
        }
    }
}

fn read_line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    reader.take(LINE_BYTES_MAX).read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}
