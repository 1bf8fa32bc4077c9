//! `mlxctl ask`: one chat request over the same socket, its answer shown as it comes.

use crate::arguments::Ask;
use crate::client::{Failure, Front, Patience, broken, refusal};
use crate::exit::Exit;
use crate::output::{harmless, is_terminal, json, line, piece};
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::{IsTerminal, Read, stdin};
use std::time::Duration;

/// Above the longest queue wait by default: until a model is loaded nothing comes.
const SILENCE_MAX: Duration = Duration::from_secs(1800);
/// A longer question is an accident.
const QUESTION_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// A longer line is no event of mlxd's.
const EVENT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Asks and shows the answer.
pub(crate) async fn ask(front: &Front, arguments: &Ask, as_json: bool) -> Result<Exit, Failure> {
    let mut request = request(arguments, question(arguments)?);
    if as_json {
        let patience = Patience::Stream(Some(SILENCE_MAX));
        let answer: Value = front.post("/v1/chat/completions", &request, patience).await?;
        json(&answer)?;
        return Ok(Exit::Success);
    }
    request["stream"] = Value::Bool(true);
    let patience = Patience::Stream(Some(SILENCE_MAX));
    let mut response = front.post_stream("/v1/chat/completions", &request, patience).await?;
    let mut events = Events::default();
    let mut answer = Answer::default();
    while let Some(bytes) = response.chunk().await.map_err(broken)? {
        for event in events.take(&bytes)? {
            answer.take(&event)?;
        }
    }
    answer.end()
}

fn question(arguments: &Ask) -> Result<String, Failure> {
    match arguments.question.as_deref() {
        Some(question) if question != "-" => return Ok(question.to_owned()),
        None if stdin().is_terminal() => {
            return Err(Failure::Broken(
                "there is no question: give it as mlxctl ask MODEL \"question\", or on standard input".to_owned(),
            ));
        }
        _ => {}
    }
    let mut text = String::new();
    let read = stdin().lock().take(QUESTION_BYTES_MAX + 1).read_to_string(&mut text)?;
    if read as u64 > QUESTION_BYTES_MAX {
        return Err(Failure::Broken(format!(
            "the question is longer than {QUESTION_BYTES_MAX} bytes"
        )));
    }
    Ok(text)
}

fn request(arguments: &Ask, question: String) -> Value {
    let system = arguments.system.iter().map(|text| json!({"role": "system", "content": text}));
    let user = json!({"role": "user", "content": question});
    let messages: Vec<Value> = system.chain([user]).collect();
    let mut request = json!({"model": arguments.model, "messages": messages});
    if let Some(max_tokens) = arguments.max_tokens {
        request["max_tokens"] = max_tokens.into();
    }
    if let Some(temperature) = arguments.temperature {
        request["temperature"] = temperature.into();
    }
    if let Some(seed) = arguments.seed {
        request["seed"] = seed.into();
    }
    request
}

/// The `data` of server-sent events, whatever pieces they come in.
#[derive(Default)]
struct Events {
    rest: Vec<u8>,
}

impl Events {
    fn take(&mut self, bytes: &[u8]) -> Result<Vec<String>, Failure> {
        self.rest.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            // mlxd writes each event's data on one line; comments and event names are not needed.
            if let Some(data) = line.strip_prefix("data:") {
                events.push(data.trim().to_owned());
            }
        }
        if self.rest.len() > EVENT_BYTES_MAX {
            return Err(Failure::Broken(format!(
                "an event is longer than {EVENT_BYTES_MAX} bytes"
            )));
        }
        Ok(events)
    }
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Delta,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Deserialize, Default)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
}

/// What has been shown of an answer.
#[derive(Default)]
struct Answer {
    last_char: Option<char>,
    finish_reason: Option<String>,
    is_done: bool,
}

impl Answer {
    fn take(&mut self, event: &str) -> Result<(), Failure> {
        if event == "[DONE]" {
            self.is_done = true;
            return Ok(());
        }
        let chunk: Chunk = match refusal(event.as_bytes()) {
            Some(refusal) => {
                self.close_line()?;
                return Err(refusal);
            }
            None => serde_json::from_str(event).map_err(|error| {
                Failure::Broken(format!("mlxd's answer is not understood: {error}"))
            })?,
        };
        for choice in chunk.choices {
            if let Some(content) = choice.delta.content.filter(|content| !content.is_empty()) {
                self.last_char = content.chars().last();
                piece(&if is_terminal() { harmless(&content) } else { content })?;
            }
            self.finish_reason = choice.finish_reason.or(self.finish_reason.take());
        }
        Ok(())
    }

    fn end(&mut self) -> Result<Exit, Failure> {
        self.close_line()?;
        if !self.is_done {
            return Err(Failure::Broken(
                "the answer broke off: mlxd closed the connection".to_owned(),
            ));
        }
        if self.finish_reason.as_deref() == Some("length") {
            eprintln!(
                "mlxctl: the answer was cut off at its limit of tokens; --max-tokens raises it"
            );
        }
        Ok(Exit::Success)
    }

    /// Ends a line that was begun.
    fn close_line(&mut self) -> Result<(), Failure> {
        if self.last_char.is_some_and(|last| last != '\n') {
            line("")?;
            self.last_char = Some('\n');
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_found_however_they_are_cut() {
        let text = ": ping\n\ndata: {\"a\": \"ä\"}\r\n\nevent: error\ndata:{}\n\ndata: [DONE]\n\n"
            .as_bytes();
        for cut in 0..text.len() {
            let mut events = Events::default();
            let mut found = events.take(&text[..cut]).unwrap();
            found.extend(events.take(&text[cut..]).unwrap());
            assert_eq!(found, ["{\"a\": \"ä\"}", "{}", "[DONE]"], "cut at {cut}");
        }
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let mut events = Events::default();
        let long = vec![b'x'; EVENT_BYTES_MAX + 1];
        assert!(events.take(&long).is_err());
    }
}
