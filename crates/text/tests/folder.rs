//! Loading from model folders: where things are found, and what is said when they are not.

#[path = "support/kinds.rs"]
mod kinds;

use std::fs;
use std::path::Path;

use mlxd_text::{ChatTemplate, RenderInput, TemplateLimits, TextError, Tokenizer, TokenizerLimits};
use serde_json::{Value, json};
use tempfile::TempDir;

fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = TempDir::new().expect("a folder");
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(path, text).expect("a file");
    }
    folder
}

fn render(folder: &Path, input: &RenderInput<'_>) -> Result<String, TextError> {
    let template = ChatTemplate::load(folder)?.expect("a template");
    template.render(input)
}

fn user(content: Value) -> Vec<Value> {
    vec![json!({"role": "user", "content": content})]
}

#[test]
fn end_of_text_ids_come_from_every_file() {
    let json = kinds::named("byte-level").json;
    let folder = folder(&[
        ("tokenizer.json", &json),
        ("tokenizer_config.json", r#"{"eos_token": {"content": "<|end|>", "lstrip": false}}"#),
        ("generation_config.json", r#"{"eos_token_id": [7, 5, 4000000000]}"#),
        ("config.json", r#"{"text_config": {"eos_token_id": 5}}"#),
    ]);
    let tokenizer = Tokenizer::load(folder.path()).expect("a tokenizer");
    let end = tokenizer.token_id("<|end|>").expect("an id");
    assert_eq!(tokenizer.eos_ids(), [5, 7, end]);
    assert_eq!(tokenizer.special_tokens().get("eos_token"), Some("<|end|>"));
}

#[test]
fn tokens_of_the_configuration_are_added_and_special() {
    let json = kinds::named("byte-level").json;
    let plain = Tokenizer::from_json(&json, &Value::Null, &[], TokenizerLimits::default());
    let next = plain.expect("a tokenizer").vocab_size();
    let mut config =
        json!({"bos_token": "<|begin|>", "pad_token": "worker", "added_tokens_decoder": {}});
    config["added_tokens_decoder"][next.to_string()] =
        json!({"content": "<|begin|>", "special": true});
    let folder = folder(&[
        ("tokenizer.json", &json),
        ("tokenizer_config.json", &config.to_string()),
        ("special_tokens_map.json", r#"{"bos_token": "other", "unk_token": "<|unk|>"}"#),
    ]);
    let tokenizer = Tokenizer::load(folder.path()).expect("a tokenizer");
    assert_eq!(tokenizer.token_id("<|begin|>"), Some(next as u32));
    assert!(tokenizer.is_special(next as u32));
    assert_eq!(tokenizer.special_tokens().get("bos_token"), Some("<|begin|>"));
    assert_eq!(tokenizer.special_tokens().get("unk_token"), Some("<|unk|>"));
    let ids = tokenizer.encode("<|begin|>fox", false).expect("ids");
    assert_eq!(ids[0], next as u32);
    assert_eq!(tokenizer.decode(&ids, true), "fox");
}

#[test]
fn files_that_lie_give_errors_that_name_them() {
    let good = kinds::named("byte-level").json;
    let cases: [(&[(&str, &str)], &str); 8] = [
        (&[], "tokenizer.json: is missing"),
        (
            &[(
                "tokenizer_config.json",
                r#"{"auto_map": {"AutoTokenizer": ["own.Tokenizer", null]}}"#,
            )],
            "own (auto_map in tokenizer_config.json), which mlxd never runs",
        ),
        (&[("tokenizer.json", "{")], "tokenizer.json: does not parse"),
        (&[("tokenizer.json", "{}")], "tokenizer.json: does not parse"),
        (
            &[(
                "tokenizer.json",
                r#"{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 4294967295}, "merges": []}}"#,
            )],
            "token id of 4294967295",
        ),
        (
            &[(
                "tokenizer.json",
                r#"{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}"#,
            )],
            "no tokens",
        ),
        (&[("tokenizer.json", &good), ("config.json", "[]")], "config.json: holds no JSON object"),
        (
            &[("tokenizer.json", &good), ("tokenizer_config.json", "nonsense")],
            "tokenizer_config.json: is not valid JSON",
        ),
    ];
    for (files, expected) in cases {
        let error = Tokenizer::load(folder(files).path()).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error} does not say {expected}");
    }
    let limits = TokenizerLimits { file_bytes_max: 100, text_bytes_max: 10 };
    let folder = folder(&[("tokenizer.json", &good)]);
    let error = Tokenizer::load_within(folder.path(), limits).expect_err("too large").to_string();
    assert!(error.contains("larger than 100 bytes"), "{error}");
}

#[test]
fn a_text_over_the_limit_is_refused_with_both_numbers() {
    let limits = TokenizerLimits { text_bytes_max: 10, ..TokenizerLimits::default() };
    let tokenizer =
        Tokenizer::from_json(&kinds::named("byte-level").json, &Value::Null, &[], limits);
    let tokenizer = tokenizer.expect("a tokenizer");
    assert!(tokenizer.encode("0123456789", true).is_ok());
    assert_eq!(
        tokenizer.encode("0123456789a", true),
        Err(TextError::TextTooLong { bytes: 11, bytes_max: 10 })
    );
}

#[test]
fn templates_are_found_in_order_of_precedence() {
    let config = (
        "tokenizer_config.json",
        r#"{"bos_token": "<s>", "chat_template": "config {{ bos_token }}"}"#,
    );
    let json = ("chat_template.json", r#"{"chat_template": "json"}"#);
    let jinja = ("chat_template.jinja", "jinja");
    let messages = user("x".into());
    let input = RenderInput { messages: &messages, ..RenderInput::default() };
    let rendered = |files: &[(&str, &str)]| render(folder(files).path(), &input).expect("a text");
    assert_eq!(rendered(&[config]), "config <s>");
    assert_eq!(rendered(&[config, json]), "json");
    assert_eq!(rendered(&[config, json, jinja]), "jinja");
    assert!(ChatTemplate::load(folder(&[]).path()).expect("no error").is_none());
}

#[test]
fn named_templates_are_chosen_by_name_or_need() {
    let list = json!({"chat_template": [
        {"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]});
    let messages = user("x".into());
    let input = RenderInput { messages: &messages, ..RenderInput::default() };
    let tools = json!([{"type": "function"}]);
    let none = json!([]);
    for folder in [
        folder(&[("tokenizer_config.json", &list.to_string())]),
        folder(&[
            ("chat_template.jinja", "plain"),
            ("additional_chat_templates/tool_use.jinja", "tools"),
        ]),
    ] {
        let rendered = |input: RenderInput<'_>| render(folder.path(), &input);
        assert_eq!(rendered(input).as_deref(), Ok("plain"));
        assert_eq!(rendered(RenderInput { tools: Some(&tools), ..input }).as_deref(), Ok("tools"));
        assert_eq!(rendered(RenderInput { tools: Some(&none), ..input }).as_deref(), Ok("plain"));
        assert_eq!(
            rendered(RenderInput { template: Some("tool_use"), ..input }).as_deref(),
            Ok("tools")
        );
        let error =
            rendered(RenderInput { template: Some("rag"), ..input }).expect_err("no such template");
        assert_eq!(
            error.to_string(),
            r#"the model has no chat template named "rag"; it has: default, tool_use"#
        );
    }
}

#[test]
fn a_template_that_does_not_parse_is_named_with_its_line() {
    let folder = folder(&[("chat_template.jinja", "a\n{% if %}")]);
    let error = ChatTemplate::load(folder.path()).expect_err("a syntax error").to_string();
    assert!(error.contains("line 2"), "{error}");
}

#[test]
fn limits_end_a_template_that_does_not() {
    let limits = TemplateLimits {
        source_bytes_max: 200,
        output_bytes_max: 1000,
        instructions_max: 100_000,
        recursion_max: 50,
    };
    let messages = user("x".into());
    let input = RenderInput { messages: &messages, ..RenderInput::default() };
    let outcome = |source: &str| {
        let sources = vec![("default".to_owned(), source.to_owned())];
        ChatTemplate::from_sources(sources, Default::default(), limits)?.render_as_given(&input)
    };
    let over = |what, limit| Err(TextError::TemplateLimit { what, limit });
    assert_eq!(
        outcome("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}"),
        over("instructions", 100_000)
    );
    assert_eq!(outcome("{{ 'x' * 1001 }}"), over("bytes of output", 1000));
    assert_eq!(outcome(&"x".repeat(201)), over("bytes of the template", 200));
    let error = outcome("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}").expect_err("recursion");
    assert!(error.to_string().contains("recursion"), "{error}");
}

#[test]
fn content_takes_the_form_that_the_template_reads() {
    let text_only = "{{ messages[0].content + '!' }}";
    let parts_only = "{% for part in messages[0].content %}[{{ part.text }}]{% endfor %}";
    let both = "{% if messages[0].content is string %}{{ messages[0].content }}{% else %}\
                {% for part in messages[0].content %}({{ part.text }}){% endfor %}{% endif %}";
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    for (source, from_text, from_parts) in
        [(text_only, "ab!", "a\nb!"), (parts_only, "[ab]", "[a][b]"), (both, "ab", "(a)(b)")]
    {
        let folder = folder(&[("chat_template.jinja", source)]);
        for (content, expected) in [(json!("ab"), from_text), (parts.clone(), from_parts)] {
            let messages = user(content);
            let input = RenderInput { messages: &messages, ..RenderInput::default() };
            assert_eq!(render(folder.path(), &input).as_deref(), Ok(expected), "{source}");
        }
    }
}

#[test]
fn a_refusal_of_the_template_is_told_in_its_words() {
    let folder = folder(&[(
        "chat_template.jinja",
        "{% macro check(m) %}{{ raise_exception('No ' ~ m.role ~ ' here') }}{% endmacro %}{{ check(messages[0]) }}",
    )]);
    let messages = user("x".into());
    let input = RenderInput { messages: &messages, ..RenderInput::default() };
    assert_eq!(render(folder.path(), &input), Err(TextError::Refused("No user here".into())));
}

#[test]
fn tokens_that_differ_are_found() {
    let of = |vocab: Value| {
        let json = json!({"model": {"type": "WordLevel", "vocab": vocab, "unk_token": "a"}});
        let limits = TokenizerLimits::default();
        Tokenizer::from_json(&json.to_string(), &Value::Null, &[], limits).expect("a tokenizer")
    };
    let own = of(json!({"a": 0, "b": 1, "c": 2}));
    assert_eq!(own.first_difference(&own), None);
    assert_eq!(
        own.first_difference(&of(json!({"a": 0, "b": 1}))),
        None,
        "lacking is no difference"
    );
    assert_eq!(of(json!({"a": 0, "d": 4})).first_difference(&own), None);
    assert_eq!(own.first_difference(&of(json!({"a": 0, "c": 1, "b": 2}))), Some(1));
}
