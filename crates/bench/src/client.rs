//! A request timed as a client sees it, at any server that speaks the OpenAI API.

use crate::report::{Counted, Template};
use anyhow::{Context, bail};
use futures_util::StreamExt;
use mlxd_protocol::admin::{BenchAnswer, BenchCall, Status};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::path::Path;
use std::time::Instant;

/// What is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    /// The conversation, or a text to go on with.
    pub prompt: Prompt,
    /// Tokens of the answer at the most.
    pub max_tokens: u32,
    /// Of the sampling.
    pub temperature: f32,
    /// Whether the answer has exactly `max_tokens` tokens, at servers that know `ignore_eos`.
    pub exact: bool,
    /// Further fields of the request.
    pub more: Map<String, Value>,
}

/// What goes before the answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// Messages, through the model's template.
    Chat(Vec<Value>),
    /// As it is.
    Raw(String),
}

impl Ask {
    /// A user's question, or the bare text.
    pub fn new(template: Template, text: &str, max_tokens: u32) -> Self {
        let prompt = match template {
            Template::Chat => Prompt::Chat(vec![json!({"role": "user", "content": text})]),
            Template::Raw => Prompt::Raw(text.to_owned()),
        };
        Self { prompt, max_tokens, temperature: 0.0, exact: true, more: Map::new() }
    }

    /// At this temperature.
    pub fn at(mut self, temperature: f32) -> Self {
        self.temperature = temperature;
        self
    }

    /// The route and the body.
    fn request(&self, model: &str) -> (&'static str, Value) {
        let mut body = json!({
            "model": model,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        let fields = body.as_object_mut().expect("an object");
        if self.exact {
            fields.insert("ignore_eos".into(), true.into());
        }
        let route = match &self.prompt {
            Prompt::Chat(messages) => {
                fields.insert("messages".into(), messages.clone().into());
                "chat/completions"
            }
            Prompt::Raw(text) => {
                fields.insert("prompt".into(), text.clone().into());
                "completions"
            }
        };
        fields.extend(self.more.clone());
        (route, body)
    }
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answered {
    /// When it was asked for, in seconds after the client was made.
    pub begun_s: f64,
    /// From sending the request to the end of the stream.
    pub seconds: f64,
    /// To the first delta of any kind.
    pub first_s: f64,
    /// When each delta came, in seconds after sending the request.
    #[serde(skip)]
    pub deltas_s: Vec<f64>,
    /// Tokens of the answer.
    pub completion_tokens: u32,
    /// Tokens of the prompt; 0 where the server does not tell.
    pub prompt_tokens: u32,
    /// Those of them that the server had computed before, as it says.
    pub cached_tokens: u32,
    /// Who counted.
    pub counted: Counted,
    /// Why it ended.
    pub finish_reason: Option<String>,
    /// What it said, reasoning left out.
    #[serde(skip)]
    pub text: String,
}

/// A client of one server.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base_url: String,
    api_key: Option<String>,
    made: Instant,
}

impl Client {
    /// For the API at `base_url`.
    pub fn new(base_url: &str, api_key: Option<&str>) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder().no_proxy().tcp_nodelay(true).build()?;
        let base_url = base_url.trim_end_matches('/').to_owned();
        Ok(Self { http, base_url, api_key: api_key.map(str::to_owned), made: Instant::now() })
    }

    fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}/{path}", self.base_url));
        match &self.api_key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// A call whose answer is JSON, by a path below the base URL.
    pub async fn call(&self, method: reqwest::Method, path: &str) -> anyhow::Result<Value> {
        let response = self.request(method, path).send().await?;
        let (status, text) = (response.status(), response.text().await?);
        anyhow::ensure!(status.is_success(), "{path}: {status}: {text}");
        Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// What the server calls itself, from its `server` header.
    pub async fn server_name(&self) -> Option<String> {
        let response = self.request(reqwest::Method::GET, "models").send().await.ok()?;
        let name = response.headers().get(reqwest::header::SERVER)?;
        name.to_str().ok().map(str::to_owned)
    }

    /// Names of the models that the server has.
    pub async fn models(&self) -> anyhow::Result<Vec<String>> {
        let answer = self.call(reqwest::Method::GET, "models").await?;
        let listed = answer["data"].as_array().context("the server's list of models is none")?;
        let name = |model: &Value| model["id"].as_str().map(str::to_owned);
        Ok(listed.iter().filter_map(name).collect())
    }

    /// Streams an answer.
    pub async fn ask(&self, model: &str, ask: &Ask) -> anyhow::Result<Answered> {
        let (route, body) = ask.request(model);
        let start = Instant::now();
        let response = self.request(reqwest::Method::POST, route).json(&body).send().await?;
        let status = response.status();
        if !status.is_success() {
            bail!("{status}: {}", response.text().await?);
        }
        let mut reading = Reading::default();
        let mut stream = response.bytes_stream();
        let mut pending = Vec::new();
        'stream: while let Some(piece) = stream.next().await {
            pending.extend_from_slice(&piece?);
            let now_s = start.elapsed().as_secs_f64();
            let mut read = 0;
            while let Some(length) = pending[read..].iter().position(|byte| *byte == b'\n') {
                let line = &pending[read..read + length];
                read += length + 1;
                if !reading.line(line, now_s)? {
                    break 'stream;
                }
            }
            pending.drain(..read);
        }
        reading.answered((start - self.made).as_secs_f64(), start.elapsed().as_secs_f64())
    }
}

/// What a stream has said so far.
#[derive(Debug, Default)]
struct Reading {
    deltas_s: Vec<f64>,
    usage: Option<Value>,
    finish_reason: Option<String>,
    text: String,
    done: bool,
}

impl Reading {
    /// Takes a line in. Says whether more may come.
    fn line(&mut self, line: &[u8], now_s: f64) -> anyhow::Result<bool> {
        let Some(data) = line.strip_prefix(b"data:") else { return Ok(true) };
        let data = data.trim_ascii();
        if data == b"[DONE]" {
            self.done = true;
            return Ok(false);
        }
        let event: Value = serde_json::from_slice(data).context("an event that is no JSON")?;
        if let Some(error) = event.get("error") {
            bail!("the stream broke: {error}");
        }
        if carries_something(&event) {
            self.deltas_s.push(now_s);
        }
        if let Some(reason) = event["choices"][0]["finish_reason"].as_str() {
            self.finish_reason = Some(reason.to_owned());
        }
        let choice = &event["choices"][0];
        let said = choice["delta"]["content"].as_str().or_else(|| choice["text"].as_str());
        self.text += said.unwrap_or_default();
        if event["usage"].is_object() {
            self.usage = Some(event["usage"].clone());
        }
        Ok(true)
    }

    fn answered(self, begun_s: f64, seconds: f64) -> anyhow::Result<Answered> {
        // Some servers close without an end mark; without a reason to end it was cut.
        if !self.done && self.finish_reason.is_none() {
            bail!("the stream ended early");
        }
        let usage = self.usage.unwrap_or(Value::Null);
        let count = |value: &Value| value.as_u64().map(|count| count as u32);
        let counted = count(&usage["completion_tokens"]);
        Ok(Answered {
            begun_s,
            seconds,
            first_s: self.deltas_s.first().copied().unwrap_or(seconds),
            completion_tokens: counted.unwrap_or(self.deltas_s.len() as u32),
            prompt_tokens: count(&usage["prompt_tokens"]).unwrap_or(0),
            cached_tokens: count(&usage["prompt_tokens_details"]["cached_tokens"]).unwrap_or(0),
            counted: if counted.is_some() { Counted::Usage } else { Counted::Deltas },
            finish_reason: self.finish_reason,
            text: self.text,
            deltas_s: self.deltas_s,
        })
    }
}

/// Whether an event has text, reasoning or a part of a tool call: all of them are tokens.
fn carries_something(event: &Value) -> bool {
    let choice = &event["choices"][0];
    let text = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    let delta = &choice["delta"];
    text(&choice["text"])
        || ["content", "reasoning_content", "reasoning"].iter().any(|key| text(&delta[key]))
        || delta["tool_calls"].as_array().is_some_and(|calls| !calls.is_empty())
}

fn admin_client(socket: &Path) -> anyhow::Result<reqwest::Client> {
    Ok(reqwest::Client::builder().unix_socket(socket).build()?)
}

/// Runs the engine alone, inside its worker.
pub async fn direct(admin_socket: &Path, call: &BenchCall) -> anyhow::Result<BenchAnswer> {
    let http = admin_client(admin_socket)?;
    let response = http.post("http://mlxd/admin/v1/bench").json(call).send().await?;
    let status = response.status();
    let text = response.text().await?;
    if !status.is_success() {
        bail!("the direct run failed ({status}): {text}");
    }
    Ok(serde_json::from_str(&text)?)
}

/// The front and its models.
pub async fn status(admin_socket: &Path) -> anyhow::Result<Status> {
    let http = admin_client(admin_socket)?;
    let response = http.get("http://mlxd/admin/v1/status").send().await?;
    Ok(response.error_for_status()?.json().await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> anyhow::Result<Answered> {
        let mut reading = Reading::default();
        for (at, line) in lines.iter().enumerate() {
            if !reading.line(line.as_bytes(), at as f64)? {
                break;
            }
        }
        reading.answered(0.0, 100.0)
    }

    #[test]
    fn any_kind_of_delta_is_the_first_and_usage_counts() {
        let answered = read(&[
            r#"data: {"choices":[{"delta":{"role":"assistant","content":""}}]}"#,
            r#"data: {"choices":[{"delta":{"reasoning_content":"Hm"}}]}"#,
            ": a comment",
            r#"data: {"choices":[{"delta":{"content":"Yes"},"finish_reason":"stop"}]}"#,
            r#"data: {"choices":[],"usage":{"completion_tokens":9,"prompt_tokens":4,"prompt_tokens_details":{"cached_tokens":3}}}"#,
            "data: [DONE]",
        ])
        .expect("a whole answer");
        assert_eq!((answered.first_s, answered.deltas_s.len()), (1.0, 2));
        assert_eq!((answered.completion_tokens, answered.prompt_tokens), (9, 4));
        assert_eq!((answered.cached_tokens, answered.counted), (3, Counted::Usage));
        assert_eq!(answered.text, "Yes");
    }

    #[test]
    fn without_usage_deltas_are_counted() {
        let answered = read(&[
            r#"data: {"choices":[{"text":"a"}]}"#,
            r#"data:{"choices":[{"text":"b","finish_reason":"length"}]}"#,
        ])
        .expect("a whole answer");
        assert_eq!((answered.completion_tokens, answered.counted), (2, Counted::Deltas));
        assert_eq!(answered.finish_reason.as_deref(), Some("length"));
    }

    #[test]
    fn a_cut_or_broken_stream_is_an_error() {
        let cut = read(&[r#"data: {"choices":[{"text":"a"}]}"#]).expect_err("cut");
        assert!(cut.to_string().contains("early"), "{cut}");
        let broken = read(&[r#"data: {"error":{"message":"gone"}}"#]).expect_err("broken");
        assert!(broken.to_string().contains("gone"), "{broken}");
    }

    #[test]
    fn requests_name_their_route() {
        let (route, body) = Ask::new(Template::Raw, "Once", 5).at(0.5).request("m");
        assert_eq!(
            (route, &body["prompt"], &body["max_tokens"]),
            ("completions", &json!("Once"), &json!(5))
        );
        let mut ask = Ask::new(Template::Chat, "Hello", 5);
        ask.exact = false;
        let (route, body) = ask.request("m");
        assert_eq!(route, "chat/completions");
        assert_eq!(body["messages"][0]["content"], "Hello");
        assert!(body.get("ignore_eos").is_none());
    }
}
