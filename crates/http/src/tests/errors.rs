//! Errors in OpenAI's shape, whatever the reason.

use super::client::{Response, get, post, read_until, request};
use super::fake::{CONTEXT_TOKENS, Front, MODEL};
use crate::limits::{HttpLimits, RequestLimits};
use mlxd_dispatch::{End, Failure};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const CHAT: &str = "/v1/chat/completions";

/// Status, code and message of an error; checks its shape.
#[track_caller]
fn error_of(response: &Response) -> (u16, String, String) {
    let body = response.json();
    let error = body["error"].as_object().unwrap_or_else(|| panic!("{response:?}"));
    assert_eq!(body.as_object().unwrap().len(), 1);
    let mut keys: Vec<&str> = error.keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["code", "message", "param", "type"]);
    let kind = if response.status < 500 { "invalid_request_error" } else { "server_error" };
    assert_eq!(error["type"], kind);
    assert_eq!(response.header("content-type"), Some("application/json"));
    assert!(response.header("x-request-id").is_some(), "{response:?}");
    let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
    (response.status, text("code"), text("message"))
}

#[track_caller]
fn refused(response: &Response, status: u16, code: &str, words: &[&str]) {
    let (got_status, got_code, message) = error_of(response);
    assert_eq!((got_status, got_code.as_str()), (status, code), "{message}");
    for word in words {
        assert!(message.contains(word), "{message:?} lacks {word:?}");
    }
}

fn chat_body(content: &str) -> String {
    json!({"model": MODEL, "messages": [{"role": "user", "content": content}]}).to_string()
}

#[actix_web::test]
async fn paths_and_methods() {
    let front = Front::start(HttpLimits::default());
    let at = front.address;
    refused(&get(at, "/v2/chat").await, 404, "unknown_url", &["GET", "/v2/chat", "/v1"]);
    refused(&post(at, "/nothing", "{}").await, 404, "unknown_url", &["POST"]);
    let wrong = get(at, CHAT).await;
    refused(&wrong, 405, "method_not_allowed", &["GET", "POST"]);
    assert_eq!(wrong.header("allow"), Some("POST"));
    refused(&post(at, "/v1/models", "{}").await, 405, "method_not_allowed", &["GET"]);
    refused(&request(at, "OPTIONS", CHAT, "", "").await, 405, "method_not_allowed", &["OPTIONS"]);
    let options = request(at, "OPTIONS", CHAT, "origin: http://x\r\n", "").await;
    assert_eq!(options.header("access-control-allow-origin"), None, "no page is given leave");
    front.stop().await;
}

#[actix_web::test]
async fn bodies() {
    let limits = HttpLimits { body_bytes_max: 1000, ..HttpLimits::default() };
    let front = Front::start(limits);
    let at = front.address;
    refused(&post(at, CHAT, "{nope").await, 400, "invalid_json", &["line 1"]);
    refused(&post(at, CHAT, "{\"model\": 1}").await, 400, "invalid_value", &["'model'"]);
    let long = chat_body(&"x".repeat(2000));
    refused(&post(at, CHAT, &long).await, 413, "request_too_large", &["1000 bytes"]);

    // A body without an announced length is cut off where it goes over.
    let mut stream = TcpStream::connect(at).await.unwrap();
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let piece = format!("400\r\n{}\r\n", "y".repeat(1024));
    stream.write_all(piece.as_bytes()).await.unwrap();
    let seen = read_until(&mut stream, "request_too_large").await;
    assert!(seen.starts_with("HTTP/1.1 413"), "{seen}");

    let page = "origin: http://evil.example\r\ncontent-type: text/plain\r\n";
    let from_page = request(at, "POST", CHAT, page, &chat_body("hi")).await;
    refused(&from_page, 415, "unsupported_media_type", &["Origin"]);
    front.stop().await;
}

#[actix_web::test]
async fn a_body_that_does_not_come_times_out_in_shape() {
    let limits = HttpLimits { body_timeout: Duration::from_millis(50), ..HttpLimits::default() };
    let front = Front::start(limits);
    let mut stream = TcpStream::connect(front.address).await.unwrap();
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{{");
    stream.write_all(head.as_bytes()).await.unwrap();
    let seen = read_until(&mut stream, "request_timeout").await;
    assert!(seen.starts_with("HTTP/1.1 408"), "{seen}");
    front.stop().await;
}

#[actix_web::test]
async fn a_head_that_does_not_come_ends_the_connection() {
    let limits = HttpLimits { header_timeout: Duration::from_millis(50), ..HttpLimits::default() };
    let front = Front::start(limits);
    let mut stream = TcpStream::connect(front.address).await.unwrap();
    stream.write_all(b"POST /v1/chat").await.unwrap();
    let seen = read_until(&mut stream, "\r\n\r\n").await;
    assert!(seen.starts_with("HTTP/1.1 408"), "{seen}");
    front.stop().await;
}

#[actix_web::test]
async fn models_that_cannot_answer() {
    let front = Front::start(HttpLimits::default());
    let at = front.address;
    let unknown = json!({"model": "org/fak", "messages": [{"role": "user", "content": "hi"}]});
    let words = ["\"org/fak\"", "did you mean \"org/fake\"", "these exist: org/fake"];
    refused(&post(at, CHAT, &unknown.to_string()).await, 404, "model_not_found", &words);
    refused(&get(at, "/v1/models/no/such").await, 404, "model_not_found", &["no/such"]);
    let bare = json!({"model": "bare", "messages": [{"role": "user", "content": "hi"}]});
    let words = ["chat template", "/v1/completions"];
    refused(&post(at, CHAT, &bare.to_string()).await, 400, "no_chat_template", &words);
    front.stop().await;
}

#[actix_web::test]
async fn prompts_that_do_not_fit() {
    let front = Front::start(HttpLimits::default());
    let at = front.address;
    let context = CONTEXT_TOKENS.to_string();
    let long = post(at, CHAT, &chat_body(&"x".repeat(193))).await;
    refused(&long, 400, "context_length_exceeded", &[&context, "has 200"]);
    assert_eq!(long.json()["error"]["param"], "messages");
    let complete = |prompt: Value| json!({"model": MODEL, "prompt": prompt}).to_string();
    let long = post(at, "/v1/completions", &complete(json!("x".repeat(300)))).await;
    refused(&long, 400, "context_length_exceeded", &[&context, "has 300"]);
    let empty = post(at, "/v1/completions", &complete(json!(""))).await;
    refused(&empty, 400, "invalid_value", &["empty prompt"]);
    let foreign = post(at, "/v1/completions", &complete(json!([5, 257]))).await;
    refused(&foreign, 400, "invalid_value", &["257", "0 to 256"]);
    let mut bias: Value = serde_json::from_str(&chat_body("hi")).unwrap();
    bias["logit_bias"] = json!({"999": 1});
    refused(&post(at, CHAT, &bias.to_string()).await, 400, "invalid_value", &["999", "256"]);
    front.stop().await;
}

#[actix_web::test]
async fn no_room_is_a_refusal_with_a_time() {
    let limits = HttpLimits { streams_max: 1, retry_after_s: 7, ..HttpLimits::default() };
    let mut front = Front::start(limits);
    let at = front.address;
    let first = tokio::spawn(async move { post(at, CHAT, &chat_body("hi")).await });
    let sequence = front.sequence().await;
    let second = post(at, CHAT, &chat_body("hi")).await;
    refused(&second, 503, "overloaded", &["1 answers", "streams_max"]);
    assert_eq!(second.header("retry-after"), Some("7"));
    sequence.end("x", End::Stop);
    assert_eq!(first.await.unwrap().status, 200);
    // The place is free again once the first is answered.
    let third = tokio::spawn(async move { post(at, CHAT, &chat_body("hi")).await });
    front.sequence().await.end("x", End::Stop);
    assert_eq!(third.await.unwrap().status, 200);
    front.stop().await;

    let request = RequestLimits { prepare_queued_max: 0, ..RequestLimits::default() };
    let front = Front::start(HttpLimits { request, ..HttpLimits::default() });
    // A short one is prepared where it is; this one is not short.
    let full = post(front.address, CHAT, &chat_body(&"hi ".repeat(2000))).await;
    refused(&full, 503, "overloaded", &["prepared"]);
    front.stop().await;
}

#[actix_web::test]
async fn a_refusal_of_the_worker_is_the_clients_fault() {
    use mlxd_protocol::{Refusal, RefusalCode};
    let mut front = Front::start(HttpLimits::default());
    let at = front.address;
    let table = [
        (RefusalCode::ContextOverflow, 400, "context_length_exceeded"),
        (RefusalCode::Invalid, 400, "invalid_value"),
        (RefusalCode::Busy, 503, "overloaded"),
    ];
    for (code, status, word) in table {
        let answer = tokio::spawn(async move { post(at, CHAT, &chat_body("hi")).await });
        let refusal = Refusal { code, message: "said the worker".into() };
        front.sequence().await.end("", End::Refused(refusal));
        refused(&answer.await.unwrap(), status, word, &["said the worker"]);
    }
    front.stop().await;
}

#[actix_web::test]
async fn want_of_memory_says_whether_to_come_back() {
    let mut front = Front::start(HttpLimits::default());
    let at = front.address;
    for (code, retry, status) in [
        ("insufficient_memory", false, 507),
        ("memory_full", true, 503),
        ("memory_pressure", true, 503),
    ] {
        let body = chat_body("hello");
        let ends = async {
            let message = "org/fake needs 9.00 GB, 2.00 GB of 8.00 GB are free".into();
            let failure = Failure { code, message, retry };
            front.sequence().await.end("", End::Failed(failure));
        };
        let (response, ()) = tokio::join!(post(at, CHAT, &body), ends);
        refused(&response, status, code, &["needs 9.00 GB", "2.00 GB of 8.00 GB"]);
        assert_eq!(response.header("retry-after").is_some(), retry);
        assert_eq!(response.header("x-should-retry"), (!retry).then_some("false"));
    }
    front.stop().await;
}
