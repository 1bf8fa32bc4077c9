//! Keys and values of one layer and one sequence.
//!
//! Written in place into buffers that grow in blocks of 256 positions, as mlx-lm's do, towards a
//! capacity known from the start. A sliding layer forgets what no later query can see whenever
//! its buffer grows.
//!
//! A layer that keeps all positions can be told to pack them from a position on, the seam: what it
//! holds is packed at the first append from there on, as mlx-lm's `QuantizedKVCache` does, and every
//! later position when it is written. Queries before the seam see keys and values as they were
//! computed, those behind it see packed ones: as with mlx-lm where it runs a prompt token by token.
//! An append does not cross the seam, so that an answer depends neither on where a prompt is cut nor
//! on what of it was found. Or a layer can be told to keep so many positions at the most: see
//! [`Rotation`].

mod rotation;

use mlx_rs::error::{Exception, Result};
use mlx_rs::ops::{concatenate, quantize, zeros_dtype};
use mlx_rs::{Array, Dtype};
use mlxd_protocol::KvQuantization;

use crate::config::Packing;
use crate::sys;
use crate::weights::header::element_bytes;
pub use rotation::{KEPT_FIRST, Rotation};

/// Positions a buffer grows by.
const BLOCK: i32 = 256;

/// Values of a head that share a scale and a bias, for heads of this `width`; `None` where no
/// group fits. 64 is mlx-lm's.
pub fn group_of(width: i32) -> Option<i32> {
    [64, 32].into_iter().find(|group| width % group == 0)
}

/// Keys or values in MLX's affine packing along the head's width.
#[derive(Debug)]
pub struct Packed {
    /// `[1, heads, positions, words]`, 32-bit words.
    pub words: Array,
    /// `[1, heads, positions, groups]`.
    pub scales: Array,
    /// As `scales`.
    pub biases: Array,
}

/// Views of what a layer holds.
#[derive(Debug)]
pub enum Held {
    /// Keys and values, `[1, heads, positions, width]` each.
    Plain(Array, Array),
    /// Packed keys and values.
    Packed(Packed, Packed, Packing),
}

/// One layer's keys and values, `[1, heads, positions, width]` each.
#[derive(Debug)]
pub struct KvLayer {
    buffers: Option<Buffers>,
    /// How it packs, and the seam.
    packs: Option<(Packing, i32)>,
    /// The position that row 0 holds; where first positions are kept, how many were dropped behind
    /// them.
    base: i32,
    /// How many of the last positions a query sees; `None` is all.
    window: Option<i32>,
    rotation: Option<Rotation>,
    heads: i32,
    width: i32,
    dtype: Dtype,
}

#[derive(Debug)]
struct Buffers {
    /// Keys and values; where packed, words, scales and biases of the keys, then of the values.
    /// `[1, heads, rows, …]` each.
    arrays: Vec<Array>,
    packing: Option<Packing>,
    rows: i32,
    /// Rows behind the first ones are written round and round, and not in order.
    turned: bool,
}

/// Rows `from..to` of `array`, `[1, heads, rows, …]`.
pub fn rows(array: &Array, (from, to): (i32, i32)) -> Result<Array> {
    sys::slice(array, &[0, 0, from, 0], &[1, array.dim(1), to, array.dim(3)])
}

impl Buffers {
    fn plain(keys: Array, values: Array, rows: i32) -> Self {
        Self { arrays: vec![keys, values], packing: None, rows, turned: false }
    }

    /// Writes keys and values from row `at` on.
    fn write(&mut self, [keys, values]: [&Array; 2], at: i32) -> Result<()> {
        let new = match self.packing {
            None => vec![keys.clone(), values.clone()],
            Some(packing) => [packed(keys, packing)?, packed(values, packing)?].concat(),
        };
        for (buffer, new) in self.arrays.iter_mut().zip(&new) {
            let stop = [1, new.dim(1), at + new.dim(2), new.dim(3)];
            // The old handle goes at once: the buffer is updated in place only if nothing else
            // holds it when the step is evaluated.
            *buffer = sys::slice_update(buffer, new, &[0, 0, at, 0], &stop)?;
        }
        Ok(())
    }

    /// Views of rows `from..to`.
    fn view(&self, from: i32, to: i32) -> Result<Held> {
        let rows = |array: &Array| rows(array, (from, to));
        match (self.arrays.as_slice(), self.packing) {
            ([keys, values], None) => Ok(Held::Plain(rows(keys)?, rows(values)?)),
            ([keys @ .., words, scales, biases], Some(packing)) if keys.len() == 3 => {
                let packed = |words, scales, biases| -> Result<Packed> {
                    Ok(Packed { words: rows(words)?, scales: rows(scales)?, biases: rows(biases)? })
                };
                let keys = packed(&keys[0], &keys[1], &keys[2])?;
                Ok(Held::Packed(keys, packed(words, scales, biases)?, packing))
            }
            _ => unreachable!("two plain arrays or six packed ones"),
        }
    }
}

/// What a layer has of a sequence's last positions.
#[derive(Debug)]
pub enum Columns {
    /// Keys and values as they were computed, in one piece or more, oldest first.
    Plain(Vec<(Array, Array)>),
    /// Words, scales and biases of the packed keys, then of the values, in one piece each.
    Packed(Vec<Array>),
}

/// Widths and types of the arrays that hold the keys, or the values, of heads of this `width`: of
/// packed ones words, scales and biases.
pub fn columns_of(width: i32, dtype: Dtype, packing: Option<Packing>) -> Vec<(i32, Dtype)> {
    match packing {
        None => vec![(width, dtype)],
        Some(Packing { bits, group }) => {
            let scales = (width / group, dtype);
            vec![(width * bits / 32, Dtype::Uint32), scales, scales]
        }
    }
}

/// Bytes of one position in arrays of these widths and types.
pub fn row_bytes(columns: &[(i32, Dtype)]) -> u64 {
    columns.iter().map(|(width, dtype)| *width as u64 * element_bytes(*dtype)).sum()
}

/// Words, scales and biases of `array`.
pub fn packed(array: &Array, packing: Packing) -> Result<Vec<Array>> {
    let (words, scales, biases) = quantize(array, packing.group, packing.bits)?;
    Ok(vec![words, scales, biases])
}

fn blocks(positions: i32) -> i32 {
    positions.saturating_add(BLOCK - 1) / BLOCK * BLOCK
}

impl KvLayer {
    /// An empty layer.
    pub fn new(heads: i32, width: i32, dtype: Dtype, window: Option<i32>) -> Self {
        Self { buffers: None, packs: None, base: 0, window, rotation: None, heads, width, dtype }
    }

    /// Packs from a position on, the second at the earliest, if it keeps all positions and its
    /// heads have a width that can be packed.
    pub fn quantize(&mut self, kv: KvQuantization) {
        let group = group_of(self.width).filter(|_| self.window.is_none());
        let from = i32::try_from(kv.from_tokens).unwrap_or(i32::MAX);
        self.packs = group.map(|group| (Packing { bits: kv.bits as i32, group }, from.max(1)));
    }

    /// How it packs, and the first position whose query sees packed keys and values.
    pub fn packs(&self) -> Option<(Packing, i32)> {
        self.packs
    }

    /// Keeps no more positions than `rotation` says, if it would keep all.
    pub fn rotate(&mut self, rotation: Rotation) {
        self.rotation = Some(rotation).filter(|_| self.window.is_none());
    }

    /// How it rotates, if it does.
    pub fn rotation(&self) -> Option<Rotation> {
        self.rotation
    }

    /// Whether an append at `position` finds packed keys and values, or packs them.
    pub fn is_packed_at(&self, position: i32) -> bool {
        let packed = self.buffers.as_ref().is_some_and(|buffers| buffers.packing.is_some());
        packed || self.packs.is_some_and(|(_, seam)| position >= seam)
    }

    /// Bytes of one more position of a long sequence.
    pub fn bytes_per_token(&self) -> u64 {
        let packing = self.packs.map(|(packing, _)| packing);
        2 * self.heads as u64 * row_bytes(&columns_of(self.width, self.dtype, packing))
    }

    /// How many of the last positions a query sees; `None` is all.
    pub fn window(&self) -> Option<i32> {
        self.window
    }

    /// The first position that a query at `position` sees.
    pub fn first_seen(&self, position: i32) -> i32 {
        match self.window {
            Some(window) => (position - window + 1).max(0),
            None => 0,
        }
    }

    /// Writes `keys` and `values` at `position` and returns views of what the first of the new
    /// queries and all later ones see; of a layer that rotates, of all that it keeps. `capacity` is
    /// where the sequence ends at the latest.
    pub fn append(
        &mut self,
        keys: &Array,
        values: &Array,
        position: i32,
        capacity: i32,
    ) -> Result<Held> {
        let end = position + keys.dim(2);
        if let Some(rotation) = self.rotation {
            return self.append_rotating([keys, values], (position, capacity), rotation);
        }
        debug_assert!(self.packs.is_none_or(|(_, seam)| position >= seam || end <= seam));
        if self.is_packed_at(position) {
            self.pack()?;
        }
        self.reserve(position, end, capacity)?;
        let first = self.first_seen(position);
        let base = self.base;
        let buffers = self.buffers.as_mut().expect("reserved above");
        buffers.write([keys, values], position - base)?;
        buffers.view(first - base, end - base)
    }

    /// Packs what it holds, if that is not done.
    fn pack(&mut self) -> Result<()> {
        if let (Some(buffers), Some((packing, _))) = (&mut self.buffers, self.packs)
            && let ([keys, values], None) = (buffers.arrays.as_slice(), buffers.packing)
        {
            let packed = [packed(keys, packing)?, packed(values, packing)?].concat();
            buffers.arrays = packed;
            buffers.packing = Some(packing);
        }
        Ok(())
    }

    /// Heads, width and type of what it holds.
    pub fn shape(&self) -> (i32, i32, Dtype) {
        (self.heads, self.width, self.dtype)
    }

    /// How many of `position` positions it goes back; none once it dropped some between the first
    /// and the last.
    pub fn held(&self, position: i32) -> i32 {
        let dropped =
            |buffers: &Buffers| self.rotation.is_some() && (buffers.turned || self.base > 0);
        match &self.buffers {
            Some(buffers) if !dropped(buffers) => position - self.base,
            _ => 0,
        }
    }

    /// Views of the last `count` of `position` positions, which are not packed; `None` for none.
    pub fn last(&self, count: i32, position: i32) -> Result<Option<(Array, Array)>> {
        let Some(buffers) = self.buffers.as_ref().filter(|_| count > 0) else {
            return Ok(None);
        };
        let end = position - self.base;
        match buffers.view(end - count, end)? {
            Held::Plain(keys, values) => Ok(Some((keys, values))),
            Held::Packed(..) => Err(Exception::custom("keys and values are packed already")),
        }
    }

    /// Views of the last `count` of `position` positions, as it has them.
    pub fn columns(&self, count: i32, position: i32) -> Result<Columns> {
        match self.buffers.as_ref().filter(|buffers| buffers.packing.is_some()) {
            None => Ok(Columns::Plain(self.last(count, position)?.into_iter().collect())),
            Some(buffers) => {
                // What is packed begins with the sequence.
                let views =
                    buffers.arrays.iter().map(|all| rows(all, (position - count, position)));
                Ok(Columns::Packed(views.collect::<Result<_>>()?))
            }
        }
    }

    /// Takes `pieces`, one after the other the last positions before `position`, instead of
    /// what it holds. They are copied, with room for what is to come.
    pub fn adopt(&mut self, pieces: &[(Array, Array)], position: i32, capacity: i32) -> Result<()> {
        let count: i32 = pieces.iter().map(|(keys, _)| keys.dim(2)).sum();
        let first = position - count;
        let rows = self.rows_for(first, position + 1, capacity);
        let spare = zeros_dtype(&[1, self.heads, rows - count, self.width], self.dtype)?;
        let joined = |of: fn(&(Array, Array)) -> &Array| {
            let parts: Vec<&Array> = pieces.iter().map(of).chain([&spare]).collect();
            concatenate(&parts, 2)
        };
        let (keys, values) = (joined(|piece| &piece.0)?, joined(|piece| &piece.1)?);
        self.buffers = Some(Buffers::plain(keys, values, rows));
        self.base = first;
        // At once: a long sequence's keys and values may not fit as they are.
        match self.is_packed_at(position) {
            true => self.pack(),
            false => Ok(()),
        }
    }

    /// Takes `arrays`, the packed keys and values of all positions before `position` as
    /// [`Columns::Packed`] has them, instead of what it holds. They are copied, with room for what
    /// is to come.
    pub fn adopt_packed(&mut self, arrays: &[Array], position: i32, capacity: i32) -> Result<()> {
        let rows = self.rows_for(0, position + 1, capacity);
        let with_room = |array: &Array| {
            let shape = [1, self.heads, rows - position, array.dim(3)];
            concatenate(&[array, &zeros_dtype(&shape, array.dtype())?], 2)
        };
        let arrays: Result<Vec<Array>> = arrays.iter().map(with_room).collect();
        let packing = self.packs.map(|(packing, _)| packing);
        self.buffers = Some(Buffers { arrays: arrays?, packing, rows, turned: false });
        self.base = 0;
        Ok(())
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.buffers = None;
        self.base = 0;
    }

    fn reserve(&mut self, position: i32, end: i32, capacity: i32) -> Result<()> {
        let rows = self.buffers.as_ref().map_or(0, |buffers| buffers.rows);
        if end - self.base <= rows {
            return Ok(());
        }
        let first = self.first_seen(position);
        let rows = self.rows_for(first, end, capacity);
        let kept = position - first;
        let grown = |old: &Array| -> Result<Array> {
            let start = [0, 0, first - self.base, 0];
            let stop = [1, self.heads, position - self.base, old.dim(3)];
            let spare = zeros_dtype(&[1, self.heads, rows - kept, old.dim(3)], old.dtype())?;
            concatenate(&[sys::slice(old, &start, &stop)?, spare], 2)
        };
        let buffers = match self.buffers.as_ref().filter(|_| kept > 0) {
            Some(Buffers { arrays, packing, .. }) => {
                let arrays: Result<Vec<Array>> = arrays.iter().map(grown).collect();
                Buffers { arrays: arrays?, packing: *packing, rows, turned: false }
            }
            None => {
                let empty = || zeros_dtype(&[1, self.heads, rows, self.width], self.dtype);
                Buffers::plain(empty()?, empty()?, rows)
            }
        };
        self.buffers = Some(buffers);
        self.base = first;
        Ok(())
    }

    /// Rows for positions `first..end`: what is needed now, and room to grow without copying
    /// everything each 256 tokens, but no more than the sequence can use, or than come before they
    /// are packed.
    fn rows_for(&self, first: i32, end: i32, capacity: i32) -> i32 {
        let needed = end - first;
        let capacity = match self.packs {
            Some((_, seam)) if end <= seam => capacity.min(seam),
            _ => capacity,
        };
        let roomy = match self.window {
            Some(_) => needed + BLOCK,
            None => needed + (needed / 4).max(BLOCK),
        };
        let most = blocks(capacity.max(end) - first);
        let rows = blocks(roomy).min(most).max(blocks(needed));
        match self.rotation {
            Some(rotation) => rows.min(rotation.most).max(needed),
            None => rows,
        }
    }

    /// The arrays to evaluate after a prefill chunk.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.buffers.iter().flat_map(|buffers| &buffers.arrays)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device;
    use mlxd_protocol::DeviceChoice;

    /// Appends `chunks` of positions whose key and value are the position's number and checks
    /// that each append sees exactly the positions it should.
    fn run(window: Option<i32>, chunks: &[i32], capacity: i32) -> i32 {
        device::choose(DeviceChoice::Cpu).unwrap();
        let mut layer = KvLayer::new(2, 1, Dtype::Float32, window);
        let mut position = 0;
        for &length in chunks {
            let numbers: Vec<f32> = (position..position + length).map(|p| p as f32).collect();
            let doubled: Vec<f32> = numbers.iter().chain(&numbers).copied().collect();
            let new = Array::from_slice(&doubled, &[1, 2, length, 1]);
            let held = layer.append(&new, &new, position, capacity).unwrap();
            let Held::Plain(keys, values) = held else { panic!("packed unasked") };
            let first = window.map_or(0, |window| (position - window + 1).max(0));
            let wanted: Vec<f32> = (first..position + length).map(|p| p as f32).collect();
            for seen in [keys, values] {
                assert_eq!(seen.shape(), [1, 2, wanted.len() as i32, 1]);
                let flat = seen.contiguous().unwrap().to_vec_exact::<f32>().unwrap();
                assert_eq!(flat[..wanted.len()], wanted);
                assert_eq!(flat[wanted.len()..], wanted);
            }
            position += length;
        }
        layer.buffers.unwrap().rows
    }

    #[test]
    fn growing_keeps_what_was_written() {
        let rows = run(None, &[200, 1, 100, 1, 1, 400, 1], 704);
        assert_eq!(rows, 768, "no more than the capacity in whole blocks");
        assert_eq!(run(None, &[3, 1], 4), 256);
    }

    #[test]
    fn a_window_forgets_what_nobody_sees() {
        let mut chunks = vec![50, 300];
        chunks.extend([1; 900]);
        let rows = run(Some(64), &chunks, 10_000);
        assert!(rows <= 1024, "bounded by the window, not by the length: {rows}");
    }
}
