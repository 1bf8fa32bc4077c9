//! Models on MLX: loading, architectures, KV arrays, sampling. Implements [`mlxd_engine::Engine`].
//!
//! The only crate that links MLX, and [`sys`] is its only file with raw mlx-c calls. One thread
//! calls [`load`], drives the [`MlxEngine`] and drops it; nothing of MLX leaves that thread.
//!
//! | module | does |
//! |---|---|
//! | `config` | `config.json` in, checked numbers out |
//! | `weights` | headers and the plan checked before MLX sees a file, then the reading |
//! | `arch` | decoders of the Llama and Qwen kind, hybrids, BERT's encoder |
//! | `kv` | keys and values of one layer and one sequence |
//! | `batch` | sequences that decode together, and their shared keys and values |
//! | `embed`, `pooling` | texts to vectors |
//! | `prefix`, `keep` | state kept for prompts that begin as earlier ones did |
//! | `disk`, `fingerprint` | the part of it that outlives the process, and what it depends on |
//! | `sample` | the choice of a token, on the device |
//! | `engine`, `check`, `steps` | sequences, what they must be, the pipeline of steps |
//! | `speculate` | tokens guessed from the sequence itself or by a small model, several checked at once |
//! | `draft` | that small model |
//! | `load` | from a folder to a warm engine |
//! | `measure` | the device and a model outside of serving |
//!
//! On the CPU every weight becomes dense float32 at load: MLX's CPU backend is many times slower
//! on packed or half-precision weights, and less exact. On a GPU weights stay as stored.
//!
//! One row decodes alone; two or more are one graph: see `batch`.
//!
//! # Speed
//!
//! Measured with `benches/gpu_overhead.py`, which runs mlx-lm's own loop beside the engine in
//! [`mlxd_engine::bench_direct`] on the same checkpoint. What decides [`Layout`]:
//! - CUDA, one NVIDIA H200, random 4-bit Qwen2.5 shapes of 0.5B / 3B / 7B, 200 tokens, two runs,
//!   times mlx-lm's speed of 465 / 270 to 291 / 179 tokens a second: one projection per matrix
//!   1.11 / 0.93 / 0.95; joined q, k, v and gate, up 1.6 / 0.98 to 1.07 / 0.99; and with the
//!   folded kernels of `arch::fused` 1.92 / 1.47 to 1.63 / 1.47. The joined layout's logits and
//!   greedy tokens are mlx-lm's to the bit. The folded kernels sum in float32 where MLX's sum in
//!   bfloat16, and come nearer to the float32 model's logits than mlx-lm does (0.045 / 0.054 /
//!   0.048 standard deviations of them against 0.053 / 0.071 / 0.068).
//!   The first start on such a machine compiles kernels for up to a minute; MLX keeps them.
//! - CPU, dense float32: joining gate and up costs 40 % more processor time in the BLAS product,
//!   joining q, k and v gains nothing, so both stay apart.
//! - Metal follows CUDA's joined layout, with MLX's own operations; it was not measured.

mod arch;
mod batch;
mod check;
mod config;
mod device;
mod disk;
mod draft;
mod embed;
mod engine;
mod fault;
mod fingerprint;
mod keep;
mod kv;
mod load;
mod measure;
mod pooling;
mod prefix;
mod recurrent;
mod sample;
mod speculate;
mod steps;
mod sys;
mod weights;

pub use arch::Layout;
pub use engine::MlxEngine;
pub use load::{Summary, check, load, load_with_layout};
pub use measure::{MeasureError, Steps, measure};
pub use sample::probe;
pub use speculate::{Guessed, Guesser, Source};
