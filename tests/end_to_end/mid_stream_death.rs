//! A worker that dies in the middle of answers.

use crate::fixture::{MODEL, Scripted, chat, delta, status_of};
use mlxd_testkit::{How, Script, When};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

fn streamed() -> Value {
    chat(MODEL, "tell me", json!({"stream": true, "max_tokens": 60, "seed": 4}))
}

/// Reads a stream to its end: the text, the error if there was one, and whether it said `[DONE]`.
fn read(scripted: &Scripted) -> (String, Option<Value>, bool) {
    let response = scripted.front.client().post(CHAT, &streamed());
    assert_eq!(response.status, 200);
    let (mut text, mut error, mut done) = (String::new(), None, false);
    let mut events = response.events();
    // A stream that broke off is also cut below: its end is an error of the connection.
    while let Ok(Some(event)) = events.next_event() {
        assert!(!done && error.is_none(), "{event:?} after the end");
        if event.data == "[DONE]" {
            done = true;
            continue;
        }
        let chunk = event.json();
        match chunk.get("error") {
            Some(told) => error = Some(told.clone()),
            None => {
                assert_ne!(chunk["choices"][0]["finish_reason"], "stop");
                text += delta(&chunk);
            }
        }
    }
    (text, error, done)
}

fn dies_by(how: How, deaths: u32) {
    let script = Script { step_us: 2000, ..Script::default() };
    let scripted = Scripted::start(&script.clone().with_fault_once(When::Tokens(20), how));
    let (begun, error, done) = read(&scripted);
    let error = error.expect("an error event");
    assert!(!done, "no end mark after an error");
    assert!(!begun.is_empty() && begun.len() <= 21, "{begun:?}");
    assert_eq!(error["code"], "worker_died", "{error}");
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()));

    // The next request gets a new worker, and the whole answer.
    let (whole, error, done) = read(&scripted);
    assert_eq!((error, done), (None, true));
    assert_eq!(whole.len(), 60);
    assert!(whole.starts_with(&begun), "{whole:?} {begun:?}");
    let status = status_of(&scripted.front, MODEL);
    assert_eq!((&status["state"], &status["deaths"]), (&json!("RUNNING"), &json!(deaths)));
}

#[test]
fn by_sigkill() {
    dies_by(How::Kill, 1);
}

#[test]
fn by_a_fault_in_native_code() {
    dies_by(How::Segv, 1);
}

#[test]
fn by_abort() {
    dies_by(How::Abort, 1);
}

#[test]
fn by_an_engine_fault() {
    dies_by(How::Fault, 1);
}

#[test]
fn by_an_exit_that_looks_clean() {
    // Supervisor's EXITED: the process ended as one that has nothing more to do.
    dies_by(How::Exit(0), 0);
}

#[test]
fn every_client_of_a_dead_worker_is_told() {
    let script = Script { step_us: 2000, ..Script::default() };
    let scripted = Scripted::start(&script.with_fault_once(When::Tokens(200), How::Kill));
    let outcomes = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(|| read(&scripted))).collect();
        clients.into_iter().map(|client| client.join().expect("a client")).collect::<Vec<_>>()
    });
    for (text, error, done) in outcomes {
        // Whoever was served by the second worker has everything; nobody has half of it unsaid.
        match error {
            Some(error) => assert_eq!((error["code"].as_str(), done), (Some("worker_died"), false)),
            None => assert_eq!((text.len(), done), (60, true)),
        }
    }
    assert_eq!(status_of(&scripted.front, MODEL)["deaths"], 1);
}

#[test]
fn before_the_first_token_it_is_a_status() {
    let script = Script { prefill_token_us: 1000, ..Script::default() };
    let scripted = Scripted::start(&script.with_fault_once(When::Prefill, How::Kill));
    let response = scripted.front.client().post(CHAT, &streamed());
    assert_eq!(response.status, 503);
    assert_eq!(response.header("retry-after"), Some("1"));
    assert_eq!(response.json()["error"]["code"], "worker_died");
    assert_eq!(scripted.front.client().post(CHAT, &streamed()).status, 200);
}
