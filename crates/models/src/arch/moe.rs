//! Mixtures of experts: a router names a few experts per position, and only those compute it.
//!
//! Shazeer et al., "Outrageously large neural networks"; the routers are those of Qwen3-MoE
//! (shares by softmax over all experts) and of DeepSeek-V3 and Nemotron-H (sigmoid scores, a
//! learned correction that counts for the choice only, experts chosen within the best groups).

use mlx_rs::error::Result;
use mlx_rs::ops::indexing::{put_along_axis, take_along_axis, take_axis, topk_axis};
use mlx_rs::ops::{
    argpartition_axis, argsort_axis, concatenate, gather_mm, gather_qmm, sigmoid, softmax_axis,
};
use mlx_rs::{Array, Dtype};

use super::feed_forward::FeedForward;
use super::linear::Matrix;
use crate::config::{MixtureConfig, Packing};
use crate::fault::{Loaded, in_load};
use crate::sys::{self, CompiledSwiglu};
use crate::weights::{Inventory, Module, Reader, Stack};

/// From this many chosen experts on the rows are sorted by expert, so that each expert's weights
/// are read once. mlx-lm's border.
const SORT_FROM: usize = 64;

/// One matrix `[rows, columns]` per expert, dense or packed.
#[derive(Debug)]
pub enum Pool {
    /// As stored.
    Dense {
        /// `[experts, rows, columns]`.
        weight: Array,
        /// A view of the same data, `[experts, columns, rows]`.
        transposed: Array,
    },
    /// In MLX's affine packing.
    Packed {
        /// `[experts, rows, words]`, 32-bit words.
        weight: Array,
        /// `[experts, rows, groups]`.
        scales: Array,
        /// `[experts, rows, groups]`.
        biases: Array,
        /// Bits and group.
        packing: Packing,
    },
}

impl Pool {
    /// Dense matrices of `weight`, `[experts, rows, columns]`.
    pub fn dense(weight: Array) -> Result<Self> {
        let transposed = weight.swap_axes(-1, -2)?;
        Ok(Self::Dense { weight, transposed })
    }

    /// `x`, `[…, 1, columns]`, times the matrix that `experts`, `[…]`, names for each.
    pub fn product(&self, x: &Array, experts: &Array, sorted: bool) -> Result<Array> {
        match self {
            Self::Dense { transposed, .. } => gather_mm(x, transposed, None, experts, sorted),
            Self::Packed { weight, scales, biases, packing } => {
                let Packing { bits, group } = *packing;
                gather_qmm(x, weight, scales, biases, None, experts, true, group, bits, sorted)
            }
        }
    }

    /// Rows of both below each other, expert by expert, if they are of one kind.
    fn join(&self, other: &Self) -> Result<Option<Self>> {
        let joined = |a: &Array, b: &Array| concatenate(&[a, b], 1);
        Ok(match (self, other) {
            (Self::Dense { weight: a, .. }, Self::Dense { weight: b, .. })
                if a.dtype() == b.dtype() =>
            {
                Some(Self::dense(joined(a, b)?)?)
            }
            (
                Self::Packed { weight: a, scales: a_scales, biases: a_biases, packing: a_packing },
                Self::Packed { weight: b, scales: b_scales, biases: b_biases, packing: b_packing },
            ) if a_packing == b_packing && a_scales.dtype() == b_scales.dtype() => {
                Some(Self::Packed {
                    weight: joined(a, b)?,
                    scales: joined(a_scales, b_scales)?,
                    biases: joined(a_biases, b_biases)?,
                    packing: *a_packing,
                })
            }
            _ => None,
        })
    }

    /// The arrays it is made of, views aside.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        let (first, rest) = match self {
            Self::Dense { weight, .. } => (weight, [None, None]),
            Self::Packed { weight, scales, biases, .. } => (weight, [Some(scales), Some(biases)]),
        };
        std::iter::once(first).chain(rest.into_iter().flatten())
    }
}

/// How experts are chosen from the router's outputs.
#[derive(Debug)]
pub enum Rule {
    /// Shares by softmax over all experts.
    Softmax {
        /// Scale the chosen shares to sum to 1.
        renormalise: bool,
    },
    /// Sigmoid scores; `correction` is added for the choice alone.
    Sigmoid {
        /// `[experts]`.
        correction: Array,
        /// Groups that the experts form, and how many of them are considered.
        groups: (i32, i32),
        /// Scale the chosen scores to sum to 1.
        renormalise: bool,
        /// A float32 scalar that the scores are multiplied with at last.
        scale: Array,
    },
}

/// Chooses experts.
#[derive(Debug)]
pub struct Router {
    /// `[experts, hidden]`.
    pub gate: Matrix,
    /// Experts chosen per position.
    pub per_token: i32,
    /// How.
    pub rule: Rule,
}

impl Router {
    /// For `x`, `[rows, n, hidden]`: the experts `[rows, n, per_token]` and their shares.
    pub fn choose(&self, x: &Array) -> Result<(Array, Array)> {
        let outputs = self.gate.product(x)?;
        match &self.rule {
            Rule::Softmax { renormalise } => {
                let shares = softmax_axis(&outputs, -1, true)?;
                let [rows, length, experts] = three(&shares);
                let order = argpartition_axis(&shares, -self.per_token, -1)?;
                let from = [0, 0, experts - self.per_token];
                let chosen = sys::slice(&order, &from, &[rows, length, experts])?;
                let shares = take_along_axis(&shares, &chosen, -1)?;
                let shares = match renormalise {
                    true => shares.divide(shares.sum_axis(-1, true)?)?,
                    false => shares,
                };
                Ok((chosen, shares))
            }
            Rule::Sigmoid { correction, groups, renormalise, scale } => {
                let scores = sigmoid(outputs.as_dtype(Dtype::Float32)?)?;
                let corrected = within_best_groups(scores.add(correction)?, *groups)?;
                let [rows, length, _] = three(&corrected);
                let order = argpartition_axis(corrected.negative()?, self.per_token - 1, -1)?;
                let chosen = sys::slice(&order, &[0; 3], &[rows, length, self.per_token])?;
                let mut shares = take_along_axis(&scores, &chosen, -1)?;
                if *renormalise && self.per_token > 1 {
                    let sum = shares.sum_axis(-1, true)?.add(Array::from_f32(1e-20))?;
                    shares = shares.divide(sum)?;
                }
                Ok((chosen, shares.multiply(scale)?))
            }
        }
    }

    /// The arrays it is made of.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        let correction = match &self.rule {
            Rule::Softmax { .. } => None,
            Rule::Sigmoid { correction, .. } => Some(correction),
        };
        self.gate.arrays().chain(correction)
    }
}

/// `from..to` of the last axis.
pub fn columns(array: &Array, from: i32, to: i32) -> Result<Array> {
    let mut start = vec![0; array.ndim()];
    let mut stop = array.shape().to_vec();
    if let (Some(first), Some(last)) = (start.last_mut(), stop.last_mut()) {
        (*first, *last) = (from, to);
    }
    sys::slice(array, &start, &stop)
}

fn three(array: &Array) -> [i32; 3] {
    [array.dim(0), array.dim(1), array.dim(2)]
}

/// `scores`, `[rows, n, experts]`, with those outside the `kept` best of `groups` set to 0. A
/// group is as good as its two best experts together.
fn within_best_groups(scores: Array, (groups, kept): (i32, i32)) -> Result<Array> {
    if groups <= 1 || kept >= groups {
        return Ok(scores);
    }
    let [rows, length, experts] = three(&scores);
    let grouped = scores.reshape(&[rows, length, groups, experts / groups])?;
    let worth = topk_axis(&grouped, 2, -1)?.sum_axis(-1, true)?;
    let dropped = groups - kept;
    let order = argpartition_axis(&worth, dropped - 1, -2)?;
    let worst = sys::slice(&order, &[0; 4], &[rows, length, dropped, 1])?;
    let zero = Array::from_f32(0.0);
    let masked = put_along_axis(&grouped, &worst, &zero, -2)?;
    masked.reshape(&[rows, length, experts])
}

/// Runs `compute` on each position of `x`, `[rows, n, width]`, for each of its experts,
/// `[rows, n, k]`, and gives `[rows, n, k, out]`.
///
/// `compute` gets positions with a second-to-last axis of 1, an expert for each, and whether
/// these are sorted.
pub fn for_each_expert(
    x: &Array,
    experts: &Array,
    compute: impl Fn(&Array, &Array, bool) -> Result<Array>,
) -> Result<Array> {
    let [rows, length, width] = three(x);
    let per_token = experts.dim(2);
    if experts.size() < SORT_FROM {
        let spread = x.reshape(&[rows, length, 1, 1, width])?;
        let out = compute(&spread, experts, false)?;
        return out.squeeze_axes(&[-2]);
    }
    let flat = experts.flatten(None, None)?;
    let order = argsort_axis(&flat, 0)?;
    let back = argsort_axis(&order, 0)?;
    let position = order.floor_divide(Array::from_slice(&[per_token as u32], &[1]))?;
    let sorted = take_axis(x.reshape(&[rows * length, 1, width])?, &position, 0)?;
    let out = compute(&sorted, &take_axis(&flat, &order, 0)?, true)?;
    let out = take_axis(&out, &back, 0)?;
    let wide = out.dim(-1);
    out.reshape(&[rows, length, per_token, wide])
}

/// The outputs of a position's experts, `[rows, n, k, width]`, added up by their shares.
pub fn add_up(outputs: &Array, shares: &Array) -> Result<Array> {
    let sum = outputs.multiply(shares.expand_dims(-1)?)?.sum_axis(-2, false)?;
    sum.as_dtype(outputs.dtype())
}

/// Gated experts: `down(silu(gate(x)) * up(x))` each.
#[derive(Debug)]
pub struct Mixture {
    router: Router,
    gate_up: GateUp,
    down: Pool,
    width: i32,
}

#[derive(Debug)]
enum GateUp {
    /// Outputs side by side.
    Joined(Pool),
    Apart(Pool, Pool),
}

const PARTS: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

fn stacks(config: &MixtureConfig, hidden: i32, path: &str) -> [Stack; 3] {
    PARTS.map(|part| {
        let (rows, columns) = match part {
            "down_proj" => (hidden, config.width),
            _ => (config.width, hidden),
        };
        Stack {
            path: format!("{path}.switch_mlp.{part}"),
            apart: (format!("{path}.experts"), part),
            count: config.experts,
            rows,
            columns,
        }
    })
}

impl Mixture {
    /// Adds the tensors of the mixture at `path`.
    pub fn list(config: &MixtureConfig, hidden: i32, path: &str, inventory: &mut Inventory) {
        let gate = format!("{path}.gate");
        let (rows, columns) = (config.experts, hidden);
        inventory.modules.push(Module { path: gate, rows, columns, bias: false });
        inventory.stacks.extend(stacks(config, hidden, path));
    }

    /// Reads the mixture at `path`.
    pub fn load(
        config: &MixtureConfig,
        hidden: i32,
        path: &str,
        reader: &mut Reader,
        join: bool,
    ) -> Loaded<Self> {
        let router = Router {
            gate: reader.matrix(&format!("{path}.gate"))?,
            per_token: config.per_token,
            rule: Rule::Softmax { renormalise: config.renormalise },
        };
        let [gate, up, down] = stacks(config, hidden, path);
        let (gate, up) = (reader.pool(&gate)?, reader.pool(&up)?);
        let joined = match join {
            true => gate.join(&up).map_err(in_load("joining the experts' gate and up"))?,
            false => None,
        };
        let gate_up = joined.map_or(GateUp::Apart(gate, up), GateUp::Joined);
        let this = Self { router, gate_up, down: reader.pool(&down)?, width: config.width };
        reader.settle(this.arrays())?;
        Ok(this)
    }

    /// `x`, `[rows, n, hidden]`, transformed.
    pub fn forward(&self, x: &Array, swiglu: Option<&CompiledSwiglu>) -> Result<Array> {
        let (experts, shares) = self.router.choose(x)?;
        let outputs = for_each_expert(x, &experts, |x, experts, sorted| {
            let (gate, up) = self.gate_up(x, experts, sorted)?;
            let product = match swiglu {
                Some(swiglu) => swiglu.apply(&gate, &up)?,
                None => gate.multiply(sigmoid(&gate)?)?.multiply(&up)?,
            };
            self.down.product(&product, experts, sorted)
        })?;
        add_up(&outputs, &shares)
    }

    fn gate_up(&self, x: &Array, experts: &Array, sorted: bool) -> Result<(Array, Array)> {
        match &self.gate_up {
            GateUp::Apart(gate, up) => {
                Ok((gate.product(x, experts, sorted)?, up.product(x, experts, sorted)?))
            }
            GateUp::Joined(pool) => {
                let both = pool.product(x, experts, sorted)?;
                let gate = columns(&both, 0, self.width)?;
                Ok((gate, columns(&both, self.width, 2 * self.width)?))
            }
        }
    }

    /// The arrays it is made of.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        let (first, second) = match &self.gate_up {
            GateUp::Joined(pool) => (pool, None),
            GateUp::Apart(gate, up) => (gate, Some(up)),
        };
        let pools = std::iter::once(first).chain(second).chain([&self.down]);
        self.router.arrays().chain(pools.flat_map(Pool::arrays))
    }
}

/// What follows attention in a layer.
#[derive(Debug)]
pub enum Mlp {
    /// One gated feed-forward part for every position.
    Gated(FeedForward),
    /// Experts.
    Mixture(Mixture),
}

impl Mlp {
    /// `x`, `[rows, n, hidden]`, transformed.
    pub fn forward(&self, x: &Array, swiglu: Option<&CompiledSwiglu>) -> Result<Array> {
        match self {
            Self::Gated(gated) => gated.forward(x, swiglu),
            Self::Mixture(mixture) => mixture.forward(x, swiglu),
        }
    }

    /// The gated part, if it is one.
    pub fn gated(&self) -> Option<&FeedForward> {
        match self {
            Self::Gated(gated) => Some(gated),
            Self::Mixture(_) => None,
        }
    }

    /// The arrays it is made of.
    pub fn arrays(&self) -> Box<dyn Iterator<Item = &Array> + '_> {
        match self {
            Self::Gated(gated) => Box::new(gated.arrays()),
            Self::Mixture(mixture) => Box::new(mixture.arrays()),
        }
    }
}
