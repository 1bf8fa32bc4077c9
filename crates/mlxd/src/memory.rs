//! From configuration and model folders to what admission works with.

use mlxd_config::{Config, Device, Folders, ModelSettings, RequestsConfig};
use mlxd_dispatch::{Lifetime, MemoryKeeping, MemoryLimits};
use mlxd_memory::machine::{Rehearsed, ThisMachine};
use mlxd_memory::{
    DraftNeeds, Form, LayerMemory, Machine, ModelShape, Needs, PackedKv, Thresholds, WeightBytes,
};
use serde_json::Value;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// A longer `config.json` or `modules.json` is none.
const CONFIG_BYTES_MAX: u64 = 16 << 20;

/// Measured figures, in the state folder.
const MEASURED: &str = "memory.json";

pub fn keeping(config: &Config, folders: &Folders) -> MemoryKeeping {
    let machine: Arc<dyn Machine> = match &config.memory.rehearsal {
        Some(file) => Arc::new(Rehearsed::new(file.clone())),
        None => Arc::new(ThisMachine::new()),
    };
    let limits = limits(config, &config.requests);
    MemoryKeeping { machine, measured: folders.state.join(MEASURED), limits }
}

/// What `config` limits memory to; how long one may wait for it stands among `requests`.
pub fn limits(config: &Config, requests: &RequestsConfig) -> MemoryLimits {
    let (memory, ms) = (&config.memory, Duration::from_millis);
    let workers_max = config.workers.workers_max;
    MemoryLimits {
        budget: memory.budget_bytes,
        reserve: memory.reserve_bytes,
        loaded_max: memory.max_loaded.unwrap_or(workers_max).min(workers_max),
        residence_min: ms(memory.residence_min_ms),
        starvation: ms(memory.starvation_ms),
        waiting_max: memory.waiting_max,
        waiting_timeout: ms(requests.queue_timeout_ms),
        look_interval: ms(memory.look_interval_ms),
        overrun_percent: memory.contain.then_some(memory.overrun_percent),
        pressure: Thresholds {
            warning_stalled_some: memory.pressure_warning_percent.into(),
            critical_stalled_full: memory.pressure_critical_percent.into(),
            roomy_available: memory.pressure_roomy_percent.into(),
            calm: ms(memory.pressure_calm_ms),
        },
    }
}

/// What the model in `folder` needs. A folder that cannot be read needs nothing that is known here:
/// whoever loads it says what is wrong with it.
pub fn needs(folder: &Path, draft: Option<&Path>, settings: &ModelSettings) -> Needs {
    let weights = |folder| {
        let summary = mlxd_store::weight_summary(folder).unwrap_or_default();
        WeightBytes { stored: summary.bytes, parameters: summary.parameters }
    };
    let own = weights(folder);
    let shape = shape(folder, settings);
    let form = match settings.device {
        Device::Cpu => Form::Float32,
        Device::Gpu => Form::Stored,
        Device::Auto if has_gpu() => Form::Stored,
        Device::Auto => Form::Float32,
    };
    let prefix_bytes_max = match makes_vectors(folder, shape.as_ref()) {
        true => 0,
        false => prefix_bytes(settings, own.stored),
    };
    Needs {
        shape,
        weights: own,
        draft: draft.map(|folder| DraftNeeds {
            shape: self::shape(folder, settings),
            weights: weights(folder),
        }),
        form,
        chunk_tokens: settings.prefill_chunk_tokens.into(),
        cache_bytes_max: settings.cache_bytes_max,
        prefix_bytes_max,
        packed_kv: settings.kv_quantized().map(|(bits, from_tokens)| PackedKv {
            bits: bits.into(),
            from_tokens: from_tokens.into(),
        }),
        kv_tokens_max: settings.kv_tokens_max().map(u64::from),
    }
}

/// What the model may keep of prompts it has seen: what configuration says, or what suits the model,
/// since all of it is promised beforehand.
fn prefix_bytes(settings: &ModelSettings, weight_bytes: u64) -> u64 {
    const LEAST: u64 = 64 << 20;
    const MOST: u64 = 1 << 30;
    match settings.prefix_cache_bytes_max {
        _ if settings.deterministic => 0,
        None => (weight_bytes / 2).clamp(LEAST, MOST),
        Some(said) => said,
    }
}

/// Whether the engine will make vectors of texts, of which it keeps nothing for later ones: an
/// encoder, and what sentence-transformers has a pooling module for.
fn makes_vectors(folder: &Path, shape: Option<&ModelShape>) -> bool {
    let encoder = shape.is_some_and(|shape| {
        shape.layers.iter().all(|layer| matches!(layer, LayerMemory::Nothing))
    });
    let is_pooling = |module: &Value| {
        let kind = module.get("type").and_then(Value::as_str);
        kind.is_some_and(|kind| kind.rsplit('.').next() == Some("Pooling"))
    };
    let modules = read_json(&folder.join("modules.json"));
    let modules = modules.as_ref().and_then(Value::as_array);
    encoder || modules.is_some_and(|modules| modules.iter().any(is_pooling))
}

fn read_json(path: &Path) -> Option<Value> {
    let mut text = Vec::new();
    let file = std::fs::File::open(path).ok()?;
    file.take(CONFIG_BYTES_MAX).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

fn shape(folder: &Path, settings: &ModelSettings) -> Option<ModelShape> {
    let config = read_json(&folder.join("config.json"))?;
    let mut shape = ModelShape::from_config(&config)
        .inspect_err(|error| tracing::debug!(folder = %folder.display(), "{error}"))
        .ok()?;
    if let Some(max) = settings.context_tokens_max {
        shape.context = shape.context.min(max.into());
    }
    Some(shape)
}

/// Whether `device = "auto"` will find a GPU. A guess until the first worker has said what it runs
/// on.
fn has_gpu() -> bool {
    cfg!(target_os = "macos") || Path::new("/dev/nvidiactl").exists()
}

pub fn lifetime(settings: &ModelSettings) -> Lifetime {
    let ttl_s = settings.ttl_s.unwrap_or_else(ttl_by_size);
    Lifetime { ttl: Some(Duration::from_secs(ttl_s)), pinned: settings.pinned }
}

/// How long an idle model stays where configuration says nothing.
fn ttl_by_size() -> u64 {
    static TTL_S: OnceLock<u64> = OnceLock::new();
    *TTL_S.get_or_init(|| {
        let total = ThisMachine::new().memory().map_or(0, |memory| memory.total);
        match total >> 30 {
            64.. => 600,
            // What is sold as 24 GB is a little less once firmware has taken its part.
            23..=63 => 300,
            _ => 180,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn prefix_bytes_of(config: &Value, modules: Option<&Value>) -> u64 {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        if let Some(modules) = modules {
            std::fs::write(folder.path().join("modules.json"), modules.to_string()).unwrap();
        }
        let settings = Config::default().models.settings("m");
        needs(folder.path(), None, &settings).prefix_bytes_max
    }

    #[test]
    fn prompts_may_take_what_is_said_or_what_suits_the_model() {
        let with = |said: Option<u64>| {
            let mut config = Config::default();
            config.models.all.prefix_cache_bytes_max = said;
            prefix_bytes(&config.models.settings("m"), 1 << 30)
        };
        assert_eq!((with(None), with(Some(1 << 30))), (1 << 29, 1 << 30));
        assert_eq!(with(Some(0)), 0);
        let settings = Config::default().models.settings("m");
        assert_eq!(prefix_bytes(&settings, 1000), 64 << 20);
        assert_eq!(prefix_bytes(&settings, 1 << 40), 1 << 30);
    }

    #[test]
    fn what_makes_vectors_is_promised_no_prefix_cache() {
        let of = |kind: &str| {
            json!({
                "model_type": kind, "hidden_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 2, "vocab_size": 128,
            })
        };
        let pooled = |kind: &str| json!([{"type": format!("sentence_transformers.models.{kind}")}]);
        assert!(prefix_bytes_of(&of("qwen3"), None) > 0);
        assert!(prefix_bytes_of(&of("qwen3"), Some(&pooled("Transformer"))) > 0);
        assert_eq!(prefix_bytes_of(&of("qwen3"), Some(&pooled("Pooling"))), 0);
        assert_eq!(prefix_bytes_of(&of("bert"), None), 0);
    }
}
