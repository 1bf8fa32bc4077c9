//! Packed products with their neighbours folded in, for decode steps on CUDA.
//!
//! A decode step there waits for kernels to be dispatched, and MLX's packed product reaches a
//! sixth of the memory's speed. One kernel here does what four operations do: norm, product,
//! bias or residual, and the gate of the feed-forward part. Elsewhere, and for more than one
//! position, MLX's own operations run.

use mlx_rs::error::Result;
use mlx_rs::{Array, Dtype};

use super::linear::{Linear, Matrix, Projection};
use crate::config::Packing;
use crate::sys::CudaKernel;

/// Threads of a block, and warps; the kernel's source says the same.
const THREADS: i32 = 256;
const WARPS: i32 = 8;
/// Bytes of shared memory that a normed vector may take.
const SHARED_BYTES_MAX: i32 = 40 << 10;

/// What happens to a product before it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finish {
    Plain,
    Bias,
    Residual,
    Swiglu,
}

/// A packed matrix times one vector, with what comes before and after.
#[derive(Debug)]
pub struct FusedProduct {
    kernel: CudaKernel,
    /// Inputs that never change, in the kernel's order after `x`.
    fixed: Vec<Array>,
}

/// What is folded into a product.
#[derive(Debug, Clone, Copy)]
pub struct Folded<'a> {
    /// Weights and epsilon of the RMS norm before it.
    pub norm: Option<(&'a Array, f32)>,
    /// Whether a residual is added after it.
    pub residual: bool,
    /// Whether the rows are gate and up, stacked, to be multiplied as `silu(gate) * up`.
    pub swiglu: bool,
}

impl FusedProduct {
    /// Prepares the kernel for `linear`, or says `None` where it does not fit.
    pub fn new(linear: &Linear, folded: Folded) -> Result<Option<Self>> {
        let Matrix::Packed { weight, scales, biases, packing } = &linear.matrix else {
            return Ok(None);
        };
        let finish = match (&linear.bias, folded.residual, folded.swiglu) {
            (None, false, false) => Finish::Plain,
            (Some(_), false, false) => Finish::Bias,
            (None, true, false) => Finish::Residual,
            (None, false, true) => Finish::Swiglu,
            _ => return Ok(None),
        };
        let dtype = scales.dtype();
        let columns = scales.dim(1) * packing.group;
        let element = if dtype == Dtype::Float32 { 4 } else { 2 };
        let alike = |array: &Array| array.dtype() == dtype;
        let fits = [4, 8].contains(&packing.bits)
            && alike(biases)
            && linear.bias.as_ref().is_none_or(alike)
            && folded.norm.is_none_or(|(norm, _)| alike(norm))
            && (folded.norm.is_none() || columns * element <= SHARED_BYTES_MAX);
        if !fits {
            return Ok(None);
        }
        let rows = match finish {
            Finish::Swiglu => weight.dim(0) / 2,
            _ => weight.dim(0),
        };
        let kernel = Self::kernel(rows, columns, *packing, dtype, finish, folded.norm)?;
        let mut fixed = vec![weight.clone(), scales.clone(), biases.clone()];
        fixed.extend(folded.norm.map(|(norm, _)| norm.clone()));
        fixed.extend(linear.bias.clone());
        Ok(kernel.map(|kernel| Self { kernel, fixed }))
    }

    fn kernel(
        out: i32,
        columns: i32,
        packing: Packing,
        dtype: Dtype,
        finish: Finish,
        norm: Option<(&Array, f32)>,
    ) -> Result<Option<CudaKernel>> {
        let wanted = match out {
            32_768.. => 4,
            8_192.. => 2,
            _ => 1,
        };
        let Some(rows) = [wanted, 2, 1].into_iter().find(|rows| out % rows == 0) else {
            return Ok(None);
        };
        let total = if finish == Finish::Swiglu { 2 * rows } else { rows };
        let (extra, epilogue) = match finish {
            Finish::Plain => (None, "out[o] = static_cast<T>(sums[r]);"),
            Finish::Bias => (Some("bias"), ADDED),
            Finish::Residual => (Some("bias"), ADDED),
            Finish::Swiglu => (None, SWIGLU),
        };
        let mut inputs = vec!["x", "w", "scales", "biases"];
        inputs.extend(norm.map(|_| "norm"));
        inputs.extend(extra);
        let prologue = match norm {
            Some(_) => include_str!("norm.cu"),
            None => "  const T* xs = x;",
        };
        let epsilon = norm.map_or(0.0, |(_, epsilon)| epsilon);
        let constants = format!(
            "  constexpr int OUT = {out}, K = {columns}, BITS = {}, GROUP = {};\n\
             \x20 constexpr int ROWS = {rows}, TOTAL = {total}, UNROLL = {};\n\
             \x20 constexpr float EPS = {epsilon:e}f;\n",
            packing.bits,
            packing.group,
            (4 / total).max(1),
        );
        let body = include_str!("product.cu")
            .replace("@prologue@", prologue)
            .replace("@epilogue@", epilogue);
        let name = format!("mlxd_product_{finish:?}_{}", norm.is_some());
        let blocks = (out + WARPS * rows - 1) / (WARPS * rows);
        CudaKernel::new(
            &name,
            &inputs,
            &terse(&format!("{constants}{body}")),
            &[1, 1, out],
            dtype,
            blocks * THREADS,
            THREADS,
        )
        .map(Some)
    }

    /// The product of one vector `x`, `[1, 1, columns]`.
    pub fn apply(&self, x: &Array) -> Result<Array> {
        self.run(x, None)
    }

    /// The product of `x` added to `residual`.
    pub fn apply_residual(&self, x: &Array, residual: &Array) -> Result<Array> {
        self.run(x, Some(residual))
    }

    fn run(&self, x: &Array, residual: Option<&Array>) -> Result<Array> {
        let mut inputs = Vec::with_capacity(6);
        inputs.push(x);
        inputs.extend(&self.fixed);
        inputs.extend(residual);
        self.kernel.apply(&inputs)
    }
}

const ADDED: &str = "out[o] = static_cast<T>(static_cast<float>(static_cast<T>(sums[r])) + static_cast<float>(bias[o]));";
const SWIGLU: &str = "const float gate = static_cast<float>(static_cast<T>(sums[r]));
    const float up = static_cast<float>(static_cast<T>(sums[ROWS + r]));
    const float silu = static_cast<float>(static_cast<T>(gate / (1.0f + __expf(-gate))));
    out[o] = static_cast<T>(silu * up);";

/// `source` without comments and indentation: MLX hashes all of it at every call.
fn terse(source: &str) -> String {
    let lines = source.lines().map(|line| line.split("//").next().unwrap_or("").trim());
    lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

/// The four products of a layer.
#[derive(Debug)]
pub struct FusedBlock {
    /// Norm, q, k and v, bias.
    pub qkv: FusedProduct,
    /// Attention's output, added to the residual stream.
    pub output: FusedProduct,
    /// Norm, gate and up, their product.
    pub gate_up: FusedProduct,
    /// Back, added to the residual stream.
    pub down: FusedProduct,
}

impl FusedBlock {
    /// Prepares a layer's kernels; `None` where one of them does not fit.
    pub fn new(
        qkv: (&Array, &Projection),
        output: &Linear,
        gate_up: (&Array, &Projection),
        down: &Linear,
        epsilon: f32,
    ) -> Result<Option<Self>> {
        let (Projection::Joined(joined_qkv), Projection::Joined(joined_gate_up)) =
            (qkv.1, gate_up.1)
        else {
            return Ok(None);
        };
        let normed = |norm, swiglu| Folded { norm: Some((norm, epsilon)), residual: false, swiglu };
        let added = Folded { norm: None, residual: true, swiglu: false };
        let parts = (
            FusedProduct::new(joined_qkv, normed(qkv.0, false))?,
            FusedProduct::new(output, added)?,
            FusedProduct::new(joined_gate_up, normed(gate_up.0, true))?,
            FusedProduct::new(down, added)?,
        );
        Ok(match parts {
            (Some(qkv), Some(output), Some(gate_up), Some(down)) => {
                Some(Self { qkv, output, gate_up, down })
            }
            _ => None,
        })
    }
}
