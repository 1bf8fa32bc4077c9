//! `/v1/embeddings`.

use super::client::{Response, post};
use super::fake::{CONTEXT_TOKENS, Front, MODEL, VECTORS, died};
use crate::limits::{HttpLimits, RequestLimits};
use mlxd_dispatch::{EmbedJob, End};
use mlxd_protocol::{Priority, Refusal, RefusalCode};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

fn asking(front: &Front, body: &Value) -> JoinHandle<Response> {
    let (address, body) = (front.address, body.to_string());
    tokio::spawn(async move { post(address, "/v1/embeddings", &body).await })
}

fn vector(first: f32) -> End {
    End::Embedded([first, -0.25, 1e-7, 2.0].into())
}

#[actix_web::test]
async fn every_kind_of_input_gets_its_vectors_in_order() {
    let mut front = Front::start(HttpLimits::default());
    let texts = |input: Value| match input {
        Value::Array(list) if !list[0].is_number() => list.len(),
        _ => 1,
    };
    for (input, prompts) in [
        (json!("ab"), vec![vec![97, 98]]),
        (json!(["ab", "c", "d"]), vec![vec![97, 98], vec![99], vec![100]]),
        (json!([1, 2, 3]), vec![vec![1, 2, 3]]),
        (json!([[1], [2, 256]]), vec![vec![1], vec![2, 256]]),
    ] {
        let body = json!({"model": VECTORS, "input": input, "dimensions": 4, "user": "me"});
        let answer = asking(&front, &body);
        let mut sequences = Vec::new();
        for prompt in &prompts {
            let sequence = front.sequence().await;
            assert_eq!(&*sequence.job.prompt, prompt.as_slice());
            assert_eq!(sequence.job.embed, Some(EmbedJob { dimensions: Some(4) }));
            assert_eq!((sequence.job.priority, sequence.job.max_new), (Priority::Normal, 0));
            sequences.push(sequence);
        }
        // In whatever order they are ready.
        for (index, sequence) in sequences.iter().enumerate().rev() {
            sequence.end("", vector(index as f32));
        }
        let answer = answer.await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        let tokens: usize = prompts.iter().map(Vec::len).sum();
        let data: Vec<Value> = (0..texts(input))
            .map(|index| {
                let embedding = json!([index as f32, -0.25, 1e-7, 2.0]);
                json!({"object": "embedding", "index": index, "embedding": embedding})
            })
            .collect();
        let expected = json!({
            "object": "list", "data": data, "model": MODEL,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        });
        assert_eq!(answer.json(), expected);
    }
    front.stop().await;
}

#[actix_web::test]
async fn vectors_are_written_in_base64_where_that_is_asked_for() {
    let mut front = Front::start(HttpLimits::default());
    let body = json!({"model": VECTORS, "input": "ab", "encoding_format": "base64"});
    let answer = asking(&front, &body);
    front.sequence().await.end("", vector(1.0));
    let answer = answer.await.unwrap().json();
    // 1.0, -0.25, 1e-7, 2.0 as little-endian float32: 0000803f 000080be 95bfd633 00000040.
    assert_eq!(answer["data"][0]["embedding"], "AACAPwAAgL6Vv9YzAAAAQA==");
    front.stop().await;
}

#[actix_web::test]
async fn so_many_texts_are_on_their_way_at_once() {
    let request = RequestLimits { embedding_inputs_open_max: 2, ..RequestLimits::default() };
    let mut front = Front::start(HttpLimits { request, ..HttpLimits::default() });
    let answer = asking(&front, &json!({"model": VECTORS, "input": ["a", "b", "c"]}));
    let (first, second) = (front.sequence().await, front.sequence().await);
    second.end("", vector(1.0));
    let third = front.sequence().await;
    assert_eq!(&*third.job.prompt, [99]);
    third.end("", vector(2.0));
    first.end("", vector(0.0));
    let answer = answer.await.unwrap().json();
    let firsts: Vec<_> = (0..3).map(|at| answer["data"][at]["embedding"][0].as_f64()).collect();
    assert_eq!(firsts, [Some(0.0), Some(1.0), Some(2.0)]);
    front.stop().await;
}

#[actix_web::test]
async fn one_failure_ends_the_others() {
    let mut front = Front::start(HttpLimits::default());
    let answer = asking(&front, &json!({"model": VECTORS, "input": ["a", "b"]}));
    let (first, second) = (front.sequence().await, front.sequence().await);
    let message = "a text of 9 tokens does not fit".to_owned();
    second.end("", End::Refused(Refusal { code: RefusalCode::ContextOverflow, message }));
    let answer = answer.await.unwrap();
    assert_eq!(answer.status, 400);
    assert_eq!(answer.json()["error"]["param"], "input");
    first.cancelled().await;
    let answer = asking(&front, &json!({"model": VECTORS, "input": ["a", "b"]}));
    front.sequence().await.end("", died());
    let answer = answer.await.unwrap();
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("3")));
    front.stop().await;
}

#[actix_web::test]
async fn what_cannot_be_embedded_is_refused_by_name() {
    let front = Front::start(HttpLimits::default());
    let long = "x".repeat(CONTEXT_TOKENS as usize + 1);
    let many = vec!["x"; 2049];
    for (more, status, param, code, words) in [
        (json!({"model": MODEL}), 400, "model", "not_an_embedding_model", "makes no embeddings"),
        (json!({"model": "no"}), 404, "model", "model_not_found", MODEL),
        (json!({"input": null}), 400, "input", "invalid_value", "missing"),
        (json!({"input": []}), 400, "input", "invalid_value", "empty list"),
        (json!({"input": ""}), 400, "input", "invalid_value", "empty text"),
        (json!({"input": ["a", ""]}), 400, "input[1]", "invalid_value", "empty text"),
        (json!({"input": ["a", 3]}), 400, "input[1]", "invalid_value", "a number"),
        (json!({"input": {"a": 1}}), 400, "input", "invalid_value", "an object"),
        (json!({"input": [[1], []]}), 400, "input[1]", "invalid_value", "empty list"),
        (json!({"input": [1, -1]}), 400, "input[1]", "invalid_value", "token id"),
        (json!({"input": [[1], [257]]}), 400, "input[1]", "invalid_value", "0 to 256"),
        (json!({"input": [long]}), 400, "input", "context_length_exceeded", "'input[0]' has 201"),
        (json!({"input": many}), 400, "input", "invalid_value", "at most 2048"),
        (json!({"encoding_format": "int8"}), 400, "encoding_format", "invalid_value", "base64"),
        (json!({"dimensions": 0}), 400, "dimensions", "invalid_value", "from 1"),
        (json!({"dimensions": 5}), 400, "dimensions", "invalid_value", "have 4 numbers"),
    ] {
        let mut body = json!({"model": VECTORS, "input": "a"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = post(front.address, "/v1/embeddings", &body.to_string()).await;
        let error = &answer.json()["error"];
        assert_eq!(
            (answer.status, error["param"].as_str(), error["code"].as_str()),
            (status, Some(param), Some(code)),
            "{more}: {error}"
        );
        assert!(error["message"].as_str().unwrap().contains(words), "{more}: {error}");
    }
    front.stop().await;
}

#[actix_web::test]
async fn a_model_of_vectors_does_not_write() {
    let front = Front::start(HttpLimits::default());
    let messages = json!([{"role": "user", "content": "hi"}]);
    for (path, body) in [
        ("/v1/chat/completions", json!({"model": VECTORS, "messages": messages})),
        ("/v1/completions", json!({"model": VECTORS, "prompt": "hi"})),
    ] {
        let answer = post(front.address, path, &body.to_string()).await;
        let error = &answer.json()["error"];
        assert_eq!((answer.status, error["code"].as_str()), (400, Some("not_a_chat_model")));
        assert!(error["message"].as_str().unwrap().contains("/v1/embeddings"), "{error}");
    }
    front.stop().await;
}
