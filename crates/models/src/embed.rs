//! Texts to vectors: checks, padding, one pass, pooling.

use mlx_rs::error::Exception;
use mlx_rs::{Array, error};
use mlxd_engine::{EmbedText, EngineFault};
use mlxd_protocol::{ModelInfo, Refusal, RefusalCode, TokenId};

use crate::arch::Model;
use crate::fault::in_engine;
use crate::pooling::Pooling;

/// Vectors of `texts`, all in one pass; a text that cannot be used has its refusal in its place.
pub(crate) fn embed(
    model: &dyn Model,
    info: &ModelInfo,
    pooling: Pooling,
    texts: &[EmbedText],
) -> Result<Vec<Result<Vec<f32>, Refusal>>, EngineFault> {
    let width = model.width();
    let checks: Vec<Result<(), Refusal>> =
        texts.iter().map(|text| check(info, width, text)).collect();
    let usable = texts.iter().zip(&checks).filter(|(_, check)| check.is_ok());
    let usable: Vec<&EmbedText> = usable.map(|(text, _)| text).collect();
    let vectors = run(model, pooling, &usable).map_err(in_engine("embedding"))?;
    let mut vectors = vectors.into_iter();
    let vector = |(text, check): (&EmbedText, Result<(), Refusal>)| {
        check.map(|()| {
            let vector = vectors.next().unwrap_or_default();
            shortened(vector, text.dimensions, pooling.normalised)
        })
    };
    Ok(texts.iter().zip(checks).map(vector).collect())
}

fn run(model: &dyn Model, pooling: Pooling, texts: &[&EmbedText]) -> error::Result<Vec<Vec<f32>>> {
    let longest = texts.iter().map(|text| text.tokens.len()).max().unwrap_or(0);
    if longest == 0 {
        return Ok(Vec::new());
    }
    let mut ids: Vec<TokenId> = Vec::with_capacity(texts.len() * longest);
    for text in texts {
        ids.extend_from_slice(&text.tokens);
        ids.resize(ids.len() + longest - text.tokens.len(), 0);
    }
    let lengths: Vec<i32> = texts.iter().map(|text| text.tokens.len() as i32).collect();
    let ids = Array::from_slice(&ids, &[texts.len() as i32, longest as i32]);
    let vectors = pooling.apply(&model.encode(&ids, &lengths)?, &lengths)?;
    let width = vectors.dim(1) as usize;
    let flat = vectors.contiguous()?.to_vec_exact::<f32>();
    let flat = flat.map_err(|error| Exception::custom(error.to_string()))?;
    Ok(flat.chunks(width).map(<[f32]>::to_vec).collect())
}

/// The leading `dimensions` numbers, of length 1 again: what Matryoshka training is for.
fn shortened(mut vector: Vec<f32>, dimensions: Option<u32>, normalised: bool) -> Vec<f32> {
    let Some(kept) = dimensions.map(|kept| kept as usize).filter(|kept| *kept < vector.len())
    else {
        return vector;
    };
    vector.truncate(kept);
    if !normalised {
        return vector;
    }
    let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt().max(1e-12);
    vector.iter_mut().for_each(|value| *value /= length);
    vector
}

fn check(info: &ModelInfo, width: i32, text: &EmbedText) -> Result<(), Refusal> {
    let refuse = |code, message: String| Err(Refusal { code, message });
    let EmbedText { tokens, dimensions } = text;
    if tokens.is_empty() {
        return refuse(RefusalCode::Invalid, "a text without tokens has no vector".to_owned());
    }
    if let Some(id) = tokens.iter().find(|id| **id >= info.vocab_size) {
        return refuse(
            RefusalCode::Invalid,
            format!("token id {id} is outside the model's vocabulary of {}", info.vocab_size),
        );
    }
    if tokens.len() > info.context_tokens as usize {
        return refuse(
            RefusalCode::ContextOverflow,
            format!(
                "a text of {} tokens does not fit the context of {}; shorten it",
                tokens.len(),
                info.context_tokens
            ),
        );
    }
    match dimensions {
        Some(wanted) if *wanted == 0 || i64::from(*wanted) > i64::from(width) => refuse(
            RefusalCode::Invalid,
            format!("dimensions is {wanted}; this model's vectors have {width} numbers"),
        ),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortened_vectors_have_length_one() {
        assert_eq!(shortened(vec![0.6, 0.8, 5.0], Some(2), true), [0.6, 0.8]);
        assert_eq!(shortened(vec![3.0, 4.0, 0.0], Some(2), true), [0.6, 0.8]);
        assert_eq!(shortened(vec![3.0, 4.0], None, true), [3.0, 4.0]);
        assert_eq!(shortened(vec![0.0, 0.0, 1.0], Some(2), true), [0.0, 0.0]);
        assert_eq!(shortened(vec![3.0, 4.0, 0.0], Some(2), false), [3.0, 4.0]);
    }
}
