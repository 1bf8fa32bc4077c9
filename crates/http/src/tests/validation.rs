//! Every field, with wrong types and values out of range.

use crate::error::ApiError;
use crate::limits::RequestLimits;
use crate::openai::chat::ValidChat;
use crate::openai::completion::{Prompt, ValidCompletion};
use actix_web::http::StatusCode;
use serde_json::{Value, json};

fn with(mut base: Value, field: &str, value: Value) -> Vec<u8> {
    base[field] = value;
    base.to_string().into_bytes()
}

fn chat_with(field: &str, value: Value) -> Result<ValidChat, ApiError> {
    let base = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    ValidChat::parse(&with(base, field, value), &RequestLimits::default())
}

fn completion_with(field: &str, value: Value) -> Result<ValidCompletion, ApiError> {
    let base = json!({"model": "m", "prompt": "hi"});
    ValidCompletion::parse(&with(base, field, value), &RequestLimits::default())
}

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T, ApiError>, param: &str, words: &str) {
    let error = outcome.expect_err(param);
    assert_eq!(error.status(), StatusCode::BAD_REQUEST, "{param}: {error}");
    assert_eq!(error.param(), Some(param), "{error}");
    let message = error.to_string();
    assert!(message.contains(words), "{param}: {message:?} lacks {words:?}");
    let own = param.split(['.', '[']).next().unwrap();
    assert!(message.contains(own), "{message:?} does not name {own}");
}

#[test]
fn shared_fields_name_their_range() {
    let table: Vec<(&str, Value, &str, &str)> = vec![
        ("model", json!(7), "model", "a string, got 7"),
        ("model", json!(null), "model", "missing"),
        ("model", json!(""), "model", "missing"),
        ("n", json!("two"), "n", "a whole number from 1 to 8, got \"two\""),
        ("n", json!(0), "n", "from 1 to 8, got 0"),
        ("n", json!(9), "n", "from 1 to 8, got 9"),
        ("n", json!(1.5), "n", "got 1.5"),
        ("stream", json!("yes"), "stream", "true or false, got \"yes\""),
        ("stream_options", json!({"include_usage": true}), "stream_options", "'stream': true"),
        ("stream_options", json!([]), "stream_options", "an object, got a list"),
        ("temperature", json!("hot"), "temperature", "a number from 0 to 2, got \"hot\""),
        ("temperature", json!(-0.1), "temperature", "from 0 to 2, got -0.1"),
        ("temperature", json!(2.1), "temperature", "from 0 to 2, got 2.1"),
        ("temperature", json!(true), "temperature", "got true"),
        ("top_p", json!(1.01), "top_p", "from 0 to 1"),
        ("top_p", json!([1]), "top_p", "got a list"),
        ("top_k", json!(-2), "top_k", "a whole number from -1"),
        ("top_k", json!("3"), "top_k", "got \"3\""),
        ("min_p", json!(2), "min_p", "from 0 to 1, got 2"),
        ("repetition_penalty", json!(0), "repetition_penalty", "from 0.01 to 10"),
        ("repetition_context_size", json!(-1), "repetition_context_size", "from 0"),
        ("presence_penalty", json!(2.5), "presence_penalty", "from -2 to 2"),
        ("presence_penalty", json!({}), "presence_penalty", "got an object"),
        ("frequency_penalty", json!(-3), "frequency_penalty", "from -2 to 2, got -3"),
        ("max_tokens", json!(0), "max_tokens", "from 1 to"),
        ("max_tokens", json!("10"), "max_tokens", "got \"10\""),
        ("max_completion_tokens", json!(-5), "max_completion_tokens", "got -5"),
        ("seed", json!("x"), "seed", "a whole number of 64 bits"),
        ("seed", json!(0.5), "seed", "got 0.5"),
        ("stop", json!(5), "stop", "a string or a list of strings, got 5"),
        ("stop", json!(["a", 5]), "stop[1]", "a string, got 5"),
        ("stop", json!(vec!["x"; 17]), "stop", "has 17 strings, at most 16"),
        ("stop", json!("x".repeat(1025)), "stop[0]", "has 1025 bytes, at most 1024"),
        ("logit_bias", json!([]), "logit_bias", "an object, got a list"),
        ("logit_bias", json!({"word": 1}), "logit_bias.word", "token ids as keys"),
        ("logit_bias", json!({"5": 101}), "logit_bias.5", "from -100 to 100, got 101"),
        ("logit_bias", json!({"5": "1"}), "logit_bias.5", "got \"1\""),
        ("response_format", json!({"type": "json_object"}), "response_format", "not supported yet"),
        ("response_format", json!({"type": "json_schema"}), "response_format", "not supported yet"),
        ("response_format", json!({"type": "xml"}), "response_format.type", "\"json_schema\""),
        ("response_format", json!("json"), "response_format", "an object"),
        ("guided_json", json!({}), "guided_json", "not supported yet"),
        ("grammar", json!("root ::= x"), "grammar", "not supported yet"),
    ];
    for (field, value, param, words) in table {
        refused(chat_with(field, value.clone()), param, words);
        refused(completion_with(field, value), param, words);
    }
}

#[test]
fn chat_fields_name_what_is_wrong() {
    let message = |message: Value| json!([message]);
    let user = |content: Value| json!([{"role": "user", "content": content}]);
    let table: Vec<(&str, Value, &str, &str)> = vec![
        ("messages", json!(null), "messages", "missing"),
        ("messages", json!("hi"), "messages", "a list, got \"hi\""),
        ("messages", json!([]), "messages", "empty"),
        ("messages", json!(["hi"]), "messages[0]", "an object, got \"hi\""),
        ("messages", message(json!({"content": "x"})), "messages[0].role", "got null"),
        (
            "messages",
            message(json!({"role": "boss", "content": "x"})),
            "messages[0].role",
            "one of system",
        ),
        ("messages", message(json!({"role": "user"})), "messages[0].content", "a string or a list"),
        ("messages", message(json!({"role": "assistant"})), "messages[0].content", "got null"),
        ("messages", user(json!(7)), "messages[0].content", "got 7"),
        ("messages", user(json!([7])), "messages[0].content[0]", "a content part"),
        ("messages", user(json!([{"type": "text"}])), "messages[0].content[0].text", "a string"),
        (
            "messages",
            user(json!([{"type": "image_url", "image_url": {"url": "data:"}}])),
            "messages[0].content[0].type",
            "takes text only",
        ),
        (
            "messages",
            user(json!([{"type": "input_audio"}])),
            "messages[0].content[0].type",
            "takes text only",
        ),
        (
            "messages",
            message(json!({"role": "assistant", "tool_calls": 5})),
            "messages[0].tool_calls",
            "a list, got a number",
        ),
        (
            "messages",
            message(json!({"role": "assistant", "tool_calls": [{}]})),
            "messages[0].tool_calls[0].function.name",
            "a string",
        ),
        ("logprobs", json!(5), "logprobs", "true or false, got 5"),
        ("top_logprobs", json!(3), "top_logprobs", "'logprobs': true"),
        ("top_logprobs", json!(21), "top_logprobs", "from 0 to 20, got 21"),
        ("tools", json!({}), "tools", "a list, got an object"),
        ("tools", json!([{"type": "retrieval"}]), "tools[0]", "type \"function\""),
        ("tool_choice", json!("required"), "tool_choice", "not supported yet"),
        ("tool_choice", json!({"type": "function"}), "tool_choice", "not supported yet"),
        ("tool_choice", json!("maybe"), "tool_choice", "\"auto\""),
        ("functions", json!([]), "functions", "'tools'"),
        ("chat_template_kwargs", json!(1), "chat_template_kwargs", "an object"),
        (
            "chat_template_kwargs",
            json!({"messages": []}),
            "chat_template_kwargs.messages",
            "set by the request",
        ),
        ("enable_thinking", json!("no"), "enable_thinking", "true or false"),
    ];
    for (field, value, param, words) in table {
        refused(chat_with(field, value), param, words);
    }
}

#[test]
fn completion_fields_name_what_is_wrong() {
    let table: Vec<(&str, Value, &str, &str)> = vec![
        ("prompt", json!(null), "prompt", "missing"),
        ("prompt", json!(5), "prompt", "got a number"),
        ("prompt", json!([]), "prompt", "an empty list"),
        ("prompt", json!(["a", 5]), "prompt[1]", "got a number"),
        ("prompt", json!([1, -2]), "prompt[1]", "a token id"),
        ("prompt", json!([[1], []]), "prompt[1]", "an empty list"),
        ("prompt", json!(vec!["a"; 9]), "prompt", "makes 9 choices, at most 8"),
        ("logprobs", json!(true), "logprobs", "from 0 to 20, got true"),
        ("logprobs", json!(21), "logprobs", "from 0 to 20"),
        ("echo", json!(1), "echo", "true or false"),
        ("suffix", json!("end"), "suffix", "not supported"),
        ("best_of", json!(3), "best_of", "equals 'n'"),
    ];
    for (field, value, param, words) in table {
        refused(completion_with(field, value), param, words);
    }
    let base = json!({"model": "m", "prompt": "hi", "logprobs": 0});
    let both = ValidCompletion::parse(&with(base, "echo", json!(true)), &RequestLimits::default());
    refused(both, "echo", "not supported");
}

#[test]
fn null_is_absent_and_unknown_fields_pass() {
    let fields = [
        "n",
        "stream",
        "stream_options",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "stop",
        "seed",
        "logit_bias",
        "max_tokens",
        "max_completion_tokens",
        "presence_penalty",
        "frequency_penalty",
        "response_format",
        "tools",
        "tool_choice",
        "functions",
        "logprobs",
        "top_logprobs",
        "chat_template_kwargs",
        "enable_thinking",
        "guided_json",
    ];
    let plain = chat_with("n", json!(1)).unwrap();
    for field in fields {
        assert_eq!(chat_with(field, json!(null)).expect(field), plain, "{field}");
    }
    assert_eq!(chat_with("store", json!({"anything": [1]})).unwrap(), plain);
    assert_eq!(chat_with("response_format", json!({"type": "text"})).unwrap(), plain);
}

#[test]
fn values_are_taken_over() {
    let body = json!({
        "model": "m", "messages": [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}]},
            {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "1", "content": "42"},
        ],
        "n": 3.0, "stream": true, "stream_options": {"include_usage": true}, "temperature": 0.25,
        "top_p": 0.5, "top_k": -1, "min_p": 0.1, "max_tokens": 5, "max_completion_tokens": 6,
        "stop": ["a", "", "b"], "seed": -1, "logprobs": true, "top_logprobs": 4,
        "logit_bias": {"7": -100}, "enable_thinking": false,
        "chat_template_kwargs": {"style": "terse"},
        "tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "auto",
    });
    let chat = ValidChat::parse(body.to_string().as_bytes(), &RequestLimits::default()).unwrap();
    let common = &chat.common;
    assert_eq!((common.n, common.stream, common.include_usage), (3, true, true));
    assert_eq!(common.max_tokens, Some(6), "the newer name goes before the older");
    assert_eq!(common.stops, ["a", "b"]);
    assert_eq!(common.seed, Some(u64::MAX));
    assert_eq!(common.logprobs, Some(4));
    assert_eq!(common.logit_bias, [(7, -100.0)]);
    assert_eq!(common.sampling.top_k, Some(0));
    assert_eq!(chat.messages[1]["content"][1], json!({"type": "text", "text": "b"}));
    assert_eq!(chat.messages[2]["content"], "");
    assert_eq!(chat.template_arguments["enable_thinking"], false);
    assert_eq!(chat.template_arguments["style"], "terse");
    assert!(chat.tools.is_some());
    assert_eq!(chat_with("tool_choice", json!("none")).unwrap().tools, None);

    let greedy = chat_with("top_p", json!(0)).unwrap().common.sampling;
    assert_eq!((greedy.temperature, greedy.top_p), (Some(0.0), None));
}

#[test]
fn prompts_come_in_four_forms() {
    let prompts = |value: Value| completion_with("prompt", value).unwrap().prompts;
    let text = |text: &str| Prompt::Text(text.into());
    assert_eq!(prompts(json!("a")), [text("a")]);
    assert_eq!(prompts(json!(["a", "b"])), [text("a"), text("b")]);
    assert_eq!(prompts(json!([1, 2])), [Prompt::Tokens(vec![1, 2])]);
    assert_eq!(prompts(json!([[1], [2]])), [Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2])]);
    assert_eq!(completion_with("n", json!(1)).unwrap().common.max_tokens, Some(16));
}

#[test]
fn a_body_that_is_no_object_is_refused() {
    for body in ["", "{", "[]", "null", "{\"model\": \"m\",}", "{\"a\": \u{0}}"] {
        let error = ValidChat::parse(body.as_bytes(), &RequestLimits::default()).unwrap_err();
        assert_eq!(error.code(), Some("invalid_json"), "{body:?}");
    }
    let deep = format!("{{\"a\": {}{}}}", "[".repeat(5000), "]".repeat(5000));
    let error = ValidChat::parse(deep.as_bytes(), &RequestLimits::default()).unwrap_err();
    assert_eq!(error.code(), Some("invalid_json"));
}
