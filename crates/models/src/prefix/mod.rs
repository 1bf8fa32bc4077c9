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
//! Where layers pack keys and values from a position on, blocks that end before it hold them as they
//! were computed, and later ones hold them packed: who goes on from a block finds what it would have
//! computed. What begins with earlier blocks and ends behind that position packs them again.
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
use crate::config::Packing;
use crate::disk::DiskTier;
use crate::kv::{Columns, columns_of, packed, row_bytes};
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
    /// The first position whose query sees packed keys and values.
    seam: usize,
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
    /// How they pack, and from which position on.
    packs: Option<(Packing, i32)>,
    layers: Vec<usize>,
}

#[derive(Debug, Clone)]
struct Block {
    /// By group: keys and values; of packed ones words, scales and biases.
    columns: Vec<Vec<Array>>,
    /// Of every layer with a scan, as after the block's last token.
    snapshot: Option<Vec<Recurrent>>,
}

/// The last positions that a layer remembers.
#[derive(Debug)]
pub enum History {
    /// Keys and values.
    Columns(Columns),
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
                    let ((heads, width, dtype), packs) = (kv.shape(), kv.packs());
                    let alike = |group: &&mut Group| {
                        (group.heads, group.width, group.dtype, group.packs)
                            == (heads, width, dtype, packs)
                    };
                    match groups.iter_mut().find(alike) {
                        Some(group) => group.layers.push(index),
                        None => {
                            let layers = vec![index];
                            groups.push(Group { heads, width, dtype, packs, layers });
                        }
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
        let seams = groups.iter().filter_map(|group| group.packs);
        let seam = seams.map(|(_, seam)| seam as usize).min().unwrap_or(usize::MAX);
        Self {
            index: PrefixIndex::new(root, BLOCK_TOKENS, tails, bytes_max).with_seam(seam),
            seam,
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

    /// The first position whose query sees packed keys and values.
    pub fn seam(&self) -> usize {
        self.seam
    }

    /// Whether layers pack keys and values from there on.
    pub fn packs(&self) -> bool {
        self.seam < usize::MAX
    }

    /// Those of a sequence's `tokens` that fill blocks.
    pub fn whole_blocks<'a>(&self, tokens: &'a [TokenId]) -> &'a [TokenId] {
        &tokens[..tokens.len() / BLOCK_TOKENS * BLOCK_TOKENS]
    }

    /// Bytes of a block of positions `from..to`, without a snapshot.
    fn bytes(&self, from: usize, to: usize) -> u64 {
        let form = self.form(to);
        let per_token: u64 = self.groups.iter().map(|group| group.bytes_per_token(form)).sum();
        (to - from) as u64 * per_token
    }

    /// How a block holds keys and values that ends at position `to`.
    fn form(&self, to: usize) -> Form {
        Form::of(to, self.seam)
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
            let form = self.form(found as usize);
            for (number, group) in self.groups.iter().enumerate() {
                let mut pieces = vec![Vec::new(); group.columns(form).len()];
                for hit in &hits {
                    let columns = &hit.payload.columns[number];
                    let cut = |all: &Array| positions(all, 0, hit.tokens as i32);
                    let columns = columns.iter().map(cut).collect::<Result<Vec<Array>>>()?;
                    for (piece, column) in pieces.iter_mut().zip(group.as_form(form, columns)?) {
                        piece.push(column);
                    }
                }
                let all = pieces.into_iter().map(|pieces| joined(pieces, 2));
                group.restore(&all.collect::<Result<Vec<Array>>>()?, found, state)?;
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
        let scans = self.snapshot_bytes > 0 && tokens.len() == position;
        let tail = tail_from < tokens.len() && (end > tail_from || scans);
        if from == tail_from && !tail {
            return Ok(());
        }
        let Some(history) = history(position - from)? else {
            return Ok(());
        };
        // What was to be kept before it was packed had no room then.
        let packed = |layer: &History| matches!(layer, History::Columns(Columns::Packed(_)));
        let first_to = tokens.len().min(from + BLOCK_TOKENS);
        if self.form(first_to) == Form::Plain && history.iter().any(packed) {
            return Ok(());
        }
        let (groups, seam) = (&self.groups, self.seam);
        let mut source = Source { groups, seam, history, from, to: position, stacked: None };
        let mut new = Vec::new();
        let mut make = |from: usize, to: usize| -> Result<Block> {
            let block = source.block(from, to)?;
            new.push((from, to, block.clone()));
            Ok(block)
        };
        let bytes = |cache: &Self, from: usize, to: usize| {
            let snapshot = if to == position { cache.snapshot_bytes } else { 0 };
            cache.bytes(from, to) + snapshot
        };
        let mut at = from;
        while at < tail_from {
            let to = at + BLOCK_TOKENS;
            let (block, bytes) = (&tokens[at..to], bytes(self, at, to));
            if !self.index.extend(lease, block, bytes, || make(at, to))? {
                break;
            }
            at = to;
        }
        if tail && at == tail_from {
            let (rest, bytes) = (&tokens[at..], bytes(self, at, tokens.len()));
            self.index.add_tail(lease, at, rest, bytes, || make(at, tokens.len()))?;
        }
        // Now, so that they hold no buffer that is to be written in place.
        eval(new.iter().flat_map(|(.., block)| block.columns.iter().flatten()))?;
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

/// How a block holds keys and values of layers that pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Plain,
    Packed,
}

impl Form {
    /// That of a block which ends at position `to`.
    fn of(to: usize, seam: usize) -> Self {
        if to > seam { Self::Packed } else { Self::Plain }
    }
}

impl Group {
    /// Widths and types of the arrays that hold one block's keys and values of these layers.
    fn columns(&self, form: Form) -> Vec<(i32, Dtype)> {
        let packing = self.packs.map(|(packing, _)| packing);
        columns_of(self.width, self.dtype, packing.filter(|_| form == Form::Packed))
    }

    fn bytes_per_token(&self, form: Form) -> u64 {
        2 * self.layers.len() as u64 * self.heads as u64 * row_bytes(&self.columns(form))
    }

    /// `columns` of a block, packed if that is the `form` and they are not.
    fn as_form(&self, form: Form, columns: Vec<Array>) -> Result<Vec<Array>> {
        match (self.packs, columns.as_slice()) {
            (Some((packing, _)), [plain]) if form == Form::Packed => packed(plain, packing),
            _ => Ok(columns),
        }
    }

    /// Gives the layers of `state` their parts of `all`, positions `0..found`.
    fn restore(&self, all: &[Array], found: i32, state: &mut State) -> Result<()> {
        let capacity = state.capacity;
        for (number, layer) in self.layers.iter().enumerate() {
            let LayerState::Kv(kv) = &mut state.layers[*layer] else {
                return Err(LayerState::mismatch());
            };
            let first = kv.first_seen(found);
            let mut parts = Vec::with_capacity(2 * all.len());
            for row in [2 * number as i32, 2 * number as i32 + 1] {
                for all in all {
                    let stop = [row + 1, self.heads, found, all.dim(3)];
                    parts.push(sys::slice(all, &[row, 0, first, 0], &stop)?);
                }
            }
            match parts.as_slice() {
                _ if first == found => {}
                [keys, values] => kv.adopt(&[(keys.clone(), values.clone())], found, capacity)?,
                packed => kv.adopt_packed(packed, found, capacity)?,
            }
        }
        Ok(())
    }
}

/// Where new blocks come from: what a sequence's layers remember of positions `from..to`.
struct Source<'a> {
    groups: &'a [Group],
    seam: usize,
    history: Vec<History>,
    from: usize,
    to: usize,
    /// Keys and values of all layers, by group, over the positions from the first number to the
    /// second.
    stacked: Option<(usize, usize, Vec<Vec<Array>>)>,
}

impl Source<'_> {
    /// A block of positions `from..to`.
    fn block(&mut self, from: usize, to: usize) -> Result<Block> {
        let stacked = match self.stacked.take() {
            Some(stacked) if stacked.0 <= from && to <= stacked.1 => stacked,
            _ => {
                let end = self.to.min(from + STACKED_TOKENS);
                let (end, form) = match Form::of(to, self.seam) {
                    Form::Plain => (end.min(self.seam), Form::Plain),
                    Form::Packed => (end, Form::Packed),
                };
                (from, end, self.stack(from, end, form)?)
            }
        };
        let (first, last, all) = &stacked;
        let copy = |all: &Array| match (from, to) == (*first, *last) {
            true => Ok(all.clone()),
            false => sys::copy(&positions(all, (from - first) as i32, (to - first) as i32)?),
        };
        let copies = |all: &Vec<Array>| all.iter().map(copy).collect::<Result<_>>();
        let columns = all.iter().map(copies).collect::<Result<_>>()?;
        let ends = to == self.to;
        let snapshot = ends.then(|| scans(&self.history)).filter(|scans| !scans.is_empty());
        self.stacked = Some(stacked);
        Ok(Block { columns, snapshot })
    }

    fn stack(&self, from: usize, to: usize, form: Form) -> Result<Vec<Vec<Array>>> {
        let (from, to) = ((from - self.from) as i32, (to - self.from) as i32);
        let stack = |group: &Group| {
            let count = group.columns(form).len();
            let mut rows = vec![Vec::with_capacity(2 * group.layers.len()); count];
            for layer in &group.layers {
                let History::Columns(columns) = &self.history[*layer] else {
                    return Err(LayerState::mismatch());
                };
                let parts = match columns {
                    Columns::Packed(parts) => parts.clone(),
                    Columns::Plain(pieces) => {
                        let (keys, values): (Vec<Array>, Vec<Array>) =
                            pieces.iter().cloned().unzip();
                        vec![joined(keys, 2)?, joined(values, 2)?]
                    }
                };
                if parts.len() != 2 * count || parts.iter().any(|part| part.dim(2) < to) {
                    return Err(LayerState::mismatch());
                }
                for (at, part) in parts.iter().enumerate() {
                    rows[at % count].push(positions(part, from, to)?);
                }
            }
            // Two or more each, so that these are copies.
            rows.iter().map(|rows| concatenate(rows, 0)).collect()
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
            LayerState::Kv(kv) => History::Columns(kv.columns(count, end)?),
        });
    }
    Ok(Some(all))
}
