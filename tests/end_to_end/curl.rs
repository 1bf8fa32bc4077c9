//! What a person does with `curl`, and what its exit code tells a script.

use crate::fixture::{MODEL, Scripted, chat};
use mlxd_testkit::{How, Script, When};
use serde_json::{Value, json};
use std::io::Write;
use std::process::{Command, Stdio};

/// curl's code for a body that ended before its framing says so.
const PARTIAL_FILE: i32 = 18;

/// Runs curl with the body on standard input; its exit code, and what it printed.
fn curl(scripted: &Scripted, path: &str, arguments: &[&str], body: &str) -> (i32, String) {
    let mut child = Command::new("curl")
        .args(["--silent", "--show-error", "--no-buffer", "--max-time", "20"])
        .args(arguments)
        .args(["--data-binary", "@-"])
        .arg(format!("{}{path}", scripted.front.base_url()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("curl is installed");
    let mut input = child.stdin.take().expect("a pipe");
    // curl may stop reading as soon as it has been refused.
    let _ = input.write_all(body.as_bytes());
    drop(input);
    let output = child.wait_with_output().expect("curl ends");
    let code = output.status.code().expect("curl ends by itself");
    (code, String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn a_line_of_curl_is_answered() {
    let answer = Some("Good morning.".to_owned());
    let scripted = Scripted::start(&Script { answer, ..Script::default() });
    // Without a content type of its own, curl sends that of a form.
    let body = chat(MODEL, "Hello", json!({})).to_string();
    let (code, printed) = curl(&scripted, "/chat/completions", &[], &body);
    assert_eq!(code, 0);
    let answer: Value = serde_json::from_str(&printed).expect("one JSON object");
    assert_eq!(answer["choices"][0]["message"]["content"], "Good morning.");

    let body = chat(MODEL, "Hello", json!({"stream": true})).to_string();
    let (code, printed) = curl(&scripted, "/chat/completions", &["--include"], &body);
    assert_eq!(code, 0);
    assert!(printed.starts_with("HTTP/1.1 200"), "{printed}");
    for header in
        ["content-type: text/event-stream", "x-request-id: req_", "cache-control: no-cache"]
    {
        assert!(printed.contains(header), "{printed}");
    }
    assert!(printed.ends_with("data: [DONE]\n\n"), "{printed}");
}

#[test]
fn a_stream_that_broke_off_is_an_exit_code() {
    let script = Script { step_us: 1000, ..Script::default() };
    let broken = Script { ..script.with_fault(When::Tokens(10), How::Kill) };
    let scripted = Scripted::start(&broken);
    let body = chat(MODEL, "Hello", json!({"stream": true})).to_string();
    let (code, printed) = curl(&scripted, "/chat/completions", &[], &body);
    assert_eq!(code, PARTIAL_FILE, "{printed}");
    let last = printed.trim_end().lines().last().expect("events");
    assert!(last.starts_with("data: {\"error\":"), "{printed}");
}

#[test]
fn a_body_that_is_refused_is_told_so_before_and_while_it_is_sent() {
    let scripted = Scripted::start_with(&Script::default(), |config| {
        config.with("http.body_bytes_max", 100_000)
    });
    let body = chat(MODEL, &"x".repeat(5_000_000), json!({})).to_string();
    // Announced, and asked about first with `Expect: 100-continue`; then in pieces of no
    // announced length, then without asking.
    let ways: [&[&str]; 3] =
        [&[], &["--header", "transfer-encoding: chunked"], &["--header", "expect:"]];
    for way in ways {
        let (code, printed) = curl(
            &scripted,
            "/chat/completions",
            &[way, &["--write-out", "%{http_code}"]].concat(),
            &body,
        );
        assert_eq!(code, 0, "{way:?}: {printed}");
        assert!(
            printed.contains("request_too_large") && printed.ends_with("413"),
            "{way:?}: {printed}"
        );
    }
}
