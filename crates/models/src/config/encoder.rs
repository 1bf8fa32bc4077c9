//! `config.json` of encoders: BERT and its descendants.

use super::keys::Keys;
use super::{CONTEXT_MAX, HEADS_MAX, LAYERS_MAX, Quantization, VOCAB_MAX, WIDTH_MAX};
use crate::fault::{Loaded, corrupt, unsupported};

const TYPES_MAX: u64 = 1 << 16;

/// What bends the feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Hendrycks and Gimpel's, by the error function.
    Gelu,
    /// Its approximation by a hyperbolic tangent.
    GeluTanh,
    /// The larger of x and 0.
    Relu,
    /// x times its logistic.
    Silu,
}

/// An encoder's parameters, in range.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderConfig {
    /// `model_type` as written.
    pub model_type: String,
    /// Width of the residual stream, and of the vectors.
    pub hidden: i32,
    /// Width inside the feed-forward part.
    pub intermediate: i32,
    /// Heads; divides `hidden`.
    pub heads: i32,
    /// Layers.
    pub layers: usize,
    /// Rows of the embedding.
    pub vocab: i32,
    /// Rows of the table of positions.
    pub positions: i32,
    /// The row of the first position.
    pub first_position: i32,
    /// Rows of the table of segments.
    pub types: i32,
    /// Epsilon of every layer norm.
    pub norm_eps: f32,
    /// What bends the feed-forward part.
    pub activation: Activation,
    /// How weights are packed.
    pub quantization: Quantization,
}

impl EncoderConfig {
    /// Whether this reads configs of `model_type`.
    pub(super) fn knows(model_type: &str) -> bool {
        matches!(model_type, "bert" | "roberta" | "xlm-roberta")
    }

    pub(super) fn read(keys: &Keys, model_type: String) -> Loaded<Self> {
        let hidden = keys.size("hidden_size", WIDTH_MAX)?;
        let heads = keys.size("num_attention_heads", HEADS_MAX)?;
        if hidden % heads != 0 {
            return Err(corrupt(format!(
                "config.json: hidden_size is {hidden}, which num_attention_heads ({heads}) does not divide"
            )));
        }
        let kind = keys.optional_text("position_embedding_type")?;
        if let Some(other) = kind.filter(|kind| kind != "absolute") {
            return Err(unsupported(format!(
                "config.json: position_embedding_type is {other:?}; this build knows absolute"
            )));
        }
        let positions = keys.size("max_position_embeddings", CONTEXT_MAX)?;
        // RoBERTa counts from behind the padding's id.
        let first_position = match model_type.as_str() {
            "bert" => 0,
            _ => keys.optional_number("pad_token_id", VOCAB_MAX as f64)?.unwrap_or(1.0) as i32 + 1,
        };
        if first_position >= positions {
            return Err(corrupt(format!(
                "config.json: max_position_embeddings is {positions}, and positions begin at {first_position}, behind pad_token_id"
            )));
        }
        Ok(Self {
            hidden,
            intermediate: keys.size("intermediate_size", WIDTH_MAX * 4)?,
            heads,
            layers: keys.size("num_hidden_layers", LAYERS_MAX)? as usize,
            vocab: keys.size("vocab_size", VOCAB_MAX)?,
            positions,
            first_position,
            types: keys.optional_size("type_vocab_size", TYPES_MAX)?.unwrap_or(2),
            norm_eps: keys.optional_positive("layer_norm_eps", 1.0)?.unwrap_or(1e-12) as f32,
            activation: activation(keys)?,
            quantization: Quantization::read(keys)?,
            model_type,
        })
    }

    /// Tokens a text may have.
    pub fn context(&self) -> u32 {
        (self.positions - self.first_position) as u32
    }
}

fn activation(keys: &Keys) -> Loaded<Activation> {
    match keys.optional_text("hidden_act")?.as_deref() {
        None | Some("gelu") => Ok(Activation::Gelu),
        Some("gelu_new" | "gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
        Some("relu") => Ok(Activation::Relu),
        Some("silu" | "swish") => Ok(Activation::Silu),
        Some(other) => Err(unsupported(format!(
            "config.json: hidden_act is {other:?}; this build knows gelu, gelu_new, relu and silu"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Described;
    use serde_json::{Value, json};

    fn with(key: &str, value: Value) -> Loaded<EncoderConfig> {
        let mut config = json!({
            "model_type": "bert", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 100,
            "intermediate_size": 128, "num_attention_heads": 4, "max_position_embeddings": 40,
        });
        config[key] = value;
        match Described::parse(config.to_string().as_bytes())? {
            Described::Encoder(config) => Ok(config),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_lie_is_named() {
        for (key, value) in [
            ("hidden_size", json!(65)),
            ("num_attention_heads", json!(0)),
            ("num_hidden_layers", json!(1e9)),
            ("max_position_embeddings", json!(-1)),
            ("layer_norm_eps", json!("small")),
            ("hidden_act", json!("softsign")),
            ("position_embedding_type", json!("relative_key")),
            ("type_vocab_size", json!(0)),
        ] {
            let fault = with(key, value.clone()).expect_err(&format!("{key} = {value}"));
            assert!(fault.message.contains(key), "{key} = {value}: {}", fault.message);
        }
    }

    #[test]
    fn robertas_positions_begin_behind_the_padding() {
        assert_eq!(with("type_vocab_size", json!(2)).unwrap().context(), 40);
        let roberta = with("model_type", json!("xlm-roberta")).unwrap();
        assert_eq!((roberta.first_position, roberta.context()), (2, 38));
    }
}
