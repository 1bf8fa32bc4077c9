//! Mixtures of experts: which layers have them, how many, and how a token chooses.

use super::keys::Keys;
use super::{EXPERTS_MAX, LAYERS_MAX, WIDTH_MAX};
use crate::fault::{Loaded, corrupt};

/// The mixture of a Qwen3-MoE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MixtureConfig {
    /// Experts of a layer.
    pub experts: i32,
    /// Experts that compute a token; at most `experts`.
    pub per_token: i32,
    /// Width inside an expert.
    pub width: i32,
    /// The chosen experts' shares are scaled to sum to 1.
    pub renormalise: bool,
    /// One per layer: whether it has experts.
    pub layers: Vec<bool>,
}

impl MixtureConfig {
    pub(super) fn read(keys: &Keys, layers: usize) -> Loaded<Self> {
        let experts = keys.size("num_experts", EXPERTS_MAX)?;
        let per_token = keys.size("num_experts_per_tok", EXPERTS_MAX)?;
        no_more_than("num_experts_per_tok", per_token, "num_experts", experts)?;
        let step = keys.optional_size("decoder_sparse_step", LAYERS_MAX)?.unwrap_or(1) as usize;
        let dense = keys.optional_indices("mlp_only_layers", layers)?.unwrap_or_default();
        let has_experts =
            |index: usize| !dense.contains(&index) && (index + 1).is_multiple_of(step);
        Ok(Self {
            experts,
            per_token,
            width: keys.size("moe_intermediate_size", WIDTH_MAX * 4)?,
            renormalise: keys.flag("norm_topk_prob", false)?,
            layers: (0..layers).map(has_experts).collect(),
        })
    }
}

/// Refuses `small` if it is above `large`.
pub(super) fn no_more_than(small: &str, few: i32, large: &str, many: i32) -> Loaded<()> {
    match few <= many {
        true => Ok(()),
        false => Err(corrupt(format!("config.json: {small} is {few}, above {large} ({many})"))),
    }
}
