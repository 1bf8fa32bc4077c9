//! `config.json` of hybrids: Nemotron-H's stack of Mamba-2, attention, feed-forward and expert
//! layers.

use serde_json::Value;

use super::keys::Keys;
use super::mixture::no_more_than;
use super::{
    CONTEXT_MAX, EXPERTS_MAX, HEAD_DIM_MAX, HEADS_MAX, LAYERS_MAX, Quantization, VOCAB_MAX,
    WIDTH_MAX,
};
use crate::fault::{Loaded, corrupt, unsupported};

const STATE_MAX: u64 = 1 << 14;
const KERNEL_MAX: u64 = 64;

/// What a layer of a hybrid does; each layer does one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HybridLayer {
    /// Mamba-2.
    Mamba,
    /// Attention, without rotary positions.
    Attention,
    /// Feed-forward.
    FeedForward,
    /// Experts.
    Experts,
}

/// A Mamba-2 layer's sizes.
#[derive(Debug, Clone, PartialEq)]
pub struct MambaConfig {
    /// Heads.
    pub heads: i32,
    /// Width of a head.
    pub head_dim: i32,
    /// Groups of heads that share B and C; divides `heads`.
    pub groups: i32,
    /// Width of the state.
    pub state: i32,
    /// Positions that the convolution sees.
    pub kernel: i32,
    /// Bias on the projections in and out.
    pub projection_bias: bool,
    /// Bias on the convolution.
    pub conv_bias: bool,
    /// Time steps are kept within these; the second may be infinite.
    pub time_step: (f32, f32),
}

impl MambaConfig {
    /// Width of what is scanned.
    pub fn inner(&self) -> i32 {
        self.heads * self.head_dim
    }

    /// Width of what the convolution sees: the inner width, B and C.
    pub fn channels(&self) -> i32 {
        self.inner() + 2 * self.groups * self.state
    }
}

/// Experts of a Nemotron-H.
#[derive(Debug, Clone, PartialEq)]
pub struct SigmoidMixtureConfig {
    /// Experts of a layer.
    pub experts: i32,
    /// Experts that compute a position; at most `experts`.
    pub per_token: i32,
    /// Groups of experts, and how many of them are considered.
    pub groups: (i32, i32),
    /// Width inside an expert.
    pub width: i32,
    /// Width of what goes into the experts, where it is not the hidden width.
    pub latent: Option<i32>,
    /// Width of the part that computes every position.
    pub shared_width: Option<i32>,
    /// The chosen experts' scores are scaled to sum to 1.
    pub renormalise: bool,
    /// What scores are multiplied with.
    pub scale: f32,
}

/// A hybrid's parameters, in range.
#[derive(Debug, Clone, PartialEq)]
pub struct HybridConfig {
    /// `model_type` as written.
    pub model_type: String,
    /// Width of the residual stream.
    pub hidden: i32,
    /// Width inside the feed-forward layers.
    pub intermediate: i32,
    /// Query heads.
    pub heads: i32,
    /// Key and value heads; divides `heads`.
    pub kv_heads: i32,
    /// Width of one attention head.
    pub head_dim: i32,
    /// Bias on q, k, v and the output.
    pub attention_bias: bool,
    /// Bias on feed-forward projections.
    pub mlp_bias: bool,
    /// Rows of the embedding.
    pub vocab: i32,
    /// Epsilon of every RMS norm.
    pub norm_eps: f32,
    /// Tokens a sequence may have.
    pub context: u32,
    /// What each layer does.
    pub layers: Vec<HybridLayer>,
    /// Mamba-2 layers.
    pub mamba: MambaConfig,
    /// Expert layers, if there are any.
    pub mixture: Option<SigmoidMixtureConfig>,
    /// How weights are packed.
    pub quantization: Quantization,
}

impl HybridConfig {
    pub(super) fn read(keys: &Keys, model_type: String) -> Loaded<Self> {
        for (key, known) in [("mlp_hidden_act", "relu2"), ("mamba_hidden_act", "silu")] {
            if let Some(other) = keys.optional_text(key)?.filter(|text| text != known) {
                return Err(unsupported(format!(
                    "config.json: {key} is {other:?}; this build knows {known}"
                )));
            }
        }
        let hidden = keys.size("hidden_size", WIDTH_MAX)?;
        let heads = keys.size("num_attention_heads", HEADS_MAX)?;
        let kv_heads = keys.size("num_key_value_heads", HEADS_MAX)?;
        divides("num_key_value_heads", kv_heads, "num_attention_heads", heads)?;
        let head_dim = match keys.optional_size("head_dim", HEAD_DIM_MAX)? {
            Some(head_dim) => head_dim,
            None => {
                divides("num_attention_heads", heads, "hidden_size", hidden)?;
                hidden / heads
            }
        };
        let layers = layers(keys)?;
        let mixture = match layers.contains(&HybridLayer::Experts) {
            true => Some(mixture(keys)?),
            false => None,
        };
        Ok(Self {
            hidden,
            intermediate: keys.size("intermediate_size", WIDTH_MAX * 4)?,
            heads,
            kv_heads,
            head_dim,
            attention_bias: keys.flag("attention_bias", false)?,
            mlp_bias: keys.flag("mlp_bias", false)?,
            vocab: keys.size("vocab_size", VOCAB_MAX)?,
            norm_eps: keys.positive("layer_norm_epsilon", 1.0)?,
            context: keys.size("max_position_embeddings", CONTEXT_MAX)? as u32,
            layers,
            mamba: mamba(keys)?,
            mixture,
            quantization: Quantization::read(keys)?,
            model_type,
        })
    }
}

fn divides(divisor: &str, few: i32, dividend: &str, many: i32) -> Loaded<()> {
    match many % few {
        0 => Ok(()),
        _ => Err(corrupt(format!(
            "config.json: {dividend} is {many}, which {divisor} ({few}) does not divide"
        ))),
    }
}

/// The stack, from `hybrid_override_pattern` or from `layers_block_type`.
fn layers(keys: &Keys) -> Loaded<Vec<HybridLayer>> {
    let (key, layers) = match keys.optional_text("hybrid_override_pattern")? {
        Some(pattern) => ("hybrid_override_pattern", by_letter(&pattern)?),
        None => {
            let named = match keys.optional_texts("layers_block_type")? {
                Some(names) => Some(("layers_block_type", names)),
                None => keys.optional_texts("layer_types")?.map(|names| ("layer_types", names)),
            };
            let Some((key, names)) = named else {
                return Err(corrupt(
                    "config.json: hybrid_override_pattern or layers_block_type must say what each layer does",
                ));
            };
            (key, names.iter().map(|name| by_name(key, name)).collect::<Loaded<_>>()?)
        }
    };
    if layers.is_empty() || layers.len() > LAYERS_MAX as usize {
        return Err(corrupt(format!(
            "config.json: {key} names {} layers; expected 1 to {LAYERS_MAX}",
            layers.len()
        )));
    }
    let counted = keys.optional_size("num_hidden_layers", LAYERS_MAX)?;
    if counted.is_some_and(|counted| counted as usize != layers.len()) {
        return Err(corrupt(format!(
            "config.json: num_hidden_layers is {}, but {key} names {} layers",
            counted.unwrap_or_default(),
            layers.len()
        )));
    }
    Ok(layers)
}

fn by_letter(pattern: &str) -> Loaded<Vec<HybridLayer>> {
    let layer = |letter: char| match letter {
        'M' => Ok(HybridLayer::Mamba),
        '*' => Ok(HybridLayer::Attention),
        '-' => Ok(HybridLayer::FeedForward),
        'E' => Ok(HybridLayer::Experts),
        other => Err(unsupported(format!(
            "config.json: hybrid_override_pattern holds {other:?}; known are M, *, - and E"
        ))),
    };
    pattern.chars().map(layer).collect()
}

fn by_name(key: &str, name: &str) -> Loaded<HybridLayer> {
    match name {
        "mamba" | "linear_attention" | "conv" => Ok(HybridLayer::Mamba),
        "attention" | "full_attention" => Ok(HybridLayer::Attention),
        "mlp" => Ok(HybridLayer::FeedForward),
        "moe" => Ok(HybridLayer::Experts),
        other => Err(unsupported(format!(
            "config.json: {key} holds {other:?}; known are mamba, attention, mlp and moe"
        ))),
    }
}

fn mamba(keys: &Keys) -> Loaded<MambaConfig> {
    let heads = keys.size("mamba_num_heads", HEADS_MAX)?;
    let groups = keys.size("n_groups", HEADS_MAX)?;
    divides("n_groups", groups, "mamba_num_heads", heads)?;
    Ok(MambaConfig {
        heads,
        head_dim: keys.size("mamba_head_dim", HEAD_DIM_MAX)?,
        groups,
        state: keys.size("ssm_state_size", STATE_MAX)?,
        kernel: keys.size("conv_kernel", KERNEL_MAX)?,
        projection_bias: keys.flag("mamba_proj_bias", false)?,
        conv_bias: keys.flag("use_conv_bias", true)?,
        time_step: time_step(keys)?,
    })
}

fn time_step(keys: &Keys) -> Loaded<(f32, f32)> {
    let key = "time_step_limit";
    let Some(value) = keys.value(key) else {
        return Ok((0.0, f32::INFINITY));
    };
    let number = |value: &Value| match value {
        Value::String(text) if text == super::INFINITY => Some(f32::INFINITY),
        other => other.as_f64().map(|number| number as f32),
    };
    let pair = value.as_array().map(|items| items.iter().map(number).collect::<Vec<_>>());
    match pair.as_deref() {
        Some([Some(low), Some(high)]) if 0.0 <= *low && low <= high => Ok((*low, *high)),
        _ => keys.wrong(key, value, "two numbers from 0 on, the smaller first"),
    }
}

fn mixture(keys: &Keys) -> Loaded<SigmoidMixtureConfig> {
    let experts = keys.size("n_routed_experts", EXPERTS_MAX)?;
    let per_token = keys.size("num_experts_per_tok", EXPERTS_MAX)?;
    no_more_than("num_experts_per_tok", per_token, "n_routed_experts", experts)?;
    let groups = keys.optional_size("n_group", EXPERTS_MAX)?.unwrap_or(1);
    let considered = keys.optional_size("topk_group", EXPERTS_MAX)?.unwrap_or(1);
    divides("n_group", groups, "n_routed_experts", experts)?;
    no_more_than("topk_group", considered, "n_group", groups)?;
    if groups > 1 && experts / groups < 2 {
        return Err(corrupt(format!(
            "config.json: n_group is {groups} for {experts} experts; a group is judged by its two best"
        )));
    }
    // Absent and null mean that no expert is shared; so does 0.
    let shared = keys.value("n_shared_experts").is_some_and(|value| value.as_u64() != Some(0));
    let shared_width = match shared {
        true => Some(keys.size("moe_shared_expert_intermediate_size", WIDTH_MAX * 4)?),
        false => None,
    };
    Ok(SigmoidMixtureConfig {
        experts,
        per_token,
        groups: (groups, considered),
        width: keys.size("moe_intermediate_size", WIDTH_MAX * 4)?,
        latent: keys.optional_size("moe_latent_size", WIDTH_MAX)?,
        shared_width,
        renormalise: keys.flag("norm_topk_prob", false)?,
        scale: keys.optional_positive("routed_scaling_factor", 1e6)?.unwrap_or(1.0) as f32,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Described;
    use serde_json::json;

    fn base() -> Value {
        json!({
            "model_type": "nemotron_h", "hidden_size": 64, "intermediate_size": 96,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
            "layer_norm_epsilon": 1e-5, "max_position_embeddings": 512, "mamba_num_heads": 4,
            "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 16, "conv_kernel": 4,
            "hybrid_override_pattern": "M-*E", "num_hidden_layers": 4, "n_routed_experts": 8,
            "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        })
    }

    fn with(key: &str, value: Value) -> Loaded<HybridConfig> {
        let mut config = base();
        config[key] = value;
        match Described::parse(config.to_string().as_bytes())? {
            Described::Hybrid(config) => Ok(config),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_lie_is_named() {
        for (key, value, word) in [
            ("hybrid_override_pattern", json!("M-*X"), "'X'"),
            ("hybrid_override_pattern", json!(""), "0 layers"),
            ("num_hidden_layers", json!(5), "num_hidden_layers is 5"),
            ("n_groups", json!(3), "n_groups (3)"),
            ("num_key_value_heads", json!(3), "num_key_value_heads (3)"),
            ("mamba_num_heads", json!(1_u64 << 40), "mamba_num_heads"),
            ("conv_kernel", json!(0), "conv_kernel"),
            ("time_step_limit", json!([1.0, 0.5]), "time_step_limit"),
            ("time_step_limit", json!("long"), "time_step_limit"),
            ("n_group", json!(3), "n_group (3)"),
            ("n_group", json!(8), "n_group is 8"),
            ("topk_group", json!(2), "topk_group is 2"),
            ("num_experts_per_tok", json!(9), "num_experts_per_tok is 9"),
            ("n_shared_experts", json!(1), "moe_shared_expert_intermediate_size"),
            ("mlp_hidden_act", json!("gelu"), "mlp_hidden_act"),
        ] {
            let fault = with(key, value.clone()).expect_err(&format!("{key} = {value}"));
            assert!(fault.message.contains(word), "{key} = {value}: {}", fault.message);
        }
        let mut config = base();
        config["hybrid_override_pattern"] = Value::Null;
        let fault = Described::parse(config.to_string().as_bytes()).unwrap_err();
        assert!(fault.message.contains("layers_block_type"), "{}", fault.message);
    }

    #[test]
    fn the_stack_has_two_spellings() {
        use HybridLayer::{Attention, Experts, FeedForward, Mamba};
        let letters = with("vocab_size", json!(100)).unwrap();
        assert_eq!(letters.layers, [Mamba, FeedForward, Attention, Experts]);
        let mut config = base();
        config["hybrid_override_pattern"] = Value::Null;
        config["layers_block_type"] = json!(["mamba", "mlp", "attention", "moe"]);
        let Described::Hybrid(names) = Described::parse(config.to_string().as_bytes()).unwrap()
        else {
            panic!("not a hybrid");
        };
        assert_eq!(names.layers, letters.layers);
    }

    #[test]
    fn infinity_as_python_writes_it() {
        let text = base().to_string();
        let text = text.replacen(
            '{',
            r#"{"note": "to Infinity", "time_step_limit": [0.25, Infinity], "#,
            1,
        );
        let Described::Hybrid(config) = Described::parse(text.as_bytes()).unwrap() else {
            panic!("not a hybrid");
        };
        assert_eq!(config.mamba.time_step, (0.25, f32::INFINITY));
    }
}
