//! The recurrent state of one Mamba-2 layer, of one sequence or of several stacked.
//!
//! Unlike keys and values it has one size whatever the length, is rewritten whole by every step
//! and cannot be cut back to an earlier position: to return to one, take a snapshot there.

use mlx_rs::error::Result;
use mlx_rs::ops::{concatenate, zeros_dtype};
use mlx_rs::{Array, Dtype};

use crate::sys;

/// Sizes of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecurrentShape {
    /// Positions that the convolution remembers.
    pub kept: i32,
    /// Width of the convolution.
    pub channels: i32,
    /// Heads of the scan.
    pub heads: i32,
    /// Width of a head.
    pub head_dim: i32,
    /// Width of the state.
    pub state: i32,
    /// Type of the convolution's inputs; the scan's state is float32.
    pub dtype: Dtype,
}

/// What a Mamba-2 layer remembers. Arrays are never written to, so that a clone is a snapshot
/// and costs nothing.
#[derive(Debug, Clone)]
pub struct Recurrent {
    /// The last inputs of the convolution, `[rows, kept, channels]`.
    pub conv: Array,
    /// The scan's state, `[rows, heads, head_dim, state]`, float32.
    pub scan: Array,
}

impl Recurrent {
    /// Nothing remembered, for one row.
    pub fn new(shape: RecurrentShape) -> Result<Self> {
        let RecurrentShape { kept, channels, heads, head_dim, state, dtype } = shape;
        Ok(Self {
            conv: zeros_dtype(&[1, kept, channels], dtype)?,
            scan: zeros_dtype(&[1, heads, head_dim, state], Dtype::Float32)?,
        })
    }

    /// What a row keeps while its state is stacked with others'.
    pub fn moved() -> Self {
        let nothing = Array::from_slice::<f32>(&[], &[0]);
        Self { conv: nothing.clone(), scan: nothing }
    }

    /// Rows of all `parts`, in order.
    pub fn stack(parts: &[Recurrent]) -> Result<Self> {
        if let [only] = parts {
            return Ok(only.clone());
        }
        let conv: Vec<&Array> = parts.iter().map(|part| &part.conv).collect();
        let scan: Vec<&Array> = parts.iter().map(|part| &part.scan).collect();
        Ok(Self { conv: concatenate(&conv, 0)?, scan: concatenate(&scan, 0)? })
    }

    /// One of the rows. It does not hold the others once evaluated.
    pub fn row(&self, index: i32) -> Result<Self> {
        if self.scan.dim(0) == 1 {
            return Ok(self.clone());
        }
        let row = |array: &Array| {
            let mut start = vec![0; array.ndim()];
            let mut stop = array.shape().to_vec();
            (start[0], stop[0]) = (index, index + 1);
            sys::copy(&sys::slice(array, &start, &stop)?)
        };
        Ok(Self { conv: row(&self.conv)?, scan: row(&self.scan)? })
    }

    /// The arrays to evaluate after a prefill chunk.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        [&self.conv, &self.scan].into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device;
    use mlxd_protocol::DeviceChoice;

    fn filled(rows: i32, first: f32) -> Recurrent {
        let numbers = |count: i32| (0..count).map(|i| first + i as f32).collect::<Vec<_>>();
        Recurrent {
            conv: Array::from_slice(&numbers(rows * 6), &[rows, 3, 2]),
            scan: Array::from_slice(&numbers(rows * 8), &[rows, 2, 2, 2]),
        }
    }

    fn values(of: &Recurrent) -> (Vec<f32>, Vec<f32>) {
        let flat = |array: &Array| array.contiguous().unwrap().to_vec_exact::<f32>().unwrap();
        (flat(&of.conv), flat(&of.scan))
    }

    #[test]
    fn rows_come_out_as_they_went_in() {
        device::choose(DeviceChoice::Cpu).unwrap();
        let (one, two) = (filled(1, 10.0), filled(2, 500.0));
        let stacked = Recurrent::stack(&[one.clone(), two.clone()]).unwrap();
        assert_eq!(values(&stacked.row(0).unwrap()), values(&one));
        assert_eq!(values(&stacked.row(2).unwrap()), values(&two.row(1).unwrap()));
        assert_ne!(values(&stacked.row(1).unwrap()), values(&two.row(1).unwrap()));
    }

    #[test]
    fn nothing_remembered_is_zeros_of_the_shape() {
        device::choose(DeviceChoice::Cpu).unwrap();
        let dtype = Dtype::Float32;
        let shape =
            RecurrentShape { kept: 3, channels: 40, heads: 4, head_dim: 8, state: 16, dtype };
        let blank = Recurrent::new(shape).unwrap();
        assert_eq!((blank.conv.shape(), blank.scan.shape()), (&[1, 3, 40][..], &[1, 4, 8, 16][..]));
        assert!(values(&blank).1.iter().all(|value| *value == 0.0));
    }
}
