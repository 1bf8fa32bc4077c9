//! Where going on ends: a request that kills its workers, a recovery that takes too long, a model
//! that cannot be kept alive. Always with an error in words, and never for the others.

use crate::fixture::{MODEL, Scripted, chat, status_of};
use mlxd_testkit::{Answer, Events, How, Outcome, Script, When, until};
use serde_json::{Value, json};
use std::ops::ControlFlow;

const CHAT: &str = "/v1/chat/completions";

/// A prompt with this letter in it kills the worker, whenever it is run.
const POISON: char = 'Z';

fn poisoned() -> Script {
    let script = Script { step_us: 2000, ..Script::default() };
    script.with_fault(When::PromptToken(POISON as u32), How::Segv)
}

fn ask(scripted: &Scripted, question: &str, stream: bool) -> Outcome {
    let more = json!({"max_tokens": 40, "seed": 1, "stream": stream});
    let response = scripted.front.client().post(CHAT, &chat(MODEL, question, more));
    Outcome::read(response, |_, _| ControlFlow::Continue(()))
}

fn undisturbed(question: &str) -> Answer {
    let scripted = Scripted::start(&Script::default());
    ask(&scripted, question, false).whole()
}

/// Asks in this order, each when the one before is in the front's hands; gives what they got.
fn ask_in_order(scripted: &Scripted, questions: &[String], stream: bool) -> Vec<Outcome> {
    std::thread::scope(|scope| {
        let mut clients = Vec::new();
        for (number, question) in questions.iter().enumerate() {
            clients.push(scope.spawn(move || ask(scripted, question, stream)));
            until("the request to be taken in", || {
                let taken = status_of(&scripted.front, MODEL)["requests_total"].as_u64()?;
                (taken > number as u64).then_some(())
            });
        }
        clients.into_iter().map(|client| client.join().expect("a client")).collect()
    })
}

#[test]
fn a_request_that_kills_twice_is_quarantined_and_what_waits_behind_it_is_not() {
    let mut questions: Vec<String> = (0..6).map(|number| format!("harmless {number}")).collect();
    let expected: Vec<Answer> = questions.iter().map(|question| undisturbed(question)).collect();
    questions.insert(1, format!("{POISON} kills"));
    for stream in [true, false] {
        // One at a time: the second kills, the others wait inside the worker both times.
        let scripted = Scripted::start_with(&poisoned(), |config| {
            config.with_model_key(MODEL, "running_max", 1)
        });
        let mut outcomes = ask_in_order(&scripted, &questions, stream);
        let (code, message, so_far) = outcomes.remove(1).error();
        assert_eq!(code, "quarantined");
        assert!(message.contains("died 2 times") && message.contains("SIGSEGV"), "{message}");
        assert_eq!(so_far.text(), "");
        for (outcome, expected) in outcomes.into_iter().zip(&expected) {
            assert_eq!(outcome.whole().choices, expected.choices);
        }
        let status = status_of(&scripted.front, MODEL);
        assert_eq!((&status["state"], &status["deaths"]), (&json!("RUNNING"), &json!(2)));
    }
}

#[test]
fn a_request_that_comes_while_its_worker_ends_goes_to_the_next_one() {
    for call in ["restart", "stop", "signal"] {
        let script = Script { step_us: 5000, ..Script::default() };
        let scripted = Scripted::start(&script);
        let mut running = begun(&scripted, 200);
        let [first] = scripted.front.workers()[..] else { panic!("one worker") };
        std::thread::scope(|scope| {
            let admin = scripted.front.admin();
            let body = json!({"model": MODEL, "signal": "TERM"});
            scope.spawn(move || admin.post(&format!("/admin/v1/{call}"), &body).status);
            // By its own signal the worker drains without the front's knowing.
            until("the worker to finish what it has", || {
                (status_of(&scripted.front, MODEL)["phase"] == "draining").then_some(())
            });
            let late = ask(&scripted, "late", true);
            assert_eq!(late.whole().choices, undisturbed("late").choices, "{call}");
        });
        let mut done = false;
        while let Some(event) = running.next_event().expect("a clean end") {
            done |= event.data == "[DONE]";
        }
        assert!(done, "{call}");
        let workers = scripted.front.workers();
        assert!(workers.len() == 1 && workers != [first], "{call}: {workers:?}");
    }
}

#[test]
fn who_was_there_at_two_deaths_is_told_and_whoever_comes_later_is_served() {
    let scripted = Scripted::start(
        &Script { step_us: 2000, ..Script::default() }.with_fault(When::Tokens(15), How::Kill),
    );
    let (code, message, so_far) = ask(&scripted, "unlucky", true).error();
    assert_eq!(code, "quarantined");
    assert!(message.contains("mlxctl why"), "{message}");
    assert!(undisturbed("unlucky").text().starts_with(so_far.text()));
    scripted.folder.set_script(&Script::default());
    assert_eq!(ask(&scripted, "later", true).whole().text(), undisturbed("later").text());
}

/// Reads a long answer up to its first text.
fn begun(scripted: &Scripted, tokens: u32) -> Events<mlxd_testkit::Body> {
    let more = json!({"max_tokens": tokens, "stream": true});
    let mut events = scripted.front.client().post(CHAT, &chat(MODEL, "long", more)).events();
    while crate::fixture::delta(&events.expect_event().json()).is_empty() {}
    events
}

/// Reads to the end, which must be an error event and a cut connection.
fn told(mut events: Events<mlxd_testkit::Body>) -> Value {
    let mut told = None;
    loop {
        match events.next_event() {
            Ok(Some(event)) => {
                assert_ne!(event.data, "[DONE]");
                told = event.json().get("error").cloned().or(told);
            }
            Ok(None) => panic!("a clean end after {told:?}"),
            Err(_) => return told.expect("an error event"),
        }
    }
}

#[test]
fn a_recovery_that_takes_too_long_ends_in_an_error_in_words() {
    let script = Script { step_us: 2000, ..Script::default() };
    let scripted =
        Scripted::start_with(&script.clone().with_fault(When::Tokens(50), How::Kill), |config| {
            config.with("requests.recovery_timeout_ms", 1000)
        });
    // The next worker would load for a minute.
    let events = begun(&scripted, 3000);
    scripted.folder.set_script(&Script { load_ms: 60_000, load_steps: 600, ..script });
    let error = told(events);
    assert_eq!(error["code"], "recovery_timeout", "{error}");
    let message = error["message"].as_str().expect("a message");
    assert!(message.contains("recovery_timeout_ms = 1000"), "{message}");
    assert_eq!(status_of(&scripted.front, MODEL)["state"], "STARTING");
    until("the place to be free", || {
        (status_of(&scripted.front, MODEL)["queued"] == 0).then_some(())
    });
    assert_eq!(scripted.front.client().get("/health").status, 200);
}

/// What happened to the worker's state, as (state, unix milliseconds).
fn states(scripted: &Scripted) -> Vec<(String, u64)> {
    let lines = scripted.front.admin().get("/admin/v1/events?count=1000").text();
    let events = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let states = events.filter(|event| event["event"] == "worker_state").map(|event| {
        let state = event["to"].as_str().expect("a state").to_owned();
        (state, event["unix_ms"].as_u64().expect("a time"))
    });
    states.collect()
}

#[test]
fn a_model_that_cannot_be_kept_alive_is_given_up_until_an_admin_starts_it() {
    let broken = Script::default().with_fault(When::Load, How::Abort);
    let scripted = Scripted::start_with(&broken, |config| {
        config.with("workers.deaths_max", 4).with("workers.backoff_initial_ms", 40)
    });
    let (code, message, _) = ask(&scripted, "anybody there?", true).error();
    assert_eq!(code, "load_failed");
    // Who is given up with the model is not said to go on.
    let why = scripted.front.admin().get(&format!("/admin/v1/why?model={MODEL}")).json();
    let deeds = &why["report"]["deeds"];
    let did = |what: &str| deeds.as_array().expect("deeds").iter().any(|deed| deed["did"] == what);
    assert!(did("give_up") && did("fail") && !did("replay"), "{deeds}");
    assert!(message.contains("SIGABRT") && message.contains("mlxctl start"), "{message}");
    let status = status_of(&scripted.front, MODEL);
    assert_eq!((&status["state"], &status["deaths"]), (&json!("FATAL"), &json!(5)));
    let reason = status["reason"].as_str().expect("a reason");
    assert!(reason.contains("died 5 times") && reason.contains("SIGABRT"), "{reason}");

    // Each wait is at least three quarters of twice the one before; it is never cut short.
    let states = states(&scripted);
    let backoffs: Vec<u64> = states
        .windows(2)
        .filter(|pair| pair[0].0 == "BACKOFF" && pair[1].0 == "STARTING")
        .map(|pair| pair[1].1 - pair[0].1)
        .collect();
    assert_eq!(backoffs.len(), 4, "{states:?}");
    for (number, waited) in backoffs.iter().enumerate() {
        assert!(*waited + 1 >= 30 << number, "{backoffs:?}");
    }

    // Given up means given up: a request is refused at once, and starts nothing.
    let (code, ..) = ask(&scripted, "and now?", false).error();
    assert_eq!(
        (code.as_str(), &status_of(&scripted.front, MODEL)["deaths"]),
        ("load_failed", &json!(5))
    );
    let ready = scripted.front.client().get("/ready").text();
    assert!(ready.contains(MODEL) && ready.contains("FATAL"), "{ready}");

    scripted.folder.set_script(&Script::default());
    let started = scripted.front.admin().post("/admin/v1/start", &json!({"model": MODEL}));
    assert_eq!(started.json()["state"], "RUNNING");
    assert_eq!(ask(&scripted, "back?", true).whole().text(), undisturbed("back?").text());
}

#[test]
fn where_one_death_is_one_too_many_the_first_ends_the_answer() {
    let fragile = |script: &Script| {
        Scripted::start_with(script, |config| config.with("requests.deaths_max", 1))
    };
    let script = Script { step_us: 2000, ..Script::default() };
    let scripted = fragile(&script.with_fault_once(When::Tokens(20), How::Kill));
    let (code, message, so_far) = ask(&scripted, "once", true).error();
    assert_eq!(code, "quarantined");
    assert!(message.contains(MODEL) && message.contains("SIGKILL"), "{message}");
    let expected = undisturbed("once");
    assert!(!so_far.text().is_empty() && so_far.begins(&expected), "{so_far:?}");
    assert_eq!(ask(&scripted, "once", true).whole().choices, expected.choices);

    // Before the first token it is a status of its own.
    let scripted = fragile(&Script::default().with_fault_once(When::Prefill, How::Kill));
    let Outcome::Error { status, code, .. } = ask(&scripted, "once", true) else {
        panic!("an error")
    };
    assert_eq!((status, code.as_str()), (500, "quarantined"));
    assert_eq!(ask(&scripted, "once", true).whole().choices, expected.choices);
}
