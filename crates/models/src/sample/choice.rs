//! The choice itself, for one row or many in the same few operations.
//!
//! A sampled token is the one with the greatest sum of its score and Gumbel noise. The noise
//! follows from the row's seed, the index of the draw and the token's id, whoever else draws in
//! the same step: a row's draws do not depend on its company.

use mlx_rs::error::Result;
use mlx_rs::ops::indexing::{argmax_axis, take_along_axis, take_axis};
use mlx_rs::ops::{argsort_axis, concatenate, select, softmax_axis};
use mlx_rs::{Array, Dtype};
use mlxd_protocol::{Sampling, TokenId};

use super::{Drawn, Sampler, draw_key, likeliest};
use crate::sys;

/// One row's parameters, and which of its draws this is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Choice<'a> {
    pub sampling: &'a Sampling,
    pub index: u64,
}

/// Which operations a choice takes. Rows of one manner choose together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// The likeliest.
    Greedy,
    /// From all tokens, as they lie.
    All,
    /// From some of the likeliest, sorted.
    Few,
    /// From all tokens, sorted.
    Sorted,
}

impl Manner {
    const EACH: [Self; 4] = [Self::Greedy, Self::All, Self::Few, Self::Sorted];

    pub(super) fn of(sampling: &Sampling, vocab: i32) -> Self {
        if sampling.temperature == 0.0 {
            Self::Greedy
        } else if (1..vocab).contains(&top_k(sampling)) {
            Self::Few
        } else if sampling.top_p < 1.0 {
            Self::Sorted
        } else {
            Self::All
        }
    }
}

fn top_k(sampling: &Sampling) -> i32 {
    i32::try_from(sampling.top_k).unwrap_or(i32::MAX)
}

/// Draws for rows that step together, from `logits`, `[rows, vocab]`.
pub fn draw_rows(logits: &Array, samplers: &mut [&mut Sampler]) -> Result<Drawn> {
    let rows = samplers.len();
    let mut logprobs: Vec<_> = (0..rows).map(|_| None).collect();
    // Tokens in the order of `drawn_rows`, which becomes the rows' own order at the end.
    let mut parts = Vec::new();
    let mut drawn_rows = Vec::with_capacity(rows);
    for manner in Manner::EACH {
        let chosen = |sampler: &&mut Sampler| {
            !sampler.alone() && Manner::of(&sampler.sampling, sampler.vocab) == manner
        };
        let together: Vec<usize> = (0..rows).filter(|row| chosen(&samplers[*row])).collect();
        if together.is_empty() {
            continue;
        }
        let choices: Vec<Choice> = together.iter().map(|row| samplers[*row].choice()).collect();
        parts.push(choose(&rows_of(logits, &together)?, manner, &choices)?);
        for &row in &together {
            samplers[row].index += 1;
        }
        drawn_rows.extend(together);
    }
    for (row, sampler) in samplers.iter_mut().enumerate().filter(|(_, sampler)| sampler.alone()) {
        let mut drawn = sampler.draw(&rows_of(logits, &[row])?)?;
        parts.push(drawn.tokens);
        logprobs[row] = drawn.logprobs.pop().flatten();
        drawn_rows.push(row);
    }
    let tokens = match parts.as_slice() {
        [all] => all.clone(),
        parts => {
            let mut places = vec![0; rows];
            for (place, row) in drawn_rows.into_iter().enumerate() {
                places[row] = place;
            }
            rows_of(&concatenate(parts, 0)?, &places)?
        }
    };
    Ok(Drawn { tokens, logprobs })
}

/// Draws as one sequence would in steps one after the other, from `logits`, `[n, vocab]`, if the
/// first draws gave `guesses`, one less than rows: `[n, 1]`, and the sampler as it is after each
/// draw. What comes behind a draw that is not its guess means nothing.
pub fn draw_along(
    logits: &Array,
    sampler: &Sampler,
    guesses: &[TokenId],
) -> Result<(Drawn, Vec<Sampler>)> {
    let count = guesses.len() + 1;
    let mut samplers = Vec::with_capacity(count);
    if !sampler.alone() {
        for row in 0..count {
            samplers.push(Sampler { index: sampler.index + row as u64, ..sampler.clone() });
        }
        let choices: Vec<Choice> = samplers.iter().map(Sampler::choice).collect();
        let tokens = choose(logits, Manner::of(&sampler.sampling, sampler.vocab), &choices)?;
        samplers.iter_mut().for_each(|sampler| sampler.index += 1);
        return Ok((Drawn { tokens, logprobs: (0..count).map(|_| None).collect() }, samplers));
    }
    let (mut tokens, mut logprobs) = (Vec::with_capacity(count), Vec::with_capacity(count));
    let mut before = sampler.clone();
    for row in 0..count {
        let mut after = before.clone();
        let mut drawn = after.draw(&rows_of(logits, &[row])?)?;
        tokens.push(drawn.tokens);
        logprobs.push(drawn.logprobs.pop().flatten());
        samplers.push(after);
        if let Some(guess) = guesses.get(row) {
            before.remember(&Array::from_slice(&[*guess], &[1, 1]))?;
            before.index += 1;
        }
    }
    Ok((Drawn { tokens: concatenate(&tokens, 0)?, logprobs }, samplers))
}

/// The rows of `array` that `rows` names, in that order.
fn rows_of(array: &Array, rows: &[usize]) -> Result<Array> {
    if rows.len() == array.dim(0) as usize && rows.iter().enumerate().all(|(at, row)| at == *row) {
        return Ok(array.clone());
    }
    let rows: Vec<i32> = rows.iter().map(|row| *row as i32).collect();
    take_axis(array, Array::from_slice(&rows, &[rows.len() as i32]), 0)
}

/// One number per row, `[rows, 1]`.
fn column(values: impl Iterator<Item = f32>) -> Array {
    let values: Vec<f32> = values.collect();
    Array::from_slice(&values, &[values.len() as i32, 1])
}

/// Tokens `[rows, 1]`, u32, from `logits`, `[rows, vocab]`, all rows being of this manner.
pub(super) fn choose(logits: &Array, manner: Manner, rows: &[Choice]) -> Result<Array> {
    if manner == Manner::Greedy {
        return argmax_axis(logits, -1, true);
    }
    let each = || rows.iter().map(|row| row.sampling);
    let never = Array::from_f32(f32::NEG_INFINITY);
    let logits = logits.as_dtype(Dtype::Float32)?;
    let scaled = logits.divide(column(each().map(|sampling| sampling.temperature)))?;
    let ids = match manner {
        Manner::Greedy | Manner::All => None,
        Manner::Few => {
            let most = each().map(top_k).max().unwrap_or(1);
            Some(likeliest(&scaled.negative()?, most)?)
        }
        Manner::Sorted => Some(argsort_axis(scaled.negative()?, -1)?),
    };
    let mut scores = match &ids {
        Some(ids) => take_along_axis(&scaled, ids, -1)?,
        None => scaled,
    };
    if manner == Manner::Few && each().any(|sampling| top_k(sampling) < scores.dim(1)) {
        let most: Vec<i32> = each().map(top_k).collect();
        let most = Array::from_slice(&most, &[rows.len() as i32, 1]);
        let ranks = Array::arange::<i32, i32>(0, scores.dim(1), None)?;
        scores = select(ranks.lt(&most)?, &scores, &never)?;
    }
    if each().any(|sampling| sampling.top_p < 1.0) {
        let shares = softmax_axis(&scores, -1, true)?;
        let before = shares.cumsum(-1, None, None)?.subtract(&shares)?;
        // Sums may round to more than one: a row without top-p keeps everything.
        let kept = each().map(|sampling| if sampling.top_p < 1.0 { sampling.top_p } else { 2.0 });
        scores = select(before.lt(column(kept))?, &scores, &never)?;
    }
    if each().any(|sampling| sampling.min_p > 0.0) {
        let likeliest = scores.max_axis(-1, true)?;
        let floor = likeliest.add(column(each().map(|sampling| sampling.min_p.ln())))?;
        scores = select(scores.lt(&floor)?, &never, &scores)?;
    }
    let noise = noise(rows, logits.dim(1), ids.as_ref())?;
    let drawn = argmax_axis(scores.add(&noise)?, -1, true)?;
    match ids {
        Some(ids) => take_along_axis(&ids, &drawn, -1)?.as_dtype(Dtype::Uint32),
        None => Ok(drawn),
    }
}

/// Gumbel noise for every token, or for those that `ids` names, by rows.
fn noise(rows: &[Choice], vocab: i32, ids: Option<&Array>) -> Result<Array> {
    let keys: Vec<u32> =
        rows.iter().flat_map(|row| draw_key(row.sampling.seed, row.index)).collect();
    let bits = sys::random_bits(&Array::from_slice(&keys, &[rows.len() as i32, 2]), vocab)?;
    let bits = match ids {
        Some(ids) => take_along_axis(&bits, ids, -1)?,
        None => bits,
    };
    // Uniform between 0 and 1, both excluded: finest near 0, which becomes the greatest noise,
    // where a choice among many tokens is decided.
    let scale = (1.0 - f32::EPSILON) * 2f32.powi(-32);
    let uniform = bits
        .as_dtype(Dtype::Float32)?
        .multiply(Array::from_f32(scale))?
        .add(Array::from_f32(2f32.powi(-33)))?;
    let waiting = uniform.negative()?.log1p()?.negative()?;
    waiting.log()?.negative()
}
