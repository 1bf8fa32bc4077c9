//! Rotary positions as MLX computes them: base and scale, or a table of frequencies.
//!
//! The tables follow mlx-lm's formulas step by step in float32, so that positions turn by the
//! same bits there and here.

use std::f64::consts::PI;

use mlx_rs::error::Result;
use mlx_rs::transforms::eval;
use mlx_rs::{Array, Dtype, fast};

use crate::config::{RopeConfig, RopeKind, Yarn};

/// Applies rotary positions to heads.
#[derive(Debug)]
pub struct Rope {
    width: i32,
    traditional: bool,
    base: Option<f32>,
    scale: f32,
    freqs: Option<Array>,
    /// YaRN's temperature, in the type of the heads.
    magnitude: Option<Array>,
}

impl Rope {
    /// Leaves heads as they are, for attention without positions.
    pub fn none() -> Self {
        Self { width: 0, traditional: false, base: None, scale: 1.0, freqs: None, magnitude: None }
    }

    /// For heads of `width` elements of type `dtype`.
    pub fn new(config: &RopeConfig, width: i32, dtype: Dtype) -> Result<Self> {
        let mut rope = Self {
            width,
            traditional: config.traditional,
            base: Some(config.theta),
            scale: 1.0,
            freqs: None,
            magnitude: None,
        };
        match &config.kind {
            RopeKind::Default => {}
            // 1/factor in double precision, then single, as Python hands it to MLX.
            RopeKind::Linear { factor } => rope.scale = (1.0 / f64::from(*factor)) as f32,
            RopeKind::Llama3 { .. } => {
                let table = llama3(&config.kind, config.theta, width)?;
                rope.set_table(table)?;
            }
            RopeKind::Yarn(yarn) => {
                rope.set_table(yarn_table(yarn, config.theta, width)?)?;
                let magnitude = yarn_scale(yarn.factor, yarn.mscale)
                    / yarn_scale(yarn.factor, yarn.mscale_all_dim);
                if magnitude != 1.0 {
                    let scalar = Array::from_f32(magnitude as f32).as_dtype(dtype)?;
                    eval([&scalar])?;
                    rope.magnitude = Some(scalar);
                }
            }
        }
        Ok(rope)
    }

    fn set_table(&mut self, table: Array) -> Result<()> {
        eval([&table])?;
        self.base = None;
        self.freqs = Some(table);
        Ok(())
    }

    /// Turns `heads`, `[1, heads, positions, width]`, the first position being `offset`, an
    /// int32 scalar.
    pub fn apply(&self, heads: &Array, offset: &Array) -> Result<Array> {
        if self.width == 0 {
            return Ok(heads.clone());
        }
        let scaled = match &self.magnitude {
            Some(magnitude) => Some(heads.multiply(magnitude)?),
            None => None,
        };
        fast::rope_dynamic(
            scaled.as_ref().unwrap_or(heads),
            self.width,
            self.traditional,
            self.base,
            self.scale,
            offset,
            self.freqs.as_ref(),
        )
    }
}

/// `theta ^ (0, 2, …, width − 2) / width`: the wavelengths over 2π.
fn plain(theta: f32, width: i32) -> Result<Array> {
    let exponents: Vec<f32> = (0..width / 2).map(|pair| (2 * pair) as f32 / width as f32).collect();
    let exponents = Array::from_slice(&exponents, &[width / 2]);
    Array::from_f32(theta).power(&exponents)
}

fn values(array: &Array) -> Result<Vec<f32>> {
    eval([array])?;
    let slice = array.try_as_slice::<f32>();
    Ok(slice.map_err(|error| mlx_rs::error::Exception::custom(error.to_string()))?.to_vec())
}

fn llama3(kind: &RopeKind, theta: f32, width: i32) -> Result<Array> {
    let RopeKind::Llama3 { factor, low_freq_factor, high_freq_factor, original } = *kind else {
        return Err(mlx_rs::error::Exception::custom("not a llama3 table"));
    };
    let low_wavelength = original / low_freq_factor;
    let high_wavelength = original / high_freq_factor;
    let table = values(&plain(theta, width)?)?;
    let table: Vec<f32> = table
        .into_iter()
        .map(|freq| {
            let wavelength = (2.0 * PI) as f32 * freq;
            if wavelength > low_wavelength {
                freq * factor
            } else if wavelength > high_wavelength && wavelength < low_wavelength {
                let smooth = (original / wavelength - low_freq_factor)
                    / (high_freq_factor - low_freq_factor);
                freq / ((1.0 - smooth) / factor + smooth)
            } else {
                freq
            }
        })
        .collect();
    Ok(Array::from_slice(&table, &[width / 2]))
}

fn yarn_scale(scale: f64, mscale: f64) -> f64 {
    if scale <= 1.0 { 1.0 } else { 0.1 * mscale * scale.ln() + 1.0 }
}

fn yarn_table(yarn: &Yarn, theta: f32, width: i32) -> Result<Array> {
    let dims = f64::from(width);
    let correction = |rotations: f64| {
        dims * (yarn.original / (rotations * 2.0 * PI)).ln() / (2.0 * f64::from(theta).ln())
    };
    let low = correction(yarn.beta_fast).floor().max(0.0);
    let mut high = correction(yarn.beta_slow).ceil().min(dims - 1.0);
    if low == high {
        high += 0.001; // a ramp of no width would divide by zero
    }
    let factor = yarn.factor as f32;
    let table: Vec<f32> = values(&plain(theta, width)?)?
        .into_iter()
        .enumerate()
        .map(|(pair, kept)| {
            let ramp = (pair as f32 - low as f32) / (high - low) as f32;
            let mask = 1.0 - ramp.clamp(0.0, 1.0);
            let divided = factor * kept;
            (divided * kept) / (divided * mask + kept * (1.0 - mask))
        })
        .collect();
    Ok(Array::from_slice(&table, &[width / 2]))
}
