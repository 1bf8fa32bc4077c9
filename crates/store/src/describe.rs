//! What a model's folder says of it, for people: size, kind, context, licence.

use crate::folder::{CONFIG_BYTES_MAX, read_json};
use crate::{StoreError, WeightSummary, weight_summary};
use serde_json::Value;
use std::io::Read;
use std::path::Path;

/// A model card's head is at its beginning.
const CARD_BYTES_MAX: u64 = 64 * 1024;
/// A longer licence is none.
const LICENCE_CHARS_MAX: usize = 80;

/// What is known of a model without loading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// `qwen3`, ….
    pub architecture: String,
    /// From the headers of its safetensors files.
    pub weights: WeightSummary,
    /// `4-bit g64`, `mxfp4`, `bf16`, ….
    pub quantization: String,
    /// Tokens of context that it was made for.
    pub context_tokens: Option<u64>,
    /// As its card says: `apache-2.0`, ….
    pub licence: Option<String>,
    /// `text` first, then what else it takes.
    pub modalities: Vec<&'static str>,
    /// Whether it has a chat template.
    pub chat: bool,
    /// The commit, when its folder is a snapshot of the Hugging Face cache.
    pub commit: Option<String>,
    /// Its `config.json`.
    pub config: Value,
}

/// Reads configuration, headers and card. No weights.
pub fn describe(folder: &Path) -> Result<Description, StoreError> {
    let config: Value = read_json(&folder.join("config.json"), CONFIG_BYTES_MAX)?;
    let weights = weight_summary(folder)?;
    let of_text = |key: &str| {
        let inner = config.get("text_config").and_then(|text| text.get(key));
        config.get(key).or(inner).and_then(Value::as_u64)
    };
    let architecture = config.get("model_type").and_then(Value::as_str).unwrap_or("unknown");
    Ok(Description {
        architecture: architecture.to_owned(),
        quantization: quantization(&config, &weights),
        context_tokens: of_text("max_position_embeddings"),
        licence: licence(folder),
        modalities: modalities(&config),
        chat: has_template(folder),
        commit: commit(folder),
        weights,
        config,
    })
}

/// As the configuration says, else the type that most of the bytes have.
fn quantization(config: &Value, weights: &WeightSummary) -> String {
    let own = config.get("quantization").or_else(|| config.get("quantization_config"));
    let number = |key: &str| own.and_then(|own| own.get(key)).and_then(Value::as_u64);
    let mode = own.and_then(|own| own.get("mode")).and_then(Value::as_str);
    match (mode, number("bits"), number("group_size")) {
        (Some(mode), _, _) if mode != "affine" => mode.to_owned(),
        (_, Some(bits), Some(group)) => format!("{bits}-bit g{group}"),
        (_, Some(bits), None) => format!("{bits}-bit"),
        _ => {
            let most = weights.bytes_by_type.iter().max_by_key(|(_, bytes)| **bytes);
            most.map_or_else(|| "unknown".to_owned(), |(name, _)| name.to_lowercase())
        }
    }
}

fn modalities(config: &Value) -> Vec<&'static str> {
    let has = |keys: &[&str]| keys.iter().any(|key| config.get(key).is_some());
    let mut found = vec!["text"];
    if has(&["vision_config", "image_token_id", "image_token_index"]) {
        found.push("image");
    }
    if has(&["video_token_id", "video_token_index"]) {
        found.push("video");
    }
    if has(&["audio_config", "audio_token_id"]) {
        found.push("audio");
    }
    found
}

fn has_template(folder: &Path) -> bool {
    if folder.join("chat_template.jinja").is_file() || folder.join("chat_template.json").is_file() {
        return true;
    }
    let config = read_json::<Value>(&folder.join("tokenizer_config.json"), CONFIG_BYTES_MAX);
    config.is_ok_and(|config| config.get("chat_template").is_some_and(|found| !found.is_null()))
}

/// `license` in the head of the model's card.
fn licence(folder: &Path) -> Option<String> {
    let mut card = String::new();
    let file = std::fs::File::open(folder.join("README.md")).ok()?;
    file.take(CARD_BYTES_MAX).read_to_string(&mut card).ok()?;
    let head = card.strip_prefix("---")?.split("\n---").next()?;
    let value = |key: &str| {
        let lines = head.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        lines.map(|value| value.trim().trim_matches(['"', '\''])).find(|value| !value.is_empty())
    };
    // "other" has its name in a line of its own.
    let named = match value("license")? {
        "other" => value("license_name").unwrap_or("other"),
        named => named,
    };
    Some(named.chars().filter(|c| !c.is_control()).take(LICENCE_CHARS_MAX).collect())
}

fn commit(folder: &Path) -> Option<String> {
    let is_snapshot = folder.parent()?.file_name()? == "snapshots";
    let name = folder.file_name()?.to_str()?;
    is_snapshot.then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_form_of_the_weights_has_a_name() {
        let mut weights = WeightSummary::default();
        weights.bytes_by_type.insert("BF16".into(), 10);
        weights.bytes_by_type.insert("F32".into(), 2);
        let named = |config: Value| quantization(&config, &weights);
        assert_eq!(named(json!({})), "bf16");
        assert_eq!(named(json!({"quantization": {"bits": 4, "group_size": 64}})), "4-bit g64");
        let mode = |mode| json!({"quantization": {"bits": 4, "group_size": 32, "mode": mode}});
        assert_eq!(named(mode("mxfp4")), "mxfp4");
        assert_eq!(named(mode("affine")), "4-bit g32");
    }

    #[test]
    fn the_licence_stands_in_the_cards_head() {
        let folder = tempfile::tempdir().unwrap();
        let card = |text: &str| {
            std::fs::write(folder.path().join("README.md"), text).unwrap();
            licence(folder.path())
        };
        assert_eq!(card("---\nlicense: apache-2.0\n---\n# x").as_deref(), Some("apache-2.0"));
        let other = "---\nlanguage:\n- en\nlicense: other\nlicense_name: \"llama3\"\n---\n";
        assert_eq!(card(other).as_deref(), Some("llama3"));
        assert_eq!(card("# no head\nlicense: mit\n"), None);
        assert_eq!(card("---\ntags: [a]\n---\nlicense: mit\n"), None);
    }
}
