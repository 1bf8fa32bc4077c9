//! Nemotron-H: a stack in which each layer does one thing: Mamba-2, attention, feed-forward or
//! experts.

use mlx_rs::error::Result;
use mlx_rs::ops::maximum;
use mlx_rs::transforms::eval;
use mlx_rs::{Array, Dtype, fast};

use super::attention::{Attention, Pass};
use super::linear::{Linear, Matrix, Projection};
use super::mamba::Mamba;
use super::moe::{Pool, Router, Rule, add_up, for_each_expert};
use super::rope::Rope;
use super::stride::Stride;
use super::{LayerState, Layout, Model, State};
use crate::batch::{Batch, Telling};
use crate::config::{HybridConfig, HybridLayer, SigmoidMixtureConfig};
use crate::fault::{Loaded, in_load};
use crate::kv::KvLayer;
use crate::recurrent::Recurrent;
use crate::sys::{self, CompiledSwiglu};
use crate::weights::{Inventory, Module, Reader, Stack};

/// A loaded Nemotron-H.
#[derive(Debug)]
pub struct NemotronModel {
    embedding: Matrix,
    blocks: Vec<Block>,
    norm: Array,
    head: Linear,
    /// Attention here has no rotary positions.
    rope: Rope,
    swiglu: Option<CompiledSwiglu>,
    stride: Option<usize>,
    /// What a Mamba-2 layer remembers before the first position.
    blank: Recurrent,
    config: HybridConfig,
    dtype: Dtype,
}

#[derive(Debug)]
struct Block {
    norm: Array,
    mixer: Mixer,
}

#[derive(Debug)]
enum Mixer {
    Mamba(Mamba),
    Attention(Attention),
    FeedForward(Squared),
    Experts(Experts),
}

const EMBEDDING: &str = "backbone.embeddings";
const HEAD: &str = "lm_head";
const NORM: &str = "backbone.norm_f.weight";

fn mixer(index: usize) -> String {
    format!("backbone.layers.{index}.mixer")
}

/// Every tensor that a model of this config is made of.
pub fn inventory(config: &HybridConfig) -> Inventory {
    let mut all = Inventory::default();
    let hidden = config.hidden;
    let mut module = |path: String, rows: i32, columns: i32, bias: bool| {
        all.modules.push(Module { path, rows, columns, bias });
    };
    module(EMBEDDING.into(), config.vocab, hidden, false);
    module(HEAD.into(), config.vocab, hidden, false);
    all.vectors.push((NORM.into(), hidden));
    // Layers that predict further tokens, which mlx-lm drops too.
    all.ignored_prefixes.push("mtp.".into());
    for (index, layer) in config.layers.iter().enumerate() {
        let path = mixer(index);
        all.vectors.push((format!("backbone.layers.{index}.norm.weight"), hidden));
        match (layer, &config.mixture) {
            (HybridLayer::Mamba, _) => Mamba::list(&config.mamba, hidden, &path, &mut all),
            (HybridLayer::Attention, _) => list_attention(config, &path, &mut all),
            (HybridLayer::Experts, Some(mixture)) => {
                Experts::list(mixture, config, &path, &mut all);
            }
            (HybridLayer::FeedForward | HybridLayer::Experts, _) => {
                Squared::list(hidden, config.intermediate, config.mlp_bias, &path, &mut all);
            }
        }
    }
    all
}

fn list_attention(config: &HybridConfig, path: &str, inventory: &mut Inventory) {
    let (hidden, bias) = (config.hidden, config.attention_bias);
    let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    for (part, rows, columns) in [
        ("q_proj", q, hidden),
        ("k_proj", kv, hidden),
        ("v_proj", kv, hidden),
        ("o_proj", hidden, q),
    ] {
        inventory.modules.push(Module { path: format!("{path}.{part}"), rows, columns, bias });
    }
}

fn load_attention(
    config: &HybridConfig,
    path: &str,
    reader: &mut Reader,
    join: bool,
) -> Loaded<Attention> {
    let bias = config.attention_bias;
    let mut part = |part: &str| reader.linear(&format!("{path}.{part}"), bias);
    let parts = vec![part("q_proj")?, part("k_proj")?, part("v_proj")?];
    let output = part("o_proj")?;
    Ok(Attention {
        qkv: Projection::new(parts, join).map_err(in_load("joining q, k and v"))?,
        output,
        head_norms: None,
        heads: config.heads,
        kv_heads: config.kv_heads,
        width: config.head_dim,
        norm_eps: config.norm_eps,
        split_few: false,
    })
}

impl NemotronModel {
    /// Reads the weights and lays them out.
    pub fn load(config: HybridConfig, reader: &mut Reader, layout: Layout) -> Loaded<Self> {
        let embedding = reader.matrix(EMBEDDING)?;
        reader.settle(embedding.arrays())?;
        let dtype = embedding.dtype();
        let blocks: Loaded<Vec<Block>> = (0..config.layers.len())
            .map(|index| Block::load(&config, reader, layout, dtype, index))
            .collect();
        let blocks = blocks?;
        let norm = reader.vector(NORM)?;
        let head = reader.linear(HEAD, false)?;
        reader.settle(head.arrays())?;
        let swiglu = match layout.compile {
            true => Some(CompiledSwiglu::new().map_err(in_load("compiling"))?),
            false => None,
        };
        let blank = Recurrent::new(Mamba::shape(&config.mamba, dtype))
            .map_err(in_load("preparing the recurrent state"))?;
        reader.settle(blank.arrays())?;
        let rope = Rope::none();
        let stride = layout.stride;
        Ok(Self { embedding, blocks, norm, head, rope, swiglu, stride, blank, config, dtype })
    }

    fn arrays(&self) -> impl Iterator<Item = &Array> {
        let blocks = self.blocks.iter().flat_map(Block::arrays);
        self.embedding.arrays().chain([&self.norm]).chain(blocks).chain(self.head.arrays())
    }
}

impl Block {
    fn load(
        config: &HybridConfig,
        reader: &mut Reader,
        layout: Layout,
        dtype: Dtype,
        index: usize,
    ) -> Loaded<Self> {
        let path = mixer(index);
        let norm = reader.vector(&format!("backbone.layers.{index}.norm.weight"))?;
        let mixer = match (config.layers[index], &config.mixture) {
            (HybridLayer::Mamba, _) => {
                Mixer::Mamba(Mamba::load(&config.mamba, config.norm_eps, &path, reader)?)
            }
            (HybridLayer::Attention, _) => {
                Mixer::Attention(load_attention(config, &path, reader, layout.join_qkv)?)
            }
            (HybridLayer::Experts, Some(mixture)) => {
                Mixer::Experts(Experts::load(mixture, config, &path, reader, dtype)?)
            }
            (HybridLayer::FeedForward | HybridLayer::Experts, _) => {
                Mixer::FeedForward(Squared::load(&path, config.mlp_bias, reader, dtype)?)
            }
        };
        let block = Self { norm, mixer };
        reader.settle(block.arrays())?;
        Ok(block)
    }

    fn arrays(&self) -> impl Iterator<Item = &Array> {
        let parts: Box<dyn Iterator<Item = &Array>> = match &self.mixer {
            Mixer::Mamba(mamba) => Box::new(mamba.arrays()),
            Mixer::Attention(attention) => Box::new(attention.arrays()),
            Mixer::FeedForward(squared) => Box::new(squared.arrays()),
            Mixer::Experts(experts) => Box::new(experts.arrays()),
        };
        parts.chain([&self.norm])
    }
}

impl Model for NemotronModel {
    fn state(&self, capacity: i32) -> State {
        let HybridConfig { kv_heads, head_dim, .. } = self.config;
        let layer = |kind: &HybridLayer| match kind {
            HybridLayer::Mamba => Some(LayerState::Recurrent(self.blank.clone())),
            HybridLayer::Attention => {
                Some(LayerState::Kv(KvLayer::new(kv_heads, head_dim, self.dtype, None)))
            }
            HybridLayer::FeedForward | HybridLayer::Experts => None,
        };
        let layers = self.config.layers.iter().filter_map(layer).collect();
        State { layers, position: 0, capacity }
    }

    fn forward(&self, ids: &Array, state: &mut State) -> Result<Array> {
        let length = ids.dim(1);
        let mut pass = Pass::new(&self.rope, state.position, length, state.capacity);
        let mut x = self.embedding.rows(ids)?;
        let mut stride = Stride::new(self.stride, length, self.blocks.len());
        let mut layers = state.layers.iter_mut();
        for block in &self.blocks {
            let normed = fast::rms_norm(&x, Some(&block.norm), self.config.norm_eps)?;
            let change = match &block.mixer {
                Mixer::FeedForward(squared) => squared.forward(&normed)?,
                Mixer::Experts(experts) => experts.forward(&normed)?,
                Mixer::Mamba(mamba) => {
                    let memory = layers.next().and_then(LayerState::recurrent);
                    let memory = memory.ok_or_else(LayerState::mismatch)?;
                    mamba.forward(&normed, memory, self.swiglu.as_ref())?
                }
                Mixer::Attention(attention) => {
                    let kv = layers.next().and_then(LayerState::kv);
                    let kv = kv.ok_or_else(LayerState::mismatch)?;
                    let qkv = attention.qkv.apply(&normed)?;
                    attention.output.apply(&attention.core(&qkv, kv, &mut pass)?)?
                }
            };
            x = x.add(change)?;
            stride.layer(&x)?;
        }
        state.position += length;
        Ok(x)
    }

    fn forward_rows(&self, ids: &Array, batch: &mut Batch) -> Result<Array> {
        let step = batch.begin(Telling::Mask);
        let mut x = self.embedding.rows(ids)?;
        let mut remembering = 0..;
        for block in &self.blocks {
            let normed = fast::rms_norm(&x, Some(&block.norm), self.config.norm_eps)?;
            let change = match &block.mixer {
                Mixer::FeedForward(squared) => squared.forward(&normed)?,
                Mixer::Experts(experts) => experts.forward(&normed)?,
                Mixer::Mamba(mamba) => {
                    let index = remembering.next().unwrap_or_default();
                    mamba.forward(&normed, batch.scans(index)?, self.swiglu.as_ref())?
                }
                Mixer::Attention(attention) => {
                    let index = remembering.next().unwrap_or_default();
                    let layer = batch.layer(index, &step)?;
                    let qkv = attention.qkv.apply(&normed)?;
                    let attended = attention.core_of_rows(&qkv, layer, &self.rope, &step, None)?;
                    attention.output.apply(&attended)?
                }
            };
            x = x.add(change)?;
        }
        batch.end();
        Ok(x)
    }

    fn width(&self) -> i32 {
        self.config.hidden
    }

    fn logits(&self, hidden: &Array) -> Result<Array> {
        let (rows, length) = (hidden.dim(0), hidden.dim(1));
        let HybridConfig { hidden: width, vocab, norm_eps, .. } = self.config;
        let last = match length {
            1 => hidden.clone(),
            _ => sys::slice(hidden, &[0, length - 1, 0], &[rows, length, width])?,
        };
        let normed = fast::rms_norm(&last, Some(&self.norm), norm_eps)?;
        self.head.apply(&normed)?.reshape(&[rows, vocab])
    }

    fn weight_bytes(&self) -> u64 {
        self.arrays().map(|array| array.nbytes() as u64).sum()
    }
}

/// `down(relu(up(x))²)`.
#[derive(Debug)]
struct Squared {
    up: Linear,
    down: Linear,
    zero: Array,
}

impl Squared {
    fn list(hidden: i32, width: i32, bias: bool, path: &str, inventory: &mut Inventory) {
        for (part, rows, columns) in [("up_proj", width, hidden), ("down_proj", hidden, width)] {
            inventory.modules.push(Module { path: format!("{path}.{part}"), rows, columns, bias });
        }
    }

    fn load(path: &str, bias: bool, reader: &mut Reader, dtype: Dtype) -> Loaded<Self> {
        let up = reader.linear(&format!("{path}.up_proj"), bias)?;
        let down = reader.linear(&format!("{path}.down_proj"), bias)?;
        Ok(Self { up, down, zero: zero(dtype)? })
    }

    fn forward(&self, x: &Array) -> Result<Array> {
        self.down.apply(&maximum(self.up.apply(x)?, &self.zero)?.square()?)
    }

    fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.up.arrays().chain(self.down.arrays())
    }
}

/// 0 in the type that is computed in: another type would widen everything.
fn zero(dtype: Dtype) -> Loaded<Array> {
    let made = || -> Result<Array> {
        let zero = Array::from_f32(0.0).as_dtype(dtype)?;
        eval([&zero])?;
        Ok(zero)
    };
    made().map_err(in_load("preparing a feed-forward layer"))
}

/// Experts of `fc2(relu(fc1(x))²)`, and a shared part that computes every position.
#[derive(Debug)]
struct Experts {
    router: Router,
    up: Pool,
    down: Pool,
    shared: Option<Squared>,
    /// Into the experts' width and back.
    latent: Option<(Linear, Linear)>,
    zero: Array,
}

fn stacks(mixture: &SigmoidMixtureConfig, hidden: i32, path: &str) -> [Stack; 2] {
    let outside = mixture.latent.unwrap_or(hidden);
    let stack = |part: &str, apart: &'static str, rows: i32, columns: i32| Stack {
        path: format!("{path}.switch_mlp.{part}"),
        apart: (format!("{path}.experts"), apart),
        count: mixture.experts,
        rows,
        columns,
    };
    [
        stack("fc1", "up_proj", mixture.width, outside),
        stack("fc2", "down_proj", outside, mixture.width),
    ]
}

impl Experts {
    fn list(
        mixture: &SigmoidMixtureConfig,
        config: &HybridConfig,
        path: &str,
        inventory: &mut Inventory,
    ) {
        let (hidden, bias) = (config.hidden, config.mlp_bias);
        let mut module = |part: &str, rows: i32, columns: i32, bias: bool| {
            inventory.modules.push(Module { path: format!("{path}.{part}"), rows, columns, bias });
        };
        module("gate", mixture.experts, hidden, false);
        if let Some(latent) = mixture.latent {
            module("fc1_latent_proj", latent, hidden, bias);
            module("fc2_latent_proj", hidden, latent, bias);
        }
        if let Some(width) = mixture.shared_width {
            Squared::list(hidden, width, bias, &format!("{path}.shared_experts"), inventory);
        }
        let correction = format!("{path}.gate.e_score_correction_bias");
        inventory.vectors.push((correction, mixture.experts));
        inventory.stacks.extend(stacks(mixture, hidden, path));
    }

    fn load(
        mixture: &SigmoidMixtureConfig,
        config: &HybridConfig,
        path: &str,
        reader: &mut Reader,
        dtype: Dtype,
    ) -> Loaded<Self> {
        let router = Router {
            gate: reader.matrix(&format!("{path}.gate"))?,
            per_token: mixture.per_token,
            rule: Rule::Sigmoid {
                correction: reader.vector(&format!("{path}.gate.e_score_correction_bias"))?,
                groups: mixture.groups,
                renormalise: mixture.renormalise,
                scale: Array::from_f32(mixture.scale),
            },
        };
        let [up, down] = stacks(mixture, config.hidden, path);
        let shared = match mixture.shared_width {
            Some(_) => {
                let path = format!("{path}.shared_experts");
                Some(Squared::load(&path, config.mlp_bias, reader, dtype)?)
            }
            None => None,
        };
        let latent = match mixture.latent {
            Some(_) => Some((
                reader.linear(&format!("{path}.fc1_latent_proj"), config.mlp_bias)?,
                reader.linear(&format!("{path}.fc2_latent_proj"), config.mlp_bias)?,
            )),
            None => None,
        };
        let (up, down) = (reader.pool(&up)?, reader.pool(&down)?);
        Ok(Self { router, up, down, shared, latent, zero: zero(dtype)? })
    }

    fn forward(&self, x: &Array) -> Result<Array> {
        let (experts, shares) = self.router.choose(x)?;
        let inside = match &self.latent {
            Some((into, _)) => &into.apply(x)?,
            None => x,
        };
        let outputs = for_each_expert(inside, &experts, |x, experts, sorted| {
            let up = self.up.product(x, experts, sorted)?;
            let squared = maximum(up, &self.zero)?.square()?;
            self.down.product(&squared, experts, sorted)
        })?;
        let mut y = add_up(&outputs, &shares)?;
        if let Some((_, back)) = &self.latent {
            y = back.apply(&y)?;
        }
        match &self.shared {
            Some(shared) => y.add(shared.forward(x)?),
            None => Ok(y),
        }
    }

    fn arrays(&self) -> impl Iterator<Item = &Array> {
        let latent = self.latent.iter().flat_map(|(into, back)| into.arrays().chain(back.arrays()));
        let shared = self.shared.iter().flat_map(Squared::arrays);
        let pools = self.up.arrays().chain(self.down.arrays());
        self.router.arrays().chain(pools).chain(latent).chain(shared)
    }
}
