//! Streams that are read on: after a broken connection, after the worker's death, after both.

use crate::fixture::{
    DEMO, MODEL, Scripted, chat, config, python, repository, status_of, until_idle,
};
use mlxd_testkit::{Answer, FrontProcess, How, Outcome, Script, When, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::io::Read;
use std::ops::ControlFlow;
use std::process::Command;

const CHAT: &str = "/v1/chat/completions";

fn script() -> Script {
    Script { step_us: 2000, ..Script::default() }
}

/// Several choices, log-probabilities, usage: everything that a stream can hold.
fn rich(keep: &str) -> Value {
    let more = json!({
        "stream": true, "stream_options": {"include_usage": true}, "n": 2, "max_tokens": 120,
        "seed": 3, "temperature": 1.0, "logprobs": true, "top_logprobs": 2, "stop": ["zzz"],
        keep: true,
    });
    chat(MODEL, "go on", more)
}

/// A request for a stream, with an id of its own.
fn post(front: &FrontProcess, id: &str, body: &Value) -> mlxd_testkit::Response {
    let headers = [("content-type", "application/json"), ("x-request-id", id)];
    front.client().request("POST", CHAT, &headers, body.to_string().as_bytes())
}

fn read_on(front: &FrontProcess, id: &str, last: usize) -> mlxd_testkit::Response {
    let last = last.to_string();
    let headers = [("last-event-id", last.as_str())];
    front.client().request("GET", &format!("/v1/streams/{id}"), &headers, b"")
}

/// Whole events of a body that was cut somewhere.
fn whole_events(bytes: &str) -> Vec<&str> {
    let events = bytes.split_inclusive("\n\n").filter(|event| event.ends_with("\n\n"));
    events.filter(|event| !event.starts_with(':')).collect()
}

/// Reads so many events and hangs up.
fn read_some(response: mlxd_testkit::Response, events: usize) -> Vec<String> {
    assert_eq!(response.status, 200);
    let mut body = response.body();
    let mut seen = String::new();
    while whole_events(&seen).len() < events {
        let mut piece = [0; 500];
        let count = body.read(&mut piece).expect("the stream goes on");
        assert!(count > 0, "it ended after {seen}");
        seen += std::str::from_utf8(&piece[..count]).expect("ASCII here");
    }
    whole_events(&seen).into_iter().map(str::to_owned).collect()
}

fn answer_of(response: mlxd_testkit::Response) -> Answer {
    Outcome::read(response, |_, _| ControlFlow::Continue(())).whole()
}

fn undisturbed(body: &Value) -> Answer {
    let scripted = Scripted::start(&Script::default());
    answer_of(scripted.front.client().post(CHAT, body))
}

/// Asserts that `seen` and what comes after it are the whole stream, and that it says `expected`.
fn assert_goes_on(front: &FrontProcess, id: &str, seen: &[String], expected: &Answer) {
    let rest = read_on(front, id, seen.len()).text();
    let whole = read_on(front, id, 0).text();
    assert_eq!(seen.concat() + &rest, whole, "not a byte is lost or doubled");
    assert!(whole.ends_with("data: [DONE]\n\n"));
    assert_eq!(answer_of(read_on(front, id, 0)), *expected);
}

#[test]
fn a_stream_stands_still_without_its_reader_and_goes_on_with_the_next() {
    let body = rich("resumable");
    let expected = undisturbed(&body);
    let scripted = Scripted::start(&script());
    let mut seen = read_some(post(&scripted.front, "mine", &body), 20);
    until_idle(&scripted.front, MODEL);
    // A second reader that leaves as well.
    seen.extend(read_some(read_on(&scripted.front, "mine", seen.len()), 20));
    until_idle(&scripted.front, MODEL);
    assert_goes_on(&scripted.front, "mine", &seen, &expected);
    assert_eq!(status_of(&scripted.front, MODEL)["deaths"], 0);
}

#[test]
fn a_broken_connection_and_a_killed_worker_lose_nothing() {
    for keep in ["resumable", "background"] {
        let body = rich(keep);
        let expected = undisturbed(&body);
        // Once by the worker's own doing at a certain token, once from outside while nobody reads.
        for own in [true, false] {
            let plan =
                if own { script().with_fault_once(When::Tokens(60), How::Kill) } else { script() };
            let scripted = Scripted::start(&plan);
            let seen = read_some(post(&scripted.front, "mine", &body), 12);
            if !own {
                let pid = status_of(&scripted.front, MODEL)["pid"].as_i64().expect("a worker");
                kill(Pid::from_raw(pid as i32), Signal::SIGKILL).expect("the worker is there");
                until("its death to be noticed", || {
                    (status_of(&scripted.front, MODEL)["deaths"] == 1).then_some(())
                });
            }
            assert_goes_on(&scripted.front, "mine", &seen, &expected);
            assert_eq!(status_of(&scripted.front, MODEL)["deaths"], 1, "{keep}, own {own}");
        }
    }
}

#[test]
fn in_the_background_it_is_finished_before_anybody_comes_back() {
    let body = rich("background");
    let expected = undisturbed(&body);
    let scripted = Scripted::start(&script());
    let seen = read_some(post(&scripted.front, "mine", &body), 5);
    let tokens = expected.usage.expect("it was asked for").1;
    until("the last token", || {
        (status_of(&scripted.front, MODEL)["tokens_total"].as_u64()? >= tokens).then_some(())
    });
    until_idle(&scripted.front, MODEL);
    assert_goes_on(&scripted.front, "mine", &seen, &expected);
}

#[test]
fn an_abnormal_end_is_told_again() {
    let broken = script().with_fault(When::Tokens(30), How::Kill);
    let scripted = Scripted::start(&broken);
    let body = chat(MODEL, "go on", json!({"stream": true, "max_tokens": 200, "background": true}));
    let seen = read_some(post(&scripted.front, "mine", &body), 3);
    for _ in 0..2 {
        let response = read_on(&scripted.front, "mine", seen.len());
        let outcome = Outcome::read(response, |_, _| ControlFlow::Continue(()));
        assert_eq!(outcome.error().0, "quarantined");
    }
}

#[test]
fn curl_reads_on() {
    let answer = Some("One two three.".to_owned());
    let scripted = Scripted::start(&Script { answer, ..Script::default() });
    let base = scripted.front.base_url();
    let curl = |arguments: &[&str], path: &str| {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--no-buffer", "--max-time", "20"]);
        let output = command.args(arguments).arg(format!("{base}{path}")).output();
        let output = output.expect("curl is installed");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let body = chat(MODEL, "count", json!({"stream": true, "resumable": true})).to_string();
    let first = curl(&["-H", "x-request-id: c/1", "-d", &body], "/chat/completions");
    assert!(first.starts_with("id: 1\ndata: {"), "{first}");
    let events = whole_events(&first);
    for last in 0..events.len() {
        let header = format!("Last-Event-ID: {last}");
        let rest = curl(&["-H", &header], "/streams/c/1");
        assert_eq!(rest, events[last..].concat());
        assert_eq!(curl(&[], &format!("/streams/c%2F1?from={}", last + 1)), rest);
    }
    let status = |arguments: &[&str], path: &str| {
        curl(&[&["--output", "/dev/null", "--write-out", "%{http_code}"], arguments].concat(), path)
    };
    assert_eq!(status(&["-H", "Last-Event-ID: 999"], "/streams/c/1"), "400");
    assert_eq!(status(&[], "/streams/other"), "404");
    assert_eq!(status(&["-X", "DELETE"], "/streams/c/1"), "204");
    assert_eq!(status(&[], "/streams/c/1"), "410");
}

#[test]
fn openais_client_reads_on() {
    let scripted = Scripted::start(&script());
    let python = python();
    let output = Command::new(&python)
        .arg(repository().join("tests/python/resume.py"))
        .args([scripted.front.base_url(), MODEL])
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}; run scripts/setup", python.display()));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn the_real_worker_is_read_on_across_its_death() {
    let front = FrontProcess::start(&config().with_real_worker());
    let more = json!({
        "stream": true, "stream_options": {"include_usage": true}, "max_tokens": 300,
        "temperature": 0, "ignore_eos": true, "background": true,
    });
    let body = chat(DEMO, "How do I load a model?", more);
    let seen = read_some(post(&front, "mine", &body), 10);
    let pid = status_of(&front, DEMO)["pid"].as_i64().expect("a worker");
    kill(Pid::from_raw(pid as i32), Signal::SIGKILL).expect("the worker is there");
    let rest = read_on(&front, "mine", seen.len()).text();
    let whole = read_on(&front, "mine", 0).text();
    assert_eq!(seen.concat() + &rest, whole);
    let answer = answer_of(read_on(&front, "mine", 0));
    assert_eq!(answer.usage.expect("it was asked for").1, 300);
    assert_eq!(answer.choices[0].finish.as_deref(), Some("length"));
    assert_eq!(status_of(&front, DEMO)["deaths"], 1);
}
