//! `config.json`, read once and checked: what comes out of here has sane numbers.
//!
//! Later code computes shapes and sizes from [`ModelConfig`] without checking again. Every
//! refusal names the key and what it held.

mod encoder;
mod hybrid;
mod keys;
mod mixture;
mod quantization;
mod rope;

use std::borrow::Cow;
use std::path::Path;

pub use encoder::{Activation, EncoderConfig};
pub use hybrid::{HybridConfig, HybridLayer, MambaConfig, SigmoidMixtureConfig};
pub use mixture::MixtureConfig;
pub use quantization::{Packing, Quantization};
pub use rope::{RopeConfig, RopeKind, Yarn};

use crate::fault::{Loaded, corrupt, missing, unsupported};
use keys::Keys;

/// The longest `config.json` that is read. Real ones have a few kilobytes, or a few hundred
/// when each layer has its own quantisation.
const CONFIG_BYTES_MAX: u64 = 16 << 20;

/// Bounds far above any real model and far below what overflows a size computation.
const WIDTH_MAX: u64 = 1 << 18;
const VOCAB_MAX: u64 = 1 << 22;
const LAYERS_MAX: u64 = 1024;
const HEADS_MAX: u64 = 4096;
const EXPERTS_MAX: u64 = 4096;
const HEAD_DIM_MAX: u64 = 4096;
const CONTEXT_MAX: u64 = 1 << 26;

/// The decoder families of attention and feed-forward layers. They share one implementation and differ in a few parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Llama, TinyLlama, and whatever else calls itself `llama`.
    Llama,
    /// Llama whose layers may all slide.
    Mistral,
    /// Bias on q, k and v.
    Qwen2,
    /// Norms on the heads of q and k.
    Qwen3,
    /// Qwen3 with mixtures of experts.
    Qwen3Moe,
}

/// A model's parameters, in range.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// `model_type` as written.
    pub model_type: String,
    /// What it means.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden: i32,
    /// Width inside the feed-forward part.
    pub intermediate: i32,
    /// Query heads.
    pub heads: i32,
    /// Key and value heads; divides `heads`.
    pub kv_heads: i32,
    /// Width of one head; even.
    pub head_dim: i32,
    /// Rows of the embedding.
    pub vocab: i32,
    /// Epsilon of every RMS norm.
    pub norm_eps: f32,
    /// Tokens a sequence may have.
    pub context: u32,
    /// Rotary positions.
    pub rope: RopeConfig,
    /// Bias on q, k and v.
    pub qkv_bias: bool,
    /// Bias on the attention's output projection.
    pub output_bias: bool,
    /// Bias on the feed-forward projections.
    pub mlp_bias: bool,
    /// RMS norms on the heads of q and k.
    pub head_norms: bool,
    /// The output projection is the embedding.
    pub tied: bool,
    /// One per layer: how many of the last positions it sees; `None` is all.
    pub windows: Vec<Option<i32>>,
    /// Experts in place of the feed-forward part, in some layers or all.
    pub mixture: Option<MixtureConfig>,
    /// How weights are packed.
    pub quantization: Quantization,
}

/// Any model that this build loads.
#[derive(Debug, Clone, PartialEq)]
pub enum Described {
    /// Attention and feed-forward layers.
    Decoder(ModelConfig),
    /// Layers of several kinds.
    Hybrid(HybridConfig),
    /// Layers that make vectors and no text.
    Encoder(EncoderConfig),
}

impl Described {
    /// Reads and checks `folder/config.json`.
    pub fn read(folder: &Path) -> Loaded<Self> {
        let path = folder.join("config.json");
        let found = std::fs::metadata(&path).map_err(|error| {
            missing(format!(
                "{}: {error}; a model is a folder with config.json and safetensors files",
                path.display()
            ))
        })?;
        if found.len() > CONFIG_BYTES_MAX {
            return Err(corrupt(format!(
                "config.json has {} bytes; at most {CONFIG_BYTES_MAX} are read",
                found.len()
            )));
        }
        let text = std::fs::read(&path)
            .map_err(|error| missing(format!("{}: {error}", path.display())))?;
        Self::parse(&text)
    }

    /// Checks the text of a `config.json`.
    pub fn parse(text: &[u8]) -> Loaded<Self> {
        let value: serde_json::Value = serde_json::from_slice(&without_infinities(text))
            .map_err(|error| corrupt(format!("config.json is not JSON: {error}")))?;
        let keys = Keys::new(&value)?;
        let model_type = keys.text("model_type")?;
        match model_type.as_str() {
            "nemotron_h" => Ok(Self::Hybrid(HybridConfig::read(&keys, model_type)?)),
            kind if EncoderConfig::knows(kind) => {
                Ok(Self::Encoder(EncoderConfig::read(&keys, model_type)?))
            }
            _ => Ok(Self::Decoder(ModelConfig::from_keys(&keys, model_type)?)),
        }
    }

    /// `model_type` as written.
    pub fn model_type(&self) -> &str {
        match self {
            Self::Decoder(config) => &config.model_type,
            Self::Hybrid(config) => &config.model_type,
            Self::Encoder(config) => &config.model_type,
        }
    }

    /// Rows of the embedding.
    pub fn vocab(&self) -> i32 {
        match self {
            Self::Decoder(config) => config.vocab,
            Self::Hybrid(config) => config.vocab,
            Self::Encoder(config) => config.vocab,
        }
    }

    /// Tokens a sequence may have.
    pub fn context(&self) -> u32 {
        match self {
            Self::Decoder(config) => config.context,
            Self::Hybrid(config) => config.context,
            Self::Encoder(config) => config.context(),
        }
    }

    /// The tensor of the embedding.
    pub fn embedding(&self) -> &'static str {
        match self {
            Self::Decoder(_) => "model.embed_tokens.weight",
            Self::Hybrid(_) => "backbone.embeddings.weight",
            Self::Encoder(_) => "embeddings.word_embeddings.weight",
        }
    }

    /// How weights are packed.
    pub fn quantization(&self) -> &Quantization {
        match self {
            Self::Decoder(config) => &config.quantization,
            Self::Hybrid(config) => &config.quantization,
            Self::Encoder(config) => &config.quantization,
        }
    }
}

/// What [`without_infinities`] writes.
const INFINITY: &str = "Infinity";

/// `text` with `Infinity` outside of strings turned into a string. Python's `json` writes the
/// bare word, as in the `time_step_limit` of published hybrids, and JSON has no such number.
fn without_infinities(text: &[u8]) -> Cow<'_, [u8]> {
    let word = INFINITY.as_bytes();
    if !text.windows(word.len()).any(|window| window == word) {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len() + 8);
    let (mut quoted, mut escaped) = (false, false);
    let mut rest = text;
    while let Some(&byte) = rest.first() {
        if !quoted && rest.starts_with(word) {
            out.push(b'"');
            out.extend_from_slice(word);
            out.push(b'"');
            rest = &rest[word.len()..];
            continue;
        }
        match byte {
            b'"' if !escaped => quoted = !quoted,
            _ => {}
        }
        escaped = quoted && byte == b'\\' && !escaped;
        out.push(byte);
        rest = &rest[1..];
    }
    Cow::Owned(out)
}

impl ModelConfig {
    fn from_keys(keys: &Keys, model_type: String) -> Loaded<Self> {
        let family = family(&model_type, keys.has("auto_map"))?;
        if !keys.flag("is_causal", true)? {
            return Err(unsupported(format!(
                "config.json: is_causal is false; this build has {model_type} only where each token sees those before it"
            )));
        }
        let hidden = keys.size("hidden_size", WIDTH_MAX)?;
        let layers = keys.size("num_hidden_layers", LAYERS_MAX)? as usize;
        let heads = keys.size("num_attention_heads", HEADS_MAX)?;
        let kv_heads = keys.optional_size("num_key_value_heads", HEADS_MAX)?.unwrap_or(heads);
        if heads % kv_heads != 0 {
            return Err(corrupt(format!(
                "config.json: num_attention_heads is {heads}, which num_key_value_heads ({kv_heads}) does not divide"
            )));
        }
        let head_dim = head_dim(keys, family, hidden, heads)?;
        let attention_bias = keys.flag("attention_bias", false)?;
        let (qkv_bias, output_bias) = match family {
            Family::Llama | Family::Mistral => (attention_bias, attention_bias),
            Family::Qwen2 => (true, false),
            Family::Qwen3 | Family::Qwen3Moe => (false, false),
        };
        let mixture = match family {
            Family::Qwen3Moe => Some(MixtureConfig::read(keys, layers)?),
            _ => None,
        };
        let llama = matches!(family, Family::Llama | Family::Mistral);
        Ok(Self {
            family,
            hidden,
            intermediate: keys.size("intermediate_size", WIDTH_MAX * 4)?,
            heads,
            kv_heads,
            head_dim,
            vocab: keys.size("vocab_size", VOCAB_MAX)?,
            norm_eps: keys.positive("rms_norm_eps", 1.0)?,
            context: context(keys, family)?,
            rope: RopeConfig::read(keys, family, head_dim)?,
            qkv_bias,
            output_bias,
            mlp_bias: llama && keys.flag("mlp_bias", false)?,
            head_norms: matches!(family, Family::Qwen3 | Family::Qwen3Moe),
            tied: keys.flag("tie_word_embeddings", family != Family::Qwen3Moe)?,
            windows: windows(keys, family, layers)?,
            mixture,
            quantization: Quantization::read(keys)?,
            model_type,
        })
    }

    /// The mixture of layer `index`, if it has one.
    pub fn mixture_of(&self, index: usize) -> Option<&MixtureConfig> {
        self.mixture.as_ref().filter(|mixture| mixture.layers[index])
    }

    /// How many layers.
    pub fn layers(&self) -> usize {
        self.windows.len()
    }
}

/// `own_code`: the repository brings Python of its own, which other tools run when they are told to
/// trust it.
fn family(model_type: &str, own_code: bool) -> Loaded<Family> {
    match model_type {
        "llama" => Ok(Family::Llama),
        "mistral" => Ok(Family::Mistral),
        "qwen2" => Ok(Family::Qwen2),
        "qwen3" => Ok(Family::Qwen3),
        "qwen3_moe" => Ok(Family::Qwen3Moe),
        other => {
            let code = match own_code {
                true => "; its repository brings code of its own (auto_map), which mlxd never runs",
                false => "",
            };
            Err(unsupported(format!(
                "config.json: model_type {other:?} is not known{code}; this build loads llama, mistral, qwen2, qwen3, qwen3_moe, nemotron_h, bert, roberta and xlm-roberta"
            )))
        }
    }
}

fn head_dim(keys: &Keys, family: Family, hidden: i32, heads: i32) -> Loaded<i32> {
    // mlx-lm's Qwen2 has no head_dim of its own and ignores the key.
    let given = match family {
        Family::Qwen2 => None,
        _ => keys.optional_size("head_dim", HEAD_DIM_MAX)?,
    };
    let head_dim = match given {
        Some(head_dim) => head_dim,
        None if hidden % heads == 0 => hidden / heads,
        None => {
            return Err(corrupt(format!(
                "config.json: hidden_size ({hidden}) is not a multiple of num_attention_heads ({heads}) and head_dim is not given"
            )));
        }
    };
    if head_dim % 2 != 0 {
        return Err(corrupt(format!(
            "config.json: head_dim is {head_dim}; rotary positions need an even number"
        )));
    }
    Ok(head_dim)
}

fn context(keys: &Keys, family: Family) -> Loaded<u32> {
    // What transformers assumes when the key is absent.
    let absent = match family {
        Family::Llama => 2048,
        Family::Mistral => 131_072,
        Family::Qwen2 | Family::Qwen3 | Family::Qwen3Moe => 32_768,
    };
    Ok(keys.optional_size("max_position_embeddings", CONTEXT_MAX)?.unwrap_or(absent) as u32)
}

/// Which layers see only the last positions.
///
/// Llama and Mistral follow `layer_types`, as mlx-lm does. A Mistral without `layer_types`
/// slides in every layer, as it was trained; mlx-lm ignores the key there. Qwen2's and Qwen3's
/// `use_sliding_window` is ignored, as mlx-lm ignores it: no published checkpoint sets it.
fn windows(keys: &Keys, family: Family, layers: usize) -> Loaded<Vec<Option<i32>>> {
    if matches!(family, Family::Qwen2 | Family::Qwen3 | Family::Qwen3Moe) {
        return Ok(vec![None; layers]);
    }
    let window = keys.optional_size("sliding_window", CONTEXT_MAX)?;
    let Some(types) = keys.optional_texts("layer_types")? else {
        let window = window.filter(|_| family == Family::Mistral);
        return Ok(vec![window; layers]);
    };
    if types.len() != layers {
        return Err(corrupt(format!(
            "config.json: layer_types has {} entries for {layers} layers",
            types.len()
        )));
    }
    types
        .iter()
        .map(|name| match (name.as_str(), window) {
            ("full_attention", _) => Ok(None),
            ("sliding_attention", Some(window)) => Ok(Some(window)),
            ("sliding_attention", None) => Err(corrupt(
                "config.json: layer_types names sliding_attention, but sliding_window is not given",
            )),
            (other, _) => Err(unsupported(format!(
                "config.json: layer_types holds {other:?}; known are full_attention and sliding_attention"
            ))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn base() -> Value {
        json!({
            "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2,
            "intermediate_size": 128, "num_attention_heads": 4, "rms_norm_eps": 1e-5,
            "vocab_size": 100, "max_position_embeddings": 512,
        })
    }

    fn with(key: &str, value: Value) -> Loaded<ModelConfig> {
        let mut config = base();
        config[key] = value;
        match Described::parse(config.to_string().as_bytes())? {
            Described::Decoder(config) => Ok(config),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn absurd_numbers_are_named() {
        for (key, value) in [
            ("hidden_size", json!(1e30)),
            ("hidden_size", json!(-64)),
            ("hidden_size", json!("64")),
            ("num_hidden_layers", json!(0)),
            ("num_hidden_layers", json!(10_000_000)),
            ("intermediate_size", json!(12.5)),
            ("num_attention_heads", json!(9_007_199_254_740_993_u64)),
            ("vocab_size", json!(4_294_967_296_u64)),
            ("rms_norm_eps", json!(0)),
            ("rms_norm_eps", json!(7.0)),
            ("rope_theta", json!(-1.0)),
            ("max_position_embeddings", json!(u64::MAX)),
            ("tie_word_embeddings", json!(3)),
            ("head_dim", json!(7)),
            ("num_key_value_heads", json!(3)),
            ("layer_types", json!(["full_attention"])),
            ("rope_scaling", json!({"type": "linear", "factor": 0})),
        ] {
            let fault = with(key, value.clone()).expect_err(&format!("{key} = {value}"));
            let named = fault.message.contains(key) || fault.message.contains("factor");
            assert!(named, "{key} = {value}: {}", fault.message);
        }
    }

    #[test]
    fn families_differ_where_they_should() {
        let llama = with("num_key_value_heads", json!(2)).unwrap();
        assert_eq!((llama.kv_heads, llama.head_dim, llama.tied), (2, 16, true));
        assert!(!llama.qkv_bias && !llama.output_bias && !llama.head_norms);
        let qwen2 = with("model_type", json!("qwen2")).unwrap();
        assert!(qwen2.qkv_bias && !qwen2.output_bias);
        let qwen3 = with("model_type", json!("qwen3")).expect_err("qwen3 needs rope_theta");
        assert!(qwen3.message.contains("rope_theta"), "{}", qwen3.message);
        let other = with("model_type", json!("gpt_neox")).unwrap_err();
        assert!(other.message.contains("gpt_neox") && !other.message.contains("never runs"));
        let mut config = base();
        config["model_type"] = json!("newest");
        config["auto_map"] = json!({"AutoModelForCausalLM": "modeling_newest.NewestForCausalLM"});
        let other = Described::parse(config.to_string().as_bytes()).unwrap_err();
        assert!(other.message.contains("which mlxd never runs"), "{}", other.message);
    }

    #[test]
    fn windows_follow_layer_types() {
        let mut config = base();
        config["sliding_window"] = json!(8);
        let parse = |config: &Value| match Described::parse(config.to_string().as_bytes()) {
            Ok(Described::Decoder(config)) => config,
            other => panic!("{other:?}"),
        };
        assert_eq!(parse(&config).windows, [None, None]);
        config["model_type"] = json!("mistral");
        assert_eq!(parse(&config).windows, [Some(8), Some(8)]);
        config["layer_types"] = json!(["full_attention", "sliding_attention"]);
        assert_eq!(parse(&config).windows, [None, Some(8)]);
    }
}
