//! What one server, one connection and one request may take. Plain values: the front fills them
//! in from its configuration.

use std::time::Duration;

/// Limits of the server and its connections.
#[derive(Debug, Clone)]
pub struct HttpLimits {
    /// Threads that serve connections.
    pub threads: usize,
    /// Threads for templates, tokenising and files, all connections together.
    pub blocking_threads_max: usize,
    /// Connections open at once; more wait in the operating system's queue.
    pub connections_max: usize,
    /// Answers being made at once, streamed or not; a further request gets 503.
    pub streams_max: usize,
    /// Bytes of a request's body; a longer one gets 413.
    pub body_bytes_max: usize,
    /// How long a client may take to send a request's head.
    pub header_timeout: Duration,
    /// How long a client may take to send a request's body.
    pub body_timeout: Duration,
    /// How long an idle connection stays open.
    pub keep_alive: Duration,
    /// A comment line goes down a stream that has been silent so long. A stream whose first
    /// token takes longer answers 200 at that moment; until then a failure has its own status.
    pub stream_ping: Duration,
    /// How often a stream is told in comment lines what it waits for before it begins. Its head
    /// goes out at the first of them. `None`: never.
    pub stream_progress: Option<Duration>,
    /// How long running answers may go on after a graceful stop was asked for.
    pub shutdown_grace: Duration,
    /// The least that a refusal for lack of room names in `Retry-After`, and what it names before
    /// the pace at which places come free is known.
    pub retry_after_s: u64,
    /// The most that it names.
    pub retry_after_max_s: u64,
    /// API keys and their weights, where keys are to share a busy model by weight.
    pub key_weights: Vec<(String, u32)>,
    /// Bytes of a worker's log that one admin call may ask for.
    pub log_bytes_max: u64,
    /// Limits of one request.
    pub request: RequestLimits,
    /// How much of resumable streams is kept.
    pub streams: StreamLimits,
}

/// How long and how much of the streams that their clients can come back to is kept.
#[derive(Debug, Clone)]
pub struct StreamLimits {
    /// Streams at once, read or waiting for their reader.
    pub kept_max: usize,
    /// How long one that nobody reads is kept, from its end or from its reader's leaving.
    pub retention: Duration,
    /// Bytes of events of all of them.
    pub bytes_max: usize,
    /// Bytes of events of one of them.
    pub stream_bytes_max: usize,
}

impl Default for StreamLimits {
    fn default() -> Self {
        Self {
            kept_max: 256,
            retention: Duration::from_secs(300),
            bytes_max: 64 << 20,
            stream_bytes_max: 8 << 20,
        }
    }
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            threads: 2,
            blocking_threads_max: 4,
            connections_max: 1024,
            streams_max: 256,
            body_bytes_max: 32 << 20,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(60),
            keep_alive: Duration::from_secs(75),
            stream_ping: Duration::from_secs(15),
            stream_progress: None,
            shutdown_grace: Duration::from_secs(10),
            retry_after_s: 1,
            retry_after_max_s: 60,
            key_weights: Vec::new(),
            log_bytes_max: 16 << 20,
            request: RequestLimits::default(),
            streams: StreamLimits::default(),
        }
    }
}

/// How much one request may ask for. What goes beyond is refused with 400 and both numbers.
#[derive(Debug, Clone)]
pub struct RequestLimits {
    /// The model of a request that names none; without it such a request gets 400.
    pub model_default: Option<String>,
    /// Tokens generated when a chat request names no `max_tokens`; the context bounds it.
    pub max_tokens_default: u32,
    /// Choices of one request: `n` times the number of prompts.
    pub n_max: u32,
    /// Messages of one chat request.
    pub messages_max: usize,
    /// Tools of one chat request.
    pub tools_max: usize,
    /// Stop strings of one request.
    pub stop_strings_max: usize,
    /// Bytes of one stop string.
    pub stop_bytes_max: usize,
    /// Entries of `logit_bias`.
    pub logit_bias_max: usize,
    /// `top_logprobs` of one request, at most 20.
    pub top_logprobs_max: u8,
    /// Tokens of a prompt, whatever the model's context is.
    pub prompt_tokens_max: usize,
    /// Texts of one request for embeddings.
    pub embedding_inputs_max: usize,
    /// Of those in the worker at once: the others wait, and leave room for other requests.
    pub embedding_inputs_open_max: usize,
    /// Requests whose prompt is being prepared or waits for it; a further one gets 503.
    pub prepare_queued_max: usize,
    /// Bytes kept of conversations that were tokenised, texts and ids, all models together.
    pub prepare_cache_bytes_max: usize,
    /// How long preparing one prompt may wait and run.
    pub prepare_timeout: Duration,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self {
            model_default: None,
            max_tokens_default: 4096,
            n_max: 8,
            messages_max: 4096,
            tools_max: 256,
            stop_strings_max: 16,
            stop_bytes_max: 1024,
            logit_bias_max: 1024,
            top_logprobs_max: 20,
            prompt_tokens_max: 1 << 20,
            embedding_inputs_max: 2048,
            embedding_inputs_open_max: 32,
            prepare_queued_max: 256,
            prepare_cache_bytes_max: 16 << 20,
            prepare_timeout: Duration::from_secs(30),
        }
    }
}
