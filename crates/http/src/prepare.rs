//! From a checked request to tokens: template, encode, context check, on blocking threads.
//!
//! The number of prompts being prepared or waiting for it is bounded; a further one is refused.
//! A short prompt takes less time than handing it to another thread and back: it is prepared where
//! it is, as long as short ones have proved to be quick.

use crate::error::ApiError;
use crate::limits::HttpLimits;
use crate::openai::chat::ValidChat;
use crate::openai::common::Common;
use crate::openai::completion::Prompt;
use mlxd_dispatch::{GenerationDefaults, OpenModel};
use mlxd_protocol::Sampling;
use mlxd_text::{RenderInput, SegmentCache, SegmentFigures};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// A body of at most this many bytes makes a short prompt.
const SHORT_BYTES: usize = 4096;

/// Longer than a short prompt ever takes, unless its template is slow.
const SHORT_TIME_MAX: Duration = Duration::from_micros(500);

/// After a short prompt that was slow so many go to the blocking threads.
const SLOW_PAUSE: u32 = 64;

/// Runs blocking work, so much at once, so much waiting.
#[derive(Debug)]
pub(crate) struct Preparer {
    /// Short prompts that still go to the blocking threads.
    pause: AtomicU32,
    /// Of conversations that were tokenised before.
    segments: Arc<SegmentCache>,
    places: Arc<Semaphore>,
    threads: Arc<Semaphore>,
    places_max: usize,
    timeout: Duration,
    retry_after_s: u64,
}

impl Preparer {
    pub(crate) fn new(limits: &HttpLimits) -> Self {
        let places_max = limits.request.prepare_queued_max;
        Self {
            pause: AtomicU32::new(0),
            segments: Arc::new(SegmentCache::new(limits.request.prepare_cache_bytes_max)),
            places: Arc::new(Semaphore::new(places_max)),
            threads: Arc::new(Semaphore::new(limits.blocking_threads_max)),
            places_max,
            timeout: limits.request.prepare_timeout,
            retry_after_s: limits.retry_after_s,
        }
    }

    /// What was tokenised before, for [`chat`].
    pub(crate) fn segments(&self) -> Arc<SegmentCache> {
        self.segments.clone()
    }

    /// How much of the conversations' text had been tokenised before.
    pub(crate) fn segment_figures(&self) -> SegmentFigures {
        self.segments.figures()
    }

    /// Runs the work that a body of `bytes` makes: here if it is short, else on a blocking thread.
    pub(crate) async fn prepare<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let next = |left: u32| left.checked_sub(1);
        let relaxed = Ordering::Relaxed;
        if bytes > SHORT_BYTES || self.pause.fetch_update(relaxed, relaxed, next).is_ok() {
            return self.run(work).await;
        }
        let begun = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(work));
        if begun.elapsed() > SHORT_TIME_MAX {
            self.pause.store(SLOW_PAUSE, relaxed);
        }
        outcome.unwrap_or_else(|_| Err(internal("it panicked".to_owned())))
    }

    /// Runs `work` on a blocking thread. Dropping the future gives up its place; work that has
    /// begun runs to its end and keeps its thread so long.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let Ok(_place) = self.places.try_acquire() else {
            let max = self.places_max;
            return Err(self.overloaded(format!(
                "{max} prompts are being prepared or wait for it, which is the most that is \
                 taken; try again in a moment"
            )));
        };
        let outcome = tokio::time::timeout(self.timeout, async {
            let thread = self.threads.clone().acquire_owned().await;
            let thread = thread.map_err(|error| internal(error.to_string()))?;
            let task = tokio::task::spawn_blocking(move || {
                let _thread = thread;
                work()
            });
            task.await.unwrap_or_else(|error| Err(internal(error.to_string())))
        });
        outcome.await.unwrap_or_else(|_| {
            let seconds = self.timeout.as_secs();
            Err(self.overloaded(format!(
                "the prompt could not be prepared within {seconds} s; shorten it or try again"
            )))
        })
    }

    fn overloaded(&self, message: String) -> ApiError {
        ApiError::Overloaded { message, retry_after_s: self.retry_after_s }
    }
}

fn internal(what: String) -> ApiError {
    ApiError::Internal { message: format!("preparing the prompt failed: {what}") }
}

/// A prompt that fits its model.
#[derive(Debug, Clone)]
pub(crate) struct Prepared {
    /// Its tokens, at least one.
    pub(crate) prompt: Arc<[u32]>,
    /// Its text, where the answer is to begin with it.
    pub(crate) echo: String,
}

/// A model that turns texts into vectors is asked for text.
fn check_writes(model: &OpenModel) -> Result<(), ApiError> {
    match model.vector_width {
        None => Ok(()),
        Some(_) => Err(ApiError::Invalid {
            param: Some("model".to_owned()),
            code: Some("not_a_chat_model"),
            message: format!(
                "{} turns texts into vectors and writes none; use /v1/embeddings, or choose a \
                 chat model",
                model.id
            ),
        }),
    }
}

/// Encodes a text that is to become a vector. Blocks.
pub(crate) fn text(
    model: &OpenModel,
    input: Prompt,
    name: &str,
    tokens_max: usize,
) -> Result<Arc<[u32]>, ApiError> {
    let tokens = match input {
        Prompt::Text(text) => model.text.tokenizer.encode(&text, true)?,
        Prompt::Tokens(ids) => {
            check_ids(model, &ids, name)?;
            ids
        }
    };
    let (got, context) = (tokens.len(), model.context_tokens as usize);
    if got == 0 {
        return Err(ApiError::field(name, format!("'{name}' has no token")));
    }
    if got > context.min(tokens_max) {
        let max = context.min(tokens_max);
        return Err(ApiError::ContextLength {
            param: "input",
            message: format!(
                "{} takes at most {max} tokens of a text, and '{name}' has {got}; shorten it",
                model.id
            ),
        });
    }
    Ok(tokens.into())
}

fn check_ids(model: &OpenModel, ids: &[u32], name: &str) -> Result<(), ApiError> {
    let size = model.text.tokenizer.vocab_size();
    match ids.iter().find(|&&id| id as usize >= size) {
        None => Ok(()),
        Some(id) => Err(ApiError::field(
            name,
            format!("'{name}' has the token id {id}; the model's ids are 0 to {}", size - 1),
        )),
    }
}

/// Renders and encodes a conversation; of one that grew, what is new. Blocks.
pub(crate) fn chat(
    model: &OpenModel,
    chat: &ValidChat,
    segments: &SegmentCache,
    tokens_max: usize,
) -> Result<Prepared, ApiError> {
    check_writes(model)?;
    let Some(template) = &model.text.template else {
        return Err(ApiError::Invalid {
            param: Some("model".to_owned()),
            code: Some("no_chat_template"),
            message: format!(
                "{} has no chat template, so it cannot chat; use /v1/completions",
                model.id
            ),
        });
    };
    let text = template.render(&RenderInput {
        messages: &chat.messages,
        tools: chat.tools.as_ref(),
        add_generation_prompt: true,
        extra: Some(&chat.template_arguments),
        ..RenderInput::default()
    })?;
    let prompt = model.text.tokenizer.encode_cached(&text, false, segments)?;
    check_length(model, &prompt, tokens_max, "messages")?;
    Ok(Prepared { prompt: prompt.into(), echo: String::new() })
}

/// Encodes a bare prompt, or takes what it was encoded to before. Blocks.
pub(crate) fn completion(
    model: &OpenModel,
    prompt: &Prompt,
    echo: bool,
    segments: &SegmentCache,
    tokens_max: usize,
) -> Result<Prepared, ApiError> {
    check_writes(model)?;
    let tokenizer = &model.text.tokenizer;
    let (tokens, text) = match prompt {
        Prompt::Text(text) => (tokenizer.encode_cached(text, true, segments)?, text.clone()),
        Prompt::Tokens(ids) => {
            check_ids(model, ids, "prompt")?;
            let text = if echo { tokenizer.decode(ids, true) } else { String::new() };
            (ids.clone(), text)
        }
    };
    check_length(model, &tokens, tokens_max, "prompt")?;
    Ok(Prepared { prompt: tokens.into(), echo: if echo { text } else { String::new() } })
}

fn check_length(
    model: &OpenModel,
    prompt: &[u32],
    tokens_max: usize,
    param: &'static str,
) -> Result<(), ApiError> {
    let (got, context) = (prompt.len(), model.context_tokens as usize);
    if got == 0 {
        return Err(ApiError::field(param, format!("'{param}' makes an empty prompt")));
    }
    if got >= context {
        return Err(ApiError::ContextLength {
            param,
            message: format!(
                "{} takes at most {context} tokens, prompt and answer together, and the prompt \
                 has {got}; shorten '{param}'",
                model.id
            ),
        });
    }
    if got > tokens_max {
        return Err(ApiError::ContextLength {
            param,
            message: format!(
                "a prompt may have {tokens_max} tokens here, and this one has {got}; shorten \
                 '{param}', or raise prompt_tokens_max under [requests] in mlxd.toml"
            ),
        });
    }
    Ok(())
}

/// How tokens are chosen: as the request says, else as the model's authors, else as OpenAI.
pub(crate) fn sampling(common: &Common, defaults: &GenerationDefaults, seed: u64) -> Sampling {
    let asked = &common.sampling;
    let base = Sampling::default();
    Sampling {
        temperature: asked.temperature.or(defaults.temperature).unwrap_or(1.0),
        top_p: asked.top_p.or(defaults.top_p).unwrap_or(base.top_p),
        top_k: asked.top_k.or(defaults.top_k).unwrap_or(base.top_k),
        min_p: asked.min_p.or(defaults.min_p).unwrap_or(base.min_p),
        repetition_penalty: asked
            .repetition_penalty
            .or(defaults.repetition_penalty)
            .unwrap_or(base.repetition_penalty),
        repetition_window: asked.repetition_window.unwrap_or(base.repetition_window),
        presence_penalty: asked.presence_penalty.unwrap_or(base.presence_penalty),
        frequency_penalty: asked.frequency_penalty.unwrap_or(base.frequency_penalty),
        logit_bias: common.logit_bias.clone(),
        seed,
    }
}

/// The seed of a request's choice number `choice`: its own for the first, a scattered one for the
/// others, so that one seed gives the same `n` different answers again.
pub(crate) fn seed_of_choice(seed: u64, choice: usize) -> u64 {
    if choice == 0 {
        return seed;
    }
    // The finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
    let mut z = seed.wrapping_add((choice as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
