//! `[requests]`: how much one request may ask for.

use crate::section::section;
use crate::value::Weights;
use std::collections::BTreeMap;

section! {
    /// How much one request may ask for. What goes beyond is refused with 400 and both numbers.
    pub struct RequestsConfig in "requests" {
        /// Tokens generated when a request names no `max_tokens`; the model's context bounds it.
        max_tokens_default: u32 = 4096, 1..=16_777_216;
        /// Choices of one request (`n`).
        n_max: u32 = 8, 1..=128;
        /// Messages of one chat request.
        messages_max: usize = 4096, 1..=1_000_000;
        /// Tools of one chat request.
        tools_max: usize = 256, 0..=65_536;
        /// Stop strings of one request.
        stop_strings_max: usize = 16, 0..=1_024;
        /// Bytes of one stop string.
        stop_bytes_max: usize = 1024, 1..=65_536;
        /// Entries of `logit_bias`.
        logit_bias_max: usize = 1024, 0..=262_144;
        /// `top_logprobs` of one request; OpenAI's own limit is 20, and so is the ring record's.
        top_logprobs_max: u32 = 20, 0..=20;
        /// Tokens of a prompt, whatever the model's context is.
        prompt_tokens_max: usize = 1_048_576, 1..=16_777_216;
        /// Texts of one request for embeddings; OpenAI's own limit.
        embedding_inputs_max: usize = 2048, 1..=65_536;
        /// Of those in the worker at once; the others wait for them.
        embedding_inputs_open_max: usize = 32, 1..=65_536;
        /// Bytes that a chat template may write.
        template_output_bytes_max: usize = 32 * 1024 * 1024, 1024..=1024 * 1024 * 1024;
        /// Instructions that a chat template may run.
        template_instructions_max: u64 = 20_000_000, 10_000..=1_000_000_000_000;
        /// How long templates and tokenising of one request may wait and run.
        tokenize_timeout_ms: u64 = 30_000, 10..=3_600_000;
        /// Requests that wait for tokenising at once; a further one gets 503.
        tokenize_queued_max: usize = 256, 1..=65_536;
        /// Bytes kept of conversations that were tokenised, texts and ids, all models together, so that
        /// the next turn tokenises what is new in it. 0 keeps nothing.
        tokenize_cache_bytes_max: usize = 16 * 1024 * 1024, 0..=4 * 1024 * 1024 * 1024;
        /// How long a request may wait for its model to be loaded and for a place in it.
        queue_timeout_ms: u64 = 600_000, 10..=86_400_000;
        /// How long an answer may stand still after its worker died, before it ends with an error.
        recovery_timeout_ms: u64 = 120_000, 100..=86_400_000;
        /// A request that was in a worker at so many of its deaths is not tried again.
        deaths_max: u32 = 2, 1..=1_000;
        /// API keys, as clients present them in `Authorization: Bearer` or `X-Api-Key`, and the
        /// weight of each. All other requests share one more place, of weight 1.
        key_weights: BTreeMap<String, u32> = BTreeMap::new(), Weights;
        /// How long one answer may take from its request on.
        total_timeout_ms: u64 = 3_600_000, 100..=86_400_000;
    }
}
