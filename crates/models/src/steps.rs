//! Decode steps: who computes with whom, what goes in, what comes out.
//!
//! One row alone takes the path that prefill prepared. Two or more share a [`Batch`] and are one
//! graph, whose number of operations does not grow with them. In deterministic mode every row is a
//! graph of its own.

use mlx_rs::Array;
use mlx_rs::error::{Exception, Result};
use mlx_rs::ops::concatenate;
use mlx_rs::ops::indexing::take_axis;
use mlx_rs::transforms::eval;
use mlxd_engine::{EngineFault, SeqId};
use mlxd_protocol::TokenId;

use crate::engine::{MlxEngine, Sequence, unknown};
use crate::sample::{Drawn, Sampler, Token, draw_rows};

/// A token that was drawn and may not be read yet.
#[derive(Debug, Clone)]
pub(crate) struct LastToken {
    /// `[rows, 1]` of the step that drew it.
    tokens: Array,
    /// Its row there.
    row: usize,
    /// Which step that was, and which of its graphs.
    drawn_at: (u64, usize),
}

/// A step that was submitted: graphs, and the rows of each.
#[derive(Debug)]
pub(crate) struct Flight {
    parts: Vec<(Vec<SeqId>, Drawn)>,
    /// What the graphs gave, once it was waited for.
    read: Option<Vec<(SeqId, Token)>>,
    /// Rows whose token comes ahead of its step.
    ahead: Vec<SeqId>,
    /// The rows in the order they were asked for.
    asked: Vec<SeqId>,
}

impl Flight {
    /// Every array to evaluate.
    pub(crate) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.parts.iter().flat_map(|(_, drawn)| drawn.arrays())
    }

    /// Whether it has a token of `seq` that nobody has seen.
    pub(crate) fn is_unread(&self, seq: SeqId) -> bool {
        self.read.is_none() && self.parts.iter().any(|(rows, _)| rows.contains(&seq))
    }
}

impl LastToken {
    /// A token that is known, of a step that drew for one sequence.
    pub(crate) fn known(token: TokenId, step: u64) -> Self {
        Self { tokens: Array::from_slice(&[token], &[1, 1]), row: 0, drawn_at: (step, 0) }
    }
}

impl MlxEngine {
    /// Every row must be open, prefilled, and short of its capacity.
    pub(crate) fn check_ready(&self, rows: &[SeqId]) -> std::result::Result<(), EngineFault> {
        for &seq in rows {
            let sequence = self.sequences.get(&seq).ok_or_else(|| unknown("decode", seq))?;
            let state = match &sequence.state {
                Some(state) => state,
                None => self.batched(seq)?,
            };
            if sequence.unfilled() > 0 || state.position >= state.capacity {
                return Err(EngineFault {
                    doing: "decode",
                    reason: format!(
                        "sequence {} is not prefilled, or at its capacity of {} tokens",
                        seq.0, state.capacity
                    ),
                });
            }
        }
        Ok(())
    }

    fn batched(&self, seq: SeqId) -> std::result::Result<&crate::arch::State, EngineFault> {
        let index = self.batch.index(seq).ok_or_else(|| unknown("decode", seq))?;
        Ok(&self.batch.rows()[index].state)
    }

    /// Builds a step.
    pub(crate) fn step(&mut self, asked: &[SeqId]) -> Result<Flight> {
        let mut ahead = Vec::new();
        for seq in asked {
            if self.comes_ahead(*seq)? {
                ahead.push(*seq);
            }
        }
        self.keep_before_packing(asked)?;
        let rows: Vec<SeqId> = asked.iter().copied().filter(|seq| !ahead.contains(seq)).collect();
        let together = rows.len() > 1 && !self.deterministic;
        let parts = if together {
            self.gather(&rows)?;
            vec![self.step_together()?]
        } else if rows.is_empty() {
            Vec::new()
        } else {
            self.gather(&[])?;
            if asked.len() == 1 && self.guess(asked[0])? {
                return Ok(Flight {
                    parts: Vec::new(),
                    read: None,
                    ahead: asked.to_vec(),
                    asked: asked.to_vec(),
                });
            }
            let alone =
                |(part, seq): (usize, &SeqId)| Ok((vec![*seq], self.step_alone(*seq, part)?));
            rows.iter().enumerate().map(alone).collect::<Result<_>>()?
        };
        Ok(Flight { parts, read: None, ahead, asked: asked.to_vec() })
    }

    /// Waits for what a step computed.
    fn wait_for(&mut self, flight: &mut Flight) -> Result<()> {
        if flight.read.is_some() {
            return Ok(());
        }
        if self.depth == 1 && !flight.parts.is_empty() {
            eval(flight.arrays())?;
        }
        let mut read = Vec::with_capacity(flight.asked.len());
        for (rows, drawn) in &flight.parts {
            read.extend(rows.iter().copied().zip(drawn.read()?));
        }
        for (seq, token) in &read {
            if let Some(sequence) = self.sequences.get_mut(seq) {
                sequence.known.push(token.id);
            }
        }
        flight.read = Some(read);
        Ok(())
    }

    /// Waits for every step in flight.
    pub(crate) fn read_flights(&mut self) -> Result<()> {
        let mut flights = std::mem::take(&mut self.flights);
        let waited = flights.iter_mut().try_for_each(|flight| self.wait_for(flight));
        self.flights = flights;
        waited
    }

    /// Waits for a step and gives its tokens in the order that was asked for, without those of
    /// rows that were closed meanwhile.
    pub(crate) fn read(&mut self, mut flight: Flight) -> Result<Vec<(SeqId, Token)>> {
        self.wait_for(&mut flight)?;
        let mut read = flight.read.unwrap_or_default();
        match (flight.asked.as_slice(), flight.ahead.as_slice()) {
            ([_], []) => self.guessing.step_done(),
            ([_], _) => {}
            _ => self.guessing.interrupt(),
        }
        for seq in flight.ahead {
            read.extend(self.take_ahead(seq)?.map(|token| (seq, token)));
        }
        let mut ordered = Vec::with_capacity(read.len());
        for seq in flight.asked.into_iter().filter(|seq| self.sequences.contains_key(seq)) {
            if let Some(place) = read.iter().position(|(of, _)| *of == seq) {
                ordered.push(read.swap_remove(place));
            }
        }
        Ok(ordered)
    }

    /// Makes the batch consist of `rows`.
    fn gather(&mut self, rows: &[SeqId]) -> Result<()> {
        let gone: Vec<SeqId> =
            self.batch.rows().iter().map(|row| row.seq).filter(|seq| !rows.contains(seq)).collect();
        // First those that need no copy: each makes the copies of the next ones smaller.
        for &seq in gone.iter().filter(|seq| !self.sequences.contains_key(seq)) {
            if let Some(index) = self.batch.index(seq) {
                self.batch.discard(index)?;
            }
        }
        for seq in gone {
            if let (Some(index), Some(sequence)) =
                (self.batch.index(seq), self.sequences.get_mut(&seq))
            {
                sequence.state = Some(self.batch.leave(index)?);
            }
        }
        for seq in rows {
            let sequence = self.sequences.get_mut(seq);
            if let Some(state) = sequence.and_then(|sequence| sequence.state.take()) {
                self.batch.join(*seq, state)?;
            }
        }
        self.batch.prepare()
    }

    fn step_alone(&mut self, seq: SeqId, part: usize) -> Result<Drawn> {
        let sequence = self.sequences.get_mut(&seq);
        let sequence = sequence.ok_or_else(|| Exception::custom("a row that is not open"))?;
        let ids = sequence.input()?;
        let state = sequence.state.as_mut();
        let state = state.ok_or_else(|| Exception::custom("a row without its state"))?;
        let hidden = self.model.forward(&ids, state)?;
        let drawn = sequence.sampler.draw(&self.model.logits(&hidden)?)?;
        let tokens = drawn.tokens.clone();
        sequence.last = Some(LastToken { tokens, row: 0, drawn_at: (self.steps, part) });
        Ok(drawn)
    }

    fn step_together(&mut self) -> Result<(Vec<SeqId>, Drawn)> {
        let rows: Vec<SeqId> = self.batch.rows().iter().map(|row| row.seq).collect();
        let mut sequences = in_order(&mut self.sequences, &rows)?;
        let ids = inputs(&sequences)?;
        let hidden = self.model.forward_rows(&ids, &mut self.batch)?;
        let logits = self.model.logits(&hidden)?;
        let mut samplers: Vec<&mut Sampler> =
            sequences.iter_mut().map(|sequence| &mut sequence.sampler).collect();
        let drawn = draw_rows(&logits, &mut samplers)?;
        for (row, sequence) in sequences.into_iter().enumerate() {
            let tokens = drawn.tokens.clone();
            sequence.last = Some(LastToken { tokens, row, drawn_at: (self.steps, 0) });
        }
        Ok((rows, drawn))
    }
}

/// The sequences that `rows` names, in that order.
fn in_order<'a>(
    sequences: &'a mut std::collections::HashMap<SeqId, Sequence>,
    rows: &[SeqId],
) -> Result<Vec<&'a mut Sequence>> {
    let mut found: Vec<Option<&mut Sequence>> = rows.iter().map(|_| None).collect();
    for (seq, sequence) in sequences {
        if let Some(row) = rows.iter().position(|of| of == seq) {
            found[row] = Some(sequence);
        }
    }
    let found: Option<Vec<&mut Sequence>> = found.into_iter().collect();
    found.ok_or_else(|| Exception::custom("a row that is not open"))
}

impl Sequence {
    /// The next step's input, `[1, 1]`.
    fn input(&self) -> Result<Array> {
        match &self.last {
            None => Ok(Array::from_slice(&[self.known_last()], &[1, 1])),
            Some(last) if last.tokens.dim(0) == 1 => Ok(last.tokens.clone()),
            Some(last) => take_axis(&last.tokens, Array::from_slice(&[last.row as i32], &[1]), 0),
        }
    }
}

/// The inputs of a step, `[rows, 1]`: as they were drawn if the same rows drew them together,
/// else put together from where they are.
fn inputs(sequences: &[&mut Sequence]) -> Result<Array> {
    let mut known = Vec::new();
    let mut drawn: Vec<&LastToken> = Vec::new();
    // Every row's place in its source; sources lie one behind the other later.
    let mut places = Vec::with_capacity(sequences.len());
    for sequence in sequences {
        match &sequence.last {
            None => {
                places.push((0, known.len()));
                known.push(sequence.known_last());
            }
            Some(last) => {
                let same = |other: &&LastToken| other.drawn_at == last.drawn_at;
                let source = drawn.iter().position(same).unwrap_or_else(|| {
                    drawn.push(last);
                    drawn.len() - 1
                });
                places.push((1 + source, last.row));
            }
        }
    }
    let as_drawn = known.is_empty() && drawn.len() == 1;
    if as_drawn && places.iter().enumerate().all(|(row, place)| *place == (1, row)) {
        let tokens = &drawn[0].tokens;
        if tokens.dim(0) as usize == sequences.len() {
            return Ok(tokens.clone());
        }
    }
    let known = Array::from_slice(&known, &[known.len() as i32, 1]);
    let sources: Vec<&Array> =
        std::iter::once(&known).chain(drawn.iter().map(|last| &last.tokens)).collect();
    let mut starts = vec![0];
    for source in &sources {
        starts.push(starts[starts.len() - 1] + source.dim(0));
    }
    let places: Vec<i32> =
        places.into_iter().map(|(source, row)| starts[source] + row as i32).collect();
    let places = Array::from_slice(&places, &[places.len() as i32]);
    take_axis(concatenate(&sources, 0)?, places, 0)
}
