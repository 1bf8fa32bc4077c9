//! Streams that are kept: read again from any event, paused, in the background, dropped.

use super::client::{Response, finish, get, read_until, request, send};
use super::fake::{Front, MODEL, Sequence, died};
use crate::limits::{HttpLimits, StreamLimits};
use mlxd_dispatch::{End, Entry};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::net::TcpStream;

const CHAT: &str = "/v1/chat/completions";
const ID: &str = "x-request-id: the-stream\r\n";
const PATH: &str = "/v1/streams/the-stream";

fn body(more: Value) -> String {
    let mut body =
        json!({"model": MODEL, "stream": true, "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body.to_string()
}

fn resumable() -> String {
    body(json!({"resumable": true}))
}

fn background() -> String {
    body(json!({"background": true}))
}

fn with_streams(streams: StreamLimits) -> HttpLimits {
    HttpLimits { streams, ..HttpLimits::default() }
}

async fn ask(front: &Front, body: &str) -> TcpStream {
    send(front.address, "POST", CHAT, ID, body).await
}

async fn read_after(front: &Front, last: u64) -> Response {
    let header = format!("last-event-id: {last}\r\n");
    request(front.address, "GET", PATH, &header, "").await
}

/// Every event as it came, its id included.
fn raw_events(body: &str) -> Vec<String> {
    let events = body.split_inclusive("\n\n").filter(|event| !event.starts_with(':'));
    events.map(str::to_owned).collect()
}

/// Asserts that ids count from `first` on; the data of each event.
fn data(body: &str, first: u64) -> Vec<String> {
    let events = raw_events(body).into_iter().enumerate();
    let one = |(at, event): (usize, String)| {
        let head = format!("id: {}\ndata: ", first + at as u64);
        event.strip_prefix(&head).unwrap_or_else(|| panic!("{head:?}: {event:?}")).trim().into()
    };
    events.map(one).collect()
}

fn text(body: &str, first: u64) -> String {
    let chunks = data(body, first).into_iter().filter_map(|d| serde_json::from_str(&d).ok());
    chunks
        .filter_map(|chunk: Value| {
            chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned)
        })
        .collect()
}

fn spoken(byte: u8) -> Vec<Entry> {
    vec![Entry { token: byte.into(), logprob: -0.5, top: vec![(u32::from(b'x'), -1.5)] }]
}

/// Waits until the stream answers with this status.
async fn until_status(front: &Front, status: u16) -> Response {
    let answered = async {
        loop {
            let answer = read_after(front, 1_000_000).await;
            if answer.status == status {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), answered).await.expect("within ten seconds")
}

/// Waits for this line of the metrics.
async fn until_metric(front: &Front, line: &str) {
    let there = async { while !get(front.address, "/metrics").await.body.contains(line) {} };
    tokio::time::timeout(Duration::from_secs(10), there).await.expect("within ten seconds");
}

#[actix_web::test]
async fn a_plain_stream_has_no_ids_and_is_not_kept() {
    let mut front = Front::start(HttpLimits::default());
    let stream = ask(&front, &body(json!({"resumable": false}))).await;
    front.sequence().await.end("hello", End::Stop);
    let answer = finish(String::new(), stream).await;
    assert!(answer.whole && !answer.body.contains("id: "), "{answer:?}");
    let refused = get(front.address, PATH).await;
    assert_eq!(
        (refused.status, &refused.json()["error"]["code"]),
        (404, &"stream_not_found".into())
    );
    front.stop().await;
}

#[actix_web::test]
async fn a_header_that_means_nothing_is_refused() {
    let front = Front::start(HttpLimits::default());
    let (header, body) = ("x-resumable: maybe\r\n", body(json!({})));
    let refused = request(front.address, "POST", CHAT, header, &body).await;
    let error = refused.json()["error"].clone();
    assert_eq!((refused.status, &error["param"]), (400, &"x-resumable".into()), "{error}");
    front.stop().await;
}

#[actix_web::test]
async fn every_event_can_be_read_on_from_byte_for_byte() {
    let mut front = Front::start(HttpLimits::default());
    let more = json!({
        "resumable": true, "n": 2, "logprobs": true, "top_logprobs": 1,
        "stream_options": {"include_usage": true},
    });
    let mut stream = ask(&front, &body(more)).await;
    let (one, two) = (front.sequence().await, front.sequence().await);
    let mut seen = String::new();
    for letter in b'a'..=b'e' {
        let sequence: &Sequence = if letter % 2 == 0 { &one } else { &two };
        sequence.publish(spoken(letter), None);
        seen += &read_until(&mut stream, &format!("\"content\":\"{}\"", letter as char)).await;
    }
    one.end("", End::Length);
    two.end("", End::Stop);
    let answer = finish(seen, stream).await;
    assert!(answer.whole);
    let events = raw_events(&answer.body);
    let told = data(&answer.body, 1);
    assert_eq!(told.len(), events.len());
    assert_eq!(told.last().unwrap(), "[DONE]");
    assert!(told[told.len() - 2].contains("\"completion_tokens\":5"), "{told:?}");
    for last in 0..events.len() {
        let again = read_after(&front, last as u64).await;
        assert_eq!((again.status, again.whole), (200, true));
        assert_eq!(again.body, events[last..].concat(), "after event {last}");
        let from = get(front.address, &format!("{PATH}?from={}", last + 1)).await;
        assert_eq!(from.body, again.body);
    }
    assert_eq!(read_after(&front, events.len() as u64).await.status, 204, "there is no more");
    // Every chunk has the answer's id, which finds the stream as well.
    let id = serde_json::from_str::<Value>(&told[0]).unwrap()["id"].as_str().unwrap().to_owned();
    assert_eq!(get(front.address, &format!("/v1/streams/{id}")).await.body, answer.body);
    front.stop().await;
}

#[actix_web::test]
async fn a_second_reader_gets_what_is_there_and_what_comes() {
    let mut front = Front::start(HttpLimits::default());
    let mut first = ask(&front, &resumable()).await;
    let sequence = front.sequence().await;
    sequence.say("one ");
    let seen = read_until(&mut first, "one ").await;
    let mut second = send(front.address, "GET", PATH, "last-event-id: 1\r\n", "").await;
    let also_seen = read_until(&mut second, "one ").await;
    sequence.say("two");
    sequence.end("", End::Stop);
    let (first, second) = (finish(seen, first).await, finish(also_seen, second).await);
    assert!(first.whole && second.whole);
    assert_eq!(raw_events(&first.body)[1..].concat(), second.body);
    assert_eq!(second.header("content-type"), Some("text/event-stream; charset=utf-8"));
    front.stop().await;
}

#[actix_web::test]
async fn without_a_reader_it_stands_still_and_goes_on_with_the_next() {
    let mut front = Front::start(HttpLimits::default());
    let mut stream = ask(&front, &resumable()).await;
    let sequence = front.sequence().await;
    sequence.say("one ");
    let seen = read_until(&mut stream, "one ").await;
    drop(stream);
    sequence.cancelled().await;
    until_metric(&front, "mlxd_http_answers_in_flight 0").await;
    until_metric(&front, "mlxd_http_streams_kept 1").await;

    // Nothing can be generated now: that is said, with a status, and the stream stays.
    front.full.store(true, std::sync::atomic::Ordering::Relaxed);
    let refused = read_after(&front, 2).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")), "{refused:?}");
    let backlog = read_after(&front, 1).await;
    assert_eq!(backlog.status, 200, "what there is can be read");
    assert!(!backlog.whole && backlog.body.contains("one ") && backlog.body.contains("overloaded"));

    front.full.store(false, std::sync::atomic::Ordering::Relaxed);
    let again = send(front.address, "GET", PATH, "last-event-id: 2\r\n", "").await;
    let sequence = front.sequence().await;
    assert_eq!(sequence.resumed_after, 4, "the sequence goes on behind what was read");
    sequence.end("two", End::Stop);
    let again = finish(String::new(), again).await;
    assert!(again.whole);
    assert_eq!(text(&again.body, 3), "two");
    let all = read_after(&front, 0).await.body;
    assert_eq!(text(&all, 1), "one two");
    assert!(seen.contains(raw_events(&all)[1].trim_end()), "{seen}");
    assert!(
        get(front.address, "/metrics").await.body.contains("mlxd_http_streams_resumed_total 4")
    );
    front.stop().await;
}

#[actix_web::test]
async fn in_the_background_it_goes_on() {
    let mut front = Front::start(HttpLimits::default());
    for header in [false, true] {
        let id = format!("x-request-id: background-{header}\r\n");
        let stream = match header {
            false => send(front.address, "POST", CHAT, &id, &background()).await,
            true => {
                let id = format!("{id}x-resumable: background\r\n");
                send(front.address, "POST", CHAT, &id, &body(json!({}))).await
            }
        };
        let sequence = front.sequence().await;
        // Even before its first token.
        drop(stream);
        sequence.say("one ");
        sequence.end("two", End::Stop);
        let path = format!("/v1/streams/background-{header}");
        let again = get(front.address, &path).await;
        assert!(again.whole);
        assert_eq!(text(&again.body, 1), "one two");
        assert_eq!(sequence.resumed_after, 0);
    }
    front.stop().await;
}

#[actix_web::test]
async fn text_completions_are_kept_as_well() {
    let mut front = Front::start(HttpLimits::default());
    let body = json!({"model": MODEL, "prompt": "p", "stream": true, "resumable": true});
    let stream = send(front.address, "POST", "/v1/completions", ID, &body.to_string()).await;
    front.sequence().await.end("Once", End::Stop);
    let answer = finish(String::new(), stream).await;
    assert_eq!(data(&answer.body, 1).len(), 3, "{answer:?}");
    assert_eq!(get(front.address, PATH).await.body, answer.body);
    front.stop().await;
}

#[actix_web::test]
async fn an_abnormal_end_is_repeated() {
    let mut front = Front::start(HttpLimits::default());
    let mut stream = ask(&front, &resumable()).await;
    let sequence = front.sequence().await;
    sequence.say("so far");
    let seen = read_until(&mut stream, "so far").await;
    sequence.end("", died());
    let answer = finish(seen, stream).await;
    let again = read_after(&front, 0).await;
    assert!(!answer.whole && !again.whole, "neither ends cleanly");
    assert_eq!(answer.body, again.body);
    let error: Value = serde_json::from_str(data(&again.body, 1).last().unwrap()).unwrap();
    assert_eq!(error["error"]["code"], "worker_died");
    front.stop().await;
}

#[actix_web::test]
async fn what_fails_before_its_first_token_has_a_status_and_may_be_tried_again() {
    let mut front = Front::start(HttpLimits::default());
    for _ in 0..2 {
        let stream = ask(&front, &resumable()).await;
        front.sequence().await.end("", died());
        let answer = finish(String::new(), stream).await;
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (503, &"worker_died".into()));
        let again = get(front.address, PATH).await;
        assert_eq!((again.status, again.body), (503, answer.body), "and again");
    }
    // In the background somebody may come for it later, and is told the same.
    let stream = ask(&front, &background()).await;
    let sequence = front.sequence().await;
    drop(stream);
    sequence.end("", died());
    let again = get(front.address, PATH).await;
    assert_eq!((again.status, &again.json()["error"]["code"]), (503, &"worker_died".into()));
    front.stop().await;
}

#[actix_web::test]
async fn wrong_questions_are_told_what_is_wrong() {
    let mut front = Front::start(HttpLimits::default());
    let stream = ask(&front, &resumable()).await;
    front.sequence().await.end("hello", End::Stop);
    let answer = finish(String::new(), stream).await;
    let events = raw_events(&answer.body).len();

    let ahead = read_after(&front, 90).await;
    assert_eq!(ahead.status, 400);
    assert!(ahead.body.contains(&format!("has had {events} events")), "{ahead:?}");
    for query in ["?from=two", "?from=-1"] {
        assert_eq!(get(front.address, &format!("{PATH}{query}")).await.status, 400, "{query}");
    }
    let header = request(front.address, "GET", PATH, "last-event-id: abc\r\n", "").await;
    assert_eq!((header.status, &header.json()["error"]["param"]), (400, &"Last-Event-ID".into()));
    let twice = send(front.address, "POST", CHAT, ID, &resumable()).await;
    let twice = finish(String::new(), twice).await;
    assert_eq!((twice.status, &twice.json()["error"]["code"]), (409, &"stream_exists".into()));
    for field in ["resumable", "background"] {
        let body = body(json!({"stream": false, field: true}));
        let refused = finish(String::new(), ask(&front, &body).await).await;
        assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &field.into()));
    }
    let method = request(front.address, "PUT", PATH, "", "").await;
    assert_eq!((method.status, method.header("allow")), (405, Some("GET, DELETE")));
    front.stop().await;
}

#[actix_web::test]
async fn a_deleted_stream_stops_and_says_so() {
    let mut front = Front::start(HttpLimits::default());
    let mut stream = ask(&front, &background()).await;
    let sequence = front.sequence().await;
    sequence.say("word");
    let seen = read_until(&mut stream, "word").await;
    assert_eq!(request(front.address, "DELETE", PATH, "", "").await.status, 204);
    sequence.cancelled().await;
    let reader = finish(seen, stream).await;
    assert!(!reader.whole && reader.body.contains("stream_deleted"), "{reader:?}");
    let again = get(front.address, PATH).await;
    assert_eq!((again.status, &again.json()["error"]["code"]), (410, &"stream_deleted".into()));
    // Its id is free again.
    let stream = ask(&front, &background()).await;
    front.sequence().await.end("other", End::Stop);
    assert_eq!(text(&finish(String::new(), stream).await.body, 1), "other");
    front.stop().await;
}

#[actix_web::test]
async fn it_is_kept_so_long_and_no_longer() {
    let retention = Duration::from_millis(50);
    let mut front =
        Front::start(with_streams(StreamLimits { retention, ..StreamLimits::default() }));
    for ended in [false, true] {
        let mut stream = ask(&front, &resumable()).await;
        let sequence = front.sequence().await;
        sequence.say("word");
        let seen = read_until(&mut stream, "word").await;
        if ended {
            sequence.end("", End::Stop);
            finish(seen, stream).await;
        } else {
            drop(stream);
            sequence.cancelled().await;
        }
        let gone = until_status(&front, 410).await;
        assert_eq!(gone.json()["error"]["code"], "stream_expired", "{gone:?}");
    }
    let metrics = get(front.address, "/metrics").await.body;
    for line in [
        "mlxd_http_streams_dropped_total{why=\"expired\"} 2",
        "mlxd_http_streams_kept 0",
        "mlxd_http_streams_kept_bytes 0",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    front.stop().await;
}

#[actix_web::test]
async fn the_one_left_longest_ago_makes_room() {
    let streams = StreamLimits { kept_max: 2, ..StreamLimits::default() };
    let mut front = Front::start(with_streams(streams));
    let mut open = Vec::new();
    for number in 0..4 {
        let id = format!("x-request-id: stream-{number}\r\n");
        let stream = send(front.address, "POST", CHAT, &id, &resumable()).await;
        if number == 3 {
            let refused = finish(String::new(), stream).await;
            assert_eq!(refused.status, 503, "both are being read: {refused:?}");
            assert!(refused.body.contains("kept_max"));
            break;
        }
        let sequence = front.sequence().await;
        if number == 0 {
            sequence.end("first", End::Stop);
            finish(String::new(), stream).await;
        } else {
            open.push((sequence, stream));
        }
    }
    let gone = get(front.address, "/v1/streams/stream-0").await;
    assert_eq!((gone.status, &gone.json()["error"]["code"]), (410, &"stream_dropped".into()));
    assert!(gone.body.contains("kept_max"), "{gone:?}");
    front.stop().await;
}

#[actix_web::test]
async fn the_finished_go_before_the_unfinished_when_bytes_are_short() {
    // Room for about a hundred events.
    let streams =
        StreamLimits { bytes_max: 40_000, stream_bytes_max: 30_000, ..StreamLimits::default() };
    let mut front = Front::start(with_streams(streams));
    let speak = async |sequence: &Sequence, stream: &mut TcpStream, words: usize| {
        let mut seen = String::new();
        for word in 0..words {
            sequence.say(&format!("w{word};"));
            seen += &read_until(stream, &format!("w{word};")).await;
        }
        seen
    };
    let id = |name: &str| format!("x-request-id: {name}\r\n");
    // Left unfinished, then one finished; the third needs room and takes the finished one's.
    let mut paused = send(front.address, "POST", CHAT, &id("paused"), &resumable()).await;
    let sequence = front.sequence().await;
    speak(&sequence, &mut paused, 20).await;
    drop(paused);
    sequence.cancelled().await;
    let mut done = send(front.address, "POST", CHAT, &id("done"), &resumable()).await;
    let sequence = front.sequence().await;
    let seen = speak(&sequence, &mut done, 40).await;
    sequence.end("", End::Stop);
    finish(seen, done).await;
    let mut third = send(front.address, "POST", CHAT, &id("third"), &resumable()).await;
    let sequence = front.sequence().await;
    speak(&sequence, &mut third, 55).await;
    let gone = get(front.address, "/v1/streams/done").await;
    assert_eq!((gone.status, &gone.json()["error"]["code"]), (410, &"stream_dropped".into()));
    assert!(gone.body.contains("bytes_max"), "{gone:?}");
    let resumed =
        send(front.address, "GET", "/v1/streams/paused", "last-event-id: 21\r\n", "").await;
    front.sequence().await.end("", End::Stop);
    assert!(finish(String::new(), resumed).await.whole, "the unfinished one is still there");
    front.stop().await;
}

#[actix_web::test]
async fn one_stream_keeps_only_so_many_bytes() {
    let streams = StreamLimits { stream_bytes_max: 6000, ..StreamLimits::default() };
    let mut front = Front::start(with_streams(streams));
    let mut stream = ask(&front, &background()).await;
    let sequence = front.sequence().await;
    let mut seen = String::new();
    for word in 0..60 {
        sequence.say(&format!("w{word};"));
        seen += &read_until(&mut stream, &format!("w{word};")).await;
    }
    let gone = read_after(&front, 1).await;
    assert_eq!(
        (gone.status, &gone.json()["error"]["code"]),
        (410, &"stream_events_dropped".into())
    );
    let mut second = send(front.address, "GET", PATH, "last-event-id: 55\r\n", "").await;
    read_until(&mut second, "w59;").await;
    drop((stream, second));
    until_metric(&front, "mlxd_http_streams_readers 0").await;

    // Nobody reads: the log fills up and no further, and the rest is written once somebody does.
    for word in 60..200 {
        sequence.say(&format!("w{word};"));
    }
    sequence.end("", End::Stop);
    let rest = read_after(&front, 61).await;
    assert!(rest.whole);
    let said: String = (60..200).map(|word| format!("w{word};")).collect();
    assert_eq!(text(&rest.body, 62), said);
    assert!(until_status(&front, 400).await.body.contains("events so far"));
    front.stop().await;
}

#[actix_web::test]
async fn a_slow_reader_of_a_kept_stream_gets_everything() {
    let streams = StreamLimits { stream_bytes_max: 16_384, ..StreamLimits::default() };
    let mut front = Front::start(with_streams(streams));
    let stream = ask(&front, &resumable()).await;
    let sequence = front.sequence().await;
    let mut said = String::new();
    for number in 0..50_000 {
        let words = format!("{number} \"quoted\" ");
        sequence.say(&words);
        said += &words;
    }
    sequence.end("", End::Stop);
    let answer = finish(String::new(), stream).await;
    assert!(answer.whole);
    assert_eq!(text(&answer.body, 1), said);
    front.stop().await;
}
