//! Turns and times: priority, tenant, deadline, waits.

use super::client::{Response, finish, post, read_until, request, send};
use super::fake::{Front, MODEL, died};
use crate::limits::HttpLimits;
use mlxd_dispatch::{End, Tenant};
use mlxd_protocol::{Priority, Refusal, RefusalCode};
use serde_json::{Value, json};
use std::time::Duration;

const CHAT: &str = "/v1/chat/completions";

fn body(more: Value) -> String {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body.to_string()
}

/// Asks with these headers and ends the sequence so.
async fn ask(
    front: &mut Front,
    headers: &str,
    more: Value,
    end: End,
) -> (Response, super::fake::Sequence) {
    let stream = send(front.address, "POST", CHAT, headers, &body(more)).await;
    let sequence = front.sequence().await;
    sequence.end("hello", end);
    (finish(String::new(), stream).await, sequence)
}

#[actix_web::test]
async fn headers_say_who_asks_and_how_urgently() {
    let key_weights = vec![("agent".to_owned(), 1), ("me".to_owned(), 4)];
    let mut front = Front::start(HttpLimits { key_weights, ..HttpLimits::default() });
    let cases = [
        ("", Priority::Normal, Tenant::default()),
        (
            "x-priority: high\r\nauthorization: Bearer me\r\n",
            Priority::High,
            Tenant { id: 2, weight: 4 },
        ),
        ("x-priority: LOW\r\nx-api-key: agent\r\n", Priority::Low, Tenant { id: 1, weight: 1 }),
        (
            "x-priority: urgent\r\nauthorization: Bearer other\r\n",
            Priority::Normal,
            Tenant::default(),
        ),
    ];
    for (headers, priority, tenant) in cases {
        let (answer, sequence) = ask(&mut front, headers, json!({}), End::Stop).await;
        assert_eq!(answer.status, 200);
        assert_eq!((sequence.job.priority, sequence.job.tenant), (priority, tenant), "{headers}");
    }
    front.stop().await;
}

#[actix_web::test]
async fn a_deadline_comes_from_the_body_or_a_header() {
    let mut front = Front::start(HttpLimits::default());
    let cases = [
        ("", json!({}), None),
        ("", json!({"timeout": 2.5}), Some(2500)),
        ("x-request-timeout-ms: 1500\r\n", json!({}), Some(1500)),
        ("request-timeout-ms: 900.0\r\n", json!({}), Some(900)),
        ("x-request-timeout-ms: 1500\r\n", json!({"timeout": 3}), Some(3000)),
    ];
    for (headers, more, expected) in cases {
        let (_, sequence) = ask(&mut front, headers, more, End::Stop).await;
        assert_eq!(sequence.job.deadline, expected.map(Duration::from_millis), "{headers}");
    }
    for (headers, more) in [
        ("x-request-timeout-ms: soon\r\n", json!({})),
        ("x-request-timeout-ms: 0\r\n", json!({})),
        ("", json!({"timeout": -1})),
        ("", json!({"timeout": {"read": 3}})),
    ] {
        let refused = request(front.address, "POST", CHAT, headers, &body(more)).await;
        assert_eq!(refused.status, 400, "{headers}: {refused:?}");
    }
    front.stop().await;
}

#[actix_web::test]
async fn a_deadline_that_passed_is_a_504_that_says_when_to_come_back() {
    let mut front = Front::start(HttpLimits::default());
    let refusal = Refusal { code: RefusalCode::Deadline, message: "too late".into() };
    let failure = mlxd_dispatch::Failure {
        code: "deadline_exceeded",
        message: "too late".into(),
        retry: true,
    };
    for end in [End::Refused(refusal), End::Failed(failure)] {
        let (answer, _) = ask(&mut front, "", json!({}), end).await;
        assert_eq!(answer.status, 504);
        assert_eq!(answer.json()["error"]["code"], "deadline_exceeded");
        assert_eq!(answer.header("retry-after"), Some("3"), "2.5 s, rounded up");
    }
    front.stop().await;
}

#[actix_web::test]
async fn a_refusal_says_when_to_come_back_within_its_limits() {
    for (least, most, told) in [(1, 60, "3"), (5, 60, "5"), (0, 2, "2")] {
        let limits =
            HttpLimits { retry_after_s: least, retry_after_max_s: most, ..HttpLimits::default() };
        let mut front = Front::start(limits);
        let (answer, _) = ask(&mut front, "", json!({}), died()).await;
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some(told)));
        front.full.store(true, std::sync::atomic::Ordering::Relaxed);
        let answer = post(front.address, CHAT, &body(json!({}))).await;
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some(told)));
        front.stop().await;
    }
}

#[actix_web::test]
async fn answers_say_how_long_they_waited_for_their_turn() {
    let mut front = Front::start(HttpLimits::default());
    for more in [json!({}), json!({"stream": true}), json!({"stream": true, "resumable": true})] {
        let (answer, _) = ask(&mut front, "", more.clone(), End::Stop).await;
        assert_eq!(answer.header("x-queue-wait-ms"), Some("12"), "{more}");
    }
    // Before the first token a stream's head cannot know.
    let limits = HttpLimits { stream_ping: Duration::from_millis(10), ..HttpLimits::default() };
    let mut patient = Front::start(limits);
    let mut stream = send(patient.address, "POST", CHAT, "", &body(json!({"stream": true}))).await;
    let sequence = patient.sequence().await;
    let seen = read_until(&mut stream, "\r\n\r\n").await;
    sequence.end("hello", End::Stop);
    assert_eq!(finish(seen, stream).await.header("x-queue-wait-ms"), None);
    front.stop().await;
    patient.stop().await;
}
