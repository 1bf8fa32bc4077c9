//! A client that goes away frees its place at once, streamed or not.

use crate::fixture::{MODEL, Scripted, chat, delta, said, status_of, until_idle};
use mlxd_testkit::{Script, until};
use serde_json::json;
use std::io::Write;

const CHAT: &str = "/v1/chat/completions";

/// An answer that would take minutes, and places for just one.
fn endless() -> Scripted {
    let script = Script { step_us: 5000, context_tokens: 100_000, ..Script::default() };
    Scripted::start_with(&script, |config| {
        config.with_model_key(MODEL, "running_max", 1).with_model_key(MODEL, "queued_max", 1)
    })
}

/// Asks for a few tokens, which come only when the one place is free.
fn gets_an_answer(scripted: &Scripted) {
    let body = chat(MODEL, "are you free?", json!({"max_tokens": 3}));
    let answer = scripted.front.client().post(CHAT, &body).json();
    assert_eq!(said(&answer).len(), 3, "{answer}");
}

#[test]
fn a_stream_that_is_dropped_frees_its_place() {
    let scripted = endless();
    for _ in 0..3 {
        let body = chat(MODEL, "talk", json!({"stream": true, "max_tokens": 90_000}));
        let mut events = scripted.front.client().post(CHAT, &body).events();
        while delta(&events.expect_event().json()).is_empty() {}
        drop(events);
        until_idle(&scripted.front, MODEL);
        gets_an_answer(&scripted);
    }
}

#[test]
fn a_request_that_is_dropped_while_it_waits_frees_its_place() {
    let scripted = endless();
    for _ in 0..3 {
        let body = chat(MODEL, "talk", json!({"max_tokens": 90_000})).to_string();
        let mut connection = scripted.front.client().connect().unwrap();
        let head =
            format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
        connection.write_all(format!("{head}{body}").as_bytes()).unwrap();
        until("the sequence to run", || {
            (status_of(&scripted.front, MODEL)["running"] == 1).then_some(())
        });
        drop(connection);
        until_idle(&scripted.front, MODEL);
        gets_an_answer(&scripted);
    }
}
