//! Decode steps of several rows on CUDA: packed products on the tensor cores, with the same
//! neighbours folded in as for one row, and attention over rows of unequal length.
//!
//! MLX's packed product takes from 2 rows on as many times longer as there are rows, or nearly,
//! and its attention with a mask reads every column of every row. The kernels here take for 16
//! rows little more than for one.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

use mlx_rs::error::{Exception, Result};
use mlx_rs::{Array, Dtype};

use super::fused::{Finish, Shape, terse};
use crate::sys::{CudaKernel, CudaLaunch};

/// Threads of a block; the sources say the same in warps.
const THREADS: i32 = 256;
/// Rows that the tensor cores take at once.
const TILE_ROWS: i32 = 8;
/// Outputs of a tile.
const TILE_OUTPUTS: i32 = 16;
/// Columns that a warp takes at once.
const CHUNK: i32 = 128;
/// Rows of a step at the most: beyond that sums no longer fit a thread's registers.
const ROWS_MAX: i32 = 32;
/// From so many outputs on a block computes two tiles of them, to read the vectors less often.
const OUTPUTS_MANY: i32 = 8192;

/// A packed matrix times 2 to 32 vectors. Kernels are compiled when first used.
#[derive(Debug)]
pub struct RowsProduct {
    shape: Shape,
    dtype: Dtype,
    /// For up to 8, 16 and 32 rows.
    kernels: [OnceCell<CudaKernel>; 3],
    launches: RefCell<HashMap<i32, CudaLaunch>>,
}

impl RowsProduct {
    pub(super) fn new(shape: Shape, dtype: Dtype) -> Self {
        Self { shape, dtype, kernels: Default::default(), launches: RefCell::default() }
    }

    /// Whether there is a kernel for `rows` vectors.
    pub fn takes(&self, rows: i32) -> bool {
        let Shape { columns, packing, .. } = self.shape;
        let fits = packing.bits == 4 && [64, 128].contains(&packing.group) && columns % CHUNK == 0;
        fits && self.dtype == Dtype::Bfloat16 && (2..=ROWS_MAX).contains(&rows)
    }

    /// Tiles of outputs that a block computes.
    fn tiles(&self) -> i32 {
        match self.shape.finish == Finish::Swiglu || self.shape.out >= OUTPUTS_MANY {
            true => 2,
            false => 1,
        }
    }

    fn source(&self, row_tiles: i32) -> String {
        let Shape { out, columns, packing, finish, norm_eps } = self.shape;
        let constants = format!(
            "constexpr int OUT = {out}, K = {columns}, GROUP = {}, TILES = {}, NT = {row_tiles};\n\
             constexpr bool SWIGLU = {}, NORM = {};\n\
             constexpr float EPS = {:e}f;\n",
            packing.group,
            self.tiles(),
            finish == Finish::Swiglu,
            norm_eps.is_some(),
            norm_eps.unwrap_or(0.0),
        );
        let epilogue = match finish {
            Finish::Plain => "out[to] = static_cast<T>(sum);".to_owned(),
            Finish::Bias => ADDED.replace("@at@", "o"),
            Finish::Residual => ADDED.replace("@at@", "to"),
            Finish::Swiglu => SWIGLU.to_owned(),
        };
        let body = include_str!("rows_product.cu").replace("@epilogue@", &epilogue);
        let norm = if norm_eps.is_some() { "norm" } else { "x" };
        terse(&format!("{constants}{}", body.replace("@norm@", norm)))
    }

    fn kernel(&self, rows: i32) -> Result<&CudaKernel> {
        let (index, row_tiles) = match rows {
            ..=8 => (0, 1),
            9..=16 => (1, 2),
            _ => (2, ROWS_MAX / TILE_ROWS),
        };
        let cell = &self.kernels[index];
        if let Some(kernel) = cell.get() {
            return Ok(kernel);
        }
        let Shape { finish, norm_eps, .. } = self.shape;
        let name = format!("mlxd_rows_product_{finish:?}_{}_{row_tiles}", norm_eps.is_some());
        let (inputs, source) = (self.shape.inputs(), self.source(row_tiles));
        let kernel = CudaKernel::new(&name, &inputs, &source, self.dtype, THREADS)?;
        Ok(cell.get_or_init(|| kernel))
    }

    /// Runs the kernel over `inputs`, the vectors being `[rows, 1, columns]`.
    pub(super) fn apply(&self, rows: i32, inputs: &[&Array]) -> Result<Array> {
        if !self.takes(rows) {
            return Err(Exception::custom("no kernel for a product of so many rows"));
        }
        let kernel = self.kernel(rows)?;
        let mut launches = self.launches.borrow_mut();
        let launch = match launches.entry(rows) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let outputs = match self.shape.finish {
                    Finish::Swiglu => TILE_OUTPUTS,
                    _ => TILE_OUTPUTS * self.tiles(),
                };
                let blocks = (self.shape.out + outputs - 1) / outputs;
                new.insert(kernel.launch(&[rows, 1, self.shape.out], blocks * THREADS)?)
            }
        };
        kernel.apply(launch, inputs)
    }
}

const ADDED: &str = "out[to] = static_cast<T>(static_cast<float>(static_cast<T>(sum)) + static_cast<float>(bias[@at@]));";
const SWIGLU: &str = "float up = 0;
    for (int v = 0; v < WARPS; ++v) up += shared[v][e + NT * 128];
    up = static_cast<float>(static_cast<T>(up * inverse));
    const float gate = static_cast<float>(static_cast<T>(sum));
    const float silu = static_cast<float>(static_cast<T>(gate / (1.0f + __expf(-gate))));
    out[to] = static_cast<T>(silu * up);";

/// Attention of one query per row over shared buffers that every row fills to another length.
#[derive(Debug)]
pub struct RowsAttention {
    kernel: CudaKernel,
    heads: i32,
    width: i32,
    launches: RefCell<HashMap<i32, CudaLaunch>>,
}

impl RowsAttention {
    /// Prepares the kernel; `None` where it does not fit.
    pub fn new(heads: i32, kv_heads: i32, width: i32, dtype: Dtype) -> Result<Option<Self>> {
        if dtype != Dtype::Bfloat16 || width % 32 != 0 || width > THREADS || heads % kv_heads != 0 {
            return Ok(None);
        }
        let constants = format!(
            "constexpr int HEADS = {heads}, KV_HEADS = {kv_heads}, D = {width}, UNROLL = 4;\n\
             constexpr float SCALE = {:e}f;\n",
            f64::from(width).powf(-0.5),
        );
        let source = terse(&format!("{constants}{}", include_str!("rows_attention.cu")));
        let inputs = ["turned", "keys", "values", "lengths"];
        let kernel = CudaKernel::new("mlxd_rows_attention", &inputs, &source, dtype, THREADS)?;
        Ok(Some(Self { kernel, heads, width, launches: RefCell::default() }))
    }

    /// `turned`, `[rows, heads or more, 1, width]`, begins with the queries. `keys` and `values`
    /// are `[rows or more, kv_heads, columns, width]`. `lengths`, `[rows + 1]`, i32, says how
    /// many columns each row sees, and last the column that holds the youngest position; older
    /// ones lie before it, round the buffer's end. Gives `[rows, heads, 1, width]`.
    pub fn apply(
        &self,
        turned: &Array,
        keys: &Array,
        values: &Array,
        lengths: &Array,
    ) -> Result<Array> {
        let rows = turned.dim(0);
        if lengths.shape() != [rows + 1] || lengths.dtype() != Dtype::Int32 {
            return Err(Exception::custom("attention needs one length a row and the column"));
        }
        let mut launches = self.launches.borrow_mut();
        let launch = match launches.entry(rows) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let shape = [rows, self.heads, 1, self.width];
                new.insert(self.kernel.launch(&shape, rows * self.heads * THREADS)?)
            }
        };
        self.kernel.apply(launch, &[turned, keys, values, lengths])
    }
}
