//! The decoder that Llama, Mistral, Qwen2 and Qwen3, dense or with experts, share.
//!
//! They differ in biases, head norms, tied embeddings and windows, all of which
//! [`ModelConfig`] says; there is no code per family.

use mlx_rs::error::Result;
use mlx_rs::{Array, Dtype, fast};

use super::attention::{Attention, HeadNorms, Pass};
use super::feed_forward::FeedForward;
use super::fused::{Folded, FusedBlock, FusedProduct};
use super::fused_rows::RowsAttention;
use super::linear::{Linear, Matrix, Projection};
use super::moe::{Mixture, Mlp};
use super::rope::Rope;
use super::stride::Stride;
use super::{LayerState, Layout, Model, State};
use crate::batch::{Batch, Telling};
use crate::config::ModelConfig;
use crate::fault::{Loaded, in_load};
use crate::kv::KvLayer;
use crate::sys::{self, CompiledSwiglu};
use crate::weights::{Inventory, Module, Reader};

/// A loaded dense decoder.
#[derive(Debug)]
pub struct DenseModel {
    embedding: Matrix,
    blocks: Vec<Block>,
    norm: Array,
    /// `None`: the embedding serves.
    head: Option<Linear>,
    fused_head: Option<FusedProduct>,
    /// Of decode steps with several rows.
    rows_attention: Option<RowsAttention>,
    rope: Rope,
    swiglu: Option<CompiledSwiglu>,
    stride: Option<usize>,
    config: ModelConfig,
    dtype: Dtype,
}

#[derive(Debug)]
struct Block {
    before_attention: Array,
    attention: Attention,
    before_feed_forward: Array,
    feed_forward: Mlp,
    fused: Option<FusedBlock>,
}

const EMBEDDING: &str = "model.embed_tokens";
const HEAD: &str = "lm_head";

fn layer(index: usize, part: &str) -> String {
    format!("model.layers.{index}.{part}")
}

/// A tensor's name as it is where there is a head: a model saved without one leaves out `model.`.
pub fn name_within(name: &str) -> String {
    let bare = ["embed_tokens.", "layers.", "norm."].iter().any(|start| name.starts_with(start));
    if bare { format!("model.{name}") } else { name.to_owned() }
}

/// Every tensor that a model of this config is made of.
pub fn inventory(config: &ModelConfig) -> Inventory {
    let mut all = Inventory::default();
    let mut module = |path: String, rows: i32, columns: i32, bias: bool| {
        all.modules.push(Module { path, rows, columns, bias });
    };
    let (hidden, inner) = (config.hidden, config.intermediate);
    let q = config.heads * config.head_dim;
    let kv = config.kv_heads * config.head_dim;
    module(EMBEDDING.into(), config.vocab, hidden, false);
    for index in 0..config.layers() {
        let qkv_bias = config.qkv_bias;
        module(layer(index, "self_attn.q_proj"), q, hidden, qkv_bias);
        module(layer(index, "self_attn.k_proj"), kv, hidden, qkv_bias);
        module(layer(index, "self_attn.v_proj"), kv, hidden, qkv_bias);
        module(layer(index, "self_attn.o_proj"), hidden, q, config.output_bias);
        if config.mixture_of(index).is_some() {
            continue;
        }
        module(layer(index, "mlp.gate_proj"), inner, hidden, config.mlp_bias);
        module(layer(index, "mlp.up_proj"), inner, hidden, config.mlp_bias);
        module(layer(index, "mlp.down_proj"), hidden, inner, config.mlp_bias);
    }
    if config.tied {
        let parts = ["weight", "scales", "biases"];
        all.ignored = parts.map(|part| format!("{HEAD}.{part}")).into();
    } else {
        module(HEAD.into(), config.vocab, hidden, false);
    }
    for index in 0..config.layers() {
        if let Some(mixture) = config.mixture_of(index) {
            Mixture::list(mixture, hidden, &layer(index, "mlp"), &mut all);
        }
        all.vectors.push((layer(index, "input_layernorm.weight"), hidden));
        all.vectors.push((layer(index, "post_attention_layernorm.weight"), hidden));
        if config.head_norms {
            all.vectors.push((layer(index, "self_attn.q_norm.weight"), config.head_dim));
            all.vectors.push((layer(index, "self_attn.k_norm.weight"), config.head_dim));
        }
    }
    all.vectors.push(("model.norm.weight".into(), hidden));
    all
}

impl DenseModel {
    /// Reads the weights and lays them out.
    pub fn load(config: ModelConfig, reader: &mut Reader, layout: Layout) -> Loaded<Self> {
        let embedding = reader.matrix(EMBEDDING)?;
        reader.settle(embedding.arrays())?;
        let dtype = embedding.dtype();
        let blocks: Loaded<Vec<Block>> =
            (0..config.layers()).map(|index| Block::load(&config, reader, layout, index)).collect();
        let blocks = blocks?;
        let norm = reader.vector("model.norm.weight")?;
        let head = match config.tied {
            true => None,
            false => {
                let head = reader.linear(HEAD, false)?;
                reader.settle(head.arrays())?;
                Some(head)
            }
        };
        let fused_head = match layout.fuse_decode {
            true => fuse_head(&embedding, head.as_ref(), &norm, config.norm_eps)
                .map_err(in_load("preparing kernels"))?,
            false => None,
        };
        let rows_attention = match layout.fuse_decode {
            true => RowsAttention::new(config.heads, config.kv_heads, config.head_dim, dtype)
                .map_err(in_load("preparing kernels"))?,
            false => None,
        };
        let rope = Rope::new(&config.rope, config.head_dim, dtype)
            .map_err(in_load("preparing rotary positions"))?;
        let swiglu = match layout.compile {
            true => Some(CompiledSwiglu::new().map_err(in_load("compiling"))?),
            false => None,
        };
        Ok(Self {
            embedding,
            blocks,
            norm,
            head,
            fused_head,
            rows_attention,
            rope,
            swiglu,
            stride: layout.stride,
            config,
            dtype,
        })
    }

    fn arrays(&self) -> impl Iterator<Item = &Array> {
        let head = self.head.iter().flat_map(Linear::arrays);
        let blocks = self.blocks.iter().flat_map(Block::arrays);
        let ends = self.embedding.arrays().chain([&self.norm]);
        ends.chain(blocks).chain(head)
    }
}

impl Block {
    fn load(
        config: &ModelConfig,
        reader: &mut Reader,
        layout: Layout,
        index: usize,
    ) -> Loaded<Self> {
        let name = |part: &str| layer(index, part);
        let before_attention = reader.vector(&name("input_layernorm.weight"))?;
        let attention = load_attention(config, reader, layout, index)?;
        reader.settle(attention.arrays())?;
        let before_feed_forward = reader.vector(&name("post_attention_layernorm.weight"))?;
        let feed_forward = load_feed_forward(config, reader, layout, index)?;
        reader.settle(feed_forward.arrays())?;
        let fused = match feed_forward.gated().filter(|_| layout.fuse_decode) {
            Some(gated) => FusedBlock::new(
                (&before_attention, &attention.qkv),
                &attention.output,
                (&before_feed_forward, &gated.gate_up),
                &gated.down,
                config.norm_eps,
            )
            .map_err(in_load("preparing kernels"))?,
            None => None,
        };
        Ok(Self { fused, before_attention, attention, before_feed_forward, feed_forward })
    }

    /// `x`, `[rows, n, hidden]`, through the layer. `attend` does what lies between attention's
    /// projections.
    fn forward(
        &self,
        x: &Array,
        eps: f32,
        swiglu: Option<&CompiledSwiglu>,
        attend: impl FnOnce(&Attention, &Array) -> Result<Array>,
    ) -> Result<Array> {
        // One token of each row, or a few of one: for products they are alike.
        let (rows, length) = (x.dim(0), x.dim(1));
        let vectors = rows * length;
        let few = rows == 1 || length == 1;
        if let Some(fused) = self.fused.as_ref().filter(|fused| few && fused.takes(vectors)) {
            // Dispatching is what a step takes: not an operation more where nothing changes.
            let shaped = |x: &Array, rows, length| match x.dim(0) == rows {
                true => Ok(x.clone()),
                false => x.reshape(&[rows, length, -1]),
            };
            let beside = |x: &Array| shaped(x, vectors, 1);
            let x = &beside(x)?;
            let qkv = shaped(&fused.qkv.apply(x)?, rows, length)?;
            let attended = beside(&attend(&self.attention, &qkv)?)?;
            let x = fused.output.apply_residual(&attended, x)?;
            let x = fused.down.apply_residual(&fused.gate_up.apply(&x)?, &x)?;
            return shaped(&x, rows, length);
        }
        let normed = fast::rms_norm(x, Some(&self.before_attention), eps)?;
        let attended = attend(&self.attention, &self.attention.qkv.apply(&normed)?)?;
        let x = x.add(self.attention.output.apply(&attended)?)?;
        let normed = fast::rms_norm(&x, Some(&self.before_feed_forward), eps)?;
        x.add(self.feed_forward.forward(&normed, swiglu)?)
    }

    fn arrays(&self) -> impl Iterator<Item = &Array> {
        let norms = [&self.before_attention, &self.before_feed_forward];
        let parts = self.attention.arrays().chain(self.feed_forward.arrays());
        parts.chain(norms)
    }
}

fn load_feed_forward(
    config: &ModelConfig,
    reader: &mut Reader,
    layout: Layout,
    index: usize,
) -> Loaded<Mlp> {
    let join = layout.join_gate_up;
    if let Some(mixture) = config.mixture_of(index) {
        let path = layer(index, "mlp");
        return Ok(Mlp::Mixture(Mixture::load(mixture, config.hidden, &path, reader, join)?));
    }
    let name = |part: &str| layer(index, &format!("mlp.{part}"));
    let parts = vec![
        reader.linear(&name("gate_proj"), config.mlp_bias)?,
        reader.linear(&name("up_proj"), config.mlp_bias)?,
    ];
    Ok(Mlp::Gated(FeedForward {
        gate_up: Projection::new(parts, join).map_err(in_load("joining gate and up"))?,
        down: reader.linear(&name("down_proj"), config.mlp_bias)?,
        width: config.intermediate,
    }))
}

fn load_attention(
    config: &ModelConfig,
    reader: &mut Reader,
    layout: Layout,
    index: usize,
) -> Loaded<Attention> {
    let name = |part: &str| layer(index, &format!("self_attn.{part}"));
    let parts = vec![
        reader.linear(&name("q_proj"), config.qkv_bias)?,
        reader.linear(&name("k_proj"), config.qkv_bias)?,
        reader.linear(&name("v_proj"), config.qkv_bias)?,
    ];
    let head_norms = match config.head_norms {
        true => {
            let q = reader.vector(&name("q_norm.weight"))?;
            let k = reader.vector(&name("k_norm.weight"))?;
            Some(HeadNorms::new(&q, &k, config).map_err(in_load("preparing head norms"))?)
        }
        false => None,
    };
    Ok(Attention {
        qkv: Projection::new(parts, layout.join_qkv).map_err(in_load("joining q, k and v"))?,
        output: reader.linear(&name("o_proj"), config.output_bias)?,
        head_norms,
        heads: config.heads,
        kv_heads: config.kv_heads,
        width: config.head_dim,
        norm_eps: config.norm_eps,
        split_few: layout.split_few,
    })
}

/// The last norm and the projection to logits as one kernel, where they fit.
fn fuse_head(
    embedding: &Matrix,
    head: Option<&Linear>,
    norm: &Array,
    epsilon: f32,
) -> Result<Option<FusedProduct>> {
    let folded = Folded { norm: Some((norm, epsilon)), residual: false, swiglu: false };
    match head {
        Some(head) => FusedProduct::new(head, folded),
        None => {
            let tied = Linear { matrix: embedding.clone(), bias: None };
            FusedProduct::new(&tied, folded)
        }
    }
}

impl Model for DenseModel {
    fn state(&self, capacity: i32) -> State {
        let ModelConfig { kv_heads, head_dim, windows, .. } = &self.config;
        let layers = windows
            .iter()
            .map(|window| LayerState::Kv(KvLayer::new(*kv_heads, *head_dim, self.dtype, *window)))
            .collect();
        State { layers, position: 0, capacity }
    }

    fn forward(&self, ids: &Array, state: &mut State) -> Result<Array> {
        let length = ids.dim(1);
        let mut pass = Pass::new(&self.rope, state.position, length, state.capacity);
        let mut x = self.embedding.rows(ids)?;
        let mut stride = Stride::new(self.stride, length, self.blocks.len());
        for (block, layer) in self.blocks.iter().zip(&mut state.layers) {
            let kv = layer.kv().ok_or_else(LayerState::mismatch)?;
            let attend = |attention: &Attention, qkv: &Array| attention.core(qkv, kv, &mut pass);
            x = block.forward(&x, self.config.norm_eps, self.swiglu.as_ref(), attend)?;
            stride.layer(&x)?;
        }
        state.position += length;
        Ok(x)
    }

    fn forward_rows(&self, ids: &Array, batch: &mut Batch) -> Result<Array> {
        let kernel = self.rows_attention.as_ref();
        let step = batch.begin(kernel.map_or(Telling::Mask, |_| Telling::Lengths));
        let mut x = self.embedding.rows(ids)?;
        for (index, block) in self.blocks.iter().enumerate() {
            let layer = batch.layer(index, &step)?;
            let attend = |attention: &Attention, qkv: &Array| {
                attention.core_of_rows(qkv, layer, &self.rope, &step, kernel)
            };
            x = block.forward(&x, self.config.norm_eps, self.swiglu.as_ref(), attend)?;
        }
        batch.end();
        Ok(x)
    }

    fn encode(&self, ids: &Array, _lengths: &[i32]) -> Result<Array> {
        // Padding comes behind a text, where none of its tokens looks.
        let mut x = self.embedding.rows(ids)?;
        for block in &self.blocks {
            let attend =
                |attention: &Attention, qkv: &Array| attention.core_of_texts(qkv, &self.rope);
            x = block.forward(&x, self.config.norm_eps, self.swiglu.as_ref(), attend)?;
        }
        fast::rms_norm(&x, Some(&self.norm), self.config.norm_eps)
    }

    fn width(&self) -> i32 {
        self.config.hidden
    }

    fn logits(&self, hidden: &Array) -> Result<Array> {
        let (rows, length) = (hidden.dim(0), hidden.dim(1));
        let ModelConfig { hidden: width, vocab, norm_eps, .. } = self.config;
        let last = match length {
            1 => hidden.clone(),
            _ => sys::slice(hidden, &[0, length - 1, 0], &[rows, length, width])?,
        };
        if let Some(fused) = self.fused_head.as_ref().filter(|fused| fused.takes(rows)) {
            return fused.apply(&last)?.reshape(&[rows, vocab]);
        }
        let normed = fast::rms_norm(&last, Some(&self.norm), norm_eps)?;
        let logits = match &self.head {
            Some(head) => head.apply(&normed)?,
            None => self.embedding.product(&normed)?,
        };
        logits.reshape(&[rows, vocab])
    }

    fn weight_bytes(&self) -> u64 {
        self.arrays().map(|array| array.nbytes() as u64).sum()
    }
}
