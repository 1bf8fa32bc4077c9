//! The HTTP client against a server that sends fixed bytes, whole or cut short.

use mlxd_testkit::Client;
use serde_json::json;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::thread::JoinHandle;

/// Answers one connection with `response`, then closes it; gives what was asked.
fn serve(response: &'static str) -> (Client, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut asked = String::new();
        while !asked.ends_with("\r\n\r\n") {
            reader.read_line(&mut asked).unwrap();
        }
        let length = asked.split("content-length: ").nth(1);
        let length = length.map_or(0, |rest| rest.split('\r').next().unwrap().parse().unwrap());
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        asked += std::str::from_utf8(&body).unwrap();
        stream.write_all(response.as_bytes()).unwrap();
        asked
    });
    (Client::Tcp(address), server)
}

#[test]
fn a_body_of_known_length_is_read_whole() {
    let (client, server) = serve(
        "HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\ncontent-length: 7\r\n\r\n{\"a\":1}",
    );
    let response = client.post("/v1/x", &json!({"b": 2}));
    assert_eq!(response.status, 404);
    assert_eq!(response.header("content-type"), Some("application/json"));
    assert_eq!(response.header("x-none"), None);
    assert_eq!(response.json(), json!({"a": 1}));
    let asked = server.join().unwrap();
    assert!(asked.starts_with("POST /v1/x HTTP/1.1\r\n"), "{asked}");
    assert!(asked.ends_with("\r\n\r\n{\"b\":2}"), "{asked}");
}

#[test]
fn events_come_out_of_chunks_wherever_they_are_cut() {
    let (client, _server) = serve(concat!(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        "4\r\ndata\r\n9;x=y\r\n: one\n\nda\r\n10\r\nta: two\n\n: ping\n\r\n1\r\n\n\r\n0\r\n\r\n",
    ));
    let mut events = client.get("/").events();
    assert_eq!(events.expect_event().data, "one");
    assert_eq!(events.expect_event().data, "two");
    assert_eq!(events.next_event().unwrap(), None);
    assert_eq!(events.comments(), 1);
}

#[test]
fn a_body_cut_short_is_an_error() {
    for response in [
        "HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\ndata: one\n\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nb\r\ndata: one\n\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n14\r\ndata: one\n\n",
    ] {
        let (client, _server) = serve(response);
        let mut events = client.get("/").events();
        assert_eq!(events.expect_event().data, "one");
        assert!(events.next_event().is_err(), "{response}");
    }
}

#[test]
fn a_server_that_hangs_up_gives_no_response() {
    let (client, _server) = serve("HTTP/1.1 200");
    assert!(client.try_request("GET", "/", &[], b"").is_err());
}
