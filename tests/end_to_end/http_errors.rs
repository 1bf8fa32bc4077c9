//! Errors over the real front: what it says, and that it goes on.

use crate::fixture::{MODEL, Scripted, chat, said};
use mlxd_protocol::LoadFaultKind;
use mlxd_testkit::{LoadFailure, Script};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

#[track_caller]
fn refused(response: mlxd_testkit::Response, status: u16, code: &str) -> String {
    assert!(response.header("x-request-id").is_some());
    let (got, error) = (response.status, response.json());
    assert_eq!((got, error["error"]["code"].as_str()), (status, Some(code)), "{error}");
    error["error"]["message"].as_str().expect("a message").to_owned()
}

#[test]
fn a_request_that_cannot_be_answered_says_why() {
    let answer = Some("fine".to_owned());
    let scripted = Scripted::start_with(
        &Script { context_tokens: 100, answer, ..Script::default() },
        |config| config.with("http.body_bytes_max", 100_000),
    );
    let client = scripted.front.client();
    let unknown =
        refused(client.post(CHAT, &chat("org/scriptd", "hi", json!({}))), 404, "model_not_found");
    for word in ["org/scriptd", MODEL, "mlxd-demo"] {
        assert!(unknown.contains(word), "{unknown}");
    }
    let long = chat(MODEL, &"x".repeat(200), json!({}));
    let long = refused(client.post(CHAT, &long), 400, "context_length_exceeded");
    assert!(long.contains("100") && long.contains("2"), "{long}");
    let huge = chat(MODEL, &"x".repeat(200_000), json!({}));
    refused(client.post(CHAT, &huge), 413, "request_too_large");
    refused(client.request("POST", CHAT, &[], b"{\"model\":"), 400, "invalid_json");
    let hot = chat(MODEL, "hi", json!({"temperature": 9}));
    assert!(refused(client.post(CHAT, &hot), 400, "invalid_value").contains("from 0 to 2"));
    let schema = chat(MODEL, "hi", json!({"response_format": {"type": "json_object"}}));
    refused(client.post(CHAT, &schema), 400, "unsupported_parameter");
    refused(client.get("/v1/nothing"), 404, "unknown_url");
    refused(client.get(CHAT), 405, "method_not_allowed");
    refused(client.get("/admin/v1/status"), 404, "unknown_url");

    let answer = client.post(CHAT, &chat(MODEL, "hi", json!({}))).json();
    assert_eq!(said(&answer), "fine");
}

#[test]
fn a_model_that_does_not_load_is_an_error_and_not_the_end() {
    let failure = LoadFailure {
        kind: LoadFaultKind::Corrupt,
        message: "model.safetensors: the tensor lm_head.weight is cut short".into(),
    };
    let broken = Script { load_failure: Some(failure), ..Script::default() };
    let scripted = Scripted::start(&broken);
    let client = scripted.front.client();
    for stream in [false, true] {
        let body = chat(MODEL, "hi", json!({"stream": stream}));
        let response = client.post(CHAT, &body);
        assert!(response.status >= 500, "{}", response.status);
        let message = response.json()["error"]["message"].to_string();
        assert!(message.contains("lm_head.weight"), "{message}");
    }
    assert_eq!(client.get("/health").status, 200);

    // The files are mended: an admin's start clears the fault.
    scripted.folder.set_script(&Script { answer: Some("well".into()), ..Script::default() });
    let call: Value = json!({"model": MODEL});
    let started = scripted.front.admin().post("/admin/v1/start", &call);
    assert_eq!(started.json()["state"], "RUNNING");
    assert_eq!(said(&client.post(CHAT, &chat(MODEL, "hi", json!({}))).json()), "well");
}
