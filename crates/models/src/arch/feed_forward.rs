//! The gated feed-forward part: `down(silu(gate(x)) * up(x))`.

use mlx_rs::Array;
use mlx_rs::error::Result;
use mlx_rs::ops::sigmoid;

use super::linear::{Linear, Projection};
use crate::sys::{self, CompiledSwiglu};

/// One layer's feed-forward part.
#[derive(Debug)]
pub struct FeedForward {
    /// Outputs gate and up side by side.
    pub gate_up: Projection,
    /// Back to the residual stream.
    pub down: Linear,
    /// Width of gate, and of up.
    pub width: i32,
}

impl FeedForward {
    /// `x`, `[rows, n, hidden]`, transformed.
    pub fn forward(&self, x: &Array, swiglu: Option<&CompiledSwiglu>) -> Result<Array> {
        let (gate, up) = match &self.gate_up {
            Projection::Joined(joined) => {
                let both = joined.apply(x)?;
                let (rows, length) = (both.dim(0), both.dim(1));
                let width = self.width;
                (
                    sys::slice(&both, &[0, 0, 0], &[rows, length, width])?,
                    sys::slice(&both, &[0, 0, width], &[rows, length, 2 * width])?,
                )
            }
            Projection::Apart(parts) => (parts[0].apply(x)?, parts[1].apply(x)?),
        };
        let product = match swiglu {
            Some(swiglu) => swiglu.apply(&gate, &up)?,
            None => gate.multiply(sigmoid(&gate)?)?.multiply(&up)?,
        };
        self.down.apply(&product)
    }

    /// The arrays it is made of.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.gate_up.arrays().chain(self.down.arrays())
    }
}
