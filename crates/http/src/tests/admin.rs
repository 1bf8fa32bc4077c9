//! The admin's calls beyond status, start, stop and log.

use super::client::over_socket;
use super::fake::{Front, MODEL};
use crate::limits::HttpLimits;
use mlxd_protocol::admin::Happening;
use serde_json::{Value, json};

#[actix_web::test]
async fn an_admin_sends_signals_asks_why_and_reloads() {
    let front = Front::start(HttpLimits::default());
    let admin = async |method: &str, path: &str, body: &str| {
        let answer = over_socket(&front.socket, method, path, body).await;
        (answer.status, answer.json())
    };
    let call = json!({"model": MODEL, "signal": "STOP"}).to_string();
    let (status, answer) = admin("POST", "/admin/v1/signal", &call).await;
    assert_eq!((status, &answer["reason"]), (200, &json!("SIGSTOP")));
    let call = json!({"model": MODEL, "signal": "SEGV"}).to_string();
    assert_eq!(admin("POST", "/admin/v1/signal", &call).await.0, 400);

    let (status, answer) = admin("POST", "/admin/v1/reread", "").await;
    assert_eq!((status, &answer["error"]["message"]), (400, &json!("line 3: no such key")));
    let (status, answer) = admin("POST", "/admin/v1/update", "").await;
    assert_eq!((status, &answer["applied"]), (200, &json!(true)));
    let (status, answer) = admin("GET", "/admin/v1/why?model=a%2Fb", "").await;
    assert_eq!((status, &answer["error"]["message"]), (404, &json!("no a/b")));
    assert_eq!(admin("GET", "/admin/v1/why", "").await.0, 400);
    front.stop().await;
}

#[actix_web::test]
async fn an_admin_pins_models_and_asks_what_they_need() {
    let front = Front::start(HttpLimits::default());
    let admin = async |method: &str, path: &str, body: &str| {
        let answer = over_socket(&front.socket, method, path, body).await;
        (answer.status, answer.json())
    };
    let call = json!({"model": MODEL}).to_string();
    for (deed, pinned) in [("pin", true), ("unpin", false)] {
        let (status, answer) = admin("POST", &format!("/admin/v1/{deed}"), &call).await;
        assert_eq!((status, &answer["residence"]["pinned"]), (200, &json!(pinned)));
    }
    let of = |query: &str| format!("/admin/v1/estimate?model=org%2Ffake{query}");
    let (status, answer) = admin("GET", &of("&context=7&batch=2"), "").await;
    assert_eq!((status, &answer["context"], &answer["batch"]), (200, &json!(7), &json!(2)));
    assert_eq!((&answer["verdict"], &answer["needs_bytes"]), (&json!("fits"), &json!(5)));
    assert_eq!(admin("GET", &of("&context=many"), "").await.0, 400);
    assert_eq!(admin("GET", "/admin/v1/estimate?model=x", "").await.0, 404);
    front.stop().await;
}

#[actix_web::test]
async fn events_are_read_and_followed_until_the_shutdown() {
    let front = Front::start(HttpLimits::default());
    for pid in 1..=3 {
        front.events.push(Some(MODEL), Happening::WorkerSpawned { pid });
    }
    let last = over_socket(&front.socket, "GET", "/admin/v1/events?last=2", "").await;
    let lines: Vec<Value> = last.body.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!((&lines[0]["event"], &lines[0]["pid"]), (&json!("worker_spawned"), &json!(2)));
    assert_eq!((&lines[1]["sequence"], &lines[1]["model"]), (&json!(3), &json!(MODEL)));

    let (events, shutdown) = (front.events.clone(), front.shutdown.clone());
    let follow = "/admin/v1/events?last=1&follow=true";
    let (followed, ()) = tokio::join!(over_socket(&front.socket, "GET", follow, ""), async {
        // The follower listens before anything more happens.
        while events.listeners() == 0 {
            tokio::task::yield_now().await;
        }
        events.push(None, Happening::ShuttingDown);
        shutdown.cancel();
    });
    let numbers: Vec<u64> = followed
        .body
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).unwrap()["sequence"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, [3, 4]);
    front.stop().await;
}
