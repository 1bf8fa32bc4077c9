//! BERT's encoder, with RoBERTa's counting of positions: every token sees every other.
//!
//! Devlin et al., "BERT"; Liu et al., "RoBERTa". Norms come after the residual sums.

use mlx_rs::error::{Exception, Result};
use mlx_rs::fast::{self, ScaledDotProductAttentionMask as Mask};
use mlx_rs::ops::{erf, maximum, sigmoid, tanh};
use mlx_rs::{Array, Dtype};

use super::linear::{Linear, Matrix, Projection};
use super::{Layout, Model, State};
use crate::batch::Batch;
use crate::config::{Activation, EncoderConfig};
use crate::fault::{Loaded, in_load};
use crate::sys;
use crate::weights::{Inventory, Module, Reader};

/// A loaded encoder.
#[derive(Debug)]
pub struct BertModel {
    words: Matrix,
    positions: Matrix,
    /// The first segment's row, `[hidden]`: texts come alone.
    segment: Array,
    norm: LayerNorm,
    blocks: Vec<Block>,
    config: EncoderConfig,
}

#[derive(Debug)]
struct LayerNorm {
    weight: Array,
    bias: Array,
    epsilon: f32,
}

#[derive(Debug)]
struct Block {
    qkv: Projection,
    attended: Linear,
    attended_norm: LayerNorm,
    up: Linear,
    down: Linear,
    norm: LayerNorm,
}

const WORDS: &str = "embeddings.word_embeddings";
const POSITIONS: &str = "embeddings.position_embeddings";
const SEGMENTS: &str = "embeddings.token_type_embeddings";
const NORM: &str = "embeddings.LayerNorm";

/// A tensor's name without what a checkpoint with a head puts before it.
pub fn plain_name(name: &str) -> String {
    let inner = name.strip_prefix("bert.").or_else(|| name.strip_prefix("roberta."));
    inner.unwrap_or(name).to_owned()
}

/// Every tensor that an encoder of this config is made of.
pub fn inventory(config: &EncoderConfig) -> Inventory {
    let mut all = Inventory::default();
    let (hidden, inner) = (config.hidden, config.intermediate);
    let mut module = |path: String, rows: i32, columns: i32, bias: bool| {
        all.modules.push(Module { path, rows, columns, bias });
    };
    module(WORDS.into(), config.vocab, hidden, false);
    module(POSITIONS.into(), config.positions, hidden, false);
    module(SEGMENTS.into(), config.types, hidden, false);
    let mut norms = vec![NORM.to_owned()];
    for index in 0..config.layers {
        let name = |part: &str| format!("encoder.layer.{index}.{part}");
        for part in ["query", "key", "value"] {
            module(name(&format!("attention.self.{part}")), hidden, hidden, true);
        }
        module(name("attention.output.dense"), hidden, hidden, true);
        module(name("intermediate.dense"), inner, hidden, true);
        module(name("output.dense"), hidden, inner, true);
        norms.push(name("attention.output.LayerNorm"));
        norms.push(name("output.LayerNorm"));
    }
    for norm in norms {
        all.vectors.push((format!("{norm}.weight"), hidden));
        all.vectors.push((format!("{norm}.bias"), hidden));
    }
    // Heads of the training, and a buffer that only counts.
    let beside = ["pooler.", "cls.", "lm_head.", "classifier.", "embeddings.position_ids"];
    all.ignored_prefixes = beside.map(str::to_owned).into();
    all
}

impl LayerNorm {
    fn load(path: &str, epsilon: f32, reader: &mut Reader) -> Loaded<Self> {
        let weight = reader.vector(&format!("{path}.weight"))?;
        let bias = reader.vector(&format!("{path}.bias"))?;
        Ok(Self { weight, bias, epsilon })
    }

    fn apply(&self, x: &Array) -> Result<Array> {
        fast::layer_norm(x, Some(&self.weight), Some(&self.bias), self.epsilon)
    }
}

impl BertModel {
    /// Reads the weights and lays them out.
    pub fn load(config: EncoderConfig, reader: &mut Reader, layout: Layout) -> Loaded<Self> {
        let words = reader.matrix(WORDS)?;
        let positions = reader.matrix(POSITIONS)?;
        let segments = reader.matrix(SEGMENTS)?;
        reader.settle(words.arrays().chain(positions.arrays()))?;
        let segment = segments
            .rows(&Array::from_slice(&[0_u32], &[1]))
            .and_then(|row| row.reshape(&[config.hidden]))
            .map_err(in_load("reading the segments"))?;
        reader.settle([&segment])?;
        let norm = LayerNorm::load(NORM, config.norm_eps, reader)?;
        let blocks: Loaded<Vec<Block>> =
            (0..config.layers).map(|index| Block::load(&config, reader, layout, index)).collect();
        Ok(Self { words, positions, segment, norm, blocks: blocks?, config })
    }

    fn arrays(&self) -> impl Iterator<Item = &Array> {
        let tables = self.words.arrays().chain(self.positions.arrays());
        let rest = [&self.segment, &self.norm.weight, &self.norm.bias];
        tables.chain(rest).chain(self.blocks.iter().flat_map(Block::arrays))
    }
}

impl Block {
    fn load(
        config: &EncoderConfig,
        reader: &mut Reader,
        layout: Layout,
        index: usize,
    ) -> Loaded<Self> {
        let name = |part: &str| format!("encoder.layer.{index}.{part}");
        let mut parts = Vec::with_capacity(3);
        for part in ["query", "key", "value"] {
            parts.push(reader.linear(&name(&format!("attention.self.{part}")), true)?);
        }
        let block = Self {
            qkv: Projection::new(parts, layout.join_qkv).map_err(in_load("joining q, k and v"))?,
            attended: reader.linear(&name("attention.output.dense"), true)?,
            attended_norm: LayerNorm::load(
                &name("attention.output.LayerNorm"),
                config.norm_eps,
                reader,
            )?,
            up: reader.linear(&name("intermediate.dense"), true)?,
            down: reader.linear(&name("output.dense"), true)?,
            norm: LayerNorm::load(&name("output.LayerNorm"), config.norm_eps, reader)?,
        };
        reader.settle(block.arrays())?;
        Ok(block)
    }

    /// `x`, `[rows, n, hidden]`, through the layer; `mask` says which keys count.
    fn forward(&self, x: &Array, mask: Option<&Array>, config: &EncoderConfig) -> Result<Array> {
        let (rows, length, hidden) = (x.dim(0), x.dim(1), x.dim(2));
        let (heads, width) = (config.heads, hidden / config.heads);
        let qkv = self.qkv.apply(x)?.reshape(&[rows, length, 3 * heads, width])?;
        let qkv = qkv.transpose_axes(&[0, 2, 1, 3])?;
        let part =
            |from: i32| sys::slice(&qkv, &[0, from, 0, 0], &[rows, from + heads, length, width]);
        let (queries, keys, values) = (part(0)?, part(heads)?, part(2 * heads)?);
        let scale = f64::from(width).powf(-0.5) as f32;
        let attended = match mask {
            Some(mask) => fast::scaled_dot_product_attention(
                &queries,
                &keys,
                &values,
                scale,
                Mask::Array(mask),
                None,
            )?,
            None => {
                fast::scaled_dot_product_attention(&queries, &keys, &values, scale, None, None)?
            }
        };
        let attended = attended.transpose_axes(&[0, 2, 1, 3])?.reshape(&[rows, length, hidden])?;
        let x = self.attended_norm.apply(&self.attended.apply(&attended)?.add(x)?)?;
        let inner = bend(&self.up.apply(&x)?, config.activation)?;
        self.norm.apply(&self.down.apply(&inner)?.add(&x)?)
    }

    fn arrays(&self) -> impl Iterator<Item = &Array> {
        let linears = [&self.attended, &self.up, &self.down].into_iter().flat_map(Linear::arrays);
        let norms = [&self.attended_norm, &self.norm].into_iter();
        let norms = norms.flat_map(|norm| [&norm.weight, &norm.bias]);
        self.qkv.arrays().chain(linears).chain(norms)
    }
}

/// In float32 whatever the weights are: the error function loses too much in half precision.
fn bend(x: &Array, activation: Activation) -> Result<Array> {
    let wide = x.as_dtype(Dtype::Float32)?;
    let scalar = Array::from_f32;
    let bent = match activation {
        Activation::Gelu => {
            let share = erf(wide.multiply(scalar(std::f32::consts::FRAC_1_SQRT_2))?)?;
            wide.multiply(share.add(scalar(1.0))?)?.multiply(scalar(0.5))?
        }
        Activation::GeluTanh => {
            let cubed = wide.square()?.multiply(&wide)?.multiply(scalar(0.044_715))?;
            let inner = wide.add(cubed)?.multiply(scalar((2.0 / std::f32::consts::PI).sqrt()))?;
            wide.multiply(tanh(&inner)?.add(scalar(1.0))?)?.multiply(scalar(0.5))?
        }
        Activation::Relu => maximum(&wide, scalar(0.0))?,
        Activation::Silu => wide.multiply(sigmoid(&wide)?)?,
    };
    bent.as_dtype(x.dtype())
}

/// Which keys of each row are its own, `[rows, 1, 1, longest]`; `None` if all of them.
fn padding_mask(lengths: &[i32], longest: i32) -> Result<Option<Array>> {
    if lengths.iter().all(|length| *length == longest) {
        return Ok(None);
    }
    let positions = Array::arange::<i32, i32>(0, longest, None)?;
    let lengths = Array::from_slice(lengths, &[lengths.len() as i32, 1, 1, 1]);
    positions.reshape(&[1, 1, 1, longest])?.lt(&lengths).map(Some)
}

fn no_text() -> Exception {
    Exception::custom("an encoder does not continue texts")
}

impl Model for BertModel {
    fn state(&self, capacity: i32) -> State {
        State { layers: Vec::new(), position: 0, capacity }
    }

    fn forward(&self, _ids: &Array, _state: &mut State) -> Result<Array> {
        Err(no_text())
    }

    fn forward_rows(&self, _ids: &Array, _batch: &mut Batch) -> Result<Array> {
        Err(no_text())
    }

    fn width(&self) -> i32 {
        self.config.hidden
    }

    fn encode(&self, ids: &Array, lengths: &[i32]) -> Result<Array> {
        let longest = ids.dim(1);
        let first = self.config.first_position;
        let positions = Array::arange::<i32, i32>(first, first + longest, None)?;
        let mask = padding_mask(lengths, longest)?;
        let x = self.words.rows(ids)?.add(self.positions.rows(&positions)?)?;
        let x = self.norm.apply(&x.add(&self.segment)?)?;
        self.blocks.iter().try_fold(x, |x, block| block.forward(&x, mask.as_ref(), &self.config))
    }

    fn logits(&self, _hidden: &Array) -> Result<Array> {
        Err(no_text())
    }

    fn weight_bytes(&self) -> u64 {
        self.arrays().map(|array| array.nbytes() as u64).sum()
    }
}
