//! Packed products with their neighbours folded in, for decode steps on CUDA.
//!
//! A decode step there waits for kernels to be dispatched, and MLX's packed product reaches a
//! sixth of the memory's speed. One kernel here does what four operations do: norm, product,
//! bias or residual, and the gate of the feed-forward part. Steps of several rows have a kernel
//! of their own ([`super::fused_rows`]). Elsewhere, and for more rows, MLX's own operations run.

use mlx_rs::error::Result;
use mlx_rs::{Array, Dtype};

use super::fused_rows::RowsProduct;
use super::linear::{Linear, Matrix, Projection};
use crate::config::Packing;
use crate::sys::{CudaKernel, CudaLaunch};

/// Threads of a block, and warps; the kernel's source says the same.
const THREADS: i32 = 256;
const WARPS: i32 = 8;
/// Bytes of shared memory that a normed vector may take.
const SHARED_BYTES_MAX: i32 = 40 << 10;

/// What happens to a product before it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finish {
    Plain,
    Bias,
    Residual,
    Swiglu,
}

/// A packed matrix times one vector or a few, with what comes before and after.
#[derive(Debug)]
pub struct FusedProduct {
    kernel: CudaKernel,
    launch: CudaLaunch,
    rows: RowsProduct,
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

/// What a kernel computes; its source follows from this alone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) out: i32,
    pub(super) columns: i32,
    pub(super) packing: Packing,
    pub(super) finish: Finish,
    pub(super) norm_eps: Option<f32>,
}

impl Shape {
    /// Outputs that one warp computes: more where there are plenty, to read `x` less often.
    fn rows(self) -> i32 {
        let wanted = match self.out {
            32_768.. => 4,
            8_192.. => 2,
            _ => 1,
        };
        [wanted, 2].into_iter().find(|rows| self.out % rows == 0).unwrap_or(1)
    }

    fn blocks(self) -> i32 {
        let rows = WARPS * self.rows();
        (self.out + rows - 1) / rows
    }

    pub(super) fn inputs(self) -> Vec<&'static str> {
        let mut inputs = vec!["x", "w", "scales", "biases"];
        inputs.extend(self.norm_eps.map(|_| "norm"));
        if matches!(self.finish, Finish::Bias | Finish::Residual) {
            inputs.push("bias");
        }
        inputs
    }

    /// The body of the kernel.
    fn source(self) -> String {
        let Self { out, columns, packing, finish, norm_eps } = self;
        let rows = self.rows();
        let total = if finish == Finish::Swiglu { 2 * rows } else { rows };
        let constants = format!(
            "constexpr int OUT = {out}, K = {columns}, BITS = {}, GROUP = {};\n\
             constexpr int ROWS = {rows}, TOTAL = {total}, UNROLL = {};\n\
             constexpr float EPS = {:e}f;\n",
            packing.bits,
            packing.group,
            (4 / total).max(1),
            norm_eps.unwrap_or(0.0),
        );
        let prologue = match norm_eps {
            Some(_) => include_str!("norm.cu"),
            None => "const T* xs = x;",
        };
        let epilogue = match finish {
            Finish::Plain => "out[o] = static_cast<T>(sums[r]);",
            Finish::Bias | Finish::Residual => ADDED,
            Finish::Swiglu => SWIGLU,
        };
        let body = include_str!("product.cu");
        let body = body.replace("@prologue@", prologue).replace("@epilogue@", epilogue);
        terse(&format!("{constants}{body}"))
    }

    fn kernel(self, dtype: Dtype) -> Result<(CudaKernel, CudaLaunch)> {
        let name = format!("mlxd_product_{:?}_{}", self.finish, self.norm_eps.is_some());
        let kernel = CudaKernel::new(&name, &self.inputs(), &self.source(), dtype, THREADS)?;
        let launch = kernel.launch(&[1, 1, self.out], self.blocks() * THREADS)?;
        Ok((kernel, launch))
    }
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
        // The source is right for 8 bits, other groups and other types too (the test below), but
        // this is the packing that has run on a GPU. The others take MLX's own operations.
        let proven = packing.bits == 4 && packing.group == 64 && dtype == Dtype::Bfloat16;
        let fits = proven
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
        let norm_eps = folded.norm.map(|(_, epsilon)| epsilon);
        let shape = Shape { out: rows, columns, packing: *packing, finish, norm_eps };
        let mut fixed = vec![weight.clone(), scales.clone(), biases.clone()];
        fixed.extend(folded.norm.map(|(norm, _)| norm.clone()));
        fixed.extend(linear.bias.clone());
        let (kernel, launch) = shape.kernel(dtype)?;
        Ok(Some(Self { kernel, launch, rows: RowsProduct::new(shape, dtype), fixed }))
    }

    /// Whether `rows` vectors can be given at once.
    pub fn takes(&self, rows: i32) -> bool {
        rows == 1 || self.rows.takes(rows)
    }

    /// The products of the vectors `x`, `[rows, 1, columns]`, as many as it
    /// [`takes`](Self::takes).
    pub fn apply(&self, x: &Array) -> Result<Array> {
        self.run(x, None)
    }

    /// The products of `x` added to `residual`, `[rows, 1, outputs]`.
    pub fn apply_residual(&self, x: &Array, residual: &Array) -> Result<Array> {
        self.run(x, Some(residual))
    }

    fn run(&self, x: &Array, residual: Option<&Array>) -> Result<Array> {
        let mut inputs = Vec::with_capacity(6);
        inputs.push(x);
        inputs.extend(&self.fixed);
        inputs.extend(residual);
        match x.dim(0) {
            1 => self.kernel.apply(&self.launch, &inputs),
            rows => self.rows.apply(rows, &inputs),
        }
    }
}

const ADDED: &str = "out[o] = static_cast<T>(static_cast<float>(static_cast<T>(sums[r])) + static_cast<float>(bias[o]));";
const SWIGLU: &str = "const float gate = static_cast<float>(static_cast<T>(sums[r]));
    const float up = static_cast<float>(static_cast<T>(sums[ROWS + r]));
    const float silu = static_cast<float>(static_cast<T>(gate / (1.0f + __expf(-gate))));
    out[o] = static_cast<T>(silu * up);";

/// `source` without comments and indentation: MLX hashes all of it at every call.
pub(super) fn terse(source: &str) -> String {
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
    /// Whether all of them can be given `rows` vectors at once.
    pub fn takes(&self, rows: i32) -> bool {
        [&self.qkv, &self.output, &self.gate_up, &self.down].iter().all(|one| one.takes(rows))
    }

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

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::Path;
    use std::process::Command;

    /// The kernels' source, compiled for the processor with 256 threads as a block, against
    /// numpy: every packing and every neighbour that is folded in. bfloat16, which the
    /// compilers here cannot compute with, differs in its type alone.
    #[test]
    fn sources_compute_what_numpy_does() {
        let finishes = [Finish::Plain, Finish::Bias, Finish::Residual, Finish::Swiglu];
        let mut cases = Vec::new();
        for (index, (bits, group)) in
            [(4, 32), (4, 64), (4, 128), (8, 32), (8, 64), (8, 128)].into_iter().enumerate()
        {
            for (finish, norm_eps) in [
                (finishes[index % 4], Some(1e-5)),
                (finishes[(index + 1) % 4], None),
                (Finish::Swiglu, Some(1e-6)),
            ] {
                let packing = Packing::new(bits, group).expect("a packing");
                // Neither a whole number of blocks nor of a warp's strides.
                let shape = Shape { out: 41, columns: 1408, packing, finish, norm_eps };
                cases.push(json!({
                    "out": shape.out, "columns": shape.columns, "bits": bits, "group": group,
                    "finish": format!("{finish:?}"), "norm_eps": norm_eps,
                    "inputs": shape.inputs(), "blocks": shape.blocks(), "source": shape.source(),
                    "type": if (index + cases.len()) % 2 == 0 { "float" } else { "_Float16" },
                }));
            }
        }
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("cases.json");
        std::fs::write(&file, json!(cases).to_string()).expect("a written file");
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let done = Command::new(here.join("../../.venv/bin/python"))
            .args([here.join("oracle/kernels.py"), file])
            .output()
            .expect("python of the test environment; run scripts/setup");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{}{said}", String::from_utf8_lossy(&done.stdout));
    }

    #[test]
    fn large_outputs_share_what_they_read() {
        let packing = Packing::new(4, 64).expect("a packing");
        let rows =
            |out| Shape { out, columns: 64, packing, finish: Finish::Plain, norm_eps: None }.rows();
        assert_eq!([rows(896), rows(18_944), rows(151_936), rows(151_937)], [1, 2, 4, 1]);
    }
}
