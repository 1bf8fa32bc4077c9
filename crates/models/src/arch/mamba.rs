//! Mamba-2: a short convolution and a scan with a decay per head.
//!
//! Dao and Gu, "Transformers are SSMs" (SSD). One position is the recurrence itself; more are
//! computed in pieces of [`PIECE`] positions as masked products, with the state carried from
//! piece to piece.

use mlx_rs::error::Result;
use mlx_rs::ops::{
    broadcast_to, concatenate, conv1d, logaddexp, matmul, maximum, minimum, sigmoid, tril,
};
use mlx_rs::transforms::eval;
use mlx_rs::{Array, Dtype, fast};

use super::linear::Linear;
use super::moe::columns;
use crate::config::MambaConfig;
use crate::fault::{Loaded, in_load};
use crate::recurrent::{Recurrent, RecurrentShape};
use crate::sys::{self, CompiledSwiglu};
use crate::weights::{Inventory, Module, Reader};

/// Positions that are scanned at once; mlx-lm's number.
const PIECE: i32 = 256;

/// One Mamba-2 layer.
#[derive(Debug)]
pub struct Mamba {
    /// To gate, convolution and time steps side by side.
    input: Linear,
    conv: Convolution,
    /// `[heads]`, float32.
    time_bias: Array,
    /// `-exp(A)`, `[heads]`, float32.
    decay: Array,
    /// D, `[heads, 1]`: how much of the input passes by.
    skip: Array,
    /// Limits of the time steps as float32 scalars, where they limit anything.
    shortest: Option<Array>,
    longest: Option<Array>,
    zero: Array,
    norm: Array,
    output: Linear,
    config: MambaConfig,
    norm_eps: f32,
}

#[derive(Debug)]
struct Convolution {
    /// `[channels, kernel, 1]`.
    weight: Array,
    /// The same as float32, `[1, kernel, channels]`.
    taps: Array,
    bias: Option<Array>,
}

impl Mamba {
    /// Adds the tensors of the layer at `path`.
    pub fn list(config: &MambaConfig, hidden: i32, path: &str, inventory: &mut Inventory) {
        let (inner, channels) = (config.inner(), config.channels());
        let bias = config.projection_bias;
        let mut module = |part: &str, rows: i32, columns: i32| {
            inventory.modules.push(Module { path: format!("{path}.{part}"), rows, columns, bias });
        };
        module("in_proj", inner + channels + config.heads, hidden);
        module("out_proj", hidden, inner);
        for (part, length) in
            [("dt_bias", config.heads), ("A_log", config.heads), ("D", config.heads)]
        {
            inventory.vectors.push((format!("{path}.{part}"), length));
        }
        inventory.vectors.push((format!("{path}.norm.weight"), inner));
        if config.conv_bias {
            inventory.vectors.push((format!("{path}.conv1d.bias"), channels));
        }
        // MLX's order and PyTorch's.
        let shapes = vec![vec![channels, config.kernel, 1], vec![channels, 1, config.kernel]];
        inventory.others.push((format!("{path}.conv1d.weight"), shapes));
    }

    /// Reads the layer at `path`.
    pub fn load(
        config: &MambaConfig,
        norm_eps: f32,
        path: &str,
        reader: &mut Reader,
    ) -> Loaded<Self> {
        let name = |part: &str| format!("{path}.{part}");
        let input = reader.linear(&name("in_proj"), config.projection_bias)?;
        let output = reader.linear(&name("out_proj"), config.projection_bias)?;
        reader.settle(input.arrays().chain(output.arrays()))?;
        let dtype = input.matrix.dtype();
        let weight = reader.vector(&name("conv1d.weight"))?;
        let bias = match config.conv_bias {
            true => Some(reader.vector(&name("conv1d.bias"))?),
            false => None,
        };
        let preparing = in_load("preparing a Mamba-2 layer");
        let conv = Convolution::new(weight, bias, config).map_err(&preparing)?;
        let time_bias = reader.vector(&name("dt_bias"))?;
        let a_log = reader.vector(&name("A_log"))?;
        let skip = reader.vector(&name("D"))?;
        let norm = reader.vector(&name("norm.weight"))?;
        let prepared = || -> Result<(Array, Array, Array, Array)> {
            let time_bias = time_bias.as_dtype(Dtype::Float32)?;
            let decay = a_log.exp()?.as_dtype(Dtype::Float32)?.negative()?;
            let skip = skip.as_dtype(dtype)?.reshape(&[config.heads, 1])?;
            let zero = Array::from_f32(0.0);
            eval([&time_bias, &decay, &skip])?;
            Ok((time_bias, decay, skip, zero))
        };
        let (time_bias, decay, skip, zero) = prepared().map_err(&preparing)?;
        // A softplus is above 0 and finite anyway.
        let (low, high) = config.time_step;
        Ok(Self {
            input,
            conv,
            time_bias,
            decay,
            skip,
            shortest: (low > 0.0).then(|| Array::from_f32(low)),
            longest: high.is_finite().then(|| Array::from_f32(high)),
            zero,
            norm,
            output,
            config: config.clone(),
            norm_eps,
        })
    }

    /// Sizes of the state, with activations of type `dtype`.
    pub fn shape(config: &MambaConfig, dtype: Dtype) -> RecurrentShape {
        let MambaConfig { heads, head_dim, state, kernel, .. } = *config;
        let channels = config.channels();
        RecurrentShape { kept: kernel - 1, channels, heads, head_dim, state, dtype }
    }

    /// `x`, `[rows, n, hidden]`, transformed; `memory` has the same rows and moves on.
    pub fn forward(
        &self,
        x: &Array,
        memory: &mut Recurrent,
        swiglu: Option<&CompiledSwiglu>,
    ) -> Result<Array> {
        let (inner, channels) = (self.config.inner(), self.config.channels());
        let (rows, length) = (x.dim(0), x.dim(1));
        let projected = self.input.apply(x)?;
        let gate = columns(&projected, 0, inner)?;
        let wide = columns(&projected, inner, inner + channels)?;
        let steps = columns(&projected, inner + channels, inner + channels + self.config.heads)?;

        let mixed = self.conv.forward(&wide, memory)?;
        let bc = self.config.groups * self.config.state;
        let inputs = Scanned {
            x: columns(&mixed, 0, inner)?,
            b: columns(&mixed, inner, inner + bc)?,
            c: columns(&mixed, inner + bc, inner + 2 * bc)?,
            time: self.time_steps(&steps)?,
        };
        let scanned = match length {
            1 => self.advance(&inputs, memory)?,
            _ => self.scan(&inputs, memory)?,
        };
        let heads = inputs.x.reshape(&[rows, length, self.config.heads, self.config.head_dim])?;
        let passed = heads.multiply(&self.skip)?.reshape(&[rows, length, inner])?;
        let y = scanned.as_dtype(x.dtype())?.add(passed)?;

        let gated = match swiglu {
            Some(swiglu) => swiglu.apply(&gate, &y)?,
            None => gate.multiply(sigmoid(&gate)?)?.multiply(&y)?,
        };
        let groups = self.config.groups;
        let grouped = gated.reshape(&[rows, length, groups, inner / groups])?;
        let normed = fast::rms_norm(&grouped, None, self.norm_eps)?;
        self.output.apply(&normed.reshape(&[rows, length, inner])?.multiply(&self.norm)?)
    }

    /// Time steps from what was projected for them: `[rows, n, heads]`, float32.
    fn time_steps(&self, projected: &Array) -> Result<Array> {
        let raw = projected.as_dtype(Dtype::Float32)?.add(&self.time_bias)?;
        let mut time = logaddexp(&raw, &self.zero)?;
        if let Some(shortest) = &self.shortest {
            time = maximum(&time, shortest)?;
        }
        if let Some(longest) = &self.longest {
            time = minimum(&time, longest)?;
        }
        Ok(time)
    }

    /// One position: `h ← exp(Δ A) h + Δ x Bᵀ`, `y = h C`. Gives `[rows, 1, inner]`, float32.
    fn advance(&self, inputs: &Scanned, memory: &mut Recurrent) -> Result<Array> {
        let MambaConfig { heads, head_dim, groups, state, .. } = self.config;
        let rows = inputs.x.dim(0);
        let shared = heads / groups;
        let time = inputs.time.reshape(&[rows, groups, shared, 1, 1])?;
        let decay = time.multiply(self.decay.reshape(&[1, groups, shared, 1, 1])?)?.exp()?;
        let x = inputs.x.reshape(&[rows, groups, shared, head_dim, 1])?.multiply(&time)?;
        let b = inputs.b.reshape(&[rows, groups, 1, 1, state])?;
        let before = memory.scan.reshape(&[rows, groups, shared, head_dim, state])?;
        let after = before.multiply(decay)?.add(x.multiply(b)?)?;
        memory.scan = after.reshape(&[rows, heads, head_dim, state])?;
        let wide = after.reshape(&[rows, groups, shared * head_dim, state])?;
        let c = inputs.c.as_dtype(Dtype::Float32)?.reshape(&[rows, groups, state, 1])?;
        matmul(&wide, &c)?.reshape(&[rows, 1, heads * head_dim])
    }

    /// Several positions. Gives `[rows, n, inner]`, float32.
    fn scan(&self, inputs: &Scanned, memory: &mut Recurrent) -> Result<Array> {
        let length = inputs.x.dim(1);
        let mut pieces = Vec::new();
        let mut from = 0;
        while from < length {
            let to = (from + PIECE).min(length);
            pieces.push(self.scan_piece(&inputs.part(from, to)?, memory)?);
            from = to;
        }
        match pieces.as_slice() {
            [all] => Ok(all.clone()),
            pieces => concatenate(pieces, 1),
        }
    }

    fn scan_piece(&self, inputs: &Scanned, memory: &mut Recurrent) -> Result<Array> {
        let MambaConfig { heads, head_dim, groups, state, .. } = self.config;
        let (rows, length) = (inputs.x.dim(0), inputs.x.dim(1));
        let shared = heads / groups;
        // Heads first, positions after them.
        let by_head = |array: &Array, width: i32| {
            array.reshape(&[rows, length, heads, width])?.transpose_axes(&[0, 2, 1, 3])
        };
        let grouped = |array: &Array| array.reshape(&[rows, length, groups, state]);
        let b = grouped(&inputs.b)?.transpose_axes(&[0, 2, 1, 3])?;
        let c = grouped(&inputs.c)?.transpose_axes(&[0, 2, 1, 3])?;
        let time = by_head(&inputs.time, 1)?;
        let exponents = time.multiply(self.decay.reshape(&[heads, 1, 1])?)?;
        let x = by_head(&inputs.x, head_dim)?.multiply(&time)?;

        let decay = fading(&exponents)?;
        let alike = matmul(&c, b.swap_axes(-1, -2)?)?.expand_dims(2)?;
        let split = [rows, groups, shared, length, length];
        let weights = tril(alike.multiply(decay.reshape(&split)?)?, 0)?;
        let weights = weights.reshape(&[rows, heads, length, length])?;
        let y = matmul(&weights, &x)?;

        // What was remembered before fades, and adds to every position.
        let so_far = exponents.cumsum(-2, None, None)?.exp()?;
        let before = memory.scan.reshape(&[rows, groups, shared * head_dim, state])?;
        let c = c.as_dtype(Dtype::Float32)?;
        let remembered = matmul(&before, c.swap_axes(-1, -2)?)?;
        let remembered = remembered.reshape(&[rows, heads, head_dim, length])?;
        let y = y.add(remembered.swap_axes(-1, -2)?.multiply(&so_far)?)?;

        // What is remembered at the end.
        let last = sys::slice(&decay, &[0, 0, length - 1, 0], &[rows, heads, length, length])?;
        let kept = x.multiply(last.swap_axes(-1, -2)?)?.swap_axes(-1, -2)?;
        let kept = kept.reshape(&[rows, groups, shared * head_dim, length])?;
        let added = matmul(&kept, b.as_dtype(Dtype::Float32)?)?;
        let end = [rows, heads, length, 1];
        let faded = sys::slice(&so_far, &[0, 0, length - 1, 0], &end)?.multiply(&memory.scan)?;
        memory.scan = added.reshape(&[rows, heads, head_dim, state])?.add(faded)?;
        y.transpose_axes(&[0, 2, 1, 3])?.reshape(&[rows, length, heads * head_dim])
    }

    /// The arrays it is made of.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        let Self { time_bias, decay, skip, norm, .. } = self;
        let small = [time_bias, decay, skip, norm, &self.conv.weight].into_iter();
        self.input.arrays().chain(self.output.arrays()).chain(small).chain(&self.conv.bias)
    }
}

/// How much of position `j` is left at position `i`: `exp` of the sum of `exponents`,
/// `[rows, heads, n, 1]`, over `j + 1..=i`. Gives `[rows, heads, n, n]`, defined up to the
/// diagonal. Sums are taken one by one: differences of running sums would lose their digits.
fn fading(exponents: &Array) -> Result<Array> {
    let length = exponents.dim(-2);
    let square = [exponents.dim(0), exponents.dim(1), length, length];
    let repeated = tril(broadcast_to(exponents, &square)?, -1)?;
    repeated.cumsum(-2, None, None)?.exp()
}

/// What the scan reads, `[rows, n, …]` each.
struct Scanned {
    x: Array,
    b: Array,
    c: Array,
    time: Array,
}

impl Scanned {
    fn part(&self, from: i32, to: i32) -> Result<Self> {
        if (from, to) == (0, self.x.dim(1)) {
            let Self { x, b, c, time } = self;
            return Ok(Self { x: x.clone(), b: b.clone(), c: c.clone(), time: time.clone() });
        }
        let part =
            |array: &Array| sys::slice(array, &[0, from, 0], &[array.dim(0), to, array.dim(2)]);
        Ok(Self {
            x: part(&self.x)?,
            b: part(&self.b)?,
            c: part(&self.c)?,
            time: part(&self.time)?,
        })
    }
}

impl Convolution {
    /// `weight` in either order.
    fn new(weight: Array, bias: Option<Array>, config: &MambaConfig) -> Result<Self> {
        let (channels, kernel) = (config.channels(), config.kernel);
        // With one axis of length 1 the two orders hold the same data in the same places.
        let weight = weight.reshape(&[channels, kernel, 1])?;
        let taps = weight.reshape(&[1, channels, kernel])?.swap_axes(1, 2)?;
        let taps = taps.as_dtype(Dtype::Float32)?.contiguous()?;
        eval([&weight, &taps])?;
        Ok(Self { weight, taps, bias })
    }

    /// `x`, `[rows, n, channels]`, each position mixed with the ones before it.
    fn forward(&self, x: &Array, memory: &mut Recurrent) -> Result<Array> {
        let [rows, length, channels] = [x.dim(0), x.dim(1), x.dim(2)];
        let seen = concatenate(&[&memory.conv, x], 1)?;
        memory.conv = sys::slice(&seen, &[0, length, 0], &[rows, seen.dim(1), channels])?;
        let mut out = match length {
            1 => {
                let products = seen.as_dtype(Dtype::Float32)?.multiply(&self.taps)?;
                products.sum_axis(1, true)?.as_dtype(x.dtype())?
            }
            // MLX's convolution on a CPU takes ten times as long as this.
            _ if x.dtype() == Dtype::Float32 => self.shifted_sum(&seen, length)?,
            _ => conv1d(&seen, &self.weight, 1, 0, 1, channels)?,
        };
        if let Some(bias) = &self.bias {
            out = out.add(bias)?;
        }
        out.multiply(sigmoid(&out)?)
    }

    fn shifted_sum(&self, seen: &Array, length: i32) -> Result<Array> {
        let (rows, kernel, channels) = (seen.dim(0), self.taps.dim(1), seen.dim(2));
        let shifted = |by: i32| {
            let tap = sys::slice(&self.taps, &[0, by, 0], &[1, by + 1, channels])?;
            sys::slice(seen, &[0, by, 0], &[rows, by + length, channels])?.multiply(tap)
        };
        (1..kernel).try_fold(shifted(0)?, |sum, by| sum.add(shifted(by)?))
    }
}
