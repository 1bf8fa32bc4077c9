//! Whose turn it is: priorities, keys with weights, deadlines, bounded queues, and what a turn of a
//! long conversation costs the front. The worker is scripted and slow, and has one place.

use crate::fixture::{MODEL, Scripted, chat, delta, said, status_of, until_idle};
use mlxd_testkit::{Body, Events, FrontConfig, FrontProcess, Response, Script, until};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::thread::{Scope, ScopedJoinHandle};

const CHAT: &str = "/v1/chat/completions";

fn slow(change: impl FnOnce(FrontConfig) -> FrontConfig) -> Scripted {
    let script = Script { step_us: 1000, context_tokens: 100_000, ..Script::default() };
    Scripted::start_with(&script, |config| change(config.with_model_key(MODEL, "running_max", 1)))
}

fn ask(front: &FrontProcess, headers: &[(&str, &str)], question: &str, more: Value) -> Response {
    let body = chat(MODEL, question, more).to_string();
    let headers = [&[("content-type", "application/json")], headers].concat();
    front.client().request("POST", CHAT, &headers, body.as_bytes())
}

/// A stream that holds the one place until it is dropped.
fn holder(front: &FrontProcess) -> Events<Body> {
    let more = json!({"stream": true, "max_tokens": 90_000});
    let mut events = ask(front, &[], "hold", more).events();
    while delta(&events.expect_event().json()).is_empty() {}
    events
}

/// Asks on a thread of its own and waits until that waits in the queue, as number `place` there.
/// What is asked notes `name` in `order` when it is answered.
fn queue<'scope>(
    scope: &'scope Scope<'scope, '_>,
    front: &'scope FrontProcess,
    order: &'scope Mutex<Vec<&'static str>>,
    (name, place): (&'static str, usize),
    headers: &'scope [(&'scope str, &'scope str)],
) -> ScopedJoinHandle<'scope, u64> {
    let asked = scope.spawn(move || {
        let answer = ask(front, headers, name, json!({"max_tokens": 5}));
        assert_eq!(answer.status, 200);
        let wait = answer.header("x-queue-wait-ms").expect("a wait").parse().expect("a number");
        order.lock().unwrap().push(name);
        assert_eq!(said(&answer.json()).len(), 5);
        wait
    });
    until("the request to wait", || (status_of(front, MODEL)["queued"] == place).then_some(()));
    asked
}

#[test]
fn the_urgent_go_first_and_say_how_long_they_waited() {
    let scripted = slow(|config| config.with_model_key(MODEL, "parked_max", 0));
    let (front, order) = (&scripted.front, Mutex::default());
    std::thread::scope(|scope| {
        let held = holder(front);
        let waits = [
            queue(scope, front, &order, ("low", 1), &[("x-priority", "low")]),
            queue(scope, front, &order, ("plain", 2), &[]),
            queue(scope, front, &order, ("high", 3), &[("x-priority", "high")]),
        ];
        drop(held);
        let [low, plain, high] = waits.map(|wait| wait.join().expect("a client"));
        assert!(high <= plain && plain <= low && low > 0, "{high}, {plain}, {low} ms");
    });
    assert_eq!(*order.lock().unwrap(), ["high", "plain", "low"]);
}

#[test]
fn an_urgent_request_interrupts_and_the_other_loses_nothing() {
    let scripted = slow(|config| config.with_model_key(MODEL, "parked_max", 1));
    let front = &scripted.front;
    let more = json!({"stream": true, "max_tokens": 600, "seed": 5});
    let low = [("x-priority", "low")];
    let rest = |mut events: Events<Body>| {
        let mut text = String::new();
        while let Some(event) = events.next_event().expect("events").filter(|e| e.data != "[DONE]")
        {
            text.push_str(delta(&event.json()));
        }
        text
    };
    let undisturbed = rest(ask(front, &low, "slowly", more.clone()).events());
    assert_eq!(undisturbed.len(), 600);
    let mut events = ask(front, &low, "slowly", more).events();
    let mut begun = String::new();
    while begun.len() < 20 {
        begun.push_str(delta(&events.expect_event().json()));
    }
    // Answered while the other, which holds the only place, is in the middle of its own.
    let answer = ask(front, &[("x-priority", "high")], "now", json!({"max_tokens": 5}));
    assert_eq!(said(&answer.json()).len(), 5);
    let status = status_of(front, MODEL);
    assert_eq!(status["running"].as_u64().unwrap() + status["queued"].as_u64().unwrap(), 1);
    assert_eq!(begun + &rest(events), undisturbed);
    until_idle(front, MODEL);
    assert_eq!(status_of(front, MODEL)["preemptions"], 1);
    let counted = format!("mlxd_preemptions{{model=\"{MODEL}\"}} 1");
    assert!(front.client().get("/metrics").text().contains(&counted));
}

#[test]
fn keys_share_the_model_by_their_weights() {
    let weights = BTreeMap::from([("much".to_owned(), 3i64), ("little".to_owned(), 1)]);
    let scripted = slow(|config| config.with("requests.key_weights", weights));
    let (front, order) = (&scripted.front, Mutex::default());
    std::thread::scope(|scope| {
        let held = holder(front);
        for place in (1..=16).step_by(2) {
            let little = &[("authorization", "Bearer little")];
            queue(scope, front, &order, ("little", place), little);
            queue(scope, front, &order, ("much", place + 1), &[("x-api-key", "much")]);
        }
        drop(held);
    });
    let order = order.into_inner().unwrap();
    let early = order[..8].iter().filter(|name| **name == "much").count();
    assert!((5..=7).contains(&early), "{early} of the first 8, by weight 6: {order:?}");
}

#[test]
fn a_deadline_that_passes_in_the_queue_is_a_504() {
    let scripted = slow(|config| config);
    let front = &scripted.front;
    let held = holder(front);
    for (headers, more) in [
        (vec![], json!({"timeout": 0.05})),
        (vec![("x-request-timeout-ms", "50")], json!({})),
        (vec![("x-request-timeout-ms", "50")], json!({"stream": true})),
    ] {
        let refused = ask(front, &headers, "soon", more);
        assert_eq!(refused.status, 504);
        assert!(refused.header("retry-after").is_some_and(|s| s.parse::<u64>().is_ok()));
        assert_eq!(refused.json()["error"]["code"], "deadline_exceeded");
    }
    drop(held);
    let more = json!({"timeout": 30, "max_tokens": 5});
    assert_eq!(said(&ask(front, &[], "in time", more).json()).len(), 5);
}

#[test]
fn a_full_queue_refuses_and_says_when_to_come_back() {
    let scripted = slow(|config| config.with_model_key(MODEL, "queued_max", 1));
    let (front, order) = (&scripted.front, Mutex::default());
    std::thread::scope(|scope| {
        let held = holder(front);
        let waits = queue(scope, front, &order, ("first", 1), &[]);
        let refused = ask(front, &[], "second", json!({}));
        assert_eq!(refused.status, 503);
        let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=60).contains(&seconds), "{seconds} s");
        let error = refused.json()["error"].clone();
        assert_eq!(error["code"], "overloaded");
        assert!(error["message"].as_str().unwrap().contains("queued_max"), "{error}");
        drop(held);
        waits.join().expect("a client");
    });
}

/// The value of a family without labels.
fn metric(front: &FrontProcess, name: &str) -> u64 {
    let text = front.client().get("/metrics").text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().expect("a number")
}

#[test]
fn a_turn_tokenises_what_is_new_in_it() {
    let scripted = Scripted::start(&Script { context_tokens: 100_000, ..Script::default() });
    let front = &scripted.front;
    let encoded = || metric(front, "mlxd_http_conversation_encoded_bytes_total");
    let mut messages: Vec<Value> = Vec::new();
    let mut bytes = "<|im_start|>assistant\n".len();
    for turn in 0..12 {
        let role = if turn % 2 == 0 { "user" } else { "assistant" };
        let content = format!("{turn}: {}", "the worker serves tokens ".repeat(60 + turn));
        bytes += format!("<|im_start|>{role}\n{content}<|im_end|>\n").len();
        messages.push(json!({"role": role, "content": content}));
        let before = encoded();
        let body = json!({"model": MODEL, "messages": messages, "max_tokens": 1});
        let answer = front.client().post(CHAT, &body).json();
        // Its tokens are bytes, and each of the template's marks is one.
        let marks = 2 * messages.len() + 1;
        let marked = messages.len() * ("<|im_start|>".len() + "<|im_end|>".len()) + 12;
        assert_eq!(answer["usage"]["prompt_tokens"], bytes - marked + marks, "turn {turn}");
        let new = encoded() - before;
        assert!(new <= content_bytes(&messages) + 600, "turn {turn}: {new} bytes tokenised");
    }
    assert!(metric(front, "mlxd_http_conversation_reused_bytes_total") > 80_000);
    assert!(metric(front, "mlxd_http_conversation_kept_bytes") > bytes as u64 / 2);
}

fn content_bytes(messages: &[Value]) -> u64 {
    messages[messages.len() - 1]["content"].as_str().map_or(0, str::len) as u64
}
