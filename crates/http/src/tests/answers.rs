//! Answers that are not streamed, and everything beside the two completions.

use super::client::{get, over_socket, post, request};
use super::fake::{CONTEXT_TOKENS, Front, MODEL, died};
use crate::limits::HttpLimits;
use mlxd_dispatch::{End, Entry};
use mlxd_protocol::Priority;
use serde_json::{Value, json};

fn chat_body(more: Value) -> String {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body.to_string()
}

/// Fields that differ from run to run.
fn without_the_random(mut answer: Value) -> Value {
    assert!(answer["created"].as_u64().unwrap() > 1_700_000_000);
    answer["created"] = json!(0);
    let id = answer["id"].as_str().unwrap().split_once('-').unwrap().0.to_owned();
    answer["id"] = json!(id);
    answer
}

#[actix_web::test]
async fn a_chat_answer_has_openais_shape() {
    let mut front = Front::start(HttpLimits::default());
    let body = chat_body(json!({"max_tokens": 50, "seed": 9, "temperature": null}));
    let answer = tokio::spawn({
        let address = front.address;
        async move { post(address, "/v1/chat/completions", &body).await }
    });
    let sequence = front.sequence().await;
    assert_eq!(&*sequence.job.prompt, b"user: hi\n".map(u32::from));
    assert_eq!((sequence.job.max_new, sequence.job.sampling.seed), (50, 9));
    assert_eq!(sequence.job.sampling.temperature, 0.5, "the model's own default");
    assert_eq!(&*sequence.job.stop_tokens, [256]);
    sequence.say("Hel");
    sequence.end("lo \"you\"", End::Stop);
    let answer = answer.await.unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert!(answer.header("x-request-id").unwrap().starts_with("req_"));
    let expected = json!({
        "id": "chatcmpl", "object": "chat.completion", "created": 0, "model": MODEL,
        "system_fingerprint": concat!("mlxd-", env!("CARGO_PKG_VERSION")),
        "choices": [{
            "index": 0,
            "message": {"role": "assistant", "content": "Hello \"you\"", "refusal": null},
            "logprobs": null, "finish_reason": "stop",
        }],
        "usage": {
            "prompt_tokens": 9, "completion_tokens": 11, "total_tokens": 20,
            "prompt_tokens_details": {"cached_tokens": 3},
        },
    });
    assert_eq!(without_the_random(answer.json()), expected);
    front.stop().await;
}

#[actix_web::test]
async fn every_response_names_the_server() {
    let front = Front::start(HttpLimits::default());
    let name = Some(concat!("mlxd/", env!("CARGO_PKG_VERSION")));
    for (path, status) in [("/v1/models", 200), ("/v2/models", 404)] {
        let answer = get(front.address, path).await;
        assert_eq!((answer.status, answer.header("server")), (status, name), "{path}");
        let answer = over_socket(&front.socket, "GET", path, "").await;
        assert_eq!((answer.status, answer.header("server")), (status, name), "{path}");
    }
    front.stop().await;
}

#[actix_web::test]
async fn choices_have_seeds_of_their_own_and_one_prompt() {
    let mut front = Front::start(HttpLimits::default());
    let body = chat_body(json!({"n": 2, "seed": 1}));
    let address = front.address;
    let answer = tokio::spawn(async move { post(address, "/v1/chat/completions", &body).await });
    let first = front.sequence().await;
    let second = front.sequence().await;
    assert_ne!(first.job.sampling.seed, second.job.sampling.seed);
    second.end("two", End::Length);
    first.end("one", End::Stop);
    let answer = answer.await.unwrap().json();
    let choice = |i: usize| {
        let choice = &answer["choices"][i];
        (choice["message"]["content"].clone(), choice["finish_reason"].clone())
    };
    assert_eq!(choice(0), (json!("one"), json!("stop")));
    assert_eq!(choice(1), (json!("two"), json!("length")));
    assert_eq!(answer["usage"]["prompt_tokens"], 9);
    assert_eq!(answer["usage"]["completion_tokens"], 6);
    front.stop().await;
}

#[actix_web::test]
async fn a_stop_string_cuts_the_text_and_cancels_the_sequence() {
    let mut front = Front::start(HttpLimits::default());
    let body = chat_body(json!({"stop": ["END"]}));
    let address = front.address;
    let answer = tokio::spawn(async move { post(address, "/v1/chat/completions", &body).await });
    let sequence = front.sequence().await;
    sequence.say("all wellEN");
    sequence.say("D and more");
    sequence.cancelled().await;
    let answer = answer.await.unwrap().json();
    assert_eq!(answer["choices"][0]["message"]["content"], "all well");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["usage"]["completion_tokens"], 11, "up to the stop string's last token");
    front.stop().await;
}

fn entry(token: u8, logprob: f32, top: &[(u8, f32)]) -> Entry {
    let top = top.iter().map(|(token, logprob)| ((*token).into(), *logprob)).collect();
    Entry { token: token.into(), logprob, top }
}

#[actix_web::test]
async fn log_probabilities_belong_to_the_text_that_is_shown() {
    let mut front = Front::start(HttpLimits::default());
    let body = chat_body(json!({"logprobs": true, "top_logprobs": 2, "stop": "XY"}));
    let address = front.address;
    let answer = tokio::spawn(async move { post(address, "/v1/chat/completions", &body).await });
    let sequence = front.sequence().await;
    assert_eq!(sequence.job.logprobs, Some(2));
    let published = vec![
        entry(b'a', -0.5, &[(b'a', -0.5), (b'b', -1.5)]),
        entry(0xC3, -0.25, &[]),
        entry(0xA9, f32::NEG_INFINITY, &[]),
        entry(b'X', -1.0, &[]),
        entry(b'Y', -1.0, &[]),
    ];
    sequence.publish(published, None);
    let answer = answer.await.unwrap().json();
    assert_eq!(answer["choices"][0]["message"]["content"], "aé");
    let expected = json!({"content": [
        {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [
            {"token": "a", "logprob": -0.5, "bytes": [97]},
            {"token": "b", "logprob": -1.5, "bytes": [98]},
        ]},
        {"token": "\u{FFFD}", "logprob": -0.25, "bytes": [195], "top_logprobs": []},
        {"token": "\u{FFFD}", "logprob": -9999.0, "bytes": [169], "top_logprobs": []},
    ], "refusal": null});
    assert_eq!(answer["choices"][0]["logprobs"], expected);
    front.stop().await;
}

#[actix_web::test]
async fn a_text_completion_has_the_older_shape() {
    let mut front = Front::start(HttpLimits::default());
    let body = json!({"model": "alias", "prompt": ["é", [98, 99]], "logprobs": 1}).to_string();
    let address = front.address;
    let answer = tokio::spawn(async move { post(address, "/v1/completions", &body).await });
    let first = front.sequence().await;
    let second = front.sequence().await;
    assert_eq!(&*first.job.prompt, [0xC3, 0xA9]);
    assert_eq!((&*second.job.prompt, second.job.max_new), (&[98, 99][..], 16));
    first
        .publish(vec![entry(b'x', -1.0, &[(b'x', -1.0)]), entry(b'y', -2.0, &[])], Some(End::Stop));
    second.publish(vec![entry(b'z', -3.0, &[])], Some(End::Length));
    let answer = answer.await.unwrap();
    let expected = json!({
        "id": "cmpl", "object": "text_completion", "created": 0, "model": MODEL,
        "system_fingerprint": concat!("mlxd-", env!("CARGO_PKG_VERSION")),
        "choices": [
            {"index": 0, "text": "xy", "logprobs": {
                "tokens": ["x", "y"], "token_logprobs": [-1.0, -2.0],
                "top_logprobs": [{"x": -1.0}, {}], "text_offset": [0, 1],
            }, "finish_reason": "stop"},
            {"index": 1, "text": "z", "logprobs": {
                "tokens": ["z"], "token_logprobs": [-3.0], "top_logprobs": [{}], "text_offset": [0],
            }, "finish_reason": "length"},
        ],
        "usage": {
            "prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 6},
        },
    });
    assert_eq!(without_the_random(answer.json()), expected);

    let body = json!({"model": MODEL, "prompt": "Once", "echo": true}).to_string();
    let answer = tokio::spawn(async move { post(address, "/v1/completions", &body).await });
    front.sequence().await.end(" more", End::Stop);
    assert_eq!(answer.await.unwrap().json()["choices"][0]["text"], "Once more");
    front.stop().await;
}

#[actix_web::test]
async fn an_answer_that_fails_has_a_status() {
    let mut front = Front::start(HttpLimits::default());
    let address = front.address;
    for stream in [false, true] {
        let body = chat_body(json!({"stream": stream}));
        let answer =
            tokio::spawn(async move { post(address, "/v1/chat/completions", &body).await });
        front.sequence().await.end("", died());
        let answer = answer.await.unwrap();
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("3")));
        assert_eq!(answer.json()["error"]["code"], "worker_died");
        assert_eq!(answer.json()["error"]["type"], "server_error");
    }
    front.stop().await;
}

#[actix_web::test]
async fn the_answer_is_bounded_by_the_context_and_the_header_names_the_queue() {
    let mut front = Front::start(HttpLimits::default());
    let address = front.address;
    let body = chat_body(json!({"max_tokens": 100_000}));
    let answer = tokio::spawn(async move {
        let headers = "x-priority: High\r\nx-request-id: mine-1\r\n";
        request(address, "POST", "/v1/chat/completions", headers, &body).await
    });
    let sequence = front.sequence().await;
    assert_eq!(sequence.job.max_new, CONTEXT_TOKENS - 9);
    assert_eq!(sequence.job.priority, Priority::High);
    assert_eq!(&*sequence.job.trace, "mine-1");
    sequence.end("x", End::Length);
    assert_eq!(answer.await.unwrap().header("x-request-id"), Some("mine-1"));
    front.stop().await;
}

#[actix_web::test]
async fn models_are_listed_and_found_under_names_with_slashes() {
    let front = Front::start(HttpLimits::default());
    let list = get(front.address, "/v1/models").await.json();
    assert_eq!(list["object"], "list");
    assert_eq!(list["data"][0]["id"], MODEL);
    for path in ["/v1/models/org/fake", "/v1/models/org%2Ffake", "/v1/models/alias"] {
        let model = get(front.address, path).await.json();
        assert_eq!(model, list["data"][0], "{path}");
    }
    assert_eq!(list["data"][0]["object"], "model");
    assert_eq!(list["data"][0]["created"], 1_700_000_000);
    front.stop().await;
}

#[actix_web::test]
async fn the_front_tells_how_it_is() {
    let front = Front::start(HttpLimits::default());
    let health = get(front.address, "/health").await;
    assert_eq!((health.status, &health.json()["status"]), (200, &json!("ok")));
    let ready = get(front.address, "/ready").await;
    assert_eq!((ready.status, &ready.json()["reason"]), (503, &json!("a test")));
    let hello = get(front.address, "/").await;
    assert!(hello.body.contains(&format!("http://{}/v1", front.address)), "{hello:?}");
    let head = request(front.address, "HEAD", "/health", "", "").await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));

    let metrics = get(front.address, "/metrics").await.body;
    assert!(metrics.contains("mlxd_fake 1"), "{metrics}");
    let counted = "mlxd_http_requests_total{route=\"/health\",status=\"200\"} 2";
    assert!(metrics.contains(counted), "{metrics}");
    assert_eq!(metrics.matches("# EOF").count(), 1);
    assert!(metrics.ends_with("# EOF\n"));
    front.stop().await;
}

#[actix_web::test]
async fn admin_routes_are_on_the_socket_alone() {
    let front = Front::start(HttpLimits::default());
    for path in ["/admin/v1/status", "/admin/v1/version", "/admin/v1/log?model=org/fake"] {
        assert_eq!(get(front.address, path).await.status, 404, "{path}");
    }
    assert_eq!(post(front.address, "/admin/v1/shutdown", "").await.status, 404);
    assert!(!front.shutdown.is_cancelled());

    let status = over_socket(&front.socket, "GET", "/admin/v1/status", "").await;
    assert_eq!(status.json()["server"]["pid"], 7);
    assert_eq!(over_socket(&front.socket, "GET", "/v1/models", "").await.status, 200);
    let call = json!({"model": MODEL}).to_string();
    for (verb, state) in [("start", "RUNNING"), ("stop", "STOPPED"), ("restart", "RUNNING")] {
        let path = format!("/admin/v1/{verb}");
        let answer = over_socket(&front.socket, "POST", &path, &call).await;
        assert_eq!((answer.status, &answer.json()["state"]), (200, &json!(state)));
        let answer = over_socket(&front.socket, "POST", &path, "{\"model\": \"x\"}").await;
        assert_eq!(
            (answer.status, &answer.json()["error"]["code"]),
            (404, &json!("unknown_model"))
        );
        let answer = over_socket(&front.socket, "POST", &path, "{}").await;
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (400, &json!("bad_request")));
    }

    std::fs::write(&front.log_file, "first line\nlast line\n").unwrap();
    let log = "/admin/v1/log?model=org%2Ffake&bytes=10";
    assert_eq!(over_socket(&front.socket, "GET", log, "").await.body, "last line\n");
    let none = over_socket(&front.socket, "GET", "/admin/v1/log", "").await;
    assert_eq!((none.status, &none.json()["error"]["code"]), (404, &json!("no_log")));
    std::fs::write(front.log_file.with_file_name("mlxd.log"), "the front's").unwrap();
    assert_eq!(over_socket(&front.socket, "GET", "/admin/v1/log", "").await.body, "the front's");
    let bad = over_socket(&front.socket, "GET", "/admin/v1/log?bytes=x", "").await;
    assert_eq!((bad.status, &bad.json()["error"]["code"]), (400, &json!("bad_request")));

    let last = over_socket(&front.socket, "POST", "/admin/v1/shutdown", "").await;
    assert_eq!((last.status, &last.json()["pid"]), (200, &json!(7)));
    assert!(front.shutdown.is_cancelled());
    front.stop().await;
}

#[actix_web::test]
async fn what_is_kept_is_shown_and_dropped() {
    let front = Front::start(HttpLimits::default());
    let at = front.address;
    let kept = get(at, "/v1/cache").await.json();
    assert_eq!(kept["models"][0]["name"], MODEL);
    assert_eq!(kept["models"][0]["cache"]["hits"], 3);
    assert_eq!(get(at, &format!("/v1/cache?model={MODEL}")).await.json(), kept);
    let dropped = request(at, "DELETE", "/v1/cache", "", "").await.json();
    assert_eq!(dropped["models"][0]["cleared_bytes"], 640);
    let unknown = request(at, "DELETE", "/v1/cache?model=nobody", "", "").await;
    assert_eq!(unknown.status, 404);
    assert_eq!(post(at, "/v1/cache", "{}").await.status, 405);
    front.stop().await;
}
