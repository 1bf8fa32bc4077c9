//! What clients ask, and how they behave.

use super::Engine;
use fastrand::Rng;
use serde_json::{Value, json};

/// How a client takes its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// As fast as it comes.
    Plain,
    /// A pause after each event.
    Slow {
        /// Milliseconds.
        pause_ms: u64,
    },
    /// Goes away: after so many events of a stream, or so many milliseconds without one.
    Leaves {
        /// See above.
        after: u64,
    },
}

/// One request.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) path: &'static str,
    pub(super) body: Value,
    pub(super) manner: Manner,
}

impl Ask {
    pub(super) fn random(random: &mut Rng, engine: Engine, model: &str) -> Self {
        let is_chat = random.u8(..10) < 7;
        let mut body = sampling(random, engine);
        body["model"] = json!(model);
        let prompt = prompt(random, engine);
        match is_chat {
            true => body["messages"] = json!([{"role": "user", "content": prompt}]),
            false => body["prompt"] = json!(prompt),
        }
        if random.u8(..10) < 7 {
            body["stream"] = json!(true);
            body["stream_options"] = json!({"include_usage": true});
        }
        match random.u8(..10) {
            0 | 1 => body["n"] = json!(random.u8(2..4)),
            2 | 3 => body["stop"] = json!([letters(random, 2), letters(random, 3)]),
            4 | 5 if is_chat => {
                body["logprobs"] = json!(true);
                body["top_logprobs"] = json!(random.u8(..4));
            }
            _ => {}
        }
        let manner = match random.u8(..10) {
            0 => Manner::Leaves { after: random.u64(..200) },
            1 => Manner::Slow { pause_ms: random.u64(1..20) },
            _ => Manner::Plain,
        };
        let path = if is_chat { "/v1/chat/completions" } else { "/v1/completions" };
        Self { path, body, manner }
    }

    pub(super) fn is_stream(&self) -> bool {
        self.body["stream"] == true
    }

    /// The same question for the twin, whose answer is wanted whole.
    pub(super) fn unstreamed(&self) -> Value {
        let mut body = self.body.clone();
        let fields = body.as_object_mut().expect("an object");
        fields.remove("stream");
        fields.remove("stream_options");
        body
    }
}

/// Most seeded, some greedy, some with penalties. A real engine is slow: it says less.
fn sampling(random: &mut Rng, engine: Engine) -> Value {
    let tokens = match engine {
        Engine::Scripted => random.u32(5..400),
        Engine::Mlx => random.u32(5..120),
    };
    let mut body = json!({"max_tokens": tokens, "ignore_eos": random.bool()});
    if random.u8(..4) == 0 {
        // A scripted engine says something else for every seed, greedy or not.
        (body["seed"], body["temperature"]) = (json!(0), json!(0));
        return body;
    }
    (body["seed"], body["temperature"]) = (json!(random.u32(..)), json!(1.0));
    match random.u8(..4) {
        0 => body["repetition_penalty"] = json!(1.1),
        1 => {
            (body["presence_penalty"], body["frequency_penalty"]) = (json!(0.3), json!(0.2));
        }
        2 => (body["top_p"], body["top_k"]) = (json!(0.9), json!(20)),
        _ => {}
    }
    body
}

fn prompt(random: &mut Rng, engine: Engine) -> String {
    let words = match engine {
        Engine::Scripted => random.usize(1..40),
        Engine::Mlx => random.usize(1..12),
    };
    (0..words).map(|_| word(random)).collect()
}

fn word(random: &mut Rng) -> String {
    let length = random.usize(1..9);
    letters(random, length) + " "
}

fn letters(random: &mut Rng, count: usize) -> String {
    (0..count).map(|_| random.lowercase()).collect()
}
