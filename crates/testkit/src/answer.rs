//! What a client got of an answer, streamed or not, in one form that can be compared with what
//! another client got.

use crate::http::{Body, Response};
use crate::sse::{Event, Events};
use serde_json::Value;
use std::ops::ControlFlow;

/// An answer, or what there is of one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    /// By index.
    pub choices: Vec<AnswerChoice>,
    /// Tokens of the prompt and of all choices, where the server told them.
    pub usage: Option<(u64, u64)>,
}

/// One choice of an [`Answer`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AnswerChoice {
    /// What it says.
    pub text: String,
    /// Why it ended; `None` before its end.
    pub finish: Option<String>,
    /// One object a token, of a chat's choice that was asked for them.
    pub logprobs: Vec<Value>,
}

/// How a request ended for its client.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// A whole answer, said to be one.
    Whole(Answer),
    /// An error in words: a status of its own, or an event inside a stream.
    Error {
        /// The status of the response; 200 for an error event.
        status: u16,
        /// The API's error code.
        code: String,
        /// What the client was told.
        message: String,
        /// What came before it.
        so_far: Answer,
    },
    /// The body ended as a whole one does, but nothing said that the answer is whole.
    CleanEnd(Answer),
    /// The connection ended before the body did, with no error in words.
    Cut {
        /// What came before.
        so_far: Answer,
        /// What the system said.
        reason: String,
    },
    /// The client hung up itself.
    HungUp(Answer),
    /// What no server may send.
    Malformed(String),
}

impl Outcome {
    /// The whole answer. Panics when it is not one.
    pub fn whole(self) -> Answer {
        match self {
            Self::Whole(answer) => answer,
            other => panic!("not a whole answer: {other:?}"),
        }
    }

    /// The error's code and message, and what came before it. Panics when it was none.
    pub fn error(self) -> (String, String, Answer) {
        match self {
            Self::Error { code, message, so_far, .. } => (code, message, so_far),
            other => panic!("no error in words: {other:?}"),
        }
    }

    /// Reads a response to its end. `seen` is called with every event of a stream, and what it
    /// came to so far; it may hang up.
    pub fn read(
        response: Response,
        mut seen: impl FnMut(&Event, &Answer) -> ControlFlow<()>,
    ) -> Self {
        let is_stream = response
            .header("content-type")
            .is_some_and(|kind| kind.starts_with("text/event-stream"));
        match is_stream {
            true => read_stream(response.events(), &mut seen),
            false => read_body(response),
        }
    }
}

impl Answer {
    /// The text of the first choice.
    pub fn text(&self) -> &str {
        self.choices.first().map_or("", |choice| &choice.text)
    }

    /// Whether everything here is how `whole` begins.
    pub fn begins(&self, whole: &Self) -> bool {
        self.choices.len() <= whole.choices.len()
            && self.choices.iter().zip(&whole.choices).all(|(begun, whole)| {
                whole.text.starts_with(&begun.text)
                    && whole.logprobs.starts_with(&begun.logprobs)
                    && (begun.finish.is_none() || begun == whole)
            })
    }

    fn of_body(body: &Value) -> Self {
        let mut this = Self::default();
        for choice in body["choices"].as_array().into_iter().flatten() {
            this.choice(choice).take(choice, &choice["message"]);
        }
        this.take_usage(body);
        this
    }

    fn choice(&mut self, value: &Value) -> &mut AnswerChoice {
        let index = value["index"].as_u64().unwrap_or(0) as usize;
        if self.choices.len() <= index {
            self.choices.resize_with(index + 1, AnswerChoice::default);
        }
        &mut self.choices[index]
    }

    fn take_usage(&mut self, value: &Value) {
        let tokens = |name: &str| value["usage"][name].as_u64();
        self.usage = tokens("prompt_tokens").zip(tokens("completion_tokens")).or(self.usage);
    }

    /// What is wrong with the chunk, if anything is.
    fn take_chunk(&mut self, chunk: &Value) -> Result<(), String> {
        for value in chunk["choices"].as_array().into_iter().flatten() {
            let choice = self.choice(value);
            if choice.finish.is_some() {
                return Err(format!("a choice goes on after its end: {chunk}"));
            }
            choice.take(value, &value["delta"]);
        }
        self.take_usage(chunk);
        Ok(())
    }

    fn is_finished(&self) -> bool {
        !self.choices.is_empty() && self.choices.iter().all(|choice| choice.finish.is_some())
    }
}

impl AnswerChoice {
    fn take(&mut self, value: &Value, message: &Value) {
        let text = message["content"].as_str().or(value["text"].as_str());
        self.text.push_str(text.unwrap_or_default());
        let logprobs = value["logprobs"]["content"].as_array().cloned();
        self.logprobs.extend(logprobs.unwrap_or_default());
        self.finish = value["finish_reason"].as_str().map(str::to_owned);
    }
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn read_body(response: Response) -> Outcome {
    let status = response.status;
    let bytes = match response.bytes() {
        Ok(bytes) => bytes,
        Err(error) => {
            return Outcome::Cut { so_far: Answer::default(), reason: error.to_string() };
        }
    };
    let Ok(body) = serde_json::from_slice::<Value>(&bytes) else {
        return Outcome::Malformed(String::from_utf8_lossy(&bytes).into_owned());
    };
    if status != 200 {
        let error = &body["error"];
        return Outcome::Error {
            status,
            code: text_of(&error["code"]),
            message: text_of(&error["message"]),
            so_far: Answer::default(),
        };
    }
    let answer = Answer::of_body(&body);
    match answer.is_finished() {
        true => Outcome::Whole(answer),
        false => Outcome::CleanEnd(answer),
    }
}

fn read_stream(
    mut events: Events<Body>,
    seen: &mut impl FnMut(&Event, &Answer) -> ControlFlow<()>,
) -> Outcome {
    let mut answer = Answer::default();
    let mut told: Option<Value> = None;
    let mut done = false;
    loop {
        let event = match events.next_event() {
            Ok(Some(event)) => event,
            // After an error in words the connection is cut: that end is as it should be.
            Ok(None) | Err(_) if told.is_some() => {
                let told = told.unwrap_or_default();
                let (code, message) = (text_of(&told["code"]), text_of(&told["message"]));
                return Outcome::Error { status: 200, code, message, so_far: answer };
            }
            Ok(None) if done && answer.is_finished() => return Outcome::Whole(answer),
            Ok(None) => return Outcome::CleanEnd(answer),
            Err(error) => return Outcome::Cut { so_far: answer, reason: error.to_string() },
        };
        if done || told.is_some() {
            return Outcome::Malformed(format!("{:?} after the end", event.data));
        }
        if event.data == "[DONE]" {
            done = true;
            continue;
        }
        let Ok(chunk) = serde_json::from_str::<Value>(&event.data) else {
            return Outcome::Malformed(event.data);
        };
        match chunk.get("error") {
            Some(error) => told = Some(error.clone()),
            None => {
                if let Err(wrong) = answer.take_chunk(&chunk) {
                    return Outcome::Malformed(wrong);
                }
            }
        }
        if seen(&event, &answer).is_break() {
            return Outcome::HungUp(answer);
        }
    }
}
