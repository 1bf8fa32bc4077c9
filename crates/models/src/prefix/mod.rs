//! State kept for prompts that begin as earlier ones did.
//!
//! [`PrefixIndex`] says which blocks there are; this puts into them what layers remember, and
//! takes it out again. A block holds the keys and values of its positions, of all layers that are
//! alike in one array, `[2 layers, heads, positions, width]`: so putting in and taking out costs
//! an operation or two per layer, not per layer and block. Blocks are copies and share nothing
//! with a sequence's buffers, which grow in place.
//!
//! Keys and values can be cut anywhere. A scan's state cannot: where a model has such layers, a
//! block also holds a snapshot of them if its end was the end of a chunk or of the sequence, and
//! only such an end is taken up again. So a chunk ends where a prompt leaves an earlier one's way
//! ([`PrefixCache::branch`]): the next that comes along there goes on from it.
//!
//! With a [`DiskTier`] blocks are kept there too: see `stored`.

mod stored;

use mlx_rs::error::Result;
use mlx_rs::ops::concatenate;
use mlx_rs::transforms::eval;
use mlx_rs::{Array, Dtype};
use mlxd_engine::CacheFigures;
use mlxd_engine::prefix::{BlockHash, Lease, PrefixIndex, Tails};
use mlxd_protocol::TokenId;

use crate::arch::{LayerState, State};
use crate::disk::DiskTier;
use crate::recurrent::Recurrent;
use crate::sys;

/// Tokens of a block.
const BLOCK_TOKENS: usize = 64;

/// Tokens that are stacked and cut into blocks at a time at the most.
const STACKED_TOKENS: usize = 16 * BLOCK_TOKENS;

/// The blocks of one model.
#[derive(Debug)]
pub struct PrefixCache {
    index: PrefixIndex<Block>,
    groups: Vec<Group>,
    bytes_per_token: u64,
    /// Of all scans' states.
    snapshot_bytes: u64,
    /// Whether a layer sees a window only.
    windows: bool,
    /// Shapes and types of the arrays of all scans' states, in order.
    scans: Vec<(Vec<i32>, Dtype)>,
    disk: Option<DiskTier>,
    tokens_max: usize,
}

/// Layers with keys and values of one shape.
#[derive(Debug)]
struct Group {
    heads: i32,
    width: i32,
    dtype: Dtype,
    layers: Vec<usize>,
}

#[derive(Debug, Clone)]
struct Block {
    /// By group.
    columns: Vec<Array>,
    /// Of every layer with a scan, as after the block's last token.
    snapshot: Option<Vec<Recurrent>>,
}

/// The last positions that a layer remembers: keys and values in one piece or more, oldest first,
/// or a scan's state.
#[derive(Debug)]
pub enum History {
    /// Keys and values.
    Columns(Vec<(Array, Array)>),
    /// What a scan remembers after the last position.
    Scan(Recurrent),
}

impl PrefixCache {
    /// An empty cache for sequences whose state looks like `template`. `root` stands for all that
    /// a state depends on besides the tokens.
    pub fn new(template: &State, root: BlockHash, bytes_max: u64) -> Self {
        let mut groups: Vec<Group> = Vec::new();
        let mut scans = Vec::new();
        let (mut snapshot_bytes, mut windows) = (0, false);
        for (index, layer) in template.layers.iter().enumerate() {
            match layer {
                LayerState::Kv(kv) => {
                    windows |= kv.window().is_some();
                    let (heads, width, dtype) = kv.shape();
                    let alike = |group: &&mut Group| {
                        (group.heads, group.width, group.dtype) == (heads, width, dtype)
                    };
                    match groups.iter_mut().find(alike) {
                        Some(group) => group.layers.push(index),
                        None => groups.push(Group { heads, width, dtype, layers: vec![index] }),
                    }
                }
                LayerState::Recurrent(scan) => {
                    for array in scan.arrays() {
                        scans.push((array.shape().to_vec(), array.dtype()));
                        snapshot_bytes += array.nbytes() as u64;
                    }
                }
            }
        }
        let tails = if snapshot_bytes == 0 { Tails::GiveWay } else { Tails::Stay };
        Self {
            index: PrefixIndex::new(root, BLOCK_TOKENS, tails, bytes_max),
            bytes_per_token: groups.iter().map(Group::bytes_per_token).sum(),
            groups,
            snapshot_bytes,
            windows,
            scans,
            disk: None,
            tokens_max: usize::MAX,
        }
    }

    /// Neither keeps nor finds state beyond the first `tokens_max` tokens of a sequence: what later
    /// ones leave behind depends on how they were computed.
    pub fn keep_at_most(&mut self, tokens_max: usize) {
        self.tokens_max = tokens_max;
    }

    /// Those of a sequence's `tokens` whose state may be kept.
    pub fn keepable<'a>(&self, tokens: &'a [TokenId]) -> &'a [TokenId] {
        &tokens[..tokens.len().min(self.tokens_max)]
    }

    /// Finds and holds the longest beginning of `tokens` that is kept.
    pub fn open(&mut self, tokens: &[TokenId]) -> Lease {
        let tokens = self.keepable(tokens);
        match self.snapshot_bytes {
            0 => self.index.open(tokens),
            _ => self.index.open_at_ends(tokens, |block| block.snapshot.is_some()),
        }
    }

    /// Where a sequence of `tokens` leaves the ways of earlier ones, if it has a state there that
    /// cannot be cut and that is worth keeping: what it found, it found before that.
    pub fn branch(&self, tokens: &[TokenId], found: usize) -> Option<usize> {
        if self.snapshot_bytes == 0 {
            return None;
        }
        let shared = self.index.shared(self.keepable(tokens));
        // A whole block that is there takes no snapshot any more; a tail does.
        let at = if shared.is_multiple_of(BLOCK_TOKENS) { shared.checked_sub(1)? } else { shared };
        (at >= found + BLOCK_TOKENS).then_some(at)
    }

    /// How many tokens [`open`](Self::open) found.
    pub fn found(&self, lease: &Lease) -> usize {
        self.index.tokens(lease)
    }

    /// Puts what was found into a new sequence's `state`.
    pub fn restore(&mut self, lease: &mut Lease, state: &mut State) -> Result<()> {
        let found = self.found(lease) as i32;
        if found > 0 {
            let hits: Vec<_> = self.index.hits(lease).collect();
            for (number, group) in self.groups.iter().enumerate() {
                let pieces: Result<Vec<Array>> = hits
                    .iter()
                    .map(|hit| positions(&hit.payload.columns[number], 0, hit.tokens as i32))
                    .collect();
                group.restore(&joined(pieces?, 2)?, found, state)?;
            }
            let last = hits.last().and_then(|hit| hit.payload.snapshot.as_ref());
            let mut scans = last.into_iter().flatten();
            for layer in &mut state.layers {
                if let LayerState::Recurrent(scan) = layer {
                    // As many as the model has: the snapshot is of the same model.
                    *scan = scans.next().ok_or_else(LayerState::mismatch)?.clone();
                }
            }
            state.position = found;
            eval(state.arrays())?;
        }
        self.index.drop_partial(lease);
        Ok(())
    }

    /// Whether layers forget what they went by: a scan all of it, a window or a bound what is
    /// before it. Then it is to be kept in time.
    pub fn forgets(&self) -> bool {
        self.snapshot_bytes > 0 || self.windows || self.tokens_max < usize::MAX
    }

    /// Whether what is kept outlives the process.
    pub fn has_disk(&self) -> bool {
        self.disk.is_some()
    }

    /// Keeps the whole blocks of a sequence that began with `tokens` and ran `position` of them, or
    /// more. `history` gives what its layers remember of so many of the last positions, `None`
    /// where they do not go back so far; it is asked only if something is missing.
    pub fn keep(
        &mut self,
        lease: &mut Lease,
        tokens: &[TokenId],
        position: usize,
        history: impl FnOnce(usize) -> Result<Option<Vec<History>>>,
    ) -> Result<()> {
        self.put(lease, tokens, position, Extent::Blocks, history)
    }

    /// Keeps a sequence that ran `tokens` and ended there: its whole blocks and its tail.
    pub fn keep_all(
        &mut self,
        lease: &mut Lease,
        tokens: &[TokenId],
        history: impl FnOnce(usize) -> Result<Option<Vec<History>>>,
    ) -> Result<()> {
        self.put(lease, tokens, tokens.len(), Extent::All, history)
    }

    fn put(
        &mut self,
        lease: &mut Lease,
        tokens: &[TokenId],
        position: usize,
        extent: Extent,
        history: impl FnOnce(usize) -> Result<Option<Vec<History>>>,
    ) -> Result<()> {
        let tail_from = tokens.len() / BLOCK_TOKENS * BLOCK_TOKENS;
        let end = if extent == Extent::All { tokens.len() } else { tail_from };
        let from = self.index.whole_tokens(lease).min(tail_from);
        // A scan's state is worth a tail wherever a chunk ends.
        let tail = tail_from < tokens.len() && (end > tail_from || self.snapshot_bytes > 0);
        if from == tail_from && !tail {
            return Ok(());
        }
        let Some(history) = history(position - from)? else {
            return Ok(());
        };
        let mut source =
            Source { groups: &self.groups, history, from, to: position, stacked: None };
        let mut new = Vec::new();
        let mut make = |from: usize, to: usize| -> Result<Block> {
            let block = source.block(from, to)?;
            new.push((from, to, block.clone()));
            Ok(block)
        };
        let bytes = |from: usize, to: usize| {
            let snapshot = if to == tokens.len() { self.snapshot_bytes } else { 0 };
            (to - from) as u64 * self.bytes_per_token + snapshot
        };
        let mut at = from;
        while at < tail_from {
            let to = at + BLOCK_TOKENS;
            let block = &tokens[at..to];
            if !self.index.extend(lease, block, bytes(at, to), || make(at, to))? {
                break;
            }
            at = to;
        }
        if tail && at == tail_from {
            let (rest, bytes) = (&tokens[at..], bytes(at, tokens.len()));
            self.index.add_tail(lease, at, rest, bytes, || make(at, tokens.len()))?;
        }
        // Now, so that they hold no buffer that is to be written in place.
        eval(new.iter().flat_map(|(.., block)| &block.columns))?;
        self.store(lease, tokens, &new)
    }

    /// A sequence is over.
    pub fn release(&mut self, lease: Lease) {
        self.index.release(lease);
    }

    /// What is held and was done.
    pub fn figures(&self) -> CacheFigures {
        let disk = self.disk.as_ref().map(DiskTier::figures).unwrap_or_default();
        CacheFigures { disk, ..self.index.figures() }
    }

    /// Removes what is on the disk.
    pub fn clear_disk(&self) {
        if let Some(disk) = &self.disk {
            disk.clear();
        }
    }

    /// Drops from memory what no running sequence began with.
    pub fn clear(&mut self) {
        let bytes = self.index.clear();
        tracing::info!(bytes, "kept prefixes dropped");
    }
}

/// How much of a sequence is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    Blocks,
    All,
}

impl Group {
    fn bytes_per_token(&self) -> u64 {
        let bytes = match self.dtype {
            Dtype::Float32 => 4,
            _ => 2,
        };
        2 * self.layers.len() as u64 * (self.heads * self.width) as u64 * bytes
    }

    /// Gives the layers of `state` their parts of `all`, positions `0..found`.
    fn restore(&self, all: &Array, found: i32, state: &mut State) -> Result<()> {
        let capacity = state.capacity;
        for (number, layer) in self.layers.iter().enumerate() {
            let LayerState::Kv(kv) = &mut state.layers[*layer] else {
                return Err(LayerState::mismatch());
            };
            let first = kv.first_seen(found);
            let part = |row: i32| {
                let start = [row, 0, first, 0];
                sys::slice(all, &start, &[row + 1, self.heads, found, self.width])
            };
            let row = 2 * number as i32;
            if first < found {
                kv.adopt(&[(part(row)?, part(row + 1)?)], found, capacity)?;
            }
        }
        Ok(())
    }
}

/// Where new blocks come from: what a sequence's layers remember of positions `from..to`.
struct Source<'a> {
    groups: &'a [Group],
    history: Vec<History>,
    from: usize,
    to: usize,
    /// Keys and values of all layers, by group, over the positions from the first number to the
    /// second.
    stacked: Option<(usize, usize, Vec<Array>)>,
}

impl Source<'_> {
    /// A block of positions `from..to`.
    fn block(&mut self, from: usize, to: usize) -> Result<Block> {
        let stacked = match self.stacked.take() {
            Some(stacked) if stacked.0 <= from && to <= stacked.1 => stacked,
            _ => {
                let end = self.to.min(from + STACKED_TOKENS);
                (from, end, self.stack(from, end)?)
            }
        };
        let (first, last, all) = &stacked;
        let copy = |all: &Array| match (from, to) == (*first, *last) {
            true => Ok(all.clone()),
            false => sys::copy(&positions(all, (from - first) as i32, (to - first) as i32)?),
        };
        let columns = all.iter().map(copy).collect::<Result<_>>()?;
        let ends = to == self.to;
        let snapshot = ends.then(|| scans(&self.history)).filter(|scans| !scans.is_empty());
        self.stacked = Some(stacked);
        Ok(Block { columns, snapshot })
    }

    fn stack(&self, from: usize, to: usize) -> Result<Vec<Array>> {
        let (from, to) = ((from - self.from) as i32, (to - self.from) as i32);
        let stack = |group: &Group| {
            let mut rows = Vec::with_capacity(2 * group.layers.len());
            for layer in &group.layers {
                let History::Columns(pieces) = &self.history[*layer] else {
                    return Err(LayerState::mismatch());
                };
                let held: i32 = pieces.iter().map(|(keys, _)| keys.dim(2)).sum();
                if held != (self.to - self.from) as i32 {
                    return Err(LayerState::mismatch());
                }
                let (keys, values): (Vec<Array>, Vec<Array>) = pieces.iter().cloned().unzip();
                for part in [keys, values] {
                    rows.push(positions(&joined(part, 2)?, from, to)?);
                }
            }
            // Two or more, so that this is a copy.
            concatenate(&rows, 0)
        };
        self.groups.iter().map(stack).collect()
    }
}

/// Positions `from..to` of `all`, `[rows, heads, positions, width]`.
fn positions(all: &Array, from: i32, to: i32) -> Result<Array> {
    if from == 0 && to == all.dim(2) {
        return Ok(all.clone());
    }
    sys::slice(all, &[0, 0, from, 0], &[all.dim(0), all.dim(1), to, all.dim(3)])
}

fn joined(mut pieces: Vec<Array>, axis: i32) -> Result<Array> {
    match pieces.len() {
        1 => Ok(pieces.remove(0)),
        _ => concatenate(&pieces, axis),
    }
}

fn scans(history: &[History]) -> Vec<Recurrent> {
    let scan = |layer: &History| match layer {
        History::Columns(_) => None,
        History::Scan(scan) => Some(scan.clone()),
    };
    history.iter().filter_map(scan).collect()
}

/// What the layers of a sequence that is not in a batch remember of the last `count` of its first
/// `end` positions; `None` where one does not go back so far, or no longer knows how things stood
/// there.
pub fn history(state: &State, count: usize, end: usize) -> Result<Option<Vec<History>>> {
    let (count, end) = (count as i32, end as i32);
    let mut all = Vec::with_capacity(state.layers.len());
    for layer in &state.layers {
        all.push(match layer {
            LayerState::Recurrent(_) if end < state.position => return Ok(None),
            LayerState::Recurrent(scan) => History::Scan(scan.clone()),
            LayerState::Kv(kv) if kv.held(end) < count => return Ok(None),
            LayerState::Kv(kv) => History::Columns(kv.last(count, end)?.into_iter().collect()),
        });
    }
    Ok(Some(all))
}
