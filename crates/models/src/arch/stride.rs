//! How far what is built of a long piece of a prompt runs ahead of what is computed.
//!
//! A device frees a layer's arrays when it has computed it, and building takes no time beside that:
//! without a bound the arrays of all layers would be there at once, packed weights unpacked for the
//! products among them, which is many times what one layer takes.

use mlx_rs::Array;
use mlx_rs::error::Result;
use mlx_rs::transforms::{async_eval, eval};

/// A shorter piece takes little, and its layers are computed as fast as they are built.
const LENGTH_MIN: i32 = 256;

/// Counts layers; the device has one group of them to compute while the next is built.
#[derive(Debug)]
pub struct Stride {
    /// Layers in a group; `None` builds all at once.
    group: Option<usize>,
    built: usize,
    layers: usize,
    /// The output of the group that is being computed.
    computed: Option<Array>,
}

impl Stride {
    /// For a piece of `length` tokens of a model of so many layers.
    pub fn new(group: Option<usize>, length: i32, layers: usize) -> Self {
        let group = group.filter(|group| *group > 0 && length >= LENGTH_MIN);
        Self { group, built: 0, layers, computed: None }
    }

    /// A layer was built, whose output is `x`.
    pub fn layer(&mut self, x: &Array) -> Result<()> {
        let Some(group) = self.group else { return Ok(()) };
        self.built += 1;
        // What the last layer gives is nobody's, or is asked for by whom it is.
        if self.built.is_multiple_of(group) && self.built < self.layers {
            async_eval([x])?;
            if let Some(before) = self.computed.replace(x.clone()) {
                eval([&before])?;
            }
        }
        Ok(())
    }
}
