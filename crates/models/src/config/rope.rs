//! Rotary positions: `rope_theta`, `rope_scaling`, and transformers 5's `rope_parameters`.

use super::{CONTEXT_MAX, Family, keys::Keys};
use crate::fault::{Loaded, corrupt, unsupported};

/// How positions become angles.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f32,
    /// Pairs neighbours instead of halves.
    pub traditional: bool,
    /// Which variant.
    pub kind: RopeKind,
}

/// Variants of scaled frequencies.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeKind {
    /// As published: Su et al., RoFormer.
    Default,
    /// Positions divided by a factor.
    Linear {
        /// The factor.
        factor: f32,
    },
    /// Llama 3's split into kept, smoothed and divided frequencies.
    Llama3 {
        /// The factor of the low frequencies.
        factor: f32,
        /// Wavelengths above original / this are divided by the factor.
        low_freq_factor: f32,
        /// Wavelengths below original / this are kept.
        high_freq_factor: f32,
        /// The context of the first training.
        original: f32,
    },
    /// Peng et al., YaRN.
    Yarn(Yarn),
}

/// Parameters of YaRN.
#[derive(Debug, Clone, PartialEq)]
pub struct Yarn {
    /// How much longer than `original` the context is.
    pub factor: f64,
    /// The context of the first training.
    pub original: f64,
    /// Rotations above which a frequency is kept.
    pub beta_fast: f64,
    /// Rotations below which a frequency is divided.
    pub beta_slow: f64,
    /// Numerator of the attention's temperature.
    pub mscale: f64,
    /// Denominator of the attention's temperature.
    pub mscale_all_dim: f64,
}

const THETA_MAX: f64 = 1e15;
const FACTOR_MAX: f64 = 1e6;

impl RopeConfig {
    pub(super) fn read(top: &Keys, family: Family, head_dim: i32) -> Loaded<Self> {
        let nested = top.object("rope_parameters")?;
        let theta = match (top.optional_positive("rope_theta", THETA_MAX)?, &nested) {
            (Some(theta), _) => Some(theta),
            (None, Some(nested)) => nested.optional_positive("rope_theta", THETA_MAX)?,
            (None, None) => None,
        };
        let theta = match (theta, family) {
            (Some(theta), _) => theta as f32,
            (None, Family::Llama | Family::Mistral) => 10_000.0,
            (None, Family::Qwen2) => 1_000_000.0,
            (None, Family::Qwen3 | Family::Qwen3Moe) => {
                return Err(corrupt("config.json: rope_theta is missing"));
            }
        };
        let scaling = top.object("rope_scaling")?.or(nested);
        let kind = match scaling {
            Some(scaling) => kind(&scaling, head_dim)?,
            None => RopeKind::Default,
        };
        if matches!(kind, RopeKind::Yarn(_)) && theta <= 1.0 {
            return Err(corrupt(format!(
                "config.json: rope_theta is {theta}; YaRN needs more than 1"
            )));
        }
        let traditional = family != Family::Qwen3 && top.flag("rope_traditional", false)?;
        Ok(Self { theta, traditional, kind })
    }
}

fn kind(keys: &Keys, head_dim: i32) -> Loaded<RopeKind> {
    let name = match keys.optional_text("type")? {
        Some(name) => name,
        None => keys.optional_text("rope_type")?.unwrap_or_else(|| "default".to_owned()),
    };
    let original = |absent: f64| -> Loaded<f64> {
        let key = "original_max_position_embeddings";
        Ok(keys.optional_positive(key, CONTEXT_MAX as f64)?.unwrap_or(absent))
    };
    let number = |key: &str, absent: f64| -> Loaded<f64> {
        Ok(keys.optional_number(key, FACTOR_MAX)?.unwrap_or(absent))
    };
    match name.as_str() {
        "default" => Ok(RopeKind::Default),
        "linear" => Ok(RopeKind::Linear { factor: keys.positive("factor", FACTOR_MAX)? }),
        "llama3" => {
            let low = keys.optional_positive("low_freq_factor", FACTOR_MAX)?.unwrap_or(1.0) as f32;
            let high =
                keys.optional_positive("high_freq_factor", FACTOR_MAX)?.unwrap_or(4.0) as f32;
            if high <= low {
                return Err(corrupt(format!(
                    "{}: high_freq_factor ({high}) is not above low_freq_factor ({low})",
                    keys.place()
                )));
            }
            Ok(RopeKind::Llama3 {
                factor: keys.positive("factor", FACTOR_MAX)?,
                low_freq_factor: low,
                high_freq_factor: high,
                original: original(8192.0)? as f32,
            })
        }
        "yarn" if head_dim >= 2 => Ok(RopeKind::Yarn(Yarn {
            factor: f64::from(keys.positive("factor", FACTOR_MAX)?),
            original: original(4096.0)?,
            beta_fast: keys.optional_positive("beta_fast", FACTOR_MAX)?.unwrap_or(32.0),
            beta_slow: keys.optional_positive("beta_slow", FACTOR_MAX)?.unwrap_or(1.0),
            mscale: number("mscale", 1.0)?,
            mscale_all_dim: number("mscale_all_dim", 0.0)?,
        })),
        other => Err(unsupported(format!(
            "{}: the rope type {other:?} is not known; this build knows default, linear, llama3 and yarn",
            keys.place()
        ))),
    }
}
