//! A first question to our own server, streamed to the terminal, and how to go on from there.

use anyhow::{Context, bail};
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::io::Write;

const FIRST_QUESTION: &str = "What is mlxd?";
const NEXT_QUESTION: &str = "How do I load a model?";

/// Asks the first question, then prints the base URL and what to copy.
pub async fn welcome(base_url: &str) -> anyhow::Result<()> {
    let answered = ask(base_url, FIRST_QUESTION).await;
    println!(
        "\nmlxd serves at {base_url} until Ctrl-C. Two ways to ask it something:\n\n  \
         curl {base_url}/chat/completions -H 'content-type: application/json' -d '{body}'\n\n  \
         python3 -c \"from openai import OpenAI; print(OpenAI(base_url='{base_url}', api_key='none')\
         .chat.completions.create(model='{model}', messages=[{{'role': 'user', 'content': '{NEXT_QUESTION}'}}])\
         .choices[0].message.content)\"\n",
        body = request(NEXT_QUESTION, false),
        model = mlxd_demo::NAME,
    );
    answered
}

fn request(question: &str, stream: bool) -> Value {
    let mut body = json!({
        "model": mlxd_demo::NAME,
        "messages": [{"role": "user", "content": question}],
    });
    if stream {
        body["stream"] = true.into();
    }
    body
}

/// Asks the built-in model, and prints the answer as it comes.
pub async fn ask(base_url: &str, question: &str) -> anyhow::Result<()> {
    println!("\n> {question}\n");
    let client = reqwest::Client::builder().no_proxy().build()?;
    let response = client
        .post(format!("{base_url}/chat/completions"))
        .json(&request(question, true))
        .send()
        .await
        .context("our own server does not answer")?;
    if !response.status().is_success() {
        bail!("{}", error_message(&response.text().await?));
    }
    let mut stream = response.bytes_stream();
    let mut pending = Vec::new();
    while let Some(piece) = stream.next().await {
        pending.extend_from_slice(&piece?);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            if print_line(&String::from_utf8_lossy(&line))? {
                println!();
                return Ok(());
            }
        }
    }
    bail!("the answer ended early")
}

/// Prints the text of one line of the stream. True: it was the last.
fn print_line(line: &str) -> anyhow::Result<bool> {
    let Some(data) = line.trim_end().strip_prefix("data: ") else {
        return Ok(false);
    };
    if data == "[DONE]" {
        return Ok(true);
    }
    let event: Value = serde_json::from_str(data)?;
    if event.get("error").is_some() {
        bail!("{}", error_message(data));
    }
    if let Some(text) = event["choices"][0]["delta"]["content"].as_str() {
        print!("{text}");
        std::io::stdout().flush()?;
    }
    Ok(false)
}

fn error_message(body: &str) -> String {
    let parsed = serde_json::from_str::<Value>(body).ok();
    let message = parsed.as_ref().and_then(|value| value["error"]["message"].as_str());
    message.unwrap_or(body).to_owned()
}
