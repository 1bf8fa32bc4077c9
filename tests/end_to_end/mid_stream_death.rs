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

/// The answer goes on where it stopped, and is the one that would have been given anyway.
fn goes_on_after(how: How, deaths: u32) {
    let script = Script { step_us: 2000, ..Script::default() };
    let scripted = Scripted::start(&script.with_fault_once(When::Tokens(20), how));
    let (recovered, error, done) = read(&scripted);
    assert_eq!((error, done), (None, true));
    let status = status_of(&scripted.front, MODEL);
    assert_eq!((&status["state"], &status["deaths"]), (&json!("RUNNING"), &json!(deaths)));
    let (undisturbed, error, done) = read(&scripted);
    assert_eq!((error, done), (None, true));
    assert_eq!((recovered.as_str(), recovered.len()), (undisturbed.as_str(), 60));
}

#[test]
fn by_sigkill() {
    goes_on_after(How::Kill, 1);
}

#[test]
fn by_a_fault_in_native_code() {
    goes_on_after(How::Segv, 1);
}

#[test]
fn by_abort() {
    goes_on_after(How::Abort, 1);
}

#[test]
fn by_an_engine_fault() {
    goes_on_after(How::Fault, 1);
}

#[test]
fn by_an_exit_that_looks_clean() {
    // Supervisor's EXITED: the process ended as one that has nothing more to do.
    goes_on_after(How::Exit(0), 0);
}

#[test]
fn an_answer_that_cannot_go_on_is_an_error_event() {
    let script = Script { step_us: 2000, ..Script::default() };
    let scripted =
        Scripted::start_with(&script.with_fault_once(When::Tokens(20), How::Kill), |config| {
            config.with("requests.deaths_max", 1)
        });
    let (begun, error, done) = read(&scripted);
    let error = error.expect("an error event");
    assert!(!done, "no end mark after an error");
    assert!(!begun.is_empty() && begun.len() <= 21, "{begun:?}");
    assert_eq!((&error["code"], &error["type"]), (&json!("quarantined"), &json!("server_error")));
    let message = error["message"].as_str().expect("a message");
    assert!(message.contains(MODEL) && message.contains("SIGKILL"), "{message}");

    // The next request gets a new worker, and the whole answer.
    let (whole, error, done) = read(&scripted);
    assert_eq!((error, done), (None, true));
    assert!(whole.len() == 60 && whole.starts_with(&begun), "{whole:?} {begun:?}");
}

#[test]
fn every_answer_of_a_dead_worker_goes_on() {
    let script = Script { step_us: 2000, ..Script::default() };
    let scripted = Scripted::start(&script.with_fault_once(When::Tokens(200), How::Kill));
    let outcomes = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(|| read(&scripted))).collect();
        clients.into_iter().map(|client| client.join().expect("a client")).collect::<Vec<_>>()
    });
    let (expected, _, _) = read(&scripted);
    for outcome in outcomes {
        assert_eq!(outcome, (expected.clone(), None, true));
    }
    assert_eq!(status_of(&scripted.front, MODEL)["deaths"], 1);
}

#[test]
fn before_the_first_token_it_is_a_status() {
    let scripted = Scripted::start_with(
        &Script::default().with_fault_once(When::Prefill, How::Kill),
        |config| config.with("requests.deaths_max", 1),
    );
    let response = scripted.front.client().post(CHAT, &streamed());
    assert!(response.status >= 500, "{}", response.status);
    assert_eq!(response.header("content-type"), Some("application/json"));
    assert_eq!(response.json()["error"]["code"], "quarantined");
    assert_eq!(scripted.front.client().post(CHAT, &streamed()).status, 200);
}
