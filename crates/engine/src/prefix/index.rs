//! The index: a tree of blocks, found by hash, counted, bounded.

use super::hash::BlockHash;
use crate::engine::CacheFigures;
use mlxd_protocol::TokenId;
use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

/// A block's number. Never used twice.
type BlockId = u64;

/// What becomes of a sequence's tail when a longer block begins with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tails {
    /// It goes: state that can be cut anywhere is in the longer one too.
    GiveWay,
    /// It stays: only there can a sequence go on from where it ends.
    Stay,
}

/// A tree of blocks with payloads of type `P`.
#[derive(Debug)]
pub struct PrefixIndex<P> {
    root: BlockHash,
    block_tokens: usize,
    bytes_max: u64,
    tails: Tails,
    /// State before this position is of another form than state that goes beyond.
    seam: usize,
    blocks: HashMap<BlockId, Block<P>>,
    by_hash: HashMap<BlockHash, BlockId>,
    /// The root's children.
    firsts: Vec<BlockId>,
    /// Blocks that nobody uses and nothing builds on, by when they were last used.
    idle: BTreeSet<(u64, BlockId)>,
    next_block: BlockId,
    clock: u64,
    figures: CacheFigures,
}

#[derive(Debug)]
struct Block<P> {
    hash: BlockHash,
    parent: Option<BlockId>,
    tokens: Vec<TokenId>,
    payload: P,
    bytes: u64,
    users: u32,
    children: Vec<BlockId>,
    used_at: u64,
}

/// A sequence's hold on the blocks that are its beginning. To be given back with
/// [`PrefixIndex::release`]: until then they stay.
#[derive(Debug, Default, PartialEq, Eq)]
#[must_use = "its blocks stay until it is released"]
pub struct Lease {
    /// Whole blocks from the root on.
    path: Vec<BlockId>,
    /// How many of them were found fit for use.
    used: usize,
    /// After those, one of which only the first tokens are the sequence's.
    partial: Option<(BlockId, usize)>,
}

/// A block that a lease found, and how many of its tokens agree.
#[derive(Debug)]
pub struct Hit<'a, P> {
    /// What the engine put there.
    pub payload: &'a P,
    /// Leading tokens of the block that are the sequence's too; all of them but for the last hit.
    pub tokens: usize,
}

impl<P> PrefixIndex<P> {
    /// An empty index of blocks of `block_tokens` tokens, which holds at most `bytes_max` bytes.
    ///
    /// # Panics
    /// If `block_tokens` is 0.
    pub fn new(root: BlockHash, block_tokens: usize, tails: Tails, bytes_max: u64) -> Self {
        assert!(block_tokens > 0, "a block has tokens");
        Self {
            root,
            block_tokens,
            bytes_max,
            tails,
            seam: usize::MAX,
            blocks: HashMap::new(),
            by_hash: HashMap::new(),
            firsts: Vec::new(),
            idle: BTreeSet::new(),
            next_block: 0,
            clock: 0,
            figures: CacheFigures { bytes_max, ..CacheFigures::default() },
        }
    }

    /// For state that takes another form once it goes beyond position `seam`: a block that ends
    /// behind it serves nobody who does not get past it.
    #[must_use]
    pub fn with_seam(self, seam: usize) -> Self {
        Self { seam, ..self }
    }

    /// Tokens of a whole block.
    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// What is held and was done.
    pub fn figures(&self) -> CacheFigures {
        self.figures
    }

    /// Finds the longest beginning of `tokens` that is there and holds it. For state that can be
    /// cut anywhere.
    pub fn open(&mut self, tokens: &[TokenId]) -> Lease {
        let lease = self.look(tokens);
        self.opened(lease, None)
    }

    /// Looks again for what is there by now, in place of `lease`. Not counted as a lookup.
    pub fn open_again(&mut self, lease: Lease, tokens: &[TokenId]) -> Lease {
        let before = self.tokens(&lease);
        self.release(lease);
        let lease = self.look(tokens);
        self.opened(lease, Some(before))
    }

    fn look(&mut self, tokens: &[TokenId]) -> Lease {
        let (mut lease, rest) = self.walk(tokens);
        lease.used = lease.path.len();
        let before = lease.used * self.block_tokens;
        let serves = |length, agree| before + agree > self.seam || before + length <= self.seam;
        lease.partial = self.nearest(lease.path.last().copied(), rest, serves);
        lease
    }

    /// Of the children that `serve`, told their length and how many of their first tokens are those
    /// of `rest`, the one with most of these, and how many.
    fn nearest(
        &self,
        parent: Option<BlockId>,
        rest: &[TokenId],
        serves: impl Fn(usize, usize) -> bool,
    ) -> Option<(BlockId, usize)> {
        let children = self.children(parent).iter();
        let agreeing = children.map(|id| (*id, common(&self.blocks[id].tokens, rest)));
        let serving = agreeing.filter(|(id, agree)| serves(self.blocks[id].tokens.len(), *agree));
        let best = serving.max_by_key(|(id, agree)| (*agree, Reverse(*id)));
        best.filter(|(_, agree)| *agree > 0)
    }

    /// As [`open`](Self::open), for state that cannot be cut: what is found ends where a block
    /// ends whose payload has what it takes to go on from there.
    pub fn open_at_ends(&mut self, tokens: &[TokenId], ends: impl Fn(&P) -> bool) -> Lease {
        let lease = self.look_at_ends(tokens, ends);
        self.opened(lease, None)
    }

    /// As [`open_again`](Self::open_again), for state that cannot be cut.
    pub fn open_again_at_ends(
        &mut self,
        lease: Lease,
        tokens: &[TokenId],
        ends: impl Fn(&P) -> bool,
    ) -> Lease {
        let before = self.tokens(&lease);
        self.release(lease);
        let lease = self.look_at_ends(tokens, ends);
        self.opened(lease, Some(before))
    }

    fn look_at_ends(&mut self, tokens: &[TokenId], ends: impl Fn(&P) -> bool) -> Lease {
        let (mut lease, _) = self.walk(tokens);
        let found = (0..=lease.path.len()).rev().find_map(|used| {
            let rest = &tokens[used * self.block_tokens..];
            let children = self.children(used.checked_sub(1).map(|last| lease.path[last]));
            let tails = children.iter().filter(|id| {
                let block = &self.blocks[id];
                let tail = block.tokens.len() < self.block_tokens;
                tail && rest.starts_with(&block.tokens) && ends(&block.payload)
            });
            let tail = tails.map(|id| (self.blocks[id].tokens.len(), *id)).max();
            let whole = used > 0 && ends(&self.blocks[&lease.path[used - 1]].payload);
            (whole || tail.is_some()).then_some((used, tail))
        });
        if let Some((used, tail)) = found {
            lease.used = used;
            lease.partial = tail.map(|(length, id)| (id, length));
        }
        lease
    }

    /// How many of `tokens` some sequence that is there began with, wherever it went from there.
    pub fn shared(&self, tokens: &[TokenId]) -> usize {
        let (path, rest) = self.path(tokens);
        let nearest = self.nearest(path.last().copied(), rest, |_, _| true);
        tokens.len() - rest.len() + nearest.map_or(0, |(_, agree)| agree)
    }

    /// The whole blocks that `tokens` begin with, held, and the tokens after them.
    fn walk<'a>(&mut self, tokens: &'a [TokenId]) -> (Lease, &'a [TokenId]) {
        let (path, rest) = self.path(tokens);
        path.iter().for_each(|id| self.hold(*id));
        (Lease { path, ..Lease::default() }, rest)
    }

    /// The whole blocks that `tokens` begin with, and the tokens after them.
    fn path<'a>(&self, tokens: &'a [TokenId]) -> (Vec<BlockId>, &'a [TokenId]) {
        let (mut path, mut rest) = (Vec::new(), tokens);
        while rest.len() >= self.block_tokens {
            let (block, after) = rest.split_at(self.block_tokens);
            let Some(id) = self.find(path.last().copied(), block) else { break };
            path.push(id);
            rest = after;
        }
        (path, rest)
    }

    /// Holds what was found and counts it; `before` is what an earlier look found.
    fn opened(&mut self, lease: Lease, before: Option<usize>) -> Lease {
        if let Some((id, _)) = lease.partial {
            self.hold(id);
        }
        let found = self.tokens(&lease);
        let known = before.unwrap_or(0);
        self.figures.lookups += u64::from(before.is_none());
        self.figures.hits += u64::from(found > 0 && known == 0);
        self.figures.cached_tokens += found.saturating_sub(known) as u64;
        lease
    }

    /// The hash of the first `blocks` whole blocks of `lease`'s sequence.
    pub fn hash(&self, lease: &Lease, blocks: usize) -> BlockHash {
        match blocks {
            0 => self.root,
            _ => self.blocks[&lease.path[blocks - 1]].hash,
        }
    }

    /// How many tokens of its sequence were found, those of a block in part included.
    pub fn tokens(&self, lease: &Lease) -> usize {
        lease.used * self.block_tokens + lease.partial.map_or(0, |(_, agree)| agree)
    }

    /// How many tokens of its sequence are in whole blocks, found or added since.
    pub fn whole_tokens(&self, lease: &Lease) -> usize {
        lease.path.len() * self.block_tokens
    }

    /// What was found, from the sequence's beginning on.
    pub fn hits(&self, lease: &Lease) -> impl Iterator<Item = Hit<'_, P>> {
        let whole = lease.path[..lease.used].iter().map(|id| (*id, self.block_tokens));
        let all: Vec<_> = whole.chain(lease.partial).collect();
        all.into_iter().map(|(id, tokens)| Hit { payload: &self.blocks[&id].payload, tokens })
    }

    /// Lets go of a block that agrees only in part, once its payload has been copied.
    pub fn drop_partial(&mut self, lease: &mut Lease) {
        if let Some((id, _)) = lease.partial.take() {
            self.let_go(id);
            self.touch(id);
        }
    }

    /// Adds the block after the whole blocks of `lease`: `tokens` are a block's worth of those of
    /// the sequence that follow. The payload is only made if the block is not there and there is
    /// room for `bytes`. True: it is there now, and held.
    ///
    /// # Errors
    /// What `make` says; nothing was added then.
    pub fn extend<E>(
        &mut self,
        lease: &mut Lease,
        tokens: &[TokenId],
        bytes: u64,
        make: impl FnOnce() -> Result<P, E>,
    ) -> Result<bool, E> {
        debug_assert_eq!(tokens.len(), self.block_tokens);
        let parent = lease.path.last().copied();
        let id = match self.find(parent, tokens) {
            Some(id) => id,
            None if !self.make_room(bytes) => return Ok(false),
            None => self.insert(parent, tokens, make()?, bytes),
        };
        self.touch(id);
        self.hold(id);
        lease.path.push(id);
        Ok(true)
    }

    /// Adds a sequence's tail, `tokens`, fewer than a block's, after its first `before` tokens,
    /// all of them in whole blocks of `lease`. Nothing builds on a tail, and the lease does not
    /// hold it. With [`Tails::GiveWay`] it is not added where a block begins with it.
    ///
    /// # Errors
    /// What `make` says; nothing was added then.
    pub fn add_tail<E>(
        &mut self,
        lease: &Lease,
        before: usize,
        tokens: &[TokenId],
        bytes: u64,
        make: impl FnOnce() -> Result<P, E>,
    ) -> Result<bool, E> {
        debug_assert!((1..self.block_tokens).contains(&tokens.len()));
        debug_assert!(before.is_multiple_of(self.block_tokens));
        let parent = (before / self.block_tokens).checked_sub(1).map(|last| lease.path[last]);
        let serves = |block: &Block<P>| match self.tails {
            Tails::GiveWay => block.tokens.starts_with(tokens),
            Tails::Stay => block.tokens == tokens,
        };
        let there = self.children(parent).iter().copied().find(|id| serves(&self.blocks[id]));
        match there {
            Some(id) => self.touch(id),
            None if !self.make_room(bytes) => return Ok(false),
            None => drop(self.insert(parent, tokens, make()?, bytes)),
        }
        Ok(true)
    }

    /// Gives a lease back.
    pub fn release(&mut self, lease: Lease) {
        let Lease { path, partial, .. } = lease;
        // From the end, so that what is nearer to the root counts as used later.
        for id in partial.map(|(id, _)| id).into_iter().chain(path.into_iter().rev()) {
            self.let_go(id);
            self.touch(id);
        }
    }

    /// Drops every block that nobody uses. Returns their bytes.
    pub fn clear(&mut self) -> u64 {
        let before = self.figures.bytes;
        while let Some((_, id)) = self.idle.first().copied() {
            self.remove(id);
        }
        before - self.figures.bytes
    }

    fn find(&self, parent: Option<BlockId>, tokens: &[TokenId]) -> Option<BlockId> {
        let before = parent.map_or(self.root, |id| self.blocks[&id].hash);
        let id = *self.by_hash.get(&before.then(tokens))?;
        let block = &self.blocks[&id];
        (block.parent == parent && block.tokens == tokens).then_some(id)
    }

    fn children(&self, parent: Option<BlockId>) -> &[BlockId] {
        parent.map_or(&self.firsts, |id| &self.blocks[&id].children)
    }

    fn children_mut(&mut self, parent: Option<BlockId>) -> &mut Vec<BlockId> {
        match parent {
            None => &mut self.firsts,
            Some(id) => &mut self.block(id).children,
        }
    }

    fn block(&mut self, id: BlockId) -> &mut Block<P> {
        self.blocks.get_mut(&id).expect("a block that is linked to is there")
    }

    fn insert(
        &mut self,
        parent: Option<BlockId>,
        tokens: &[TokenId],
        payload: P,
        bytes: u64,
    ) -> BlockId {
        let id = self.next_block;
        self.next_block += 1;
        if let Some(parent) = parent {
            let block = &self.blocks[&parent];
            self.idle.remove(&(block.used_at, parent));
        }
        let hash = parent.map_or(self.root, |id| self.blocks[&id].hash).then(tokens);
        self.clock += 1;
        let used_at = self.clock;
        let tokens = tokens.to_vec();
        let users = 0;
        let children = Vec::new();
        let block = Block { hash, parent, tokens, payload, bytes, users, children, used_at };
        self.blocks.insert(id, block);
        self.by_hash.insert(hash, id);
        self.children_mut(parent).push(id);
        self.idle.insert((used_at, id));
        self.figures.bytes += bytes;
        self.figures.blocks += 1;
        if self.tails == Tails::GiveWay {
            self.supersede(parent, id);
        }
        id
    }

    /// Drops tails that `longer` begins with.
    fn supersede(&mut self, parent: Option<BlockId>, longer: BlockId) {
        let tokens = &self.blocks[&longer].tokens;
        let covered = |id: &BlockId| {
            let block = &self.blocks[id];
            *id != longer && block.users == 0 && tokens.starts_with(&block.tokens)
        };
        let tails: Vec<_> = self.children(parent).iter().copied().filter(covered).collect();
        for tail in tails {
            self.remove(tail);
        }
    }

    fn make_room(&mut self, bytes: u64) -> bool {
        if bytes > self.bytes_max {
            return false;
        }
        while self.figures.bytes + bytes > self.bytes_max {
            let Some((_, id)) = self.idle.first().copied() else {
                return false;
            };
            self.remove(id);
            self.figures.evictions += 1;
        }
        true
    }

    /// Takes out a block that is idle.
    fn remove(&mut self, id: BlockId) {
        let block = self.blocks.remove(&id).expect("a block to remove is there");
        debug_assert!(block.users == 0 && block.children.is_empty());
        self.idle.remove(&(block.used_at, id));
        self.by_hash.remove(&block.hash);
        self.figures.bytes -= block.bytes;
        self.figures.blocks -= 1;
        self.children_mut(block.parent).retain(|child| *child != id);
        if let Some(parent) = block.parent {
            self.rest(parent);
        }
    }

    fn hold(&mut self, id: BlockId) {
        let block = self.block(id);
        block.users += 1;
        let entry = (block.used_at, id);
        self.idle.remove(&entry);
    }

    fn let_go(&mut self, id: BlockId) {
        self.block(id).users -= 1;
        self.rest(id);
    }

    /// Notes a use.
    fn touch(&mut self, id: BlockId) {
        self.clock += 1;
        let now = self.clock;
        let block = self.block(id);
        let before = (std::mem::replace(&mut block.used_at, now), id);
        self.idle.remove(&before);
        self.rest(id);
    }

    /// Notes that a block may go, if that is so.
    fn rest(&mut self, id: BlockId) {
        let block = &self.blocks[&id];
        if block.users == 0 && block.children.is_empty() {
            self.idle.insert((block.used_at, id));
        }
    }
}

/// How many leading tokens two sequences share.
fn common(one: &[TokenId], other: &[TokenId]) -> usize {
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
}
