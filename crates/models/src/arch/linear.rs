//! Matrices, dense or packed, and the projections made of them.

use mlx_rs::error::Result;
use mlx_rs::ops::indexing::take_axis;
use mlx_rs::ops::{addmm, concatenate, dequantize, matmul, quantized_matmul};
use mlx_rs::{Array, Dtype};

use crate::config::Packing;

/// A matrix `[rows, columns]` that multiplies from the right: `x · mᵀ`.
#[derive(Debug, Clone)]
pub enum Matrix {
    /// As stored.
    Dense {
        /// `[rows, columns]`.
        weight: Array,
        /// A view of the same data, `[columns, rows]`.
        transposed: Array,
    },
    /// In MLX's affine packing.
    Packed {
        /// `[rows, words]`, 32-bit words.
        weight: Array,
        /// `[rows, groups]`.
        scales: Array,
        /// `[rows, groups]`.
        biases: Array,
        /// Bits and group.
        packing: Packing,
    },
}

impl Matrix {
    /// A dense matrix of `weight`, `[rows, columns]`.
    pub fn dense(weight: Array) -> Result<Self> {
        let transposed = weight.transpose_axes(&[1, 0])?;
        Ok(Self::Dense { weight, transposed })
    }

    /// The type that products come out in.
    pub fn dtype(&self) -> Dtype {
        match self {
            Self::Dense { weight, .. } => weight.dtype(),
            Self::Packed { scales, .. } => scales.dtype(),
        }
    }

    /// The arrays it is made of, views aside.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        let (first, rest) = match self {
            Self::Dense { weight, .. } => (weight, [None, None]),
            Self::Packed { weight, scales, biases, .. } => (weight, [Some(scales), Some(biases)]),
        };
        std::iter::once(first).chain(rest.into_iter().flatten())
    }

    fn packing(&self) -> Option<Packing> {
        match self {
            Self::Dense { .. } => None,
            Self::Packed { packing, .. } => Some(*packing),
        }
    }

    /// `x · mᵀ`.
    pub fn product(&self, x: &Array) -> Result<Array> {
        match self {
            Self::Dense { transposed, .. } => matmul(x, transposed),
            Self::Packed { weight, scales, biases, packing } => {
                quantized_matmul(x, weight, scales, biases, true, packing.group, packing.bits)
            }
        }
    }

    /// The rows that `ids` names. Ids are not checked here: see [`crate::engine`].
    pub fn rows(&self, ids: &Array) -> Result<Array> {
        match self {
            Self::Dense { weight, .. } => take_axis(weight, ids, 0),
            Self::Packed { weight, scales, biases, packing } => {
                let biases = take_axis(biases, ids, 0)?;
                dequantize(
                    take_axis(weight, ids, 0)?,
                    take_axis(scales, ids, 0)?,
                    &biases,
                    packing.group,
                    packing.bits,
                )
            }
        }
    }

    /// Several matrices one below the other, if they are of one kind.
    fn stack(parts: &[&Matrix]) -> Result<Option<Matrix>> {
        let alike = parts.windows(2).all(|pair| {
            pair[0].packing() == pair[1].packing() && pair[0].dtype() == pair[1].dtype()
        });
        let Some(packing) = parts.first().map(|part| part.packing()).filter(|_| alike) else {
            return Ok(None);
        };
        let joined = |index: usize| -> Result<Array> {
            let pieces: Vec<&Array> =
                parts.iter().filter_map(|part| part.arrays().nth(index)).collect();
            concatenate(&pieces, 0)
        };
        Ok(Some(match packing {
            None => Self::dense(joined(0)?)?,
            Some(packing) => {
                Self::Packed { weight: joined(0)?, scales: joined(1)?, biases: joined(2)?, packing }
            }
        }))
    }
}

/// A matrix and its bias.
#[derive(Debug)]
pub struct Linear {
    /// `[out, in]`.
    pub matrix: Matrix,
    /// `[out]`.
    pub bias: Option<Array>,
}

impl Linear {
    /// `x · mᵀ + b`.
    pub fn apply(&self, x: &Array) -> Result<Array> {
        match (&self.matrix, &self.bias) {
            (Matrix::Dense { transposed, .. }, Some(bias)) => addmm(bias, x, transposed, 1.0, 1.0),
            (matrix, Some(bias)) => matrix.product(x)?.add(bias),
            (matrix, None) => matrix.product(x),
        }
    }

    /// The arrays it is made of.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.matrix.arrays().chain(&self.bias)
    }

    fn stack(parts: &[Linear]) -> Result<Option<Linear>> {
        let matrices: Vec<&Matrix> = parts.iter().map(|part| &part.matrix).collect();
        let biases: Vec<&Array> = parts.iter().filter_map(|part| part.bias.as_ref()).collect();
        if !biases.is_empty() && biases.len() != parts.len() {
            return Ok(None);
        }
        let Some(matrix) = Matrix::stack(&matrices)? else {
            return Ok(None);
        };
        let bias = match biases.is_empty() {
            true => None,
            false => Some(concatenate(&biases, 0)?),
        };
        Ok(Some(Linear { matrix, bias }))
    }
}

/// Several projections of one input, computed at once where their weights allow it.
#[derive(Debug)]
pub enum Projection {
    /// One matrix; outputs lie side by side.
    Joined(Linear),
    /// Matrices of different kinds, as per-layer packings make them.
    Apart(Vec<Linear>),
}

impl Projection {
    /// Joins `parts` if `join` is asked for and possible.
    pub fn new(parts: Vec<Linear>, join: bool) -> Result<Self> {
        let joined = match join {
            true => Linear::stack(&parts)?,
            false => None,
        };
        Ok(joined.map_or(Self::Apart(parts), Self::Joined))
    }

    /// All outputs side by side in the last axis.
    pub fn apply(&self, x: &Array) -> Result<Array> {
        match self {
            Self::Joined(linear) => linear.apply(x),
            Self::Apart(parts) => {
                let outputs: Result<Vec<Array>> = parts.iter().map(|part| part.apply(x)).collect();
                concatenate(&outputs?, -1)
            }
        }
    }

    /// The arrays it is made of.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        let parts = match self {
            Self::Joined(linear) => std::slice::from_ref(linear),
            Self::Apart(parts) => parts.as_slice(),
        };
        parts.iter().flat_map(Linear::arrays)
    }
}
