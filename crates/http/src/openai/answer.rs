//! Answers and chunks as JSON text.
//!
//! Written by hand over one buffer: a stream is the same few words around a changing text, and
//! at hundreds of thousands of tokens a second a tree of values per chunk would be most of the
//! work. Only strings and numbers go through `serde_json`.

use crate::respond::choice::Finish;
use crate::respond::logprobs::TokenLogprob;
use bytes::{BufMut, BytesMut};
use mlxd_text::Tokenizer;
use serde::Serialize;
use std::fmt::Write as _;

/// What a client is told of the server's build.
const FINGERPRINT: &str = concat!("mlxd-", env!("CARGO_PKG_VERSION"));

/// Stands for minus infinity, which JSON cannot say.
const LOGPROB_LEAST: f32 = -9999.0;

/// Which of the two APIs an answer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// `chat.completion` and its chunks.
    Chat,
    /// `text_completion`.
    Text,
}

/// Token counts of an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: u32,
    pub(crate) completion_tokens: u32,
    pub(crate) cached_tokens: u32,
}

/// What is the same in all chunks of an answer.
#[derive(Debug)]
pub(crate) struct Head {
    /// As `chatcmpl-…`.
    pub(crate) id: String,
    /// Which API.
    pub(crate) shape: Shape,
    /// For the texts of log-probabilities.
    pub(crate) tokenizer: Tokenizer,
    /// Chunks say `"usage":null` until the last, when usage was asked for.
    include_usage: bool,
    /// Up to and including `"choices":[`.
    chunk_start: String,
    answer_start: String,
}

/// One finished choice of an answer that is not streamed.
#[derive(Debug)]
pub(crate) struct Whole<'a> {
    pub(crate) text: &'a str,
    pub(crate) logprobs: Option<&'a [TokenLogprob]>,
    pub(crate) finish: Finish,
}

impl Head {
    pub(crate) fn new(
        shape: Shape,
        id: String,
        model: &str,
        created_unix_s: u64,
        include_usage: bool,
        tokenizer: Tokenizer,
    ) -> Self {
        let start = |object: &str| {
            let mut text = String::new();
            let (id, model) = (json_string(&id), json_string(model));
            write!(
                text,
                r#"{{"id":{id},"object":"{object}","created":{created_unix_s},"model":{model},"system_fingerprint":"{FINGERPRINT}","choices":["#
            )
            .expect("writing to a String cannot fail");
            text
        };
        let (chunk_start, answer_start) = match shape {
            Shape::Chat => (start("chat.completion.chunk"), start("chat.completion")),
            Shape::Text => (start("text_completion"), start("text_completion")),
        };
        Self { id, shape, tokenizer, include_usage, chunk_start, answer_start }
    }

    fn open_chunk(&self, out: &mut BytesMut, index: usize) {
        put(out, "data: ");
        put(out, &self.chunk_start);
        put(out, "{\"index\":");
        put_json(out, &index);
    }

    fn close_chunk(&self, out: &mut BytesMut, finish: Option<Finish>) {
        match finish {
            None => put(out, ",\"finish_reason\":null}]"),
            Some(finish) => {
                put(out, ",\"finish_reason\":\"");
                put(out, finish.name());
                put(out, "\"}]");
            }
        }
        put(out, if self.include_usage { ",\"usage\":null}\n\n" } else { "}\n\n" });
    }

    /// The chunk that begins a chat's choice.
    pub(crate) fn role_chunk(&self, out: &mut BytesMut, index: usize) {
        if self.shape == Shape::Chat {
            self.open_chunk(out, index);
            put(out, ",\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null");
            self.close_chunk(out, None);
        }
    }

    /// A piece of a choice.
    pub(crate) fn delta_chunk(
        &self,
        out: &mut BytesMut,
        index: usize,
        text: &str,
        logprobs: Option<&[TokenLogprob]>,
    ) {
        self.open_chunk(out, index);
        match self.shape {
            Shape::Chat => {
                put(out, ",\"delta\":{\"content\":");
                put_json(out, text);
                put(out, "},\"logprobs\":");
            }
            Shape::Text => {
                put(out, ",\"text\":");
                put_json(out, text);
                put(out, ",\"logprobs\":");
            }
        }
        self.put_logprobs(out, logprobs);
        self.close_chunk(out, None);
    }

    /// The chunk that ends a choice.
    pub(crate) fn finish_chunk(&self, out: &mut BytesMut, index: usize, finish: Finish) {
        self.open_chunk(out, index);
        put(
            out,
            match self.shape {
                Shape::Chat => ",\"delta\":{},\"logprobs\":null",
                Shape::Text => ",\"text\":\"\",\"logprobs\":null",
            },
        );
        self.close_chunk(out, Some(finish));
    }

    /// What comes after all choices: usage, if it was asked for.
    pub(crate) fn usage_chunk(&self, out: &mut BytesMut, usage: Usage) {
        if self.include_usage {
            put(out, "data: ");
            put(out, &self.chunk_start);
            put(out, "],\"usage\":");
            usage.write(out);
            put(out, "}\n\n");
        }
    }

    /// The last event of a whole answer.
    pub(crate) fn end_mark(&self, out: &mut BytesMut) {
        put(out, "data: [DONE]\n\n");
    }

    /// An answer that is not streamed.
    pub(crate) fn answer(&self, out: &mut BytesMut, choices: &[Whole<'_>], usage: Usage) {
        put(out, &self.answer_start);
        for (index, choice) in choices.iter().enumerate() {
            put(out, if index == 0 { "{\"index\":" } else { ",{\"index\":" });
            put_json(out, &index);
            match self.shape {
                Shape::Chat => {
                    put(out, ",\"message\":{\"role\":\"assistant\",\"content\":");
                    put_json(out, choice.text);
                    put(out, ",\"refusal\":null},\"logprobs\":");
                }
                Shape::Text => {
                    put(out, ",\"text\":");
                    put_json(out, choice.text);
                    put(out, ",\"logprobs\":");
                }
            }
            self.put_logprobs(out, choice.logprobs);
            put(out, ",\"finish_reason\":\"");
            put(out, choice.finish.name());
            put(out, "\"}");
        }
        put(out, "],\"usage\":");
        usage.write(out);
        put(out, "}");
    }

    fn put_logprobs(&self, out: &mut BytesMut, logprobs: Option<&[TokenLogprob]>) {
        match (logprobs, self.shape) {
            (None, _) => put(out, "null"),
            (Some(tokens), Shape::Chat) => self.put_chat_logprobs(out, tokens),
            (Some(tokens), Shape::Text) => self.put_text_logprobs(out, tokens),
        }
    }

    fn put_chat_logprobs(&self, out: &mut BytesMut, tokens: &[TokenLogprob]) {
        put(out, "{\"content\":[");
        for (at, token) in tokens.iter().enumerate() {
            comma(out, at);
            self.open_token(out, token.token, token.logprob);
            put(out, ",\"top_logprobs\":[");
            for (at, (id, logprob)) in token.top.iter().enumerate() {
                comma(out, at);
                self.open_token(out, *id, *logprob);
                put(out, "}");
            }
            put(out, "]}");
        }
        put(out, "],\"refusal\":null}");
    }

    fn open_token(&self, out: &mut BytesMut, id: u32, logprob: f32) {
        put(out, "{\"token\":");
        put_json(out, &self.token_text(id));
        put(out, ",\"logprob\":");
        put_logprob(out, logprob);
        put(out, ",\"bytes\":");
        put_json(out, &self.tokenizer.token_bytes(id));
    }

    /// The older shape: four lists side by side.
    fn put_text_logprobs(&self, out: &mut BytesMut, tokens: &[TokenLogprob]) {
        list(out, "{\"tokens\":[", tokens, |out, t| put_json(out, &self.token_text(t.token)));
        list(out, "],\"token_logprobs\":[", tokens, |out, t| put_logprob(out, t.logprob));
        list(out, "],\"top_logprobs\":[", tokens, |out, t| self.put_alternatives(out, t));
        list(out, "],\"text_offset\":[", tokens, |out, t| put_json(out, &t.offset_chars));
        put(out, "]}");
    }

    /// Text to log-probability. Of several tokens with the same text the likeliest is told.
    fn put_alternatives(&self, out: &mut BytesMut, token: &TokenLogprob) {
        let mut told: Vec<String> = Vec::with_capacity(token.top.len());
        put(out, "{");
        for (id, logprob) in &token.top {
            let text = self.token_text(*id);
            if told.contains(&text) {
                continue;
            }
            comma(out, told.len());
            put_json(out, &text);
            put(out, ":");
            put_logprob(out, *logprob);
            told.push(text);
        }
        put(out, "}");
    }

    fn token_text(&self, id: u32) -> String {
        self.tokenizer.token_text(id).unwrap_or_default()
    }
}

impl Usage {
    fn write(self, out: &mut BytesMut) {
        let Self { prompt_tokens, completion_tokens, cached_tokens } = self;
        let total_tokens = prompt_tokens + completion_tokens;
        write!(
            out,
            r#"{{"prompt_tokens":{prompt_tokens},"completion_tokens":{completion_tokens},"total_tokens":{total_tokens},"prompt_tokens_details":{{"cached_tokens":{cached_tokens}}}}}"#
        )
        .expect("a BytesMut grows");
    }
}

/// An error inside a stream.
pub(crate) fn error_event(out: &mut BytesMut, body: &serde_json::Value) {
    put(out, "data: ");
    put_json(out, body);
    put(out, "\n\n");
}

fn list<T>(out: &mut BytesMut, open: &str, items: &[T], mut write: impl FnMut(&mut BytesMut, &T)) {
    put(out, open);
    for (at, item) in items.iter().enumerate() {
        comma(out, at);
        write(out, item);
    }
}

fn comma(out: &mut BytesMut, at: usize) {
    if at > 0 {
        put(out, ",");
    }
}

fn put(out: &mut BytesMut, text: &str) {
    out.extend_from_slice(text.as_bytes());
}

fn put_json(out: &mut BytesMut, value: &(impl Serialize + ?Sized)) {
    serde_json::to_writer(out.writer(), value).expect("plain values become JSON");
}

fn put_logprob(out: &mut BytesMut, logprob: f32) {
    put_json(out, &if logprob.is_finite() { logprob } else { LOGPROB_LEAST });
}

fn json_string(text: &str) -> String {
    serde_json::to_string(text).expect("a string becomes JSON")
}
