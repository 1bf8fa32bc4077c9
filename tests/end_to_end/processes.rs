//! Spawning on demand, draining, the comments that fill the wait, streams and answers that agree.

use crate::fixture::{MODEL, Scripted, chat, config, delta, said, status_of, until_idle};
use mlxd_testkit::{Body, Events, FrontProcess, Script, until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

#[test]
fn a_worker_is_there_when_it_is_asked_for() {
    let scripted = Scripted::start(&Script::default());
    let front = &scripted.front;
    assert_eq!(front.workers(), Vec::<u32>::new(), "nobody asked yet");
    assert_eq!(front.client().get("/ready").status, 200);
    front.client().post(CHAT, &chat(MODEL, "hi", json!({"max_tokens": 1}))).json();
    let [worker] = front.workers()[..] else { panic!("one worker") };
    assert_eq!(status_of(front, MODEL)["pid"], worker);
    front.client().post(CHAT, &chat(MODEL, "hi", json!({"max_tokens": 1}))).json();
    assert_eq!(front.workers(), [worker], "the same one serves the next request");
}

#[test]
fn the_wait_for_a_model_is_filled() {
    let script = Script { load_ms: 1500, answer: Some("loaded".into()), ..Script::default() };
    let scripted = Scripted::start_with(&script, |config| config.with("http.stream_ping_ms", 100));
    let body = chat(MODEL, "hi", json!({"stream": true}));
    let mut events = scripted.front.client().post(CHAT, &body).events();
    let mut text = String::new();
    while let Some(event) = events.next_event().expect("a clean end") {
        if event.data != "[DONE]" {
            text += delta(&event.json());
        }
    }
    assert_eq!(text, "loaded");
    assert!(events.comments() >= 2, "{} comments in more than a second", events.comments());
}

#[test]
fn a_stream_and_an_answer_say_the_same() {
    let scripted = Scripted::start(&Script::default());
    let client = scripted.front.client();
    for (seed, stop) in [(1, json!(null)), (2, json!("e")), (3, json!(["qu", " t"]))] {
        let more =
            |stream: bool| json!({"seed": seed, "stop": stop, "max_tokens": 200, "stream": stream});
        let answer = client.post(CHAT, &chat(MODEL, "same?", more(false))).json();
        let events = client.post(CHAT, &chat(MODEL, "same?", more(true))).events().all().unwrap();
        let (last, chunks) = events.split_last().expect("events");
        assert_eq!(last.data, "[DONE]");
        let chunks: Vec<Value> = chunks.iter().map(mlxd_testkit::Event::json).collect();
        let streamed: String = chunks.iter().map(delta).collect();
        assert_eq!(streamed, said(&answer));
        let reason = &chunks.last().expect("a last chunk")["choices"][0]["finish_reason"];
        assert_eq!(reason, &answer["choices"][0]["finish_reason"]);
    }
}

#[test]
fn a_drain_lets_answers_finish() {
    let script = Script { step_us: 10_000, ..Script::default() };
    let mut scripted = Scripted::start(&script);
    let body = chat(MODEL, "talk", json!({"stream": true, "max_tokens": 60}));
    let mut events = scripted.front.client().post(CHAT, &body).events();
    let mut text = String::new();
    while text.is_empty() {
        text += delta(&events.expect_event().json());
    }
    scripted.front.signal(Signal::SIGTERM);
    for event in events.all().expect("a clean end") {
        if event.data != "[DONE]" {
            text += delta(&event.json());
        }
    }
    assert_eq!(text.len(), 60, "the answer is whole");
    assert_eq!(scripted.front.wait_exit().code(), Some(0));
}

/// A stream in the middle of an answer that will not end by itself.
fn talking(scripted: &Scripted) -> Events<Body> {
    let body = chat(MODEL, "talk", json!({"stream": true, "max_tokens": 90_000}));
    let mut events = scripted.front.client().post(CHAT, &body).events();
    while delta(&events.expect_event().json()).is_empty() {}
    events
}

fn assert_told_of_shutdown(mut events: Events<Body>) {
    let mut error = None;
    while let Ok(Some(event)) = events.next_event() {
        assert_ne!(event.data, "[DONE]");
        error = event.json().get("error").cloned().or(error);
    }
    assert_eq!(error.expect("an error event")["code"], "shutting_down");
}

#[test]
fn a_drain_that_takes_too_long_says_so_to_the_client() {
    let script = Script { step_us: 10_000, context_tokens: 100_000, ..Script::default() };
    let mut scripted =
        Scripted::start_with(&script, |config| config.with("http.shutdown_grace_ms", 200));
    let events = talking(&scripted);
    scripted.front.signal(Signal::SIGTERM);
    assert_told_of_shutdown(events);
    assert_eq!(scripted.front.wait_exit().code(), Some(0));
}

#[test]
fn a_second_signal_hurries_and_still_says_so() {
    let script = Script { step_us: 10_000, context_tokens: 100_000, ..Script::default() };
    let mut scripted = Scripted::start(&script);
    let mut events = talking(&scripted);
    scripted.front.signal(Signal::SIGTERM);
    events.expect_event();
    scripted.front.signal(Signal::SIGTERM);
    assert_told_of_shutdown(events);
    assert_eq!(scripted.front.wait_exit().code(), Some(130));
}

#[test]
fn an_admin_stops_and_starts_a_model() {
    let scripted = Scripted::start(&Script::default());
    let (admin, call) = (scripted.front.admin(), json!({"model": MODEL}));
    let started = admin.post("/admin/v1/start", &call);
    assert_eq!(started.status, 200);
    assert_eq!(started.json()["state"], "RUNNING");
    assert_eq!(admin.post("/admin/v1/start", &call).json()["error"]["code"], "already_started");
    let first = scripted.front.workers();
    assert_eq!(admin.post("/admin/v1/restart", &call).json()["state"], "RUNNING");
    let second = scripted.front.workers();
    assert!(first.len() == 1 && second.len() == 1 && first != second, "{first:?} {second:?}");
    assert_eq!(admin.post("/admin/v1/stop", &call).json()["state"], "STOPPED");
    until("no worker", || scripted.front.workers().is_empty().then_some(()));
    let answer =
        scripted.front.client().post(CHAT, &chat(MODEL, "hi", json!({"max_tokens": 2}))).json();
    assert_eq!(said(&answer).len(), 2, "a request starts it again");
    let log = admin.get(&format!("/admin/v1/log?model={MODEL}&bytes=100000"));
    assert_eq!(log.status, 200);
}

/// Text goes to people, JSON to programs: in the front's log and in the worker's, with the same id.
#[test]
fn a_request_is_found_in_both_logs_by_its_id() {
    let scripted = Scripted::start_with(&Script::default(), |config| {
        config.with("log.format", "json").with("log.level", "debug")
    });
    let front = &scripted.front;
    let body = chat(MODEL, "hi", json!({"max_tokens": 3, "stream": true}));
    std::thread::scope(|scope| {
        for number in 0..8 {
            let (body, id) = (&body, format!("mine-{number}"));
            scope.spawn(move || {
                let json = ("content-type", "application/json");
                let headers = [json, ("x-request-id", id.as_str())];
                let body = body.to_string();
                front.client().request("POST", CHAT, &headers, body.as_bytes()).events().all()
            });
        }
    });
    let log = |path: &str| -> Vec<Value> {
        let text = front.admin().get(path).text();
        let line = |line: &str| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        text.lines().map(line).collect()
    };
    let says = |lines: &[Value], key: &str, value: &str| {
        lines.iter().filter(|line| line["fields"][key] == value).count()
    };
    let worker = log(&format!("/admin/v1/log?model={MODEL}&bytes=100000"));
    let own = until("the ends of the streams in the front's log", || {
        let own = log("/admin/v1/log?bytes=1000000");
        (says(&own, "message", "a stream is complete") == 8).then_some(own)
    });
    for number in 0..8 {
        let id = format!("mine-{number}");
        // Answered, and complete.
        assert_eq!(says(&own, "id", &id), 2, "{id}");
        assert!(says(&worker, "trace", &id) > 0, "{id}");
    }
    assert_eq!(says(&own, "message", "a model's files are read"), 1, "for all eight");
}

/// A worker that drains sends back what it did not take, and that asks for the next worker while
/// the admin's stop still waits for this one's end.
#[test]
fn requests_that_cross_a_stop_never_lock_the_model() {
    let scripted = Scripted::start(&Script { step_us: 200, ..Script::default() });
    let front = &scripted.front;
    let over = std::sync::atomic::AtomicBool::new(false);
    let is_over = || over.load(std::sync::atomic::Ordering::Relaxed);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                while !is_over() {
                    let body = chat(MODEL, "hi", json!({"max_tokens": 20}));
                    let response = front.client().post(CHAT, &body);
                    // Stopped while it waited.
                    assert!([200, 503].contains(&response.status), "{}", response.text());
                }
            });
        }
        let call = json!({"model": MODEL});
        for _ in 0..30 {
            front.admin().post("/admin/v1/stop", &call);
            front.admin().post("/admin/v1/start", &call);
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(front.client().post(CHAT, &chat(MODEL, "hi", json!({}))).status, 200);
}

#[test]
fn an_admin_shuts_the_front_down() {
    let mut front = FrontProcess::start(&config());
    assert_eq!(front.admin().post("/admin/v1/shutdown", &json!({})).status, 200);
    assert_eq!(front.wait_exit().code(), Some(0));
    assert!(front.leftovers().is_empty());
}

#[test]
fn a_thousand_requests_leave_the_counters_at_zero() {
    let scripted = Scripted::start(&Script::default());
    let client = scripted.front.client();
    for number in 0..1000 {
        let body = chat(MODEL, &format!("number {number}"), json!({"max_tokens": 2}));
        assert_eq!(said(&client.post(CHAT, &body).json()).len(), 2);
    }
    // The last answer is read a moment before everything about it is counted out.
    until_idle(&scripted.front, MODEL);
    let status = status_of(&scripted.front, MODEL);
    assert_eq!((&status["requests_total"], &status["tokens_total"]), (&json!(1000), &json!(2000)));
    let metrics = client.get("/metrics").text();
    assert!(metrics.contains("mlxd_http_answers_in_flight 0"), "{metrics}");
    let counted = "mlxd_http_requests_total{route=\"/v1/chat/completions\",status=\"200\"} 1000";
    assert!(metrics.contains(counted), "{metrics}");
}

#[test]
fn metrics_cover_requests_tokens_times_queue_workers_and_memory() {
    let scripted = Scripted::start(&Script::default());
    let client = scripted.front.client();
    let body = chat(MODEL, "count me", json!({"max_tokens": 7, "stream": true}));
    client.post(CHAT, &body).events().all().expect("a clean end");
    refused_for_metrics(&scripted);
    until_idle(&scripted.front, MODEL);
    let response = client.get("/metrics");
    let kind = response.header("content-type").expect("a content type").to_owned();
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    let metrics = response.text();
    let model = format!("{{model=\"{MODEL}\"}}");
    let lines = [
        "mlxd_http_requests_total{route=\"/v1/chat/completions\",status=\"200\"} 1".to_owned(),
        "mlxd_http_requests_total{route=\"/v1/chat/completions\",status=\"400\"} 1".to_owned(),
        format!("mlxd_generated_tokens_total{model} 7"),
        format!("mlxd_time_to_first_token_seconds_count{model} 1"),
        format!("mlxd_time_per_output_token_seconds_count{model} 1"),
        format!("mlxd_queue_seconds_count{model} 1"),
        format!("mlxd_queued{model} 0"),
        format!("mlxd_worker_state{{model=\"{MODEL}\",state=\"RUNNING\"}} 1"),
    ];
    for line in lines {
        assert!(metrics.lines().any(|known| known == line), "{line} is not in\n{metrics}");
    }
    let memory = format!("mlxd_worker_memory_bytes{model} ");
    let memory = metrics.lines().find_map(|line| line.strip_prefix(&memory)).expect("memory");
    assert!(memory.parse::<u64>().is_ok_and(|bytes| bytes > 100_000), "{memory}");
}

fn refused_for_metrics(scripted: &Scripted) {
    let refused = scripted.front.client().post(CHAT, &chat(MODEL, "hi", json!({"n": 0})));
    assert_eq!(refused.status, 400);
}
