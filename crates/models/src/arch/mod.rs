//! Architectures: from a config to a model that turns token ids into logits.

mod attention;
mod dense;
mod feed_forward;
mod fused;
mod fused_rows;
pub mod linear;
pub mod moe;
mod rope;

use mlx_rs::Array;
use mlx_rs::error::Result;

pub use dense::{DenseModel, inventory};

use crate::kv::KvLayer;

/// How a model is laid out for computing. The defaults are what was measured faster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// q, k and v in one projection.
    pub join_qkv: bool,
    /// Gate and up in one projection.
    pub join_gate_up: bool,
    /// `silu(gate) * up` compiled into one kernel. On the CPU MLX would call a C++ compiler.
    pub compile: bool,
    /// Decode steps through kernels of our own where they fit. CUDA only.
    pub fuse_decode: bool,
}

/// What a layer remembers of a sequence. Other architectures add their own kinds.
#[derive(Debug)]
pub enum LayerState {
    /// Keys and values of attention.
    Kv(KvLayer),
}

/// What a model remembers of a sequence.
#[derive(Debug)]
pub struct State {
    /// One per layer.
    pub layers: Vec<LayerState>,
    /// Positions computed.
    pub position: i32,
    /// Where the sequence ends at the latest.
    pub capacity: i32,
}

impl State {
    /// The arrays to evaluate after a prefill chunk.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.layers.iter().flat_map(|layer| match layer {
            LayerState::Kv(kv) => kv.arrays(),
        })
    }
}

/// A model that computes one sequence at a time.
pub trait Model {
    /// An empty state for a sequence of at most `capacity` positions.
    fn state(&self, capacity: i32) -> State;

    /// Runs `ids`, `[1, n]`, and returns the last layer's output, `[1, n, hidden]`.
    fn forward(&self, ids: &Array, state: &mut State) -> Result<Array>;

    /// Logits `[1, vocabulary]` of the last position of `hidden`.
    fn logits(&self, hidden: &Array) -> Result<Array>;

    /// Bytes of the weights as held.
    fn weight_bytes(&self) -> u64;

    /// KV bytes that one position takes.
    fn kv_bytes_per_token(&self) -> u64;
}
