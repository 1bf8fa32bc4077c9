//! Sequences that decode together, and where each of them keeps its keys and values.
//!
//! Rows of little history share one buffer per layer for keys and one for values
//! ([`SharedKv`]), written and read by one operation for all of them. A join copies the
//! newcomer's history and nobody else's; a leave moves one row into the gap. Sharing ends where
//! it would waste memory: a row much longer than the others keeps buffers of its own, and
//! attention to them is a call of its own; so does a row whose keys and values are packed, or take
//! the place of its older ones. States of scans are stacked when a step needs them and taken apart
//! when the rows change.

mod shared_kv;
mod wheel;

use mlx_rs::error::Result;
use mlx_rs::transforms::{async_eval, eval};
use mlx_rs::{Array, memory};
use mlxd_engine::SeqId;

use crate::arch::{LayerState, State};
use crate::kv::{Columns, KvLayer};
use crate::prefix::{self, History};
use crate::recurrent::Recurrent;
use crate::sys;
pub use shared_kv::SharedKv;
pub use wheel::{Span, Wheel};

/// Columns that shared buffers may have whatever the rows' lengths.
const COLUMNS_FREE: i32 = 256;
/// Beyond that, how many times what the rows need the shared buffers may take.
const WASTE_MAX: i64 = 4;
/// From this length on attention costs more than dispatching it: rows share only if the shared
/// span is less than twice what they need.
const LONG: i32 = 2048;

/// Whether changes to buffers are evaluated at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evaluation {
    /// Wait: MLX on a CPU updates in place only what nothing unevaluated refers to.
    Waiting,
    /// Hand it to the device.
    Submitted,
}

/// A sequence in a batch.
#[derive(Debug)]
pub struct Row {
    /// Which.
    pub seq: SeqId,
    /// Its position and capacity, and the state of every layer that is neither shared nor stacked.
    pub state: State,
}

/// Rows that take their decode steps together.
#[derive(Debug)]
pub struct Batch {
    /// The first [`shared`](Self::shared) of them are slots of the shared buffers, in order.
    rows: Vec<Row>,
    shared: usize,
    slots: i32,
    wheels: Vec<Wheel>,
    /// Of every layer.
    places: Vec<Place>,
    evaluation: Evaluation,
    /// Spans are widened to multiples of this.
    grain: i32,
}

#[derive(Debug)]
enum Place {
    /// Keys and values, by the index of their wheel.
    Shared(usize, SharedKv),
    /// Scans' states of all rows in order, since the first step of these rows; before, each is
    /// with its row.
    Stacked(Option<Recurrent>),
}

/// What one step of all rows is to write and read.
#[derive(Debug)]
pub struct Step {
    /// Positions before this one, `[rows]`, int32: offsets for rotary positions.
    pub offsets: Array,
    /// Rows in all.
    pub rows: i32,
    /// Rows of the shared buffers; the first ones.
    pub shared: i32,
    /// By wheel.
    parts: Vec<Part>,
}

/// What a step does with the shared buffers of one kind of layer.
#[derive(Debug, Clone)]
pub struct Part {
    /// The column to write.
    pub column: i32,
    /// The columns to read.
    pub span: Span,
    /// Which of them each row sees.
    pub seen: Seen,
}

/// Which columns each row of a step sees, as attention wants to be told.
#[derive(Debug, Clone)]
pub enum Seen {
    /// Every row all of the span.
    All,
    /// `[rows, 1, 1, columns]`, bool, over the span.
    Mask(Array),
    /// `[rows + 1]`, int32: how many columns each row sees, back from the one that is written, and
    /// last that column.
    Lengths(Array),
}

/// How attention wants to be told what rows see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Telling {
    /// By [`Seen::Mask`], or not at all where every row sees all.
    Mask,
    /// By [`Seen::Lengths`].
    Lengths,
}

/// Where one layer's attention finds the keys and values of a step.
pub struct LayerRows<'a> {
    /// Of the shared rows, if there are any.
    pub shared: Option<(&'a mut SharedKv, &'a Part)>,
    /// The other rows: their buffers, position and capacity.
    pub own: Vec<(&'a mut KvLayer, i32, i32)>,
}

impl Batch {
    /// A batch without rows, for sequences whose state looks like `template`.
    pub fn new(template: &State, evaluation: Evaluation) -> Self {
        let mut wheels: Vec<Wheel> = Vec::new();
        let mut place = |layer: &LayerState| match layer {
            LayerState::Kv(kv) => {
                let known = wheels.iter().position(|wheel| wheel.window == kv.window());
                let wheel = known.unwrap_or_else(|| {
                    wheels.push(Wheel::new(kv.window()));
                    wheels.len() - 1
                });
                Place::Shared(wheel, SharedKv::new(kv))
            }
            LayerState::Recurrent(_) => Place::Stacked(None),
        };
        let places = template.layers.iter().map(&mut place).collect();
        let grain = match evaluation {
            Evaluation::Waiting => 1,
            Evaluation::Submitted => 64,
        };
        Self { rows: Vec::new(), shared: 0, slots: 0, wheels, places, evaluation, grain }
    }

    /// Its rows, in the order of a step's inputs and outputs.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Whether changes are evaluated at once.
    pub fn evaluation(&self) -> Evaluation {
        self.evaluation
    }

    /// Where `seq` stands.
    pub fn index(&self, seq: SeqId) -> Option<usize> {
        self.rows.iter().position(|row| row.seq == seq)
    }

    /// Takes a sequence in. Only its own history is copied.
    pub fn join(&mut self, seq: SeqId, state: State) -> Result<()> {
        self.take_apart()?;
        let row = Row { seq, state };
        let length = row.state.position;
        if row.state.stays_apart() {
            self.rows.push(row);
            return Ok(());
        }
        while self.wasteful(&[length]) {
            match self.longest() {
                Some((index, longest)) if longest > length => self.part(index)?,
                _ => {
                    self.rows.push(row);
                    return Ok(());
                }
            }
        }
        self.settle()?;
        let longest = self.longest().map_or(length, |(_, longest)| longest.max(length));
        self.make_room(self.shared as i32 + 1, longest + 1)?;
        let slot = self.shared;
        let mut row = row;
        for (place, layer) in self.places.iter_mut().zip(&mut row.state.layers) {
            if let (Place::Shared(wheel, kv), LayerState::Kv(own)) = (place, layer) {
                kv.join(slot as i32, &self.wheels[*wheel], own, length)?;
                own.clear();
            }
        }
        self.rows.insert(slot, row);
        self.shared += 1;
        self.evaluate()
    }

    /// Takes a sequence out, with its state as it was before it joined.
    pub fn leave(&mut self, index: usize) -> Result<State> {
        if index < self.shared {
            self.own_buffers(index)?;
        }
        self.remove(index)
    }

    /// What a row's layers remember of the last `count` of its first `end` positions; `None` where
    /// one does not go back so far, or no longer knows how things stood there.
    pub fn history(
        &mut self,
        index: usize,
        count: usize,
        end: usize,
    ) -> Result<Option<Vec<History>>> {
        self.take_apart()?;
        if index >= self.shared {
            return prefix::history(&self.rows[index].state, count, end);
        }
        let State { layers, position, .. } = &self.rows[index].state;
        if *position != end as i32 {
            return Ok(None);
        }
        let mut all = Vec::with_capacity(layers.len());
        for (place, layer) in self.places.iter_mut().zip(layers) {
            all.push(match (place, layer) {
                (Place::Shared(wheel, kv), _) => {
                    let wheel = &self.wheels[*wheel];
                    if wheel.kept(*position) < count as i32 {
                        return Ok(None);
                    }
                    let copies = kv.copies(index as i32, wheel, count as i32)?;
                    History::Columns(Columns::Plain(copies))
                }
                (Place::Stacked(_), LayerState::Recurrent(scan)) => History::Scan(scan.clone()),
                (Place::Stacked(_), LayerState::Kv(_)) => return Err(LayerState::mismatch()),
            });
        }
        Ok(Some(all))
    }

    /// Takes a sequence out that will not go on.
    pub fn discard(&mut self, index: usize) -> Result<()> {
        self.remove(index).map(drop)
    }

    /// Takes all rows out, none of which will go on.
    pub fn clear(&mut self) {
        self.rows.clear();
        for place in &mut self.places {
            if let Place::Stacked(stacked) = place {
                *stacked = None;
            }
        }
        self.empty();
    }

    fn empty(&mut self) {
        self.shared = 0;
        self.slots = 0;
        for place in &mut self.places {
            if let Place::Shared(_, kv) = place {
                kv.clear();
            }
        }
        for wheel in &mut self.wheels {
            *wheel = Wheel::new(wheel.window);
        }
    }

    /// Gives every row its own scans' states.
    fn take_apart(&mut self) -> Result<()> {
        for (index, place) in self.places.iter_mut().enumerate() {
            let Place::Stacked(stacked) = place else { continue };
            if let Some(stacked) = stacked.take() {
                for (number, row) in self.rows.iter_mut().enumerate() {
                    row.state.layers[index] = LayerState::Recurrent(stacked.row(number as i32)?);
                }
            }
        }
        Ok(())
    }

    /// A shared row goes on beside the shared buffers.
    fn part(&mut self, index: usize) -> Result<()> {
        self.own_buffers(index)?;
        let seq = self.rows[index].seq;
        let state = self.remove(index)?;
        self.rows.push(Row { seq, state });
        Ok(())
    }

    /// Copies a shared row's history into buffers of its own.
    fn own_buffers(&mut self, index: usize) -> Result<()> {
        let State { layers, position, capacity } = &mut self.rows[index].state;
        for (place, layer) in self.places.iter_mut().zip(layers.iter_mut()) {
            if let (Place::Shared(wheel, kv), LayerState::Kv(own)) = (place, layer) {
                let wheel = &self.wheels[*wheel];
                let copies = kv.copies(index as i32, wheel, wheel.kept(*position))?;
                own.adopt(&copies, *position, *capacity)?;
            }
        }
        // At once: what is not evaluated would hold the shared buffers.
        eval(self.rows[index].state.arrays())
    }

    fn remove(&mut self, index: usize) -> Result<State> {
        self.take_apart()?;
        if index >= self.shared {
            return Ok(self.rows.remove(index).state);
        }
        let last = self.shared - 1;
        if index < last {
            self.move_row(last, index)?;
            self.rows.swap(index, last);
        }
        let row = self.rows.remove(last);
        self.shared = last;
        if last == 0 {
            self.empty();
        } else {
            self.shrink()?;
        }
        Ok(row.state)
    }

    /// Copies the row of one slot into another.
    fn move_row(&mut self, from: usize, to: usize) -> Result<()> {
        self.settle()?;
        let length = self.rows[from].state.position;
        let mut moved = Vec::with_capacity(self.places.len());
        for place in &mut self.places {
            if let Place::Shared(wheel, kv) = place {
                let wheel = &self.wheels[*wheel];
                moved.push(kv.copies(from as i32, wheel, wheel.kept(length))?);
            }
        }
        let arrays = moved.iter().flatten().flat_map(|(keys, values)| [keys, values]);
        eval(arrays)?;
        let mut moved = moved.into_iter();
        for place in &mut self.places {
            // Only the shared ones have a part in it.
            if let Place::Shared(wheel, kv) = place
                && let Some(copies) = moved.next()
            {
                kv.restore(to as i32, &self.wheels[*wheel], &copies)?;
            }
        }
        self.evaluate()
    }

    fn longest(&self) -> Option<(usize, i32)> {
        let lengths = self.rows[..self.shared].iter().map(|row| row.state.position);
        lengths.enumerate().max_by_key(|(_, length)| *length)
    }

    /// Whether the shared buffers would waste memory or time with rows of `more` lengths beside
    /// those that share now.
    fn wasteful(&self, more: &[i32]) -> bool {
        let now = self.rows[..self.shared].iter().map(|row| row.state.position);
        let (mut rows, mut longest, mut total) = (0_i64, 0_i64, 0_i64);
        for length in now.chain(more.iter().copied()) {
            rows += 1;
            longest = longest.max(i64::from(length) + 1);
            total += i64::from(length) + 1;
        }
        let columns = longest.max(1) as u64;
        let taken = (rows as u64).next_power_of_two() * columns.next_power_of_two();
        let bulky = longest > i64::from(COLUMNS_FREE) && taken as i64 > WASTE_MAX * total;
        let slow = longest > i64::from(LONG) && rows * longest > 2 * total;
        bulky || slow
    }

    /// Makes the shared buffers fit for `slots` rows and `columns` positions.
    fn make_room(&mut self, slots: i32, columns: i32) -> Result<()> {
        let small = |wheel: &Wheel| wheel.columns < wheel.wanted(columns);
        if slots <= self.slots && !self.wheels.iter().any(small) {
            return Ok(());
        }
        let slots = self.slots.max((slots as u32).next_power_of_two() as i32);
        self.lay_out(slots, columns)
    }

    /// Gives memory back once few need what many needed.
    fn shrink(&mut self) -> Result<()> {
        let longest = self.longest().map_or(0, |(_, longest)| longest) + 1;
        let slots = (self.shared as u32).next_power_of_two() as i32;
        let wasted = |wheel: &Wheel| {
            let taken = i64::from(self.slots) * i64::from(wheel.columns);
            let needed = i64::from(slots) * i64::from(wheel.wanted(longest));
            taken > i64::from(COLUMNS_FREE) && taken >= 4 * needed
        };
        match self.wheels.iter().any(wasted) {
            true => self.lay_out(slots, longest),
            false => Ok(()),
        }
    }

    fn lay_out(&mut self, slots: i32, columns: i32) -> Result<()> {
        self.settle()?;
        let longest = self.longest().map_or(0, |(_, longest)| longest);
        let laid: Vec<Wheel> = self
            .wheels
            .iter()
            .map(|old| {
                let mut new = Wheel::new(old.window);
                new.columns = new.wanted(columns);
                new.now = new.kept(longest) % new.columns;
                new
            })
            .collect();
        for place in &mut self.places {
            if let Place::Shared(wheel, kv) = place {
                let (old, new) = (&self.wheels[*wheel], &laid[*wheel]);
                kv.lay_out(slots, self.shared as i32, old, new, longest)?;
                if self.evaluation == Evaluation::Waiting {
                    // Layer by layer, or all of them would be there twice. On a CPU freed buffers
                    // are never dropped for others: what prompts left, and this layer's old one,
                    // would stay beside the new ones.
                    eval(kv.arrays())?;
                    memory::clear_cache()?;
                }
            }
        }
        self.wheels = laid;
        self.slots = slots;
        self.evaluate()
    }

    /// Waits for steps in flight: what they hold cannot be updated in place.
    fn settle(&self) -> Result<()> {
        match self.evaluation {
            Evaluation::Waiting => eval(self.arrays()),
            Evaluation::Submitted => sys::synchronize(),
        }
    }

    fn evaluate(&self) -> Result<()> {
        match self.evaluation {
            Evaluation::Waiting => eval(self.arrays()),
            Evaluation::Submitted => async_eval(self.arrays()),
        }
    }

    fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.places.iter().flat_map(|place| {
            let shared = match place {
                Place::Shared(_, kv) => Some(kv.arrays()),
                Place::Stacked(_) => None,
            };
            shared.into_iter().flatten()
        })
    }

    /// Makes room for a step of all rows. This may change their order: what goes into the step
    /// is put in order after it.
    pub fn prepare(&mut self) -> Result<()> {
        while let Some(index) = (0..self.shared).find(|row| self.rows[*row].state.stays_apart()) {
            self.part(index)?;
        }
        while self.shared > 0 && self.wasteful(&[]) {
            let Some((index, _)) = self.longest() else { break };
            self.part(index)?;
        }
        if let Some((_, longest)) = self.longest() {
            self.make_room(self.shared as i32, longest + 1)?;
        }
        Ok(())
    }

    /// Begins a step that was [prepared](Self::prepare).
    pub fn begin(&self, telling: Telling) -> Step {
        let positions: Vec<i32> = self.rows.iter().map(|row| row.state.position).collect();
        let lengths = &positions[..self.shared];
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let part = |wheel: &Wheel| {
            let span = wheel.span(longest, self.grain);
            let seen = match telling {
                Telling::Mask => wheel.mask(lengths, span).map_or(Seen::All, Seen::Mask),
                Telling::Lengths => Seen::Lengths(wheel.lengths(lengths)),
            };
            Part { column: wheel.now, span, seen }
        };
        let parts = match self.shared {
            0 => Vec::new(),
            _ => self.wheels.iter().map(part).collect(),
        };
        let rows = positions.len() as i32;
        let offsets = Array::from_slice(&positions, &[rows]);
        Step { offsets, rows, shared: self.shared as i32, parts }
    }

    /// The keys and values of one layer.
    pub fn layer<'a>(&'a mut self, index: usize, step: &'a Step) -> Result<LayerRows<'a>> {
        let shared = match &mut self.places[index] {
            Place::Shared(wheel, kv) => step.parts.get(*wheel).map(|part| (kv, part)),
            Place::Stacked(_) => None,
        };
        let own = self.rows[self.shared..].iter_mut().map(|row| {
            let State { layers, position, capacity } = &mut row.state;
            match &mut layers[index] {
                LayerState::Kv(kv) => Ok((kv, *position, *capacity)),
                LayerState::Recurrent(_) => Err(LayerState::mismatch()),
            }
        });
        let own: Result<Vec<_>> = own.collect();
        Ok(LayerRows { shared, own: own? })
    }

    /// The scans' states of one layer, all rows in order: a step moves them on.
    pub fn scans(&mut self, index: usize) -> Result<&mut Recurrent> {
        let Place::Stacked(stacked) = &mut self.places[index] else {
            return Err(LayerState::mismatch());
        };
        let all = match stacked.take() {
            Some(all) => all,
            None => {
                let mut parts = Vec::with_capacity(self.rows.len());
                for row in &mut self.rows {
                    let own = row.state.layers[index].recurrent();
                    let own = own.ok_or_else(LayerState::mismatch)?;
                    parts.push(std::mem::replace(own, Recurrent::moved()));
                }
                Recurrent::stack(&parts)?
            }
        };
        Ok(stacked.insert(all))
    }

    /// A step was built.
    pub fn end(&mut self) {
        for row in &mut self.rows {
            row.state.position += 1;
        }
        if self.shared > 0 {
            for wheel in &mut self.wheels {
                wheel.advance();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device;
    use mlx_rs::Dtype;
    use mlx_rs::ops::ones_dtype;
    use mlxd_protocol::DeviceChoice;

    const LAYERS: usize = 8;
    const TOKENS: i32 = 512;
    /// Keys and values of one slot of one layer: 2 heads of 64, float32.
    const LAYER_BYTES: usize = 2 * 2 * 64 * 4 * TOKENS as usize;

    fn sequence() -> State {
        let mut state = State { layers: Vec::new(), position: TOKENS - 1, capacity: TOKENS };
        let new = ones_dtype(&[1, 2, TOKENS - 1, 64], Dtype::Float32).unwrap();
        for _ in 0..LAYERS {
            let mut layer = KvLayer::new(2, 64, Dtype::Float32, None);
            layer.append(&new, &new, 0, TOKENS).unwrap();
            state.layers.push(LayerState::Kv(layer));
        }
        eval(state.arrays()).unwrap();
        state
    }

    /// The counters are the process's: nextest gives each test one of its own.
    #[test]
    fn shared_buffers_grow_one_layer_at_a_time() {
        device::choose(DeviceChoice::Cpu).unwrap();
        let waiting: Vec<State> = (0..3).map(|_| sequence()).collect();
        let mut batch = Batch::new(&waiting[0], Evaluation::Waiting);
        let mut waiting = (0..).map(SeqId).zip(waiting);
        for (seq, state) in waiting.by_ref().take(2) {
            batch.join(seq, state).unwrap();
        }
        assert_eq!((batch.shared, batch.slots), (2, 2));
        let before = memory::active_memory().unwrap();
        assert!(before >= 3 * LAYERS * LAYER_BYTES, "two slots and one that waits: {before}");
        memory::reset_peak_memory().unwrap();
        let (seq, state) = waiting.next().unwrap();
        batch.join(seq, state).unwrap();
        assert_eq!((batch.shared, batch.slots), (3, 4));
        // Two slots more of each layer, and of the layer that is laid out the two old ones.
        let more = memory::peak_memory().unwrap() - before;
        let wanted = (2 * LAYERS + 2) * LAYER_BYTES;
        assert!(more <= wanted + LAYER_BYTES, "{more} bytes, {wanted} wanted");
        // None of the old ones is kept for reuse: what is, is the last one's own.
        assert!(memory::cache_memory().unwrap() <= (LAYERS + 1) * LAYER_BYTES);
    }
}
