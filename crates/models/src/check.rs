//! What a sequence must be before MLX sees any of it.
//!
//! MLX checks no index: an id beyond the vocabulary reads foreign memory.

use mlxd_engine::SeqSpec;
use mlxd_protocol::{ModelInfo, Refusal, RefusalCode, Sampling};

/// Alternatives a sequence may ask for.
const TOP_LOGPROBS_MAX: u8 = 20;

/// Refuses what cannot be computed.
pub fn check(info: &ModelInfo, spec: &SeqSpec) -> Result<(), Refusal> {
    let refuse = |code, message: String| Err(Refusal { code, message });
    let invalid = |message: String| refuse(RefusalCode::Invalid, message);
    let SeqSpec { tokens, prompt_len, capacity, .. } = spec;
    if tokens.is_empty() || !(1..=tokens.len()).contains(prompt_len) {
        return invalid(format!(
            "a prompt of {prompt_len} tokens out of {} cannot be continued; send at least one token",
            tokens.len()
        ));
    }
    if let Some(id) = tokens.iter().find(|id| **id >= info.vocab_size) {
        return invalid(format!(
            "token id {id} is outside the model's vocabulary of {}",
            info.vocab_size
        ));
    }
    let wanted = tokens.len().max(*capacity);
    if wanted > info.context_tokens as usize {
        return refuse(
            RefusalCode::ContextOverflow,
            format!(
                "{wanted} tokens do not fit the context of {}; shorten the prompt or ask for fewer new tokens",
                info.context_tokens
            ),
        );
    }
    if *capacity < tokens.len() {
        return invalid(format!("{} tokens do not fit a capacity of {capacity}", tokens.len()));
    }
    if let Some(top) = spec.logprobs.filter(|top| *top > TOP_LOGPROBS_MAX) {
        return invalid(format!("{top} log-probabilities; at most {TOP_LOGPROBS_MAX}"));
    }
    check_sampling(&spec.sampling, info.vocab_size).or_else(invalid)
}

fn check_sampling(sampling: &Sampling, vocab: u32) -> Result<(), String> {
    let within = |name: &str, value: f32, low: f32, high: f32| {
        // Written so that NaN fails.
        match value >= low && value <= high {
            true => Ok(()),
            false => Err(format!("{name} is {value}; it must be from {low} to {high}")),
        }
    };
    const LARGE: f32 = 1e6;
    within("temperature", sampling.temperature, 0.0, LARGE)?;
    within("top_p", sampling.top_p, 0.0, 1.0)?;
    within("min_p", sampling.min_p, 0.0, 1.0)?;
    within("repetition_penalty", sampling.repetition_penalty, 1e-6, LARGE)?;
    within("presence_penalty", sampling.presence_penalty, -LARGE, LARGE)?;
    within("frequency_penalty", sampling.frequency_penalty, -LARGE, LARGE)?;
    for (token, bias) in &sampling.logit_bias {
        if *token >= vocab {
            return Err(format!(
                "logit_bias names token {token}, outside the model's vocabulary of {vocab}"
            ));
        }
        within("logit_bias", *bias, -LARGE, LARGE)?;
    }
    Ok(())
}
