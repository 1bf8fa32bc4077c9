//! Streamed answers, byte by byte, and clients that go away.

use super::client::{finish, get, post, read_until, send};
use super::fake::{Front, MODEL, died};
use crate::limits::HttpLimits;
use mlxd_dispatch::{End, Entry};
use serde_json::{Value, json};
use std::time::Duration;

const CHAT: &str = "/v1/chat/completions";

fn chat_body(more: Value) -> String {
    let mut body =
        json!({"model": MODEL, "stream": true, "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body.to_string()
}

/// A stream whose deltas are known to have been read one by one.
#[actix_web::test]
async fn a_chat_stream_has_openais_shape() {
    let mut front = Front::start(HttpLimits::default());
    let body = chat_body(json!({"stream_options": {"include_usage": true}}));
    let mut stream = send(front.address, "POST", CHAT, "", &body).await;
    let sequence = front.sequence().await;
    sequence.say("Hi");
    let mut seen = read_until(&mut stream, "\"Hi\"").await;
    // Half of a character shows nothing; its other half comes with what follows.
    sequence.publish(vec![Entry { token: 0xC3, logprob: 0.0, top: vec![] }], None);
    sequence.publish(vec![Entry { token: 0xA9, logprob: 0.0, top: vec![] }], None);
    seen += &read_until(&mut stream, "é").await;
    sequence.end("", End::Length);
    let answer = finish(seen, stream).await;
    assert!(answer.whole, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert_eq!(answer.events().last().unwrap(), "[DONE]");

    let chunks = answer.chunks();
    let id = &chunks[0]["id"];
    for chunk in &chunks {
        assert_eq!(&chunk["id"], id);
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(chunk["model"], MODEL);
        assert!(chunk["created"].is_u64());
        assert!(chunk.as_object().unwrap().contains_key("usage"));
    }
    let choice = |delta: Value, reason: Value| json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": reason}]);
    let expected = [
        choice(json!({"role": "assistant", "content": ""}), Value::Null),
        choice(json!({"content": "Hi"}), Value::Null),
        choice(json!({"content": "é"}), Value::Null),
        choice(json!({}), json!("length")),
        json!([]),
    ];
    let choices: Vec<_> = chunks.iter().map(|chunk| chunk["choices"].clone()).collect();
    assert_eq!(choices, expected);
    let (last, before) = chunks.split_last().unwrap();
    assert!(before.iter().all(|chunk| chunk["usage"].is_null()));
    assert_eq!(last["usage"]["completion_tokens"], 4);
    assert_eq!(last["usage"]["total_tokens"], 13);
    front.stop().await;
}

#[actix_web::test]
async fn without_include_usage_no_chunk_speaks_of_it() {
    let mut front = Front::start(HttpLimits::default());
    let address = front.address;
    let answer = tokio::spawn(async move { post(address, CHAT, &chat_body(json!({}))).await });
    front.sequence().await.end("one two", End::Stop);
    let chunks = answer.await.unwrap().chunks();
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
    assert_eq!(chunks.len(), 3, "what came together is one delta: {chunks:?}");
    assert_eq!(chunks[1]["choices"][0]["delta"]["content"], "one two");
    front.stop().await;
}

#[actix_web::test]
async fn choices_are_interleaved_by_index() {
    let mut front = Front::start(HttpLimits::default());
    let body = chat_body(json!({"n": 2}));
    let mut stream = send(front.address, "POST", CHAT, "", &body).await;
    let first = front.sequence().await;
    let second = front.sequence().await;
    second.say("B");
    let mut seen = read_until(&mut stream, "\"B\"").await;
    first.end("A", End::Stop);
    seen += &read_until(&mut stream, "\"stop\"").await;
    second.end("b", End::Length);
    let answer = finish(seen, stream).await;
    let said: Vec<_> = answer
        .chunks()
        .iter()
        .map(|chunk| {
            let choice = &chunk["choices"][0];
            let word = choice["delta"]["content"].as_str().or(choice["finish_reason"].as_str());
            (choice["index"].as_u64().unwrap(), word.unwrap().to_owned())
        })
        .collect();
    let expected = [(0, ""), (1, ""), (1, "B"), (0, "A"), (0, "stop"), (1, "b"), (1, "length")];
    assert_eq!(said, expected.map(|(index, word)| (index, word.to_owned())));
    front.stop().await;
}

#[actix_web::test]
async fn a_text_stream_has_the_older_shape() {
    let mut front = Front::start(HttpLimits::default());
    let body = json!({"model": MODEL, "prompt": "On", "echo": true, "stream": true}).to_string();
    let address = front.address;
    let answer = tokio::spawn(async move { post(address, "/v1/completions", &body).await });
    front.sequence().await.end("ce", End::Stop);
    let answer = answer.await.unwrap();
    let choices: Vec<_> = answer.chunks().iter().map(|chunk| chunk["choices"][0].clone()).collect();
    let choice = |text: &str, reason: Value| json!({"index": 0, "text": text, "logprobs": null, "finish_reason": reason});
    assert_eq!(choices, [choice("Once", Value::Null), choice("", json!("stop"))]);
    assert_eq!(answer.chunks()[0]["object"], "text_completion");
    assert_eq!(answer.events().last().unwrap(), "[DONE]");
    front.stop().await;
}

#[actix_web::test]
async fn a_stream_that_breaks_off_never_ends_cleanly() {
    let mut front = Front::start(HttpLimits::default());
    let mut stream = send(front.address, "POST", CHAT, "", &chat_body(json!({}))).await;
    let sequence = front.sequence().await;
    sequence.say("so far");
    let seen = read_until(&mut stream, "so far").await;
    sequence.end(" and", died());
    let answer = finish(seen, stream).await;
    assert!(!answer.whole, "the closing chunk was sent: {answer:?}");
    let events = answer.events();
    assert!(!events.contains(&"[DONE]".to_owned()), "{events:?}");
    let error: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(error["error"]["code"], "worker_died");
    let chunks = answer.chunks();
    assert_eq!(chunks[chunks.len() - 2]["choices"][0]["delta"]["content"], " and");
    assert!(chunks.iter().all(|chunk| chunk["choices"][0]["finish_reason"].is_null()));
    front.stop().await;
}

#[actix_web::test]
async fn silence_is_filled_with_comments() {
    let ping = Duration::from_millis(20);
    let mut front = Front::start(HttpLimits { stream_ping: ping, ..HttpLimits::default() });
    let mut stream = send(front.address, "POST", CHAT, "", &chat_body(json!({}))).await;
    let sequence = front.sequence().await;
    // Nothing was generated: the head and the role come when the client would get impatient.
    let mut seen = read_until(&mut stream, "assistant").await;
    assert!(seen.starts_with("HTTP/1.1 200"));
    seen += &read_until(&mut stream, "\n: still at work\n\n").await;
    sequence.end("done", End::Stop);
    let answer = finish(seen, stream).await;
    assert!(answer.whole);
    assert_eq!(answer.events().last().unwrap(), "[DONE]");
    front.stop().await;
}

#[actix_web::test]
async fn who_waits_is_told_what_for_until_it_begins() {
    let (progress, ping) = (Duration::from_millis(20), Duration::from_millis(60));
    let mut front = Front::start(HttpLimits {
        stream_ping: ping,
        stream_progress: Some(progress),
        ..HttpLimits::default()
    });
    let mut stream = send(front.address, "POST", CHAT, "", &chat_body(json!({}))).await;
    let sequence = front.sequence().await;
    let mut seen = read_until(&mut stream, "\n: org/fake is being loaded, 42 %\n\n").await;
    assert!(seen.starts_with("HTTP/1.1 200"));
    sequence.say("begun");
    seen += &read_until(&mut stream, "begun").await;
    seen += &read_until(&mut stream, "\n: still at work\n\n").await;
    assert!(!seen.split_once("begun").unwrap().1.contains("being loaded"));
    sequence.end("done", End::Stop);
    let answer = finish(seen, stream).await;
    assert!(answer.whole);
    front.stop().await;
}

#[actix_web::test]
async fn a_client_that_goes_away_frees_its_sequence() {
    let mut front = Front::start(HttpLimits::default());
    for stream in [false, true] {
        for spoken in [false, true] {
            let body = chat_body(json!({"stream": stream, "n": 2}));
            let mut connection = send(front.address, "POST", CHAT, "", &body).await;
            let sequences = [front.sequence().await, front.sequence().await];
            if spoken {
                sequences.iter().for_each(|sequence| sequence.say("a word"));
                if stream {
                    read_until(&mut connection, "a word").await;
                }
            }
            drop(connection);
            for sequence in sequences {
                sequence.cancelled().await;
            }
        }
    }
    // Nothing is left in the counters either, once the last handler is gone.
    let counted_out = async {
        let metrics = || async { get(front.address, "/metrics").await.body };
        while !metrics().await.contains("mlxd_http_answers_in_flight 0") {}
    };
    let counted_out = tokio::time::timeout(Duration::from_secs(10), counted_out).await;
    counted_out.expect("no answer in flight within ten seconds");
    front.stop().await;
}

#[actix_web::test]
async fn a_client_that_closes_its_side_alone_is_gone_too() {
    use tokio::io::AsyncWriteExt;
    let mut front = Front::start(HttpLimits::default());
    let body = chat_body(json!({"stream": false}));
    let mut connection = send(front.address, "POST", CHAT, "", &body).await;
    let sequence = front.sequence().await;
    connection.shutdown().await.unwrap();
    sequence.cancelled().await;
    front.stop().await;
}

#[actix_web::test]
async fn a_slow_reader_gets_everything() {
    let mut front = Front::start(HttpLimits::default());
    let stream = send(front.address, "POST", CHAT, "", &chat_body(json!({}))).await;
    let sequence = front.sequence().await;
    let mut said = String::new();
    for number in 0..50_000 {
        let words = format!("{number} \"quoted\" ");
        sequence.say(&words);
        said += &words;
    }
    sequence.end("", End::Stop);
    let answer = finish(String::new(), stream).await;
    let deltas = answer.chunks();
    let read: String = deltas
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert!(answer.whole);
    assert_eq!(read, said);
    front.stop().await;
}
