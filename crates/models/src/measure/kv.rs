//! Keys and values as they are computed against packed ones.

use mlx_rs::memory;
use mlxd_engine::{BenchError, Engine, bench_direct};
use mlxd_protocol::measure::{Figure, Measured};
use mlxd_protocol::{BenchSpec, KvQuantization, LoadSpec, TokenId};

use super::{MeasureError, Model, Steps};
use crate::load;

/// What is measured of each form.
pub(super) struct Asked<'a> {
    pub bits: &'a [u32],
    pub lengths: &'a [u32],
    pub new_tokens: u32,
    pub runs: u32,
    pub prompts: &'a [Vec<TokenId>],
    pub answer_tokens: u32,
}

/// An answer of the full form: its tokens, and the logits that each was taken from.
struct Answer {
    prompt: Vec<TokenId>,
    tokens: Vec<TokenId>,
    logits: Vec<Vec<f32>>,
}

/// A packed form's logits beside the full form's.
#[derive(Debug, Default)]
struct Apart {
    tokens: u32,
    divergence: f64,
    divergence_max: f64,
    difference_max: f64,
    agreeing: u32,
}

pub(super) fn measure(
    load: &LoadSpec,
    asked: &Asked,
    progress: Steps,
) -> Result<Measured, MeasureError> {
    let plain = LoadSpec { kv_quantization: None, kv_tokens_max: None, ..load.clone() };
    let (mut model, mut measured) = Model::load(&plain)?;
    let lengths: Vec<u32> = asked.lengths.iter().map(|length| length + asked.new_tokens).collect();
    let lengths = model.fitting(&lengths, &mut measured);
    let mut forms = vec![None];
    for &bits in asked.bits {
        let kv = KvQuantization { bits, from_tokens: 0 };
        let known = load::can_be_packed(&model.engine.empty_state(1, 1), kv);
        match known.and_then(|()| load::pack_once(&mut model.engine, bits)) {
            Ok(()) => forms.push(Some(kv)),
            Err(fault) => measured.left_out.push(fault.message),
        }
    }
    let all = (forms.len() * (lengths.len() + 1)) as u64;
    let mut done = 0;
    let mut step = || {
        done += 1;
        progress(done, all);
    };
    let mut answers = Vec::new();
    for &form in &forms {
        model.engine.kv = form;
        for length in &lengths {
            let figure = model.speed(length - asked.new_tokens, asked)?;
            measured.figures.push(figure);
            step();
        }
        match form {
            None => answers = model.answers(asked)?,
            Some(kv) => measured.figures.push(model.quality(kv.bits, &answers)?),
        }
        step();
    }
    Ok(measured)
}

impl Model {
    fn speed(&mut self, length: u32, asked: &Asked) -> Result<Figure, MeasureError> {
        memory::clear_cache()?;
        memory::reset_peak_memory()?;
        let prompt = self.prompt(length);
        let Asked { new_tokens, runs, .. } = *asked;
        let spec = BenchSpec { prompt, new_tokens, warmup_runs: 1, runs };
        let mut state_bytes = 0;
        let mut look = || state_bytes = memory::active_memory().unwrap_or(0);
        let leg = bench_direct(&mut self.engine, &spec, self.chunk_tokens, &mut look)?;
        let rest = leg.seconds.iter().zip(&leg.first_token_seconds);
        let beyond = |bytes: usize| bytes.saturating_sub(self.active_bytes) as u64;
        Ok(Figure::Kv {
            bits: self.engine.kv.map(|kv| kv.bits),
            bytes_per_token: self.engine.empty_state(1, 1).kv_bytes_per_token(),
            length,
            rest_s: rest.map(|(all, first)| all - first).collect(),
            first_s: leg.first_token_seconds,
            rest_tokens: new_tokens - 1,
            state_bytes: beyond(state_bytes),
            peak_bytes: beyond(memory::peak_memory()?),
        })
    }

    fn answers(&mut self, asked: &Asked) -> Result<Vec<Answer>, MeasureError> {
        let room = self.engine.info().context_tokens.saturating_sub(asked.answer_tokens) as usize;
        let mut answers = Vec::with_capacity(asked.prompts.len());
        for prompt in asked.prompts.iter().filter(|prompt| prompt.len() <= room) {
            let tokens = self.greedy(prompt, asked.answer_tokens)?;
            let logits = self.logits(prompt, &tokens)?;
            answers.push(Answer { prompt: prompt.clone(), tokens, logits });
        }
        Ok(answers)
    }

    fn quality(&mut self, bits: u32, answers: &[Answer]) -> Result<Figure, MeasureError> {
        let (mut apart, mut equal) = (Apart::default(), 0);
        for Answer { prompt, tokens, logits } in answers {
            for (full, packed) in logits.iter().zip(self.logits(prompt, tokens)?) {
                apart.add(full, &packed);
            }
            let own = self.greedy(prompt, tokens.len() as u32)?;
            equal += own.iter().zip(tokens).take_while(|(own, full)| own == full).count() as u32;
        }
        let Apart { tokens, divergence, divergence_max, difference_max, agreeing } = apart;
        let divergence = divergence / f64::from(tokens.max(1));
        Ok(Figure::KvQuality {
            bits,
            tokens,
            divergence,
            divergence_max,
            difference_max,
            agreeing,
            equal,
        })
    }

    fn greedy(&mut self, prompt: &[TokenId], tokens: u32) -> Result<Vec<TokenId>, MeasureError> {
        let prompt = prompt.to_vec();
        let spec = BenchSpec { prompt, new_tokens: tokens, warmup_runs: 0, runs: 1 };
        Ok(bench_direct(&mut self.engine, &spec, self.chunk_tokens, &mut || {})?.tokens)
    }

    /// What each of `tokens` after `prompt` is taken from.
    fn logits(
        &self,
        prompt: &[TokenId],
        tokens: &[TokenId],
    ) -> Result<Vec<Vec<f32>>, MeasureError> {
        let forced = &tokens[..tokens.len().saturating_sub(1)];
        Ok(self.engine.logits_along(prompt, forced).map_err(BenchError::from)?)
    }
}

impl Apart {
    /// Counts one position's logits.
    fn add(&mut self, full: &[f32], packed: &[f32]) {
        let (full_sum, packed_sum) = (log_sum(full), log_sum(packed));
        let mut divergence = 0.0;
        for (&full, &packed) in full.iter().zip(packed) {
            let (full, packed) = (f64::from(full), f64::from(packed));
            let likely = full - full_sum;
            divergence += likely.exp() * (likely - (packed - packed_sum));
            self.difference_max = self.difference_max.max((full - packed).abs());
        }
        self.tokens += 1;
        // A sum of roundings may end below zero.
        let divergence = divergence.max(0.0);
        self.divergence += divergence;
        self.divergence_max = self.divergence_max.max(divergence);
        self.agreeing += u32::from(best(full) == best(packed));
    }
}

/// The logarithm of the sum of the exponentials.
fn log_sum(logits: &[f32]) -> f64 {
    let most = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    most + logits.iter().map(|logit| (f64::from(*logit) - most).exp()).sum::<f64>().ln()
}

/// Where the largest is; the first of several.
fn best(logits: &[f32]) -> Option<usize> {
    let pairs = logits.iter().enumerate();
    pairs.reduce(|best, next| if next.1 > best.1 { next } else { best }).map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_is_that_of_the_distributions() {
        let mut apart = Apart::default();
        // A constant added to all logits changes no distribution.
        apart.add(&[1.0, 2.0, 3.0], &[2.0, 3.0, 4.0]);
        assert!(apart.divergence < 1e-12 && apart.agreeing == 1, "{apart:?}");
        assert_eq!(apart.difference_max, 1.0);
        // Halves and halves against a quarter and three quarters.
        apart.add(&[0.0, 0.0], &[0.0, 3.0_f32.ln()]);
        let wanted = 0.5 * (0.5_f64 / 0.25).ln() + 0.5 * (0.5_f64 / 0.75).ln();
        assert!((apart.divergence - wanted).abs() < 1e-7, "{apart:?}, not {wanted}");
        assert!((apart.divergence_max - wanted).abs() < 1e-7);
        assert_eq!((apart.tokens, apart.agreeing), (2, 1));
    }
}
