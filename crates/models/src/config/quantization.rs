//! How MLX packed the weights: `quantization` in `config.json`.
//!
//! MLX's affine mode stores, per group of `group` weights of a row, a scale and a bias, and the
//! weights themselves as `bits`-bit integers packed into 32-bit words.

use std::collections::HashMap;

use serde_json::Value;

use super::keys::Keys;
use crate::fault::{Loaded, corrupt, unsupported};

/// Affine packing of one matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packing {
    /// Bits of one weight.
    pub bits: i32,
    /// Weights that share a scale and a bias.
    pub group: i32,
}

impl Packing {
    /// Bits that MLX packs. 5 is among them, though few checkpoints use it.
    pub const BITS: [i32; 6] = [2, 3, 4, 5, 6, 8];
    /// Group sizes that MLX packs.
    pub const GROUPS: [i32; 3] = [32, 64, 128];

    /// Checks the two numbers.
    pub fn new(bits: i32, group: i32) -> Option<Self> {
        let known = Self::BITS.contains(&bits) && Self::GROUPS.contains(&group);
        known.then_some(Self { bits, group })
    }

    /// 32-bit words of a packed row of `width` weights, if it packs evenly.
    pub fn words(self, width: i32) -> Option<i32> {
        let bits = i64::from(width) * i64::from(self.bits);
        let even = width % self.group == 0 && bits % 32 == 0;
        even.then_some((bits / 32) as i32)
    }
}

/// The packing of a whole model.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Quantization {
    /// What `bits` and `group_size` at the top say. `None`: no weight is packed.
    pub default: Option<Packing>,
    /// Modules that differ; `None` in the map is a module that is not packed.
    pub overrides: HashMap<String, Option<Packing>>,
}

impl Quantization {
    /// Reads `quantization`, which mlx-lm also writes as `quantization_config`.
    pub(super) fn read(top: &Keys) -> Loaded<Self> {
        let Some(keys) = top.object("quantization")? else {
            return match top.object("quantization_config")? {
                Some(keys) if keys.has("bits") && !keys.has("quant_method") => Self::affine(&keys),
                Some(keys) => {
                    let method = keys.optional_text("quant_method")?.unwrap_or_default();
                    Err(unsupported(format!(
                        "config.json: quantization_config names the method {method:?}; this build loads MLX's affine packing only (convert with mlx_lm.convert)"
                    )))
                }
                None => Ok(Self::default()),
            };
        };
        Self::affine(&keys)
    }

    fn affine(keys: &Keys) -> Loaded<Self> {
        let default = packing(keys)?;
        let mut overrides = HashMap::new();
        for (name, value) in keys.entries() {
            match value {
                Value::Object(_) => {
                    let inner = keys.object(name)?.expect("it is an object");
                    overrides.insert(name.clone(), Some(packing(&inner)?));
                }
                Value::Bool(false) => {
                    overrides.insert(name.clone(), None);
                }
                Value::Bool(true) => {
                    overrides.insert(name.clone(), Some(default));
                }
                _ => {}
            }
        }
        Ok(Self { default: Some(default), overrides })
    }
}

fn packing(keys: &Keys) -> Loaded<Packing> {
    let mode = keys.optional_text("mode")?;
    if let Some(mode) = mode.filter(|mode| mode != "affine") {
        return Err(unsupported(format!(
            "{}: mode is {mode:?}; this build loads MLX's affine packing only",
            keys.place()
        )));
    }
    let bits = keys.size("bits", 64)?;
    let group = keys.size("group_size", 1 << 20)?;
    Packing::new(bits, group).ok_or_else(|| {
        corrupt(format!(
            "{}: bits {bits} with group_size {group} is not a packing MLX has; bits are {:?}, group sizes {:?}",
            keys.place(),
            Packing::BITS,
            Packing::GROUPS
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> Loaded<Quantization> {
        Quantization::read(&Keys::new(&value).unwrap())
    }

    #[test]
    fn overrides_are_read() {
        let read = read(json!({"quantization": {
            "bits": 4, "group_size": 64, "mode": "affine",
            "model.layers.0.mlp.down_proj": {"bits": 8, "group_size": 32},
            "lm_head": false, "model.embed_tokens": true,
        }}))
        .unwrap();
        assert_eq!(read.default, Packing::new(4, 64));
        assert_eq!(read.overrides["model.layers.0.mlp.down_proj"], Packing::new(8, 32));
        assert_eq!(read.overrides["lm_head"], None);
        assert_eq!(read.overrides["model.embed_tokens"], Packing::new(4, 64));
    }

    #[test]
    fn what_mlx_cannot_pack_is_refused_by_name() {
        for (value, word) in [
            (json!({"quantization": {"bits": 7, "group_size": 64}}), "bits 7"),
            (json!({"quantization": {"bits": 4, "group_size": 48}}), "group_size 48"),
            (json!({"quantization": {"bits": 4}}), "group_size"),
            (json!({"quantization": {"bits": 4, "group_size": 32, "mode": "mxfp4"}}), "mxfp4"),
            (json!({"quantization_config": {"quant_method": "gptq", "bits": 4}}), "gptq"),
            (json!({"quantization": 4}), "quantization"),
            (
                json!({"quantization": {"bits": 4, "group_size": 64, "lm_head": {"bits": 99, "group_size": 64}}}),
                "lm_head",
            ),
        ] {
            let fault = read(value).unwrap_err();
            assert!(fault.message.contains(word), "{}", fault.message);
        }
    }
}
