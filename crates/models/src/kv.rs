//! Keys and values of one layer and one sequence.
//!
//! Written in place into buffers that grow in blocks of 256 positions, as mlx-lm's do, towards a
//! capacity known from the start. A sliding layer forgets what no later query can see whenever
//! its buffer grows.

use mlx_rs::error::Result;
use mlx_rs::ops::{concatenate, zeros_dtype};
use mlx_rs::{Array, Dtype};

use crate::sys;

/// Positions a buffer grows by.
const BLOCK: i32 = 256;

/// One layer's keys and values, `[1, heads, positions, width]` each.
#[derive(Debug)]
pub struct KvLayer {
    buffers: Option<Buffers>,
    /// The position that row 0 holds.
    base: i32,
    /// How many of the last positions a query sees; `None` is all.
    window: Option<i32>,
    heads: i32,
    width: i32,
    dtype: Dtype,
}

#[derive(Debug)]
struct Buffers {
    keys: Array,
    values: Array,
    rows: i32,
}

fn blocks(positions: i32) -> i32 {
    positions.saturating_add(BLOCK - 1) / BLOCK * BLOCK
}

impl KvLayer {
    /// An empty layer.
    pub fn new(heads: i32, width: i32, dtype: Dtype, window: Option<i32>) -> Self {
        Self { buffers: None, base: 0, window, heads, width, dtype }
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
    /// queries and all later ones see. `capacity` is where the sequence ends at the latest.
    pub fn append(
        &mut self,
        keys: &Array,
        values: &Array,
        position: i32,
        capacity: i32,
    ) -> Result<(Array, Array)> {
        let end = position + keys.dim(2);
        self.reserve(position, end, capacity)?;
        let first = self.first_seen(position);
        let buffers = self.buffers.as_mut().expect("reserved above");
        let (heads, width, base) = (self.heads, self.width, self.base);
        let start = [0, 0, position - base, 0];
        let stop = [1, heads, end - base, width];
        // The old handles go at once: the buffers are updated in place only if nothing else
        // holds them when the step is evaluated.
        buffers.keys = sys::slice_update(&buffers.keys, keys, &start, &stop)?;
        buffers.values = sys::slice_update(&buffers.values, values, &start, &stop)?;
        let start = [0, 0, first - base, 0];
        Ok((sys::slice(&buffers.keys, &start, &stop)?, sys::slice(&buffers.values, &start, &stop)?))
    }

    /// Heads, width and type of what it holds.
    pub fn shape(&self) -> (i32, i32, Dtype) {
        (self.heads, self.width, self.dtype)
    }

    /// How many of `position` positions it goes back.
    pub fn held(&self, position: i32) -> i32 {
        self.buffers.as_ref().map_or(0, |_| position - self.base)
    }

    /// Views of the last `count` of `position` positions; `None` for none.
    pub fn last(&self, count: i32, position: i32) -> Result<Option<(Array, Array)>> {
        let Some(buffers) = self.buffers.as_ref().filter(|_| count > 0) else {
            return Ok(None);
        };
        let end = position - self.base;
        let start = [0, 0, end - count, 0];
        let stop = [1, self.heads, end, self.width];
        let view = |array| sys::slice(array, &start, &stop);
        Ok(Some((view(&buffers.keys)?, view(&buffers.values)?)))
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
        self.buffers = Some(Buffers { keys, values, rows });
        self.base = first;
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
        let shape = |rows| [1, self.heads, rows, self.width];
        let grown = |old: Option<&Array>| -> Result<Array> {
            let kept = position - first;
            let Some(old) = old.filter(|_| kept > 0) else {
                return zeros_dtype(&shape(rows), self.dtype);
            };
            let start = [0, 0, first - self.base, 0];
            let stop = [1, self.heads, position - self.base, self.width];
            let old = sys::slice(old, &start, &stop)?;
            concatenate(&[old, zeros_dtype(&shape(rows - kept), self.dtype)?], 2)
        };
        let old = self.buffers.as_ref();
        let keys = grown(old.map(|old| &old.keys))?;
        let values = grown(old.map(|old| &old.values))?;
        self.buffers = Some(Buffers { keys, values, rows });
        self.base = first;
        Ok(())
    }

    /// Rows for positions `first..end`: what is needed now, and room to grow without copying
    /// everything each 256 tokens, but no more than the sequence can use.
    fn rows_for(&self, first: i32, end: i32, capacity: i32) -> i32 {
        let needed = end - first;
        let roomy = match self.window {
            Some(_) => needed + BLOCK,
            None => needed + (needed / 4).max(BLOCK),
        };
        let most = blocks(capacity.max(end) - first);
        blocks(roomy).min(most).max(blocks(needed))
    }

    /// The arrays to evaluate after a prefill chunk.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        let buffers = self.buffers.as_ref();
        buffers.into_iter().flat_map(|buffers| [&buffers.keys, &buffers.values])
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
            let (keys, values) = layer.append(&new, &new, position, capacity).unwrap();
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
