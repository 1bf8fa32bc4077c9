//! Architectures: from a config to a model that turns token ids into logits.

mod attention;
mod bert;
mod dense;
mod feed_forward;
mod fused;
mod fused_rows;
pub mod linear;
mod mamba;
pub mod moe;
mod nemotron;
mod packed;
mod rope;
mod state;
mod stride;

use mlx_rs::Array;
use mlx_rs::error::{Exception, Result};

pub use bert::{BertModel, inventory as encoder_inventory, plain_name as encoder_name};
pub use dense::{DenseModel, inventory, name_within as decoder_name};
pub use nemotron::{NemotronModel, inventory as hybrid_inventory};
pub use state::{LayerState, State};

use crate::batch::Batch;

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
    /// Layers that are computed while as many are built, of a long piece of a prompt; `None` builds
    /// all at once.
    pub stride: Option<usize>,
    /// Whether a few queries, as a pass over guesses has, attend one by one. MLX on CUDA has a
    /// kernel for one; for more it asks cuDNN for a plan, a new one for each number of keys, which
    /// takes 50 ms.
    pub split_few: bool,
}

impl Layout {
    /// As the files have it, and nothing special: what a CPU takes.
    pub const PLAIN: Self = Self {
        join_qkv: false,
        join_gate_up: false,
        compile: false,
        fuse_decode: false,
        stride: None,
        split_few: false,
    };
}

/// A loaded model: prefill one sequence at a time, decode one or many.
pub trait Model {
    /// An empty state for a sequence of at most `capacity` positions.
    fn state(&self, capacity: i32) -> State;

    /// Runs `ids`, `[1, n]`, and returns the last layer's output, `[1, n, hidden]`.
    fn forward(&self, ids: &Array, state: &mut State) -> Result<Array>;

    /// Runs one token of each row of `batch`, which was [prepared](Batch::prepare), `ids` being
    /// `[rows, 1]` in its order, and returns `[rows, 1, hidden]`.
    fn forward_rows(&self, ids: &Array, batch: &mut Batch) -> Result<Array>;

    /// Runs whole texts, padded behind to the longest, `ids` being `[rows, longest]` and row `i`
    /// having `lengths[i]` tokens, and returns the last hidden states, `[rows, longest, hidden]`.
    /// What stands in the place of padding means nothing.
    fn encode(&self, _ids: &Array, _lengths: &[i32]) -> Result<Array> {
        Err(Exception::custom("this model makes no vectors of texts"))
    }

    /// Numbers of a hidden state.
    fn width(&self) -> i32;

    /// Logits `[rows, vocabulary]` of the last position of `hidden`, `[rows, n, hidden]`.
    fn logits(&self, hidden: &Array) -> Result<Array>;

    /// Bytes of the weights as held.
    fn weight_bytes(&self) -> u64;
}
