//! Workers that die or hang in the middle of answers: every client reads on as if nothing had
//! been.

use crate::fixture::{MODEL, Scripted, chat, status_of, until_idle};
use mlxd_testkit::{Answer, FrontConfig, How, Outcome, Script, When, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

const CHAT: &str = "/v1/chat/completions";

/// Requests in flight at once, and the sequences they come to: every fourth has three.
const REQUESTS: usize = 16;
const SEQUENCES: i64 = 24;

/// From a hang to the next token, with the default configuration.
const HANG_RECOVERED_MAX: Duration = Duration::from_secs(10);

/// Slow enough to be caught in the middle.
fn script() -> Script {
    Script { step_us: 2000, ..Script::default() }
}

fn all_at_once(config: FrontConfig) -> FrontConfig {
    config.with_model_key(MODEL, "running_max", SEQUENCES)
}

/// Requests of every kind: streamed and not, seeded, with log-probabilities, several choices and
/// a stop string.
fn requests() -> Vec<Value> {
    (0..REQUESTS).map(request).collect()
}

fn request(number: usize) -> Value {
    let mut more = json!({"max_tokens": 50 + number, "seed": number, "temperature": 1.0});
    if number.is_multiple_of(2) {
        more["stream"] = json!(true);
        more["stream_options"] = json!({"include_usage": true});
    }
    match number % 4 {
        0 => more["n"] = json!(3),
        1 => (more["logprobs"], more["top_logprobs"]) = (json!(true), json!(3)),
        2 => more["stop"] = json!(["zz", "qx"]),
        _ => {}
    }
    chat(MODEL, &format!("question {number}"), more)
}

fn ask(scripted: &Scripted, body: &Value) -> Outcome {
    let response = scripted.front.client().post(CHAT, body);
    Outcome::read(response, |_, _| ControlFlow::Continue(()))
}

/// Asks everything at once; answers in the order of the requests.
fn ask_all(scripted: &Scripted, requests: &[Value]) -> Vec<Outcome> {
    std::thread::scope(|scope| {
        let clients: Vec<_> =
            requests.iter().map(|body| scope.spawn(move || ask(scripted, body))).collect();
        clients.into_iter().map(|client| client.join().expect("a client")).collect()
    })
}

/// What the requests get where nothing goes wrong.
fn undisturbed(requests: &[Value]) -> Vec<Answer> {
    let scripted = Scripted::start_with(&Script::default(), all_at_once);
    requests.iter().map(|body| ask(&scripted, body).whole()).collect()
}

fn assert_all_whole(outcomes: Vec<Outcome>, expected: Vec<Answer>) {
    assert_eq!(outcomes.len(), expected.len());
    for (number, (outcome, expected)) in outcomes.into_iter().zip(expected).enumerate() {
        assert_eq!(outcome.whole(), expected, "request {number}");
    }
}

/// The value of a metric of the model.
fn metric(scripted: &Scripted, name: &str) -> i64 {
    let metrics = scripted.front.client().get("/metrics").text();
    let line = format!("{name}{{model=\"{MODEL}\"}} ");
    let value = metrics.lines().find_map(|known| known.strip_prefix(&line));
    value.map_or(0, |value| value.parse().expect("a whole number"))
}

fn worker(scripted: &Scripted) -> Pid {
    until("a worker", || {
        status_of(&scripted.front, MODEL)["pid"].as_i64().map(|pid| Pid::from_raw(pid as i32))
    })
}

/// Waits until the worker has given this many tokens.
fn until_tokens(scripted: &Scripted, tokens: u64) {
    until("tokens", || {
        (status_of(&scripted.front, MODEL)["tokens_total"].as_u64()? >= tokens).then_some(())
    });
}

fn nobody_notices(how: How, deaths: i64) {
    let requests = requests();
    let expected = undisturbed(&requests);
    let plan = script().with_fault_once(When::Tokens(400), how);
    let scripted = Scripted::start_with(&plan, all_at_once);
    assert_all_whole(ask_all(&scripted, &requests), expected);
    let status = status_of(&scripted.front, MODEL);
    assert_eq!((&status["state"], &status["deaths"]), (&json!("RUNNING"), &json!(deaths)));
    let recovered = metric(&scripted, "mlxd_recovery_seconds_count");
    assert!(recovered >= SEQUENCES / 2, "{recovered} sequences went on with another worker");
    until_idle(&scripted.front, MODEL);
}

#[test]
fn nobody_notices_a_sigkill() {
    nobody_notices(How::Kill, 1);
}

#[test]
fn nobody_notices_a_fault_in_native_code() {
    nobody_notices(How::Segv, 1);
}

#[test]
fn nobody_notices_an_abort() {
    nobody_notices(How::Abort, 1);
}

#[test]
fn nobody_notices_an_engine_fault() {
    nobody_notices(How::Fault, 1);
}

#[test]
fn nobody_notices_a_panic() {
    nobody_notices(How::Panic, 1);
}

#[test]
fn nobody_notices_an_allocation_that_fails() {
    nobody_notices(How::OutOfMemory, 1);
}

#[test]
fn nobody_notices_an_exit_that_looks_clean() {
    // Supervisor's EXITED: the process ended as one that has nothing more to do.
    nobody_notices(How::Exit(0), 0);
}

/// Stops the worker once `caught` says so, and asks for the front's health until all is well.
fn hangs(scripted: &Scripted, requests: &[Value], caught: impl Fn()) {
    let expected = undisturbed(requests);
    let clients = std::thread::scope(|scope| {
        let clients = scope.spawn(|| ask_all(scripted, requests));
        caught();
        let first = worker(scripted);
        kill(first, Signal::SIGSTOP).expect("the worker is there");
        let stopped_at = Instant::now();
        until("another worker", || {
            assert_eq!(scripted.front.client().get("/health").status, 200);
            let ready = scripted.front.client().get("/ready");
            assert_eq!(ready.status, 200, "requests are taken all the time");
            let status = status_of(&scripted.front, MODEL);
            let replaced = status["pid"].as_i64().is_some_and(|pid| pid != first.as_raw() as i64);
            (replaced && status["state"] == "RUNNING").then_some(())
        });
        let recovered = stopped_at.elapsed();
        assert!(recovered < HANG_RECOVERED_MAX, "recovered after {recovered:?}");
        clients.join().expect("the clients")
    });
    assert_all_whole(clients, expected);
    let status = status_of(&scripted.front, MODEL);
    assert_eq!((&status["state"], &status["deaths"]), (&json!("RUNNING"), &json!(1)));
    assert_eq!(metric(scripted, "mlxd_worker_deaths"), 1);
}

#[test]
fn a_worker_that_stops_in_decode_is_replaced() {
    let scripted = Scripted::start_with(&script(), all_at_once);
    hangs(&scripted, &requests(), || until_tokens(&scripted, 300));
    assert!(metric(&scripted, "mlxd_recovery_seconds_count") >= SEQUENCES / 2);
}

#[test]
fn a_worker_that_stops_in_prefill_is_replaced() {
    let plan = Script { prefill_token_us: 1000, ..script() };
    let scripted = Scripted::start_with(&plan, |config| {
        all_at_once(config).with("workers.prefill_hang_ms", 3000)
    });
    hangs(&scripted, &requests(), || {
        until("a prefill", || {
            (status_of(&scripted.front, MODEL)["phase"] == "prefill").then_some(())
        });
    });
}

#[test]
fn a_worker_that_stops_while_idle_is_replaced_once_it_is_needed() {
    let scripted = Scripted::start_with(&script(), all_at_once);
    ask(&scripted, &chat(MODEL, "wake up", json!({"max_tokens": 1}))).whole();
    until("the worker to rest", || {
        (status_of(&scripted.front, MODEL)["phase"] == "idle").then_some(())
    });
    kill(worker(&scripted), Signal::SIGSTOP).expect("the worker is there");
    hangs(&scripted, &requests(), || {});
}

#[test]
fn a_worker_that_is_idle_between_many_requests_is_left_alone() {
    // Found idle at every look, and each time with a request that it has yet to read.
    let scripted = Scripted::start_with(&Script::default(), |config| {
        config.with("workers.idle_hang_ms", 1000)
    });
    let body = chat(MODEL, "quick", json!({"max_tokens": 1}));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..1000).for_each(|_| drop(ask(&scripted, &body).whole())));
        }
    });
    assert_eq!(status_of(&scripted.front, MODEL)["deaths"], 0);
}

#[test]
fn a_worker_whose_engine_never_comes_back_is_replaced() {
    // The process takes its signals; only the engine's thread stands still.
    let requests = requests();
    let expected = undisturbed(&requests);
    let plan = script().with_fault_once(When::Tokens(400), How::Hang);
    let scripted = Scripted::start_with(&plan, |config| {
        all_at_once(config).with("workers.decode_hang_ms", 1000)
    });
    assert_all_whole(ask_all(&scripted, &requests), expected);
    assert_eq!(status_of(&scripted.front, MODEL)["deaths"], 1);
    let log = scripted.front.log();
    assert!(log.contains("workers.decode_hang_ms = 1000"), "{log}");
}

#[test]
fn what_waits_or_is_in_prefill_is_simply_run() {
    let requests = requests();
    let expected = undisturbed(&requests);
    let plan = script().with_fault_once(When::Prefill, How::Kill);
    let scripted =
        Scripted::start_with(&plan, |config| config.with_model_key(MODEL, "running_max", 2));
    assert_all_whole(ask_all(&scripted, &requests), expected);
    assert_eq!(status_of(&scripted.front, MODEL)["deaths"], 1);
}

#[test]
fn a_stop_string_that_began_before_the_death_still_stops() {
    for stream in [true, false] {
        let body = |stop: Value| {
            let usage = if stream { json!({"include_usage": true}) } else { Value::Null };
            chat(
                MODEL,
                "stop across the seam",
                json!({"seed": 5, "max_tokens": 60, "stop": stop, "stream": stream, "stream_options": usage}),
            )
        };
        // The worker dies with 20 tokens given; a token is a letter.
        let whole = undisturbed(&[body(Value::Null)]).remove(0);
        let stop = &whole.text()[16..25];
        assert_eq!(whole.text().find(stop), Some(16), "{:?}", whole.text());
        let expected = undisturbed(&[body(json!(stop))]).remove(0);
        assert_eq!(expected.text().len(), 16);

        let scripted = Scripted::start(&script().with_fault_once(When::Tokens(20), How::Kill));
        assert_eq!(ask(&scripted, &body(json!(stop))).whole(), expected);
        assert_eq!(status_of(&scripted.front, MODEL)["deaths"], 1);
    }
}

#[test]
fn the_death_before_the_last_token_is_no_different() {
    let body = chat(MODEL, "to the end", json!({"max_tokens": 20, "seed": 1, "stream": true}));
    let expected = undisturbed(std::slice::from_ref(&body));
    for tokens in [1, 18, 19] {
        let scripted = Scripted::start(&script().with_fault_once(When::Tokens(tokens), How::Kill));
        assert_all_whole(vec![ask(&scripted, &body)], expected.clone());
        assert_eq!(status_of(&scripted.front, MODEL)["deaths"], 1, "after {tokens} tokens");
    }
}
