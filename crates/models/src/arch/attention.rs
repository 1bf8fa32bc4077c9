//! Grouped-query attention with rotary positions over an in-place KV buffer.

use mlx_rs::Array;
use mlx_rs::error::{Exception, Result};
use mlx_rs::fast::{self, ScaledDotProductAttentionMask as Mask};
use mlx_rs::ops::concatenate;

use super::fused_rows::RowsAttention;
use super::linear::{Linear, Projection};
use super::packed::packed_attention;
use super::rope::Rope;
use crate::batch::{LayerRows, Part, Seen, Step};
use crate::config::ModelConfig;
use crate::kv::{Held, KvLayer, Rotation, rows};
use crate::sys;

/// One layer's attention.
#[derive(Debug)]
pub struct Attention {
    /// Outputs q, k, v side by side.
    pub qkv: Projection,
    /// From heads back to the residual stream.
    pub output: Linear,
    /// Qwen3's norms of q's and k's heads.
    pub head_norms: Option<HeadNorms>,
    /// Query heads.
    pub heads: i32,
    /// Key and value heads.
    pub kv_heads: i32,
    /// Width of a head.
    pub width: i32,
    /// Epsilon of the head norms.
    pub norm_eps: f32,
    /// See [`Layout::split_few`](super::Layout::split_few).
    pub split_few: bool,
}

/// Weights of the norms over q's and k's heads.
#[derive(Debug)]
pub struct HeadNorms {
    /// `[heads + kv_heads, 1, width]`: q's weights for q's heads, then k's for k's. Multiplying
    /// after a norm without weights rounds as a norm with weights does, and takes both at once.
    pub weights: Array,
}

impl HeadNorms {
    /// Spreads `q` and `k`, `[width]` each, over their heads.
    pub fn new(q: &Array, k: &Array, config: &ModelConfig) -> Result<Self> {
        let width = config.head_dim;
        let spread = |weights: &Array, heads: i32| {
            let row = weights.reshape(&[1, 1, width])?;
            mlx_rs::ops::broadcast_to(row, &[heads, 1, width])
        };
        let parts = [spread(q, config.heads)?, spread(k, config.kv_heads)?];
        let weights = concatenate(&parts, 0)?;
        mlx_rs::transforms::eval([&weights])?;
        Ok(Self { weights })
    }
}

/// What all layers of one forward pass share.
pub struct Pass<'a> {
    /// Rotary positions.
    pub rope: &'a Rope,
    /// Positions computed before, and the same for the device: one array for all layers.
    pub position: i32,
    offset: Array,
    /// Positions computed now.
    pub length: i32,
    /// Where the sequence ends at the latest.
    pub capacity: i32,
    /// Masks of sliding layers, by window.
    masks: Vec<(i32, Array)>,
    /// Of layers that rotate, which all do so alike.
    rotating_mask: Option<Array>,
}

impl<'a> Pass<'a> {
    /// A pass over `length` positions from `position` on.
    pub fn new(rope: &'a Rope, position: i32, length: i32, capacity: i32) -> Self {
        Self {
            rope,
            position,
            offset: Array::from_int(position),
            length,
            capacity,
            masks: Vec::new(),
            rotating_mask: None,
        }
    }

    /// Which of the `rows` rows that a layer keeps each query sees.
    fn rotating_mask(&mut self, rotation: Rotation, rows: i32) -> Result<Array> {
        if let Some(mask) = &self.rotating_mask {
            return Ok(mask.clone());
        }
        let mask = rotation.mask(self.position, self.length, rows)?;
        Ok(self.rotating_mask.insert(mask).clone())
    }

    /// Which of the keys `first..position + length` each query sees, where causality is not all.
    fn sliding_mask(&mut self, window: i32, first: i32) -> Result<Array> {
        if let Some((_, mask)) = self.masks.iter().find(|(of, _)| *of == window) {
            return Ok(mask.clone());
        }
        let end = self.position + self.length;
        let queries = Array::arange::<i32, i32>(self.position, end, None)?;
        let queries = queries.reshape(&[self.length, 1])?;
        let keys = Array::arange::<i32, i32>(first, end, None)?;
        let keys = keys.reshape(&[1, end - first])?;
        let seen = queries.ge(&keys)?;
        let near = queries.lt(&keys.add(Array::from_int(window))?)?;
        let mask = seen.logical_and(&near)?;
        self.masks.push((window, mask.clone()));
        Ok(mask)
    }
}

impl Attention {
    /// What lies between the projections: `qkv`, `[1, n, (heads + 2 kv_heads) width]`, to
    /// `[1, n, heads width]`.
    pub fn core(&self, qkv: &Array, kv: &mut KvLayer, pass: &mut Pass) -> Result<Array> {
        let Self { heads, width, .. } = *self;
        let length = pass.length;
        let all = heads + 2 * self.kv_heads;
        // One position needs no transposition: its heads lie in order either way.
        let qkv = match length {
            1 => qkv.reshape(&[1, all, 1, width])?,
            _ => qkv.reshape(&[1, length, all, width])?.transpose_axes(&[0, 2, 1, 3])?,
        };
        let [turned, values] = self.turned(&qkv, pass.rope, &pass.offset)?;
        let [queries, keys] = self.parted(&turned)?;
        let held = kv.append(&keys, &values, pass.position, pass.capacity)?;
        let attended = match &held {
            Held::Plain(keys, values) => self.attend(&queries, keys, values, kv, pass)?,
            Held::Packed(keys, values, packing) => {
                packed_attention(&queries, keys, values, *packing, self.scale())?
            }
        };
        let attended = match length {
            1 => attended,
            _ => attended.transpose_axes(&[0, 2, 1, 3])?,
        };
        attended.reshape(&[1, length, heads * width])
    }

    /// The same for one position of each row of a batch: `qkv`, `[rows, 1, …]`, to
    /// `[rows, 1, heads width]`. `kernel` attends where the step tells lengths.
    pub fn core_of_rows(
        &self,
        qkv: &Array,
        layer: LayerRows,
        rope: &Rope,
        step: &Step,
        kernel: Option<&RowsAttention>,
    ) -> Result<Array> {
        let Self { heads, kv_heads, width, .. } = *self;
        let Step { rows, shared, .. } = *step;
        let qkv = qkv.reshape(&[rows, heads + 2 * kv_heads, 1, width])?;
        let [turned, values] = self.turned(&qkv, rope, &step.offsets)?;
        let mut attended = Vec::with_capacity(1 + layer.own.len());
        if let Some((kv, part)) = layer.shared {
            let turned = rows_of(&turned, 0, shared)?;
            let [queries, keys] = self.parted(&turned)?;
            let (keys, values) = kv.write(part.column, &keys, &rows_of(&values, 0, shared)?)?;
            attended.push(match (kernel, &part.seen) {
                (Some(kernel), Seen::Lengths(lengths)) => {
                    kernel.apply(&turned, keys, values, lengths)?
                }
                _ => decode_attention(&queries, keys, values, part, self.scale())?,
            });
        }
        for (row, (kv, position, capacity)) in (shared..).zip(layer.own) {
            let [queries, keys] = self.parted(&rows_of(&turned, row, row + 1)?)?;
            let values = rows_of(&values, row, row + 1)?;
            attended.push(match kv.append(&keys, &values, position, capacity)? {
                // The view holds exactly what this query sees.
                Held::Plain(keys, values) => fast::scaled_dot_product_attention(
                    &queries,
                    &keys,
                    &values,
                    self.scale(),
                    None,
                    None,
                )?,
                Held::Packed(keys, values, packing) => {
                    packed_attention(&queries, &keys, &values, packing, self.scale())?
                }
            });
        }
        let attended = match attended.as_slice() {
            [all] => all.clone(),
            parts => concatenate(parts, 0)?,
        };
        attended.reshape(&[rows, 1, heads * width])
    }

    /// The same for whole texts, each from position 0 on and without a window, and without keeping
    /// keys and values: `qkv`, `[rows, n, …]`, to `[rows, n, heads width]`.
    pub fn core_of_texts(&self, qkv: &Array, rope: &Rope) -> Result<Array> {
        let Self { heads, kv_heads, width, .. } = *self;
        let (rows, length) = (qkv.dim(0), qkv.dim(1));
        let qkv = qkv.reshape(&[rows, length, heads + 2 * kv_heads, width])?;
        let qkv = qkv.transpose_axes(&[0, 2, 1, 3])?;
        let [turned, values] = self.turned(&qkv, rope, &Array::from_int(0))?;
        let [queries, keys] = self.parted(&turned)?;
        let mask = Some(Mask::Causal);
        let attended =
            fast::scaled_dot_product_attention(&queries, &keys, &values, self.scale(), mask, None)?;
        attended.transpose_axes(&[0, 2, 1, 3])?.reshape(&[rows, length, heads * width])
    }

    /// Queries and keys of `qkv`, `[rows, heads + 2 kv_heads, n, width]`, in one array, normed
    /// where the model does that, and turned; and the values.
    fn turned(&self, qkv: &Array, rope: &Rope, offsets: &Array) -> Result<[Array; 2]> {
        let Self { heads, kv_heads, .. } = *self;
        let mut turning = heads_of(qkv, 0, heads + kv_heads)?;
        let values = heads_of(qkv, heads + kv_heads, heads + 2 * kv_heads)?;
        if let Some(norms) = &self.head_norms {
            turning = fast::rms_norm(&turning, None, self.norm_eps)?.multiply(&norms.weights)?;
        }
        Ok([rope.apply(&turning, offsets)?, values])
    }

    /// The queries and the keys of what [`turned`](Self::turned) gave.
    fn parted(&self, turned: &Array) -> Result<[Array; 2]> {
        let Self { heads, kv_heads, .. } = *self;
        Ok([heads_of(turned, 0, heads)?, heads_of(turned, heads, heads + kv_heads)?])
    }

    fn scale(&self) -> f32 {
        f64::from(self.width).powf(-0.5) as f32
    }

    fn attend(
        &self,
        queries: &Array,
        keys: &Array,
        values: &Array,
        kv: &KvLayer,
        pass: &mut Pass,
    ) -> Result<Array> {
        let scale = self.scale();
        let sdpa = |mask: Option<Mask>| match mask {
            Some(mask) => {
                fast::scaled_dot_product_attention(queries, keys, values, scale, mask, None)
            }
            None => fast::scaled_dot_product_attention(queries, keys, values, scale, None, None),
        };
        if let Some(rotation) = kv.rotation()
            && rotation.is_masked(pass.position, pass.length)
        {
            let mask = pass.rotating_mask(rotation, keys.dim(2))?;
            return sdpa(Some(Mask::Array(&mask)));
        }
        if pass.length == 1 {
            return sdpa(None); // the view holds exactly what this query sees
        }
        match kv.window() {
            Some(window) if pass.position + pass.length > window => {
                let mask = pass.sliding_mask(window, kv.first_seen(pass.position))?;
                sdpa(Some(Mask::Array(&mask)))
            }
            _ if self.split_few && pass.length <= FEW => {
                self.attend_one_by_one([queries, keys, values])
            }
            _ => sdpa(Some(Mask::Causal)),
        }
    }

    /// Causal attention, each query over the keys that it sees.
    fn attend_one_by_one(&self, [queries, keys, values]: [&Array; 3]) -> Result<Array> {
        let (length, all) = (queries.dim(2), keys.dim(2));
        let one = |at: i32| {
            let seen = (0, all - length + at + 1);
            let (keys, values) = (rows(keys, seen)?, rows(values, seen)?);
            let query = rows(queries, (at, at + 1))?;
            fast::scaled_dot_product_attention(&query, &keys, &values, self.scale(), None, None)
        };
        let parts: Result<Vec<Array>> = (0..length).map(one).collect();
        concatenate(&parts?, 2)
    }

    /// The arrays it is made of.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        let norms = self.head_norms.iter().map(|norms| &norms.weights);
        self.qkv.arrays().chain(self.output.arrays()).chain(norms)
    }
}

/// More queries are not few.
const FEW: i32 = 16;

/// Heads `from..to` of `array`, `[rows, heads, n, width]`.
fn heads_of(array: &Array, from: i32, to: i32) -> Result<Array> {
    let stop = [array.dim(0), to, array.dim(2), array.dim(3)];
    sys::slice(array, &[0, from, 0, 0], &stop)
}

/// Rows `from..to` of `array`, `[rows, heads, 1, width]`.
fn rows_of(array: &Array, from: i32, to: i32) -> Result<Array> {
    if (from, to) == (0, array.dim(0)) {
        return Ok(array.clone());
    }
    let stop = [to, array.dim(1), array.dim(2), array.dim(3)];
    sys::slice(array, &[from, 0, 0, 0], &stop)
}

/// Attention of one query per row to shared buffers: `queries`, `[rows, heads, 1, width]`, over
/// the first `rows` slots of `keys` and `values`, `[slots, kv_heads, columns, width]`, of which
/// each row sees what `part` says. Gives `[rows, heads, 1, width]`.
fn decode_attention(
    queries: &Array,
    keys: &Array,
    values: &Array,
    part: &Part,
    scale: f32,
) -> Result<Array> {
    let (from, to) = part.span;
    let start = [0, 0, from, 0];
    let stop = [queries.dim(0), keys.dim(1), to, keys.dim(3)];
    let (keys, values) = (sys::slice(keys, &start, &stop)?, sys::slice(values, &start, &stop)?);
    let attend =
        |mask| fast::scaled_dot_product_attention(queries, &keys, &values, scale, mask, None);
    match &part.seen {
        Seen::All => attend(None),
        Seen::Mask(mask) => attend(Some(Mask::Array(mask))),
        Seen::Lengths(_) => Err(Exception::custom("lengths are told to the kernel alone")),
    }
}
