//! A front that answers from a script, on a real Unix socket, and a way to call mlxctl on it.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use tempfile::TempDir;

/// What the front answers to one kind of request.
#[derive(Clone)]
pub enum Reply {
    /// JSON with this status.
    Json(u16, String),
    /// These pieces, chunked, then the end.
    Pieces(Vec<Vec<u8>>),
    /// These pieces, chunked, then the connection breaks.
    Broken(Vec<Vec<u8>>),
    /// These pieces, chunked, then nothing more, for as long as the front lives.
    Open(Vec<Vec<u8>>),
}

/// The scripted front. Its thread ends with the process.
pub struct Front {
    folder: TempDir,
    seen: Arc<Mutex<Vec<(String, String)>>>,
}

impl Front {
    /// Answers `replies`, by `METHOD /path`, everything else with 404.
    pub fn new(replies: impl IntoIterator<Item = (&'static str, Reply)>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("s")).unwrap();
        let mut replies: HashMap<String, Reply> =
            replies.into_iter().map(|(call, reply)| (call.to_owned(), reply)).collect();
        replies
            .entry("GET /admin/v1/version".to_owned())
            .or_insert_with(|| Reply::Json(200, version(protocol())));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming() {
                serve(stream.unwrap(), &replies, &record);
            }
        });
        Self { folder, seen }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    /// Requests so far, as `METHOD /path?query` and body, without the greeting.
    pub fn seen(&self) -> Vec<(String, String)> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|(call, _)| !call.ends_with("/version")).cloned().collect()
    }

    /// Runs `mlxctl` on this front.
    pub fn ctl(&self, arguments: &[&str]) -> Done {
        let mut command = mlxctl(arguments);
        command.env("MLXD_SOCKET", self.socket());
        Done::of(command.output().unwrap())
    }
}

/// `mlxctl` that finds no configuration and no standard socket of this machine.
pub fn mlxctl(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mlxctl"));
    command.args(arguments).env_clear().env("HOME", "/nonexistent").stdin(Stdio::null());
    command
}

/// What mlxctl left behind.
#[derive(Debug)]
pub struct Done {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Done {
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code().expect("mlxctl was not killed"),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

pub fn protocol() -> u32 {
    mlxd_protocol::PROTOCOL_VERSION
}

pub fn version(protocol: u32) -> String {
    format!(r#"{{"version": "9.9.9", "protocol": {protocol}, "pid": 99}}"#)
}

/// A model's status with the least that a front sends.
pub fn model(name: &str, state: &str) -> String {
    let life = match state {
        "RUNNING" => r#""pid": 4711, "uptime_s": 3725, "memory_bytes": 2345000000,"#,
        _ => "",
    };
    format!(
        r#"{{"name": "{name}", "state": "{state}", {life} "requests_total": 12, "tokens_total": 345,
            "running": 0, "queued": 0, "tokens_per_s": 241.6, "deaths": 0}}"#
    )
}

pub fn status(models: &[String]) -> Reply {
    let server = version(protocol());
    Reply::Json(
        200,
        format!(
            r#"{{"server": {server}, "uptime_s": 61, "memory_bytes": 14200000,
                "base_url": "http://127.0.0.1:11440/v1", "models": [{}]}}"#,
            models.join(", ")
        ),
    )
}

pub fn refusal(status: u16, code: &str, message: &str) -> Reply {
    Reply::Json(status, format!(r#"{{"error": {{"code": "{code}", "message": "{message}"}}}}"#))
}

fn serve(
    stream: UnixStream,
    replies: &HashMap<String, Reply>,
    seen: &Mutex<Vec<(String, String)>>,
) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut first = String::new();
    // A connection without a request only asks whether somebody is there.
    if reader.read_line(&mut first).unwrap_or(0) == 0 {
        return;
    }
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let call = first.rsplit_once(' ').unwrap().0.to_owned();
    let path = call.split('?').next().unwrap().to_owned();
    seen.lock().unwrap().push((call, String::from_utf8(body).unwrap()));
    let reply =
        replies.get(&path).cloned().unwrap_or_else(|| refusal(404, "bad_request", "no such call"));
    // Whether the client stays to read it is the client's affair.
    let _ = answer(stream, reply);
}

fn answer(mut stream: UnixStream, reply: Reply) -> std::io::Result<()> {
    let (pieces, end) = match reply {
        Reply::Json(status, body) => {
            return write!(
                stream,
                "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
        }
        Reply::Pieces(pieces) => (pieces, End::Whole),
        Reply::Broken(pieces) => (pieces, End::Broken),
        Reply::Open(pieces) => (pieces, End::Open),
    };
    write!(stream, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n")?;
    for piece in pieces {
        write!(stream, "{:x}\r\n", piece.len())?;
        stream.write_all(&piece)?;
        write!(stream, "\r\n")?;
        stream.flush()?;
    }
    match end {
        End::Whole => write!(stream, "0\r\n\r\n"),
        End::Broken => Ok(()),
        End::Open => {
            std::mem::forget(stream);
            Ok(())
        }
    }
}

enum End {
    Whole,
    Broken,
    Open,
}
