//! Choosing the next token, on the device.
//!
//! Everything that a choice depends on stays on the device too: what was seen and how often is
//! kept in small arrays that each draw updates with its own token, so that the next step can be
//! built before this one's token is known to anybody.

use mlx_rs::error::{Exception, Result};
use mlx_rs::ops::indexing::{put_along_axis, take_along_axis};
use mlx_rs::ops::{argpartition_axis, argsort_axis, concatenate, logsumexp_axis, select};
use mlx_rs::{Array, Dtype};
use mlxd_protocol::{Sampling, TokenId};

use crate::sys;

mod choice;

use choice::{Choice, Manner, choose};
pub use choice::{draw_along, draw_rows};

/// What one step of one or more rows produced, not evaluated.
#[derive(Debug)]
pub struct Drawn {
    /// `[rows, 1]`, u32: the next step's input as it is.
    pub tokens: Array,
    /// By row; present if log-probabilities were asked for.
    pub logprobs: Vec<Option<Logprobs>>,
}

/// Log-probabilities of one position, of the logits as the model gave them.
#[derive(Debug)]
pub struct Logprobs {
    /// `[1, 1]`: the token's own.
    pub chosen: Array,
    /// Ids and values `[1, k]` of the likeliest, likeliest first.
    pub top: Option<(Array, Array)>,
}

/// A draw read back.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Which token.
    pub id: TokenId,
    /// Its log-probability; NaN if nobody asked.
    pub logprob: f32,
    /// The likeliest tokens, likeliest first, as many as were asked for.
    pub top: Vec<(TokenId, f32)>,
}

/// Draws the tokens of one sequence.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    logprobs: Option<u8>,
    vocab: i32,
    /// Index of the next draw among the generated tokens.
    index: u64,
    bias: Option<Array>,
    /// The last tokens, `[1, n]`, prompt included, for the repetition penalty.
    window: Option<Array>,
    /// How often each token was generated, `[1, vocab]`, for the other two penalties.
    counts: Option<Array>,
}

/// The key of the draw at `index`: a function of its two arguments alone, so that a sequence
/// that starts again in another process draws as before. The mix is SplitMix64's.
pub fn draw_key(seed: u64, index: u64) -> [u32; 2] {
    let mix = |value: u64| {
        let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    };
    let step = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let key = mix(mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)).wrapping_add(step));
    [(key >> 32) as u32, key as u32]
}

impl Sampler {
    /// For a sequence that holds `tokens` already, `tokens[..prompt_len]` being its prompt.
    /// Ids and parameters have been checked.
    pub fn new(
        sampling: Sampling,
        logprobs: Option<u8>,
        vocab: i32,
        tokens: &[TokenId],
        prompt_len: usize,
    ) -> Self {
        let generated = &tokens[prompt_len..];
        let counted = sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0;
        let repeats = sampling.repetition_penalty != 1.0 && sampling.repetition_window > 0;
        let kept = tokens.len().min(sampling.repetition_window as usize);
        let last = &tokens[tokens.len() - kept..];
        Self {
            bias: bias(&sampling, vocab),
            window: repeats.then(|| Array::from_slice(last, &[1, kept as i32])),
            counts: counted.then(|| counts(generated, vocab)),
            index: generated.len() as u64,
            sampling,
            logprobs,
            vocab,
        }
    }

    /// Draws from `logits`, `[1, vocab]`.
    pub fn draw(&mut self, logits: &Array) -> Result<Drawn> {
        let adjusted = self.adjust(logits)?;
        let token = choose(&adjusted, Manner::of(&self.sampling, self.vocab), &[self.choice()])?;
        let logprobs = match self.logprobs {
            Some(top) => Some(logprobs(logits, &token, i32::from(top).min(self.vocab))?),
            None => None,
        };
        self.index += 1;
        self.remember(&token)?;
        Ok(Drawn { tokens: token, logprobs: vec![logprobs] })
    }

    /// The same draws, and nothing said of them.
    pub fn without_logprobs(&self) -> Self {
        Self { logprobs: None, ..self.clone() }
    }

    fn choice(&self) -> Choice<'_> {
        Choice { sampling: &self.sampling, index: self.index }
    }

    /// Whether its logits change, or are asked for, beyond what [`choose`] does for many.
    fn alone(&self) -> bool {
        let adjusts = self.window.is_some() || self.counts.is_some() || self.bias.is_some();
        adjusts || self.logprobs.is_some()
    }

    /// Penalties, then bias. Without either the logits pass as they are.
    fn adjust(&self, logits: &Array) -> Result<Array> {
        if self.window.is_none() && self.counts.is_none() && self.bias.is_none() {
            return Ok(logits.clone());
        }
        let mut logits = logits.as_dtype(Dtype::Float32)?;
        if let Some(window) = &self.window {
            let penalty = Array::from_f32(self.sampling.repetition_penalty);
            let seen = take_along_axis(&logits, window, -1)?;
            let zero = Array::from_f32(0.0);
            let worse = select(seen.lt(&zero)?, seen.multiply(&penalty)?, seen.divide(&penalty)?)?;
            logits = put_along_axis(&logits, window, &worse, -1)?;
        }
        if let Some(counts) = &self.counts {
            let seen = counts.gt(Array::from_f32(0.0))?.as_dtype(Dtype::Float32)?;
            let presence = seen.multiply(Array::from_f32(self.sampling.presence_penalty))?;
            let frequency = counts.multiply(Array::from_f32(self.sampling.frequency_penalty))?;
            logits = logits.subtract(&presence)?.subtract(&frequency)?;
        }
        match &self.bias {
            Some(bias) => logits.add(bias),
            None => Ok(logits),
        }
    }

    fn remember(&mut self, token: &Array) -> Result<()> {
        if let Some(window) = &self.window {
            let held = window.dim(1);
            let most = i32::try_from(self.sampling.repetition_window).unwrap_or(i32::MAX);
            let first = (held + 1 - most).max(0);
            let kept = sys::slice(window, &[0, first], &[1, held])?;
            self.window = Some(concatenate(&[&kept, token], 1)?);
        }
        if let Some(counts) = &self.counts {
            let more = take_along_axis(counts, token, -1)?.add(Array::from_f32(1.0))?;
            self.counts = Some(put_along_axis(counts, token, &more, -1)?);
        }
        Ok(())
    }
}

/// Ids of the `few` smallest of `falling`, `[rows, vocab]`, in order.
fn likeliest(falling: &Array, few: i32) -> Result<Array> {
    if few >= falling.dim(1) {
        return argsort_axis(falling, -1);
    }
    let ids = argpartition_axis(falling, few - 1, -1)?;
    let ids = sys::slice(&ids, &[0, 0], &[falling.dim(0), few])?;
    let order = argsort_axis(take_along_axis(falling, &ids, -1)?, -1)?;
    take_along_axis(&ids, &order, -1)
}

fn logprobs(logits: &Array, token: &Array, top: i32) -> Result<Logprobs> {
    let logits = logits.as_dtype(Dtype::Float32)?;
    let all = logits.subtract(logsumexp_axis(&logits, -1, true)?)?;
    let chosen = take_along_axis(&all, token, -1)?;
    let top = match top {
        0 => None,
        top => {
            let ids = likeliest(&all.negative()?, top)?;
            let values = take_along_axis(&all, &ids, -1)?;
            Some((ids.as_dtype(Dtype::Uint32)?, values))
        }
    };
    Ok(Logprobs { chosen, top })
}

fn bias(sampling: &Sampling, vocab: i32) -> Option<Array> {
    if sampling.logit_bias.is_empty() {
        return None;
    }
    let mut all = vec![0f32; vocab as usize];
    for &(token, bias) in &sampling.logit_bias {
        all[token as usize] += bias;
    }
    Some(Array::from_slice(&all, &[1, vocab]))
}

fn counts(generated: &[TokenId], vocab: i32) -> Array {
    let mut all = vec![0f32; vocab as usize];
    for &token in generated {
        all[token as usize] += 1.0;
    }
    Array::from_slice(&all, &[1, vocab])
}

impl Drawn {
    /// Every array, for evaluating together.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        let logprobs = self.logprobs.iter().flatten().flat_map(|logprobs| {
            let top = logprobs.top.iter().flat_map(|(ids, values)| [ids, values]);
            std::iter::once(&logprobs.chosen).chain(top)
        });
        std::iter::once(&self.tokens).chain(logprobs)
    }

    /// Waits for the tokens, then reads everything, row by row.
    pub fn read(&self) -> Result<Vec<Token>> {
        let ids = read::<u32>(&self.tokens)?;
        let token = |(id, logprobs): (&u32, &Option<Logprobs>)| match logprobs {
            Some(logprobs) => logprobs.read(*id),
            None => Ok(Token { id: *id, logprob: f32::NAN, top: Vec::new() }),
        };
        ids.iter().zip(&self.logprobs).map(token).collect()
    }
}

impl Logprobs {
    fn read(&self, id: TokenId) -> Result<Token> {
        let logprob = read::<f32>(&self.chosen)?[0];
        let top = match &self.top {
            Some((ids, values)) => {
                let ids = read::<u32>(ids)?.iter().copied();
                ids.zip(read::<f32>(values)?.iter().copied()).collect()
            }
            None => Vec::new(),
        };
        Ok(Token { id, logprob, top })
    }
}

fn read<T: mlx_rs::ArrayElement>(array: &Array) -> Result<&[T]> {
    array.try_as_slice::<T>().map_err(|error| Exception::custom(error.to_string()))
}

/// Sampling with plain data in and out, for comparing it with other implementations.
pub mod probe {
    use super::*;
    use crate::fault::in_engine;
    use mlxd_engine::EngineFault;

    /// Draws from `logits` at the generated indices `indices`, all else being `sampling`'s.
    pub fn draws(
        logits: &[f32],
        sampling: &Sampling,
        indices: std::ops::Range<u64>,
    ) -> std::result::Result<Vec<TokenId>, EngineFault> {
        let vocab = logits.len() as i32;
        let given = Array::from_slice(logits, &[1, vocab]);
        let mut sampler = Sampler::new(sampling.clone(), None, vocab, &[0], 1);
        let draw = |index| {
            sampler.index = index;
            Ok(sampler.draw(&given)?.read()?[0].id)
        };
        let drawn: Result<Vec<TokenId>> = indices.map(draw).collect();
        drawn.map_err(in_engine("drawing"))
    }

    /// Draws for rows of logits, parameters and generated index, all in one step.
    pub fn draws_together(
        rows: &[(Vec<f32>, Sampling, u64)],
    ) -> std::result::Result<Vec<TokenId>, EngineFault> {
        let vocab = rows.first().map_or(0, |row| row.0.len()) as i32;
        let flat: Vec<f32> = rows.iter().flat_map(|row| row.0.iter().copied()).collect();
        let given = Array::from_slice(&flat, &[rows.len() as i32, vocab]);
        let mut samplers: Vec<Sampler> = rows
            .iter()
            .map(|(_, sampling, index)| {
                let mut sampler = Sampler::new(sampling.clone(), None, vocab, &[0], 1);
                sampler.index = *index;
                sampler
            })
            .collect();
        let mut samplers: Vec<&mut Sampler> = samplers.iter_mut().collect();
        let mut run = || -> Result<Vec<TokenId>> {
            let tokens = draw_rows(&given, &mut samplers)?.read()?;
            Ok(tokens.into_iter().map(|token| token.id).collect())
        };
        run().map_err(in_engine("drawing"))
    }

    /// `logits` after penalties and bias for a sequence of `prompt` and `generated`. The last
    /// of `generated` are drawn one by one, `drawn` of them, as a running sequence would.
    pub fn adjusted(
        logits: &[f32],
        sampling: &Sampling,
        prompt: &[TokenId],
        generated: &[TokenId],
        drawn: usize,
    ) -> std::result::Result<Vec<f32>, EngineFault> {
        let vocab = logits.len() as i32;
        let given = Array::from_slice(logits, &[1, vocab]);
        let (known, later) = generated.split_at(generated.len() - drawn);
        let tokens = [prompt, known].concat();
        let mut sampler = Sampler::new(sampling.clone(), None, vocab, &tokens, prompt.len());
        let mut run = || -> Result<Vec<f32>> {
            for &token in later {
                sampler.remember(&Array::from_slice(&[token], &[1, 1]))?;
            }
            let adjusted = sampler.adjust(&given)?;
            Ok(read::<f32>(&adjusted)?.to_vec())
        };
        run().map_err(in_engine("applying penalties"))
    }
}

#[cfg(test)]
mod tests {
    use super::draw_key;
    use std::collections::HashSet;

    #[test]
    fn keys_differ_by_seed_and_by_index() {
        let seeds = [0, 1, 2, u64::MAX, 1 << 63];
        let keys: HashSet<[u32; 2]> = seeds
            .into_iter()
            .flat_map(|seed| (0..2000).map(move |index| draw_key(seed, index)))
            .collect();
        assert_eq!(keys.len(), seeds.len() * 2000);
        // Recovery replays draws made by an earlier process: the function may never change.
        assert_eq!(draw_key(7, 3), PINNED);
    }

    const PINNED: [u32; 2] = [2_595_168_728, 695_082_557];
}
