//! A chat request timed as a client sees it, and calls on the admin's socket.

use anyhow::{Context, bail};
use futures_util::StreamExt;
use mlxd_protocol::admin::{BenchAnswer, BenchCall};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Instant;

/// One answer.
#[derive(Debug, Clone)]
pub struct Answered {
    /// From sending the request to the end of the stream.
    pub seconds: f64,
    /// To the first delta that carries anything.
    pub first_delta_seconds: f64,
    /// As the server counts them.
    pub completion_tokens: u32,
    /// As the server counts them.
    pub prompt_tokens: u32,
}

/// A client of one server.
pub struct Client {
    http: reqwest::Client,
    base_url: String,
}

impl Client {
    /// For the API at `base_url`.
    pub fn new(base_url: &str) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder().no_proxy().build()?;
        Ok(Self { http, base_url: base_url.to_owned() })
    }

    /// Streams an answer of exactly `tokens` tokens, greedy.
    pub async fn chat(&self, model: &str, question: &str, tokens: u32) -> anyhow::Result<Answered> {
        let body = json!({
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": tokens,
            "ignore_eos": true,
            "temperature": 0,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        let url = format!("{}/chat/completions", self.base_url);
        let start = Instant::now();
        let response = self.http.post(url).json(&body).send().await?;
        let status = response.status();
        if !status.is_success() {
            bail!("{status}: {}", response.text().await?);
        }
        let mut usage = None;
        let mut first = None;
        let mut stream = response.bytes_stream();
        let mut pending = Vec::new();
        while let Some(piece) = stream.next().await {
            pending.extend_from_slice(&piece?);
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                let Some(data) = line.strip_prefix(b"data: ") else {
                    continue;
                };
                if data.starts_with(b"[DONE]") {
                    let usage: Value = usage.context("the stream had no usage")?;
                    return answered(start, first, &usage);
                }
                let event: Value = serde_json::from_slice(data)?;
                if let Some(error) = event.get("error") {
                    bail!("the stream broke: {error}");
                }
                if first.is_none() && carries_text(&event) {
                    first = Some(start.elapsed().as_secs_f64());
                }
                if event["usage"].is_object() {
                    usage = Some(event["usage"].clone());
                }
            }
        }
        bail!("the stream ended early")
    }
}

fn carries_text(event: &Value) -> bool {
    event["choices"][0]["delta"]["content"].as_str().is_some_and(|text| !text.is_empty())
}

fn answered(start: Instant, first: Option<f64>, usage: &Value) -> anyhow::Result<Answered> {
    let seconds = start.elapsed().as_secs_f64();
    let count = |key: &str| {
        let count = usage[key].as_u64().with_context(|| format!("usage has no {key}"))?;
        anyhow::Ok(count as u32)
    };
    Ok(Answered {
        seconds,
        first_delta_seconds: first.unwrap_or(seconds),
        completion_tokens: count("completion_tokens")?,
        prompt_tokens: count("prompt_tokens")?,
    })
}

/// Runs the engine alone, inside its worker.
pub async fn direct(admin_socket: &Path, call: &BenchCall) -> anyhow::Result<BenchAnswer> {
    let http = reqwest::Client::builder().unix_socket(admin_socket).build()?;
    let response = http.post("http://mlxd/admin/v1/bench").json(call).send().await?;
    let status = response.status();
    let text = response.text().await?;
    if !status.is_success() {
        bail!("the direct run failed ({status}): {text}");
    }
    Ok(serde_json::from_str(&text)?)
}
