//! Layers that keep the first positions of a sequence and a number of the last ones.
//!
//! mlx-lm's `RotatingKVCache` is the model. A decode step sees [`KEPT_FIRST`] first positions and
//! the last ones, `most` in all: past that length its key and value take the place of the oldest
//! position that is not one of the first. Keys carry their rotation, so the order of rows means
//! nothing to a step. A piece of a prompt is computed over rows in order, and each of its positions
//! sees the last `most` ones, its own included, as mlx-lm computes a prompt that it runs in one
//! piece. Where mlx-lm cuts a prompt, the first queries of a later piece see first positions in
//! place of some of the oldest; here a prompt gives the same however it is cut.

use mlx_rs::Array;
use mlx_rs::error::{Exception, Result};
use mlx_rs::ops::concatenate;

use super::{Buffers, Held, KvLayer, rows};

/// Positions at the beginning of a sequence that are kept always: mlx-lm's `keep`.
pub const KEPT_FIRST: i32 = 4;

/// How a layer rotates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// Positions that a step sees at the most, more than [`KEPT_FIRST`].
    pub most: i32,
    /// The position from which on queries are those of steps; before, they are of a prompt.
    pub steps_from: i32,
}

impl Rotation {
    /// Whether a step at `position` sees less than all positions.
    pub fn drops_at(self, position: i32) -> bool {
        position >= self.most
    }

    /// Whether queries at `position..position + length` see other than all that came before.
    pub fn is_masked(self, position: i32, length: i32) -> bool {
        position + length > self.most && !self.is_step(position, length)
    }

    fn is_step(self, position: i32, length: i32) -> bool {
        length == 1 && position >= self.steps_from
    }

    /// Positions that rotate.
    fn turning(self) -> i32 {
        self.most - KEPT_FIRST
    }

    /// Which of `rows` rows, the last of which is that of the last query, the queries at
    /// `position..position + length` see, `[length, rows]`.
    pub fn mask(self, position: i32, length: i32, rows: i32) -> Result<Array> {
        let end = position + length;
        let first = Array::arange::<i32, i32>(0, KEPT_FIRST, None)?;
        let last = Array::arange::<i32, i32>(end - rows + KEPT_FIRST, end, None)?;
        let keys = concatenate(&[first, last], 0)?.reshape(&[1, rows])?;
        let queries = Array::arange::<i32, i32>(position, end, None)?.reshape(&[length, 1])?;
        let near = |positions: i32| queries.lt(&keys.add(Array::from_int(positions))?);
        let of_prompt =
            queries.lt(Array::from_int(self.steps_from))?.logical_and(&near(self.most)?)?;
        let kept = keys.lt(Array::from_int(KEPT_FIRST))?.logical_or(&near(self.turning())?)?;
        let of_step = queries.ge(Array::from_int(self.steps_from))?.logical_and(&kept)?;
        queries.ge(&keys)?.logical_and(of_prompt.logical_or(&of_step)?)
    }
}

impl KvLayer {
    /// [`append`](Self::append) of a layer that rotates. The views hold all that is kept: where
    /// queries see less of it, [`Rotation::mask`] says what.
    pub(super) fn append_rotating(
        &mut self,
        [keys, values]: [&Array; 2],
        (position, capacity): (i32, i32),
        rotation: Rotation,
    ) -> Result<Held> {
        let length = keys.dim(2);
        if rotation.is_step(position, length) && rotation.drops_at(position) {
            return self.step_round([keys, values], position, rotation);
        }
        let used = position - self.base;
        // What the first of the new queries sees: with its own, `most` positions.
        let kept = KEPT_FIRST + rotation.most - 1;
        if used > kept {
            let buffers = self.in_order()?;
            let joined = |old: &Array, new: &Array| {
                let [first, last] = [(0, KEPT_FIRST), (used - rotation.most + 1, used)];
                concatenate(&[&rows(old, first)?, &rows(old, last)?, new], 2)
            };
            let arrays: Result<Vec<Array>> = buffers
                .arrays
                .iter()
                .zip([keys, values])
                .map(|(old, new)| joined(old, new))
                .collect();
            buffers.arrays = arrays?;
            buffers.rows = kept + length;
            self.base = position - kept;
        } else {
            self.reserve(position, position + length, capacity)?;
            let buffers = self.in_order()?;
            buffers.write([keys, values], used)?;
        }
        let rows = position + length - self.base;
        self.in_order()?.view(0, rows)
    }

    /// Writes a step's position over the oldest that is not one of the first.
    fn step_round(&mut self, new: [&Array; 2], position: i32, rotation: Rotation) -> Result<Held> {
        let turning = rotation.turning();
        let next = (position - KEPT_FIRST) % turning;
        let used = position - self.base;
        let buffers = self.buffers.as_mut().ok_or_else(out_of_order)?;
        if !buffers.turned {
            // Where the sequence just fills its buffer, rows lie as they should.
            if (position, buffers.rows) != (rotation.most, rotation.most) {
                let turned = |old: &Array| {
                    let oldest = used - turning;
                    let spans = [(0, KEPT_FIRST), (used - next, used), (oldest, used - next)];
                    let parts: Result<Vec<Array>> = spans
                        .into_iter()
                        .filter(|(from, to)| from < to)
                        .map(|span| rows(old, span))
                        .collect();
                    concatenate(&parts?, 2)
                };
                let arrays: Result<Vec<Array>> = buffers.arrays.iter().map(turned).collect();
                buffers.arrays = arrays?;
                buffers.rows = rotation.most;
            }
            buffers.turned = true;
        }
        buffers.write(new, KEPT_FIRST + next)?;
        buffers.view(0, rotation.most)
    }

    fn in_order(&mut self) -> Result<&mut Buffers> {
        self.buffers.as_mut().filter(|buffers| !buffers.turned).ok_or_else(out_of_order)
    }
}

fn out_of_order() -> Exception {
    Exception::custom("a prompt goes on after steps that took the place of older positions")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device;
    use mlx_rs::Dtype;
    use mlxd_protocol::DeviceChoice;
    use proptest::prelude::*;

    /// `array` in one piece, as numbers.
    fn flat(array: &Array) -> Vec<i32> {
        let array = array.contiguous().unwrap().as_dtype(Dtype::Int32).unwrap();
        array.to_vec_exact::<i32>().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// A prompt in pieces and then steps, positions as keys, against what each query should
        /// see.
        #[test]
        fn every_query_sees_what_it_should(
            most in 5..24_i32,
            pieces in proptest::collection::vec(1..30_i32, 0..5),
            steps in 1..60_i32,
        ) {
            device::choose(DeviceChoice::Cpu).unwrap();
            let steps_from: i32 = pieces.iter().sum();
            let rotation = Rotation { most, steps_from };
            let mut layer = KvLayer::new(1, 1, Dtype::Float32, None);
            layer.rotate(rotation);
            let lengths = pieces.iter().copied().chain(std::iter::repeat_n(1, steps as usize));
            let mut position = 0;
            for length in lengths {
                let end = position + length;
                let new: Vec<f32> = (position..end).map(|at| at as f32).collect();
                let new = Array::from_slice(&new, &[1, 1, length, 1]);
                let capacity = steps_from + steps;
                let held = layer.append(&new, &new, position, capacity).unwrap();
                let Held::Plain(keys, values) = held else { panic!("packed unasked") };
                let keys = flat(&keys);
                prop_assert_eq!(&keys, &flat(&values));
                prop_assert!((keys.len() as i32) < most + KEPT_FIRST + length);
                let rows = keys.len() as i32;
                let mask = rotation.is_masked(position, length);
                let mask = mask.then(|| flat(&rotation.mask(position, length, rows).unwrap()));
                for query in position..end {
                    let row = (query - position) * rows;
                    let shown = |at: &usize| match &mask {
                        Some(mask) => mask[row as usize + at] != 0,
                        None => keys[*at] <= query,
                    };
                    let mut seen: Vec<i32> =
                        (0..keys.len()).filter(shown).map(|at| keys[at]).collect();
                    seen.sort_unstable();
                    let near = |positions: i32| move |key: &i32| *key > query - positions;
                    let wanted: Vec<i32> = match query < steps_from {
                        true => (0..=query).filter(near(most)).collect(),
                        false => (0..=query)
                            .filter(|key| *key < KEPT_FIRST || near(most - KEPT_FIRST)(key))
                            .collect(),
                    };
                    prop_assert_eq!(seen, wanted, "query {} of {}..{}", query, position, end);
                }
                position = end;
            }
        }
    }
}
