//! Shows that this build reaches MLX: dense and 4-bit products, attention, sampling with a key, `async_eval`.
//!
//! `cargo run -p mlxd-models --example mlx_hello`

use std::error::Error;

use mlx_rs::fast::{self, ScaledDotProductAttentionMask};
use mlx_rs::ops::{matmul, quantize, quantized_matmul};
use mlx_rs::transforms::{async_eval, eval};
use mlx_rs::{Array, Device, random};

/// The largest difference between two arrays of one shape.
fn distance(left: &Array, right: &Array) -> Result<f32, Box<dyn Error>> {
    Ok(left.subtract(right)?.abs()?.max(None)?.try_item_exact::<f32>()?)
}

fn main() -> Result<(), Box<dyn Error>> {
    println!("device: {:?}", Device::try_default()?);
    let key = random::key(7)?;
    let x = random::normal::<f32>(&[4, 128], None, None, &key)?;
    let weight = random::normal::<f32>(&[256, 128], None, 0.1, &random::key(8)?)?;

    let dense = matmul(&x, weight.t())?;
    let (packed, scales, biases) = quantize(&weight, 64, 8)?;
    let quantised = quantized_matmul(&x, &packed, &scales, &biases, true, 64, 8)?;
    println!("8-bit product differs from the dense one by {:.4}", distance(&dense, &quantised)?);

    let normed = fast::rms_norm(&x, Some(&Array::ones::<f32>(&[128])?), 1e-5)?;
    let heads = normed.reshape(&[1, 4, 4, 32])?.transpose_axes(&[0, 2, 1, 3])?;
    let rotated = fast::rope(&heads, 32, false, 10_000.0, 1.0, 0, None)?;
    let mask = ScaledDotProductAttentionMask::Causal;
    let scale = 32f32.powf(-0.5);
    let attended =
        fast::scaled_dot_product_attention(&rotated, &rotated, &heads, scale, mask, None)?;
    // A causal first row sees nothing but itself, so it must be the first value row.
    let first = |array: &Array| array.split_equal(4, 2).map(|rows| rows[0].clone());
    println!(
        "first attention row differs from its value by {:.6}",
        distance(&first(&attended)?, &first(&heads)?)?
    );

    let draw = || random::categorical(&dense, -1, None, &key);
    let (once, again) = (draw()?, draw()?);
    async_eval([&once, &again])?;
    eval([&once, &again])?;
    println!(
        "tokens drawn twice with one key: {:?} {:?}",
        once.try_as_slice::<u32>()?,
        again.try_as_slice::<u32>()?
    );

    let half = dense.as_dtype(mlx_rs::Dtype::Bfloat16)?;
    eval([&half])?;
    println!("a bfloat16 read back: {}", half.try_as_slice::<half::bf16>()?[0]);
    // Needs the clock that seeds MLX's default random state.
    println!("one unseeded draw: {:?}", random::uniform::<_, f32>(0.0, 1.0, &[1], None)?);
    Ok(())
}
