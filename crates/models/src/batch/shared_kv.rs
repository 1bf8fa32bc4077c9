//! Keys and values of all short rows of one layer, in one buffer each.

use mlx_rs::error::Result;
use mlx_rs::ops::zeros_dtype;
use mlx_rs::{Array, Dtype};

use super::wheel::{Span, Wheel};
use crate::kv::KvLayer;
use crate::sys;

/// One layer's shared buffers, `[slots, heads, columns, width]`. Keys carry their rotation, so
/// the order of columns means nothing to attention.
#[derive(Debug)]
pub struct SharedKv {
    heads: i32,
    width: i32,
    dtype: Dtype,
    buffers: Option<Buffers>,
}

#[derive(Debug)]
struct Buffers {
    keys: Array,
    values: Array,
}

/// Rows `first..last` of columns `from..to`, as bounds of a slice.
fn bounds(rows: (i32, i32), heads: i32, (from, to): Span, width: i32) -> ([i32; 4], [i32; 4]) {
    ([rows.0, 0, from, 0], [rows.1, heads, to, width])
}

impl SharedKv {
    /// Empty buffers for layers such as `of`.
    pub fn new(of: &KvLayer) -> Self {
        let (heads, width, dtype) = of.shape();
        Self { heads, width, dtype, buffers: None }
    }

    fn buffers(&mut self) -> &mut Buffers {
        self.buffers.as_mut().expect("laid out before the first row joined")
    }

    /// Lays the first `rows` slots out anew: their last positions, as `old` has them, at the
    /// columns that `new` gives them.
    pub fn lay_out(
        &mut self,
        slots: i32,
        rows: i32,
        old: &Wheel,
        new: &Wheel,
        longest: i32,
    ) -> Result<()> {
        let shape = [slots, self.heads, new.columns, self.width];
        let mut keys = zeros_dtype(&shape, self.dtype)?;
        let mut values = zeros_dtype(&shape, self.dtype)?;
        let count = old.kept(longest).min(new.kept(longest));
        if let Some(buffers) = self.buffers.take().filter(|_| rows > 0) {
            for (read, written) in pairs(&old.last(count), &new.last(count)) {
                let (start, stop) = bounds((0, rows), self.heads, read, self.width);
                let moved =
                    [&buffers.keys, &buffers.values].map(|from| sys::slice(from, &start, &stop));
                let (start, stop) = bounds((0, rows), self.heads, written, self.width);
                let [moved_keys, moved_values] = moved;
                keys = sys::slice_update(&keys, &moved_keys?, &start, &stop)?;
                values = sys::slice_update(&values, &moved_values?, &start, &stop)?;
            }
        }
        self.buffers = Some(Buffers { keys, values });
        Ok(())
    }

    /// Copies a sequence's positions into `slot`; nobody else's are touched.
    pub fn join(&mut self, slot: i32, wheel: &Wheel, layer: &KvLayer, position: i32) -> Result<()> {
        let count = wheel.kept(position);
        let Some((keys, values)) = layer.last(count, position)? else {
            return Ok(());
        };
        let mut first = 0;
        for span in wheel.last(count) {
            let piece = (first, first + span.1 - span.0);
            first = piece.1;
            let (start, stop) = bounds((0, 1), self.heads, piece, self.width);
            let (keys, values) =
                (sys::slice(&keys, &start, &stop)?, sys::slice(&values, &start, &stop)?);
            self.put(slot, span, &keys, &values)?;
        }
        Ok(())
    }

    fn put(&mut self, slot: i32, span: Span, keys: &Array, values: &Array) -> Result<()> {
        let (start, stop) = bounds((slot, slot + 1), self.heads, span, self.width);
        let buffers = self.buffers();
        buffers.keys = sys::slice_update(&buffers.keys, keys, &start, &stop)?;
        buffers.values = sys::slice_update(&buffers.values, values, &start, &stop)?;
        Ok(())
    }

    /// Copies of the last `count` positions in `slot`, oldest first, in one or two pieces.
    /// They share nothing with the buffers once evaluated.
    pub fn copies(&mut self, slot: i32, wheel: &Wheel, count: i32) -> Result<Vec<(Array, Array)>> {
        let (heads, width) = (self.heads, self.width);
        let buffers = self.buffers();
        let copy = |span| {
            let (start, stop) = bounds((slot, slot + 1), heads, span, width);
            let piece = |array| sys::copy(&sys::slice(array, &start, &stop)?);
            Ok((piece(&buffers.keys)?, piece(&buffers.values)?))
        };
        wheel.last(count).into_iter().map(copy).collect()
    }

    /// Writes what [`copies`](Self::copies) gave into another slot.
    pub fn restore(&mut self, slot: i32, wheel: &Wheel, copies: &[(Array, Array)]) -> Result<()> {
        let count = copies.iter().map(|(keys, _)| keys.dim(2)).sum();
        for (span, (keys, values)) in wheel.last(count).into_iter().zip(copies) {
            self.put(slot, span, keys, values)?;
        }
        Ok(())
    }

    /// Writes a step's `keys` and `values`, `[rows, heads, 1, width]`, and gives the whole
    /// buffers.
    pub fn write(&mut self, column: i32, keys: &Array, values: &Array) -> Result<(&Array, &Array)> {
        let (heads, width) = (self.heads, self.width);
        let (start, stop) = bounds((0, keys.dim(0)), heads, (column, column + 1), width);
        let buffers = self.buffers();
        // The old handles go at once, as in `KvLayer::append`.
        buffers.keys = sys::slice_update(&buffers.keys, keys, &start, &stop)?;
        buffers.values = sys::slice_update(&buffers.values, values, &start, &stop)?;
        Ok((&buffers.keys, &buffers.values))
    }

    /// Frees the buffers.
    pub fn clear(&mut self) {
        self.buffers = None;
    }

    /// The arrays to evaluate after a change.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        let buffers = self.buffers.as_ref();
        buffers.into_iter().flat_map(|buffers| [&buffers.keys, &buffers.values])
    }
}

/// The spans of `read` and `written`, cut so that they pair up.
fn pairs(read: &[Span], written: &[Span]) -> Vec<(Span, Span)> {
    let (mut read, mut written) = (read.to_vec(), written.to_vec());
    let mut found = Vec::new();
    while let (Some(from), Some(to)) = (read.first_mut(), written.first_mut()) {
        let count = (from.1 - from.0).min(to.1 - to.0);
        found.push(((from.0, from.0 + count), (to.0, to.0 + count)));
        from.0 += count;
        to.0 += count;
        read.retain(|span| span.0 < span.1);
        written.retain(|span| span.0 < span.1);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device;
    use mlxd_protocol::DeviceChoice;

    /// Positions as keys, their negatives as values, a few columns off the beginning.
    fn filled(columns: i32, offset: i32, heads: i32) -> (SharedKv, Wheel) {
        device::choose(DeviceChoice::Cpu).unwrap();
        let mut kv = SharedKv::new(&KvLayer::new(heads, 1, Dtype::Float32, None));
        let mut wheel = Wheel::new(None);
        wheel.columns = columns;
        kv.lay_out(1, 0, &Wheel::new(None), &wheel, 0).unwrap();
        wheel.now = offset;
        for position in 0..columns {
            let new = Array::from_slice(&vec![position as f32; heads as usize], &[1, heads, 1, 1]);
            kv.write(wheel.now, &new, &new.negative().unwrap()).unwrap();
            wheel.advance();
        }
        (kv, wheel)
    }

    #[test]
    fn laying_out_keeps_what_was_written() {
        for (columns, offset, slots, heads) in [(8, 3, 2, 2), (128, 57, 1, 2), (16, 0, 1, 1)] {
            let (mut kv, wheel) = filled(columns, offset, heads);
            let mut larger = wheel.clone();
            larger.columns = 2 * columns;
            larger.now = columns;
            kv.lay_out(slots, 1, &wheel, &larger, columns).unwrap();
            let buffers = kv.buffers();
            for (array, sign) in [(&buffers.keys, 1.0), (&buffers.values, -1.0)] {
                let flat = array.to_vec_exact::<f32>().unwrap();
                for (at, number) in flat.iter().enumerate() {
                    let column = at as i32 % larger.columns;
                    let held = at < (heads * larger.columns) as usize && column < columns;
                    let wanted = if held { sign * column as f32 } else { 0.0 };
                    assert_eq!(*number, wanted, "column {column} of {columns}");
                }
            }
        }
    }
}
