//! Attention to packed keys and values, which are never unpacked as a whole: mlx-lm's
//! `quantized_scaled_dot_product_attention`.

use mlx_rs::Array;
use mlx_rs::error::Result;
use mlx_rs::ops::{quantized_matmul, select, softmax_axis};

use crate::config::Packing;
use crate::kv::Packed;

/// Causal attention of the last `n` positions, `queries` being `[1, heads, n, width]`, to all of
/// `keys` and `values`. Gives `[1, heads, n, width]`.
///
/// The scores of all heads exist at once, `[heads, n, positions]`: MLX has no fused kernel for it.
pub(super) fn packed_attention(
    queries: &Array,
    keys: &Packed,
    values: &Packed,
    packing: Packing,
    scale: f32,
) -> Result<Array> {
    let (heads, length, width) = (queries.dim(1), queries.dim(2), queries.dim(3));
    let (kv_heads, positions) = (keys.words.dim(1), keys.words.dim(2));
    let dtype = queries.dtype();
    // Query heads that share a key head lie one behind the other.
    let queries = queries.multiply(Array::from_f32(scale).as_dtype(dtype)?)?.reshape(&[
        1,
        kv_heads,
        heads / kv_heads,
        length,
        width,
    ])?;
    let product = |x: &Array, packed: &Packed, transposed: bool| {
        let [words, scales, biases] =
            [&packed.words, &packed.scales, &packed.biases].map(|array| array.expand_dims(2));
        let Packing { bits, group } = packing;
        quantized_matmul(x, words?, scales?, &biases?, transposed, group, bits)
    };
    let mut scores = product(&queries, keys, true)?;
    if length > 1 {
        let of_queries = Array::arange::<i32, i32>(positions - length, positions, None)?;
        let of_keys = Array::arange::<i32, i32>(0, positions, None)?;
        let seen = of_queries.reshape(&[length, 1])?.ge(&of_keys.reshape(&[1, positions])?)?;
        let unseen = Array::from_f32(f32::NEG_INFINITY).as_dtype(dtype)?;
        scores = select(&seen, &scores, &unseen)?;
    }
    let shares = softmax_axis(&scores, -1, true)?;
    product(&shares, values, false)?.reshape(&[1, heads, length, width])
}
