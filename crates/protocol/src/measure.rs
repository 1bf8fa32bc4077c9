//! What `mlxd bench` has measured by a worker program that serves nobody: `mlxd-worker measure`
//! with a [`Measurement`] as JSON, answered by one [`Said`] a line on standard output. After each
//! line the worker waits for one on standard input, or for its end: so whoever reads can look at
//! the process at just that point.
//!
//! The program that runs benchmarks links no MLX; a process of its own for each measurement also
//! starts with nothing in memory.

use crate::{DeviceChoice, LoadSpec, TokenId};
use serde::{Deserialize, Serialize};

/// The first argument of a worker program that is to measure.
pub const MEASURE: &str = "measure";

/// What is to be measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "measure", rename_all = "snake_case")]
pub enum Measurement {
    /// Nothing but what MLX is and runs on.
    Device {
        /// Where.
        device: DeviceChoice,
    },
    /// Bytes a second through the device's memory.
    Bandwidth {
        /// Where.
        device: DeviceChoice,
        /// Bytes of the arrays.
        sizes_bytes: Vec<u64>,
        /// Timed runs per size.
        runs: u32,
    },
    /// Causal self-attention, written out against MLX's fused operation.
    Attention {
        /// Where.
        device: DeviceChoice,
        /// Tokens.
        lengths: Vec<u32>,
        /// Heads, of queries as of keys.
        heads: u32,
        /// Numbers per head.
        head_dim: u32,
        /// Timed runs per length.
        runs: u32,
    },
    /// Whole forward passes, logits of the last token included.
    Forward {
        /// The model.
        load: LoadSpec,
        /// Tokens of a pass.
        lengths: Vec<u32>,
        /// Timed passes per length.
        runs: u32,
    },
    /// What sequences take in memory.
    Memory {
        /// The model.
        load: LoadSpec,
        /// Tokens.
        lengths: Vec<u32>,
    },
    /// Keys and values as they are computed against packed ones: speed, memory, and how far answers
    /// get from each other.
    Kv {
        /// The model. How it keeps keys and values is not taken from here.
        load: LoadSpec,
        /// Bits of one, of each packed form.
        bits: Vec<u32>,
        /// Tokens before the ones that are timed.
        lengths: Vec<u32>,
        /// Tokens generated in each timed run, two or more.
        new_tokens: u32,
        /// Timed runs per form and length.
        runs: u32,
        /// What is answered for the judgement.
        prompts: Vec<Vec<TokenId>>,
        /// Tokens of each of these answers.
        answer_tokens: u32,
    },
    /// What a new process does until its first token.
    Start {
        /// The model.
        load: LoadSpec,
        /// Tokens of the first prompt.
        length: u32,
    },
    /// The most that sequences running at once take. Says a step of progress once the model is
    /// loaded.
    Peak {
        /// The model.
        load: LoadSpec,
        /// Tokens of each sequence, the last ones generated.
        context: u32,
        /// Sequences.
        batch: u32,
    },
}

/// What the worker says about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "said", rename_all = "snake_case")]
pub enum Said {
    /// So far it is.
    Progress {
        /// Steps done.
        done: u64,
        /// Steps in all.
        of: u64,
    },
    /// The end.
    Done(Measured),
    /// The other end.
    Failed {
        /// Why.
        reason: String,
    },
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// What MLX is and runs on.
    pub device: MeasuredDevice,
    /// What was loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<MeasuredModel>,
    /// The figures, in the order asked for.
    pub figures: Vec<Figure>,
    /// What was left out, and why.
    pub left_out: Vec<String>,
}

/// What MLX runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeasuredDevice {
    /// `metal`, `cuda` or `cpu`.
    pub backend: String,
    /// MLX's version, where it tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mlx: Option<String>,
    /// The device's name, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A model that was measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeasuredModel {
    /// `qwen3`, ….
    pub architecture: String,
    /// `4-bit g64`, ….
    pub quantization: String,
    /// Parameters, counted before quantisation.
    pub parameters: u64,
    /// Bytes of the weights as loaded.
    pub weight_bytes: u64,
    /// KV bytes one token takes over all layers, by the architecture.
    pub kv_bytes_per_token: u64,
    /// Bytes in live arrays with no sequence open.
    pub active_bytes: u64,
}

/// One row of figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "figure", rename_all = "snake_case")]
pub enum Figure {
    /// Of [`Measurement::Bandwidth`].
    Bandwidth {
        /// Of the array.
        size_bytes: u64,
        /// Seconds of each run that reads it and writes as much.
        copy_s: Vec<f64>,
        /// Seconds of each run that reads it.
        read_s: Vec<f64>,
    },
    /// Of [`Measurement::Attention`].
    Attention {
        /// Tokens.
        length: u32,
        /// As `float32`.
        dtype: String,
        /// Seconds of each run written out.
        naive_s: Vec<f64>,
        /// Seconds of each fused run.
        fused_s: Vec<f64>,
        /// Highest bytes in live arrays beyond the inputs, written out.
        naive_peak_bytes: u64,
        /// The same, fused.
        fused_peak_bytes: u64,
        /// The largest difference between the two results.
        difference: f64,
    },
    /// Of [`Measurement::Forward`].
    Forward {
        /// Tokens of a pass.
        length: u32,
        /// Seconds of each.
        seconds: Vec<f64>,
    },
    /// Of [`Measurement::Memory`].
    Memory {
        /// Tokens.
        length: u32,
        /// Bytes in live arrays with the sequence, beyond those without.
        state_bytes: u64,
        /// The highest of those while its prompt ran.
        peak_bytes: u64,
    },
    /// Of [`Measurement::Kv`], for each form and length.
    Kv {
        /// Of one key or value; `None` where they are kept as they are computed.
        bits: Option<u32>,
        /// KV bytes that one token takes.
        bytes_per_token: u64,
        /// Tokens before the timed ones.
        length: u32,
        /// Seconds of each run until its first token.
        first_s: Vec<f64>,
        /// Seconds of each run for the tokens after it.
        rest_s: Vec<f64>,
        /// Tokens after the first.
        rest_tokens: u32,
        /// Bytes in live arrays with the sequence, beyond those without.
        state_bytes: u64,
        /// The highest of those.
        peak_bytes: u64,
    },
    /// Of [`Measurement::Kv`], for each packed form: its logits along the answers that the model
    /// gives with keys and values as they are computed.
    KvQuality {
        /// Of one key or value.
        bits: u32,
        /// Tokens judged.
        tokens: u32,
        /// Mean of the Kullback-Leibler divergence from the full form's distribution, in nats.
        divergence: f64,
        /// The largest.
        divergence_max: f64,
        /// The largest difference of a logit.
        difference_max: f64,
        /// Tokens that are the most likely in both forms.
        agreeing: u32,
        /// Tokens of the form's own greedy answers up to the first that differs.
        equal: u32,
    },
    /// Of [`Measurement::Start`]. One part follows the other.
    Start {
        /// Seconds until MLX has its device.
        device_s: f64,
        /// Seconds of reading and preparing the weights.
        weights_s: f64,
        /// Seconds of the first passes, which compile and load kernels.
        kernels_s: f64,
        /// Seconds from the first prompt to the token after it.
        first_token_s: f64,
    },
    /// Of [`Measurement::Peak`].
    Peak {
        /// Tokens of each sequence.
        context: u32,
        /// Sequences.
        batch: u32,
        /// The highest bytes in live arrays while loading.
        loading_bytes: u64,
        /// The same since.
        peak_bytes: u64,
        /// Bytes in live arrays and in freed buffers kept, with nothing running any more.
        resting_bytes: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_are_one_line_of_json() {
        let asked = Measurement::Bandwidth {
            device: DeviceChoice::Auto,
            sizes_bytes: vec![1 << 20],
            runs: 3,
        };
        let text = serde_json::to_string(&asked).expect("JSON");
        assert!(!text.contains('\n') && text.contains(r#""measure":"bandwidth""#), "{text}");
        assert_eq!(serde_json::from_str::<Measurement>(&text).expect("read"), asked);
        let said = Said::Done(Measured {
            device: MeasuredDevice { backend: "cpu".into(), mlx: None, name: None },
            model: None,
            figures: vec![Figure::Forward { length: 8, seconds: vec![0.5] }],
            left_out: vec![],
        });
        let text = serde_json::to_string(&said).expect("JSON");
        assert!(!text.contains('\n'), "{text}");
        assert_eq!(serde_json::from_str::<Said>(&text).expect("read"), said);
    }
}
