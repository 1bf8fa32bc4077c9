//! Sequences in the prefix index that workers use, with nothing in its blocks: what would be held,
//! shared and found, counted.

use mlxd_engine::prefix::{BlockHash, CacheKey, PrefixIndex, Tails};
use mlxd_protocol::TokenId;
use std::cell::Cell;
use std::convert::Infallible;
use std::rc::Rc;

/// Tokens of a block, as in the published tables and in our workers.
pub const BLOCK_TOKENS: usize = 64;

/// Sequences that were found and kept, one after another.
#[derive(Debug)]
pub struct Prefixes {
    index: PrefixIndex<Rc<Cell<u32>>>,
    /// How often each block was found by a later sequence.
    found: Vec<Rc<Cell<u32>>>,
    /// Sums.
    pub totals: Totals,
}

/// Sums over sequences.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Sequences.
    pub sequences: usize,
    /// Their tokens.
    pub tokens: usize,
    /// Blocks that they would have if none shared any, the last one of each in part.
    pub blocks_apart: usize,
    /// Sequences that found something.
    pub hits: usize,
    /// Tokens found.
    pub found: usize,
    /// Those of them in whole blocks.
    pub found_whole: usize,
}

impl Prefixes {
    /// With room for everything.
    pub fn new() -> Self {
        let key = CacheKey { model: "bench", tokenizer: "", quantization: "", build: "" };
        let index = PrefixIndex::new(BlockHash::root(&key), BLOCK_TOKENS, Tails::GiveWay, u64::MAX);
        Self { index, found: Vec::new(), totals: Totals::default() }
    }

    /// Finds what is there of a sequence, as at its start, and keeps it, as at its end.
    pub fn run(&mut self, tokens: &[TokenId]) {
        let mut lease = self.index.open(tokens);
        let (found, found_whole) = (self.index.tokens(&lease), self.index.whole_tokens(&lease));
        for hit in self.index.hits(&lease) {
            hit.payload.set(hit.payload.get() + 1);
        }
        self.totals.sequences += 1;
        self.totals.tokens += tokens.len();
        self.totals.blocks_apart += tokens.len().div_ceil(BLOCK_TOKENS);
        self.totals.hits += usize::from(found > 0);
        self.totals.found += found;
        self.totals.found_whole += found_whole;
        self.index.drop_partial(&mut lease);
        let blocks = tokens[found_whole..].chunks(BLOCK_TOKENS);
        for (at, block) in blocks.enumerate() {
            let made = || {
                let count = Rc::new(Cell::new(0));
                self.found.push(count.clone());
                Ok::<_, Infallible>(count)
            };
            // A byte a token: the caller knows what one is.
            let bytes = block.len() as u64;
            let before = found_whole + at * BLOCK_TOKENS;
            let kept = match block.len() {
                BLOCK_TOKENS => self.index.extend(&mut lease, block, bytes, made),
                _ => self.index.add_tail(&lease, before, block, bytes, made),
            };
            debug_assert_eq!(kept, Ok(true), "there is room for everything");
        }
        self.index.release(lease);
    }

    /// Blocks held.
    pub fn blocks(&self) -> u64 {
        self.index.figures().blocks
    }

    /// Tokens that the blocks have.
    pub fn tokens_held(&self) -> u64 {
        self.index.figures().bytes
    }

    /// Blocks held that more than one sequence used, in part or whole.
    pub fn blocks_shared(&self) -> usize {
        // One that was dropped for a longer one is held here alone.
        self.found.iter().filter(|count| count.get() > 0 && Rc::strong_count(count) > 1).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_share_what_they_begin_with() {
        let mut prefixes = Prefixes::new();
        let first: Vec<u32> = (0..150).collect();
        prefixes.run(&first);
        assert_eq!((prefixes.blocks(), prefixes.tokens_held()), (3, 150));
        assert_eq!((prefixes.blocks_shared(), prefixes.totals.hits), (0, 0));
        let second: Vec<u32> = (0..100).chain(1000..1060).collect();
        prefixes.run(&second);
        assert_eq!((prefixes.totals.found, prefixes.totals.found_whole), (100, 64));
        // One whole block for both; the second has a whole one and a tail of its own.
        assert_eq!((prefixes.blocks(), prefixes.tokens_held()), (5, 150 + 160 - 64));
        assert_eq!((prefixes.totals.blocks_apart, prefixes.blocks_shared()), (6, 2));
        // The very same again adds nothing.
        prefixes.run(&first);
        assert_eq!((prefixes.blocks(), prefixes.totals.found), (5, 250));
    }
}
