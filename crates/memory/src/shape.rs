//! What of a model's architecture decides about its memory, from its `config.json`.
//!
//! Lenient where the engine is strict: a config that the engine would refuse may pass here, since
//! the engine says why. What is missing altogether gives a [`ShapeError`], and the plan then knows
//! the weights alone.

use serde_json::Value;

/// What one layer keeps of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerMemory {
    /// Keys and values of every position, or of the last `window` ones.
    Attention {
        /// Key and value heads.
        kv_heads: u64,
        /// Width of one.
        head_dim: u64,
        /// How many of the last positions it sees; `None` is all.
        window: Option<u64>,
    },
    /// A state of fixed size: of a convolution, and of a recurrence.
    Recurrent {
        /// Elements of the convolution's state, in the model's own type.
        conv_elements: u64,
        /// Elements of the recurrence's state, in float32.
        state_elements: u64,
    },
    /// Nothing.
    Nothing,
}

/// Numbers of an architecture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelShape {
    /// `model_type` as written.
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden: u64,
    /// Rows of the embedding.
    pub vocab: u64,
    /// Values inside the feed-forward part that one token makes, over all experts it visits.
    pub feed_forward: u64,
    /// Query heads.
    pub heads: u64,
    /// Experts of one layer; 0 or 1 is none.
    pub experts: u64,
    /// Width of one expert.
    pub expert_width: u64,
    /// Tokens a sequence may have.
    pub context: u64,
    /// Bytes of one element of the model's own type.
    pub element_bytes: u64,
    /// One per layer.
    pub layers: Vec<LayerMemory>,
}

/// Why a config gives no shape.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("config.json: {0}")]
pub struct ShapeError(String);

/// Layers, heads, widths beyond which a number is not believed.
const LAYERS_MAX: u64 = 4096;
const NUMBER_MAX: u64 = 1 << 32;

struct Keys<'a>(&'a Value);

impl<'a> Keys<'a> {
    fn number(&self, key: &str) -> Option<u64> {
        self.0.get(key).and_then(Value::as_u64).filter(|number| *number <= NUMBER_MAX)
    }

    fn need(&self, key: &str) -> Result<u64, ShapeError> {
        self.number(key)
            .filter(|number| *number > 0)
            .ok_or_else(|| ShapeError(format!("{key} is not a usable number")))
    }

    fn text(&self, key: &str) -> &'a str {
        self.0.get(key).and_then(Value::as_str).unwrap_or_default()
    }
}

impl ModelShape {
    /// Reads a parsed `config.json`. A model of several parts is described by its language part.
    ///
    /// # Errors
    /// When a number that nothing works without is missing or absurd.
    pub fn from_config(config: &Value) -> Result<Self, ShapeError> {
        let inner = config.get("text_config").filter(|inner| inner.is_object());
        let keys = Keys(inner.unwrap_or(config));
        let architecture = match keys.text("model_type") {
            "" => Keys(config).text("model_type"),
            own => own,
        };
        let hidden = keys.need("hidden_size")?;
        let heads = keys.need("num_attention_heads")?;
        let experts = ["num_experts", "n_routed_experts", "num_local_experts"]
            .iter()
            .find_map(|key| keys.number(key))
            .unwrap_or(0);
        let intermediate = keys.number("intermediate_size").unwrap_or(4 * hidden);
        let expert_width = keys.number("moe_intermediate_size").unwrap_or(intermediate);
        let visited = keys.number("num_experts_per_tok").unwrap_or(1);
        let feed_forward = if experts > 1 {
            // Some layers of a mixture may be dense.
            (expert_width * visited).max(if architecture == "qwen3_moe" { 0 } else { intermediate })
        } else {
            intermediate
        };
        let dtype = match keys.text("torch_dtype") {
            "" => keys.text("dtype"),
            own => own,
        };
        Ok(Self {
            hidden,
            vocab: keys.need("vocab_size")?,
            feed_forward,
            heads,
            experts,
            expert_width,
            context: keys.number("max_position_embeddings").unwrap_or(4096).max(1),
            element_bytes: if dtype == "float32" { 4 } else { 2 },
            layers: layers(&keys, architecture, hidden, heads)?,
            architecture: architecture.to_owned(),
        })
    }

    /// Bytes that a sequence of `tokens` keeps, with `element_bytes` a key or value, `kept` of its
    /// positions in layers without a window. The layers keep blocks of
    /// [`KV_BLOCK`](Self::KV_BLOCK) positions.
    pub fn sequence_bytes(&self, tokens: u64, kept: u64, element_bytes: u64) -> u64 {
        self.kept_bytes(tokens, kept, element_bytes, |width| width * element_bytes)
    }

    /// The same once the keys and values of layers that keep all positions are packed in `bits`.
    pub fn packed_sequence_bytes(&self, tokens: u64, element_bytes: u64, bits: u64) -> u64 {
        self.kept_bytes(tokens, tokens, element_bytes, |width| packed(width, element_bytes, bits))
    }

    fn kept_bytes(
        &self,
        tokens: u64,
        kept: u64,
        element_bytes: u64,
        head: impl Fn(u64) -> u64,
    ) -> u64 {
        let of_layer = |layer: &LayerMemory| match *layer {
            LayerMemory::Attention { kv_heads, head_dim, window: Some(window) } => {
                let kept = blocks(tokens.min(window + Self::KV_BLOCK));
                2 * kept * kv_heads * head_dim * element_bytes
            }
            LayerMemory::Attention { kv_heads, head_dim, window: None } => {
                2 * blocks(kept) * kv_heads * head(head_dim)
            }
            LayerMemory::Recurrent { conv_elements, state_elements } => {
                conv_elements * element_bytes + state_elements * 4
            }
            LayerMemory::Nothing => 0,
        };
        self.layers.iter().map(of_layer).sum()
    }

    /// Bytes of the buffers that `slots` sequences share once they decode, the longest of
    /// `tokens`: columns are a power of two, of a sliding layer no more than its window wants.
    pub fn shared_bytes(&self, slots: u64, tokens: u64, element_bytes: u64) -> u64 {
        let of_layer = |layer: &LayerMemory| match *layer {
            LayerMemory::Attention { kv_heads, head_dim, window } => {
                let seen = window.map_or(tokens, |window| tokens.min(window));
                2 * seen.max(1).next_power_of_two() * kv_heads * head_dim * element_bytes
            }
            LayerMemory::Recurrent { conv_elements, state_elements } => {
                conv_elements * element_bytes + state_elements * 4
            }
            LayerMemory::Nothing => 0,
        };
        slots * self.layers.iter().map(of_layer).sum::<u64>()
    }

    /// Bytes that one more token of a long sequence takes over the layers that keep all of them.
    pub fn kv_bytes_per_token(&self, element_bytes: u64) -> u64 {
        self.token_bytes(|width| width * element_bytes)
    }

    /// The same where keys and values are packed in `bits`.
    pub fn packed_kv_bytes_per_token(&self, element_bytes: u64, bits: u64) -> u64 {
        self.token_bytes(|width| packed(width, element_bytes, bits))
    }

    fn token_bytes(&self, head: impl Fn(u64) -> u64) -> u64 {
        let of_layer = |layer: &LayerMemory| match *layer {
            LayerMemory::Attention { kv_heads, head_dim, window: None } => {
                2 * kv_heads * head(head_dim)
            }
            _ => 0,
        };
        self.layers.iter().map(of_layer).sum()
    }

    /// `bytes` of the layer that takes most, for what growing one of them takes meanwhile.
    pub(crate) fn widest_layer_bytes(&self, bytes: impl Fn(&Self) -> u64) -> u64 {
        let one = |layer: &LayerMemory| {
            let alone = Self { layers: vec![*layer], ..self.clone_without_layers() };
            bytes(&alone)
        };
        self.layers.iter().map(one).max().unwrap_or(0)
    }

    fn clone_without_layers(&self) -> Self {
        Self { architecture: String::new(), layers: Vec::new(), ..*self }
    }

    /// Positions that keys and values grow by.
    pub const KV_BLOCK: u64 = 256;
}

/// Bytes of one head's key or value in MLX's affine packing: its bits, and a scale and a bias for
/// each group of 64, or of 32 where 64 does not fit.
fn packed(width: u64, element_bytes: u64, bits: u64) -> u64 {
    let group = if width.is_multiple_of(64) { 64 } else { 32 };
    width * bits / 8 + 2 * width.div_ceil(group) * element_bytes
}

fn blocks(tokens: u64) -> u64 {
    tokens.div_ceil(ModelShape::KV_BLOCK) * ModelShape::KV_BLOCK
}

fn layers(
    keys: &Keys<'_>,
    architecture: &str,
    hidden: u64,
    heads: u64,
) -> Result<Vec<LayerMemory>, ShapeError> {
    let count = keys.need("num_hidden_layers")?;
    if count > LAYERS_MAX {
        return Err(ShapeError(format!("num_hidden_layers is {count}")));
    }
    let kv_heads = keys.number("num_key_value_heads").unwrap_or(heads);
    let head_dim = ["head_dim", "attention_head_dim"]
        .iter()
        .find_map(|key| keys.number(key))
        .unwrap_or(hidden / heads);
    let attention = |window| LayerMemory::Attention { kv_heads, head_dim, window };
    let pattern = keys.text("hybrid_override_pattern");
    if !pattern.is_empty() {
        let mamba = mamba(keys)?;
        let layer = |kind| match kind {
            'M' => mamba,
            '*' => attention(None),
            _ => LayerMemory::Nothing,
        };
        return Ok(pattern.chars().take(LAYERS_MAX as usize).map(layer).collect());
    }
    if matches!(architecture, "bert" | "roberta" | "xlm-roberta") {
        // An encoder keeps nothing of a text.
        return Ok(vec![LayerMemory::Nothing; count as usize]);
    }
    let window = keys.number("sliding_window");
    if let Some(types) = keys.0.get("layer_types").and_then(Value::as_array) {
        let layer = |kind: &Value| match kind.as_str() {
            Some("sliding_attention") => attention(window),
            _ => attention(None),
        };
        return Ok(types.iter().take(LAYERS_MAX as usize).map(layer).collect());
    }
    let window = window.filter(|_| architecture == "mistral");
    Ok(vec![attention(window); count as usize])
}

/// A Mamba-2 layer's state: Dao and Gu, Transformers are SSMs, 2024; sizes as Nemotron-H names them.
fn mamba(keys: &Keys<'_>) -> Result<LayerMemory, ShapeError> {
    let (heads, width) = (keys.need("mamba_num_heads")?, keys.need("mamba_head_dim")?);
    let state = keys.need("ssm_state_size")?;
    let groups = keys.number("n_groups").unwrap_or(1);
    let kernel = keys.number("conv_kernel").unwrap_or(4);
    let channels = heads * width + 2 * groups * state;
    Ok(LayerMemory::Recurrent {
        conv_elements: channels * kernel.saturating_sub(1),
        state_elements: heads * width * state,
    })
}
