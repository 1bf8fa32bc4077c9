//! What a model remembers of a sequence: one state per layer that keeps one.

use mlx_rs::Array;
use mlx_rs::error::Exception;
use mlxd_protocol::KvQuantization;

use crate::kv::{KvLayer, Rotation};
use crate::recurrent::Recurrent;

/// What a layer remembers of a sequence.
#[derive(Debug)]
pub enum LayerState {
    /// Keys and values of attention. Grows with the sequence; can be cut back.
    Kv(KvLayer),
    /// A scan's state. Of one size; cannot be cut back, but copied at no cost.
    Recurrent(Recurrent),
}

impl LayerState {
    /// Keys and values, if it is those.
    pub fn kv(&mut self) -> Option<&mut KvLayer> {
        match self {
            Self::Kv(kv) => Some(kv),
            Self::Recurrent(_) => None,
        }
    }

    /// A scan's state, if it is one.
    pub fn recurrent(&mut self) -> Option<&mut Recurrent> {
        match self {
            Self::Kv(_) => None,
            Self::Recurrent(recurrent) => Some(recurrent),
        }
    }

    /// The error of a state that another model made.
    pub fn mismatch() -> Exception {
        Exception::custom("a layer met the state of another kind of layer")
    }

    /// The arrays that hold it.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        let (kv, recurrent) = match self {
            Self::Kv(kv) => (Some(kv), None),
            Self::Recurrent(recurrent) => (None, Some(recurrent)),
        };
        let kv = kv.into_iter().flat_map(KvLayer::arrays);
        kv.chain(recurrent.into_iter().flat_map(Recurrent::arrays))
    }
}

/// What a model remembers of a sequence.
#[derive(Debug)]
pub struct State {
    /// One per layer that remembers anything.
    pub layers: Vec<LayerState>,
    /// Positions computed.
    pub position: i32,
    /// Where the sequence ends at the latest.
    pub capacity: i32,
}

impl State {
    /// Packs keys and values from a length on, where layers keep all of them.
    pub fn quantize(&mut self, kv: KvQuantization) {
        self.layers.iter_mut().filter_map(LayerState::kv).for_each(|layer| layer.quantize(kv));
    }

    /// How many of the next `count` positions may be computed at once: packing begins at one of
    /// them, and what comes before it does not see that.
    pub fn at_once(&self, count: usize) -> usize {
        let seams = self.layers.iter().filter_map(|layer| match layer {
            LayerState::Kv(kv) => kv.packs(),
            LayerState::Recurrent(_) => None,
        });
        let left = seams.map(|(_, seam)| seam - self.position).filter(|left| *left > 0);
        left.min().map_or(count, |left| count.min(left as usize))
    }

    /// Keeps no more keys and values than `rotation` says, where layers would keep all of them.
    pub fn rotate(&mut self, rotation: Rotation) {
        self.layers.iter_mut().filter_map(LayerState::kv).for_each(|layer| layer.rotate(rotation));
    }

    /// Whether the next append finds packed keys and values, or packs them, or takes the place of
    /// older ones: such a sequence cannot share buffers with others.
    pub fn stays_apart(&self) -> bool {
        self.layers.iter().any(|layer| match layer {
            LayerState::Kv(kv) => {
                let dropping = kv.rotation().is_some_and(|by| by.drops_at(self.position));
                dropping || kv.is_packed_at(self.position)
            }
            LayerState::Recurrent(_) => false,
        })
    }

    /// Bytes of keys and values of one more position of a long sequence, over all layers.
    pub fn kv_bytes_per_token(&self) -> u64 {
        let of_layer = |layer: &LayerState| match layer {
            LayerState::Kv(kv) => kv.bytes_per_token(),
            LayerState::Recurrent(_) => 0,
        };
        self.layers.iter().map(of_layer).sum()
    }

    /// The arrays to evaluate after a prefill chunk.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.layers.iter().flat_map(LayerState::arrays)
    }
}
