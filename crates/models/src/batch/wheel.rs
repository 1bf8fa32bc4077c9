//! Where the columns of shared buffers stand in time.
//!
//! At step t every row writes column t mod C of its slot. So a row of L positions has the columns
//! (t − L … t − 1) mod C whatever its own positions are, one update per step serves all rows, and
//! which columns are a row's follows from its length alone.

use mlx_rs::Array;

/// A circle of columns, C of them, shared by all layers with the same window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wheel {
    /// How many of the last positions a query sees, its own included; `None` is all.
    pub window: Option<i32>,
    /// C, a power of two.
    pub columns: i32,
    /// The column that the next step writes.
    pub now: i32,
}

/// Columns `from..to`.
pub type Span = (i32, i32);

impl Wheel {
    /// An empty circle without columns.
    pub fn new(window: Option<i32>) -> Self {
        Self { window, columns: 0, now: 0 }
    }

    /// Columns for rows of at most `columns` positions, the one being written included.
    pub fn wanted(&self, columns: i32) -> i32 {
        let seen = self.window.map_or(columns, |window| columns.min(window));
        seen.max(1).next_power_of_two_i32()
    }

    /// How many of a row's `length` positions written before are of use to later steps.
    pub fn kept(&self, length: i32) -> i32 {
        self.window.map_or(length, |window| length.min(window - 1)).min(self.columns)
    }

    /// The columns of the last `count` positions, oldest first: one span, or two.
    pub fn last(&self, count: i32) -> Vec<Span> {
        let start = (self.now - count).rem_euclid(self.columns.max(1));
        match count {
            0 => Vec::new(),
            _ if start + count <= self.columns => vec![(start, start + count)],
            _ => vec![(start, self.columns), (0, start + count - self.columns)],
        }
    }

    /// What a step attends to if its longest row has `longest` positions before it. `grain`
    /// widens the span to multiples, so that backends that prepare kernels by shape meet few.
    pub fn span(&self, longest: i32, grain: i32) -> Span {
        let from = self.now - self.kept(longest);
        if from < 0 {
            return (0, self.columns);
        }
        let to = (self.now / grain + 1) * grain;
        (from / grain * grain, to.min(self.columns).max(self.now + 1))
    }

    /// Which columns of `span` rows of these `lengths` see, `[rows, 1, 1, columns]`; `None` if
    /// all of them see all.
    pub fn mask(&self, lengths: &[i32], (from, to): Span) -> Option<Array> {
        let width = (to - from) as usize;
        let mut seen = Vec::with_capacity(lengths.len() * width);
        for &length in lengths {
            let oldest = self.kept(length);
            seen.extend((from..to).map(|column| self.age(column) <= oldest));
        }
        let rows = lengths.len() as i32;
        let masked = seen.contains(&false);
        masked.then(|| Array::from_slice(&seen, &[rows, 1, 1, to - from]))
    }

    /// How many columns rows of these `lengths` see at the step that writes `now`, and `now`,
    /// `[rows + 1]`, int32.
    pub fn lengths(&self, lengths: &[i32]) -> Array {
        let seen = lengths.iter().map(|length| self.kept(*length) + 1);
        let all: Vec<i32> = seen.chain([self.now]).collect();
        Array::from_slice(&all, &[all.len() as i32])
    }

    /// Steps since `column` was written, at the step that writes `now`.
    fn age(&self, column: i32) -> i32 {
        (self.now - column) & (self.columns - 1)
    }

    /// A step was written.
    pub fn advance(&mut self) {
        self.now = (self.now + 1) & (self.columns - 1);
    }
}

trait PowerOfTwo {
    fn next_power_of_two_i32(self) -> i32;
}

impl PowerOfTwo for i32 {
    fn next_power_of_two_i32(self) -> i32 {
        // Contexts end far below 2^30.
        (self.max(1) as u32).next_power_of_two() as i32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against a list of (row, position) per column, written step by step.
        #[test]
        fn masks_show_exactly_a_rows_own_positions(
            start in 0..100_i32,
            first in 0..16_i32,
            second in 0..16_i32,
            window in proptest::option::of(1..20_i32),
            grain in prop::sample::select(vec![1, 4, 8]),
        ) {
            let mut wheel = Wheel::new(window);
            wheel.columns = wheel.wanted(first.max(second) + 1);
            wheel.now = start & (wheel.columns - 1);
            let lengths = [first, second];
            let (from, to) = wheel.span(first.max(second), grain);
            prop_assert!(from <= wheel.now && wheel.now < to && to <= wheel.columns);
            for (row, &length) in lengths.iter().enumerate() {
                // Column → position, the newest written last, as the buffer would hold it.
                let mut held = vec![None; wheel.columns as usize];
                for position in 0..=length {
                    let column = (wheel.now - length + position).rem_euclid(wheel.columns);
                    held[column as usize] = Some(position);
                }
                let oldest = window.map_or(0, |window| (length - window + 1).max(0));
                for column in 0..wheel.columns {
                    let own = held[column as usize].is_some_and(|position| position >= oldest);
                    let seen = wheel.age(column) <= wheel.kept(length);
                    prop_assert_eq!(seen, own, "row {} column {}", row, column);
                    prop_assert!(!own || (from..to).contains(&column));
                }
                let kept = wheel.kept(length);
                let listed: Vec<i32> =
                    wheel.last(kept).into_iter().flat_map(|(from, to)| from..to).collect();
                let wanted: Vec<i32> = (length - kept..length)
                    .map(|position| (wheel.now - length + position).rem_euclid(wheel.columns))
                    .collect();
                prop_assert_eq!(listed, wanted);
            }
        }
    }
}
