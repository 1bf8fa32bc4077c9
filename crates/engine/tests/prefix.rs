//! The prefix index against a naive model that keeps every block as a list of tokens.

use mlxd_engine::prefix::{BlockHash, CacheKey, Lease, PrefixIndex, Tails};
use proptest::prelude::*;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::convert::Infallible;

const BLOCK: usize = 4;
/// Bytes of a token.
const WEIGHT: u64 = 10;

/// Payload: the whole beginning up to the block's end, so that a wrong parent shows.
type Index = PrefixIndex<Vec<u32>>;

fn index(bytes_max: u64) -> Index {
    let key = CacheKey { model: "m", tokenizer: "t", quantization: "q", build: "b" };
    PrefixIndex::new(BlockHash::root(&key), BLOCK, Tails::GiveWay, bytes_max)
}

/// What an engine does at a sequence's end: puts in what is not there yet.
fn keep(index: &mut Index, lease: &mut Lease, tokens: &[u32]) -> usize {
    index.drop_partial(lease);
    loop {
        let from = index.whole_tokens(lease);
        let to = tokens.len().min(from + BLOCK);
        if from == to {
            return from;
        }
        let make = || Ok::<_, Infallible>(tokens[..to].to_vec());
        let bytes = (to - from) as u64 * WEIGHT;
        let new = &tokens[from..to];
        let Ok(there) = match to - from {
            BLOCK => index.extend(lease, new, bytes, make),
            _ => index.add_tail(lease, from, new, bytes, make),
        };
        match there {
            true if to - from == BLOCK => {}
            true => return to,
            false => return from,
        }
    }
}

/// Checks what a lease holds against its sequence; gives how many tokens.
fn read(index: &Index, lease: &Lease, tokens: &[u32]) -> usize {
    let mut at = 0;
    for hit in index.hits(lease) {
        assert!(hit.tokens > 0 && hit.payload.len() >= at + hit.tokens);
        at += hit.tokens;
        assert_eq!(hit.payload[..at], tokens[..at], "another sequence's state");
    }
    assert_eq!(at, index.tokens(lease));
    at
}

/// Blocks of 4, and state takes another form behind position 6: the second block serves whoever gets
/// past that, and the first one serves everybody.
#[test]
fn a_block_across_the_seam_serves_those_that_get_past_it() {
    let tokens: Vec<u32> = (0..10).collect();
    for (seam, length, found) in
        [(6, 5, 4), (6, 6, 4), (6, 7, 7), (6, 8, 8), (8, 6, 6), (4, 5, 5), (2, 2, 0), (2, 3, 3)]
    {
        let mut index = index(1 << 20).with_seam(seam);
        let mut lease = index.open(&tokens);
        assert_eq!(keep(&mut index, &mut lease, &tokens), 10);
        index.release(lease);
        let asked: Vec<u32> = tokens[..length].iter().copied().chain([99]).collect();
        let lease = index.open(&asked);
        assert_eq!(index.tokens(&lease), found, "{length} alike, seam {seam}");
        index.release(lease);
    }
}

#[test]
fn any_length_is_found_down_to_one_token() {
    let mut index = index(1 << 20);
    let first: Vec<u32> = (0..11).collect();
    let mut lease = index.open(&first);
    assert_eq!(index.tokens(&lease), 0);
    assert_eq!(keep(&mut index, &mut lease, &first), 11);
    index.release(lease);
    for length in 1..=11 {
        let lease = index.open(&first[..length]);
        assert_eq!(read(&index, &lease, &first), length);
        index.release(lease);
    }
    let other = [0, 1, 2, 3, 4, 5, 99, 7];
    let lease = index.open(&other);
    assert_eq!(read(&index, &lease, &other), 6, "the second block up to where they part");
    index.release(lease);
    let figures = index.figures();
    assert_eq!((figures.lookups, figures.hits, figures.blocks), (13, 12, 3));
    assert_eq!(figures.bytes, 11 * WEIGHT);
}

#[test]
fn the_same_block_after_another_parent_is_another_block() {
    let mut index = index(1 << 20);
    for first in [1, 2] {
        let tokens = [first, 1, 1, 1, 7, 7, 7, 7];
        let mut lease = index.open(&tokens);
        keep(&mut index, &mut lease, &tokens);
        index.release(lease);
    }
    assert_eq!(index.figures().blocks, 4);
    let lease = index.open(&[2, 1, 1, 1, 7, 7, 7, 7]);
    assert_eq!(read(&index, &lease, &[2, 1, 1, 1, 7, 7, 7, 7]), 8);
    index.release(lease);
    let lease = index.open(&[7, 7, 7, 7]);
    assert_eq!(index.tokens(&lease), 0, "no beginning of anything");
    index.release(lease);
}

#[test]
fn a_tail_gives_way_to_what_goes_on_from_it() {
    let mut index = index(1 << 20);
    let answer: Vec<u32> = (0..9).collect();
    for length in [2, 3, 6, 9] {
        let mut lease = index.open(&answer[..length]);
        keep(&mut index, &mut lease, &answer[..length]);
        index.release(lease);
        assert_eq!(index.figures().bytes, length as u64 * WEIGHT);
    }
    // What is covered already is not kept twice.
    let mut lease = index.open(&answer[..7]);
    keep(&mut index, &mut lease, &answer[..7]);
    index.release(lease);
    assert_eq!((index.figures().blocks, index.figures().bytes), (3, 9 * WEIGHT));
}

#[test]
fn what_is_in_use_stays_and_the_beginning_is_kept_when_there_is_no_more_room() {
    let mut index = index(2 * BLOCK as u64 * WEIGHT);
    let long: Vec<u32> = (0..20).collect();
    let mut lease = index.open(&long);
    assert_eq!(keep(&mut index, &mut lease, &long), 2 * BLOCK);
    let other: Vec<u32> = (100..104).collect();
    let mut second = index.open(&other);
    assert_eq!(keep(&mut index, &mut second, &other), 0, "all is in use");
    index.release(second);
    assert_eq!(index.clear(), 0);
    index.release(lease);
    let mut second = index.open(&other);
    assert_eq!(keep(&mut index, &mut second, &other), BLOCK);
    index.release(second);
    assert_eq!(index.figures().evictions, 1);
    let lease = index.open(&long);
    assert_eq!(read(&index, &lease, &long), BLOCK, "the far end went first");
    index.release(lease);
    assert_eq!(index.clear(), 2 * BLOCK as u64 * WEIGHT);
    assert_eq!(index.figures().blocks, 0);
}

#[test]
fn a_payload_that_cannot_be_made_leaves_nothing() {
    let mut index = index(1 << 20);
    let mut lease = index.open(&[1, 2, 3, 4]);
    let failed = index.extend(&mut lease, &[1, 2, 3, 4], WEIGHT, || Err("out of memory"));
    assert_eq!(failed, Err("out of memory"));
    assert_eq!((index.tokens(&lease), index.figures().blocks, index.figures().bytes), (0, 0, 0));
    index.release(lease);
}

#[test]
fn state_that_cannot_be_cut_is_found_where_it_ends() {
    let key = CacheKey { model: "m", tokenizer: "t", quantization: "q", build: "b" };
    // Payload: whether one can go on from the block's end.
    let mut index = PrefixIndex::new(BlockHash::root(&key), BLOCK, Tails::Stay, 1 << 20);
    let tokens: Vec<u32> = (0..14).collect();
    let ends = |payload: &bool| *payload;
    let mut lease = index.open_at_ends(&tokens, ends);
    let put = |lease: &mut Lease, index: &mut PrefixIndex<bool>, from: usize, payload: bool| {
        let block = &tokens[from..from + BLOCK];
        assert_eq!(index.extend(lease, block, WEIGHT, || Ok::<_, Infallible>(payload)), Ok(true));
    };
    let tail = |lease: &Lease, index: &mut PrefixIndex<bool>, from: usize, to: usize| {
        let make = || Ok::<_, Infallible>(true);
        assert_eq!(index.add_tail(lease, from, &tokens[from..to], WEIGHT, make), Ok(true));
    };
    put(&mut lease, &mut index, 0, true);
    tail(&lease, &mut index, 4, 6);
    put(&mut lease, &mut index, 4, false);
    put(&mut lease, &mut index, 8, false);
    tail(&lease, &mut index, 12, 14);
    index.release(lease);
    assert_eq!(index.figures().blocks, 5, "tails stay beside what goes on from them");
    for (length, found) in [(14, 14), (13, 6), (12, 6), (7, 6), (6, 6), (5, 4), (4, 4), (3, 0)] {
        let lease = index.open_at_ends(&tokens[..length], ends);
        assert_eq!(index.tokens(&lease), found, "of {length}");
        assert_eq!(index.hits(&lease).map(|hit| hit.tokens).sum::<usize>(), found);
        index.release(lease);
    }
    // A tail can be put where the path goes on already.
    let mut lease = index.open_at_ends(&tokens[..12], ends);
    index.drop_partial(&mut lease);
    assert_eq!(index.whole_tokens(&lease), 12);
    tail(&lease, &mut index, 8, 11);
    index.release(lease);
    let lease = index.open_at_ends(&tokens[..12], ends);
    assert_eq!(index.tokens(&lease), 11);
    index.release(lease);
}

/// The naive model: a block is the list of all tokens up to its end.
#[derive(Debug, Default)]
struct Naive {
    blocks: BTreeMap<Vec<u32>, Kept>,
    clock: u64,
    inserted: u64,
    bytes_max: u64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Kept {
    number: u64,
    users: u32,
    used_at: u64,
}

fn block_bytes(prefix: &[u32]) -> u64 {
    let tail = prefix.len() % BLOCK;
    (if tail == 0 { BLOCK } else { tail }) as u64 * WEIGHT
}

impl Naive {
    fn bytes(&self) -> u64 {
        self.blocks.keys().map(|prefix| block_bytes(prefix)).sum()
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// The tokens of whole blocks that are there, and of the longest agreement with a block after.
    fn open(&mut self, tokens: &[u32]) -> usize {
        let mut whole = 0;
        while whole + BLOCK <= tokens.len() && self.blocks.contains_key(&tokens[..whole + BLOCK]) {
            whole += BLOCK;
            self.blocks.get_mut(&tokens[..whole]).unwrap().users += 1;
        }
        let agree = |prefix: &Vec<u32>| {
            let own = prefix.iter().zip(tokens).take_while(|(one, other)| one == other).count();
            own.saturating_sub(whole)
        };
        let after = |prefix: &Vec<u32>| {
            prefix.len() > whole
                && prefix.len() <= whole + BLOCK
                && prefix[..whole] == tokens[..whole]
        };
        let best = self.blocks.iter().filter(|(prefix, _)| after(prefix));
        let best = best.map(|(prefix, kept)| (agree(prefix), Reverse(kept.number), prefix.clone()));
        let best = best.max().filter(|(agree, ..)| *agree > 0);
        if let Some((.., prefix)) = &best {
            let now = self.tick();
            self.blocks.get_mut(prefix).unwrap().used_at = now;
        }
        whole + best.map_or(0, |(agree, ..)| agree)
    }

    fn removable(&self, prefix: &[u32]) -> bool {
        let builds = |other: &Vec<u32>| {
            other.len() > prefix.len()
                && prefix.len().is_multiple_of(BLOCK)
                && other.starts_with(prefix)
        };
        self.blocks[prefix].users == 0 && !self.blocks.keys().any(builds)
    }

    fn room(&mut self, bytes: u64) -> bool {
        if bytes > self.bytes_max {
            return false;
        }
        while self.bytes() + bytes > self.bytes_max {
            let idle = self.blocks.iter().filter(|(prefix, _)| self.removable(prefix));
            let Some((prefix, _)) = idle.min_by_key(|(_, kept)| kept.used_at) else {
                return false;
            };
            let prefix = prefix.clone();
            self.blocks.remove(&prefix);
        }
        true
    }

    fn keep(&mut self, from: usize, tokens: &[u32]) -> usize {
        let mut whole = from;
        loop {
            let end = tokens.len().min(whole + BLOCK);
            if whole == end {
                return whole;
            }
            let prefix = tokens[..end].to_vec();
            let covering = self.blocks.iter().filter(|(other, _)| {
                other.len() <= whole + BLOCK && other.len() >= end && other.starts_with(&prefix)
            });
            // Of several, the oldest counts as used.
            let covering = covering.min_by_key(|(_, kept)| kept.number);
            match covering.map(|(other, _)| other.clone()) {
                Some(other) => {
                    let now = self.tick();
                    self.blocks.get_mut(&other).unwrap().used_at = now;
                }
                None => {
                    if !self.room((end - whole) as u64 * WEIGHT) {
                        return whole;
                    }
                    let now = self.tick();
                    let number = self.inserted;
                    self.inserted += 1;
                    self.blocks.insert(prefix.clone(), Kept { number, users: 0, used_at: now });
                    self.blocks.retain(|other, kept| {
                        let tail = other.len() > whole && other.len() < end;
                        !(tail && kept.users == 0 && prefix.starts_with(other))
                    });
                }
            }
            if end - whole < BLOCK {
                return end;
            }
            self.blocks.get_mut(&prefix).unwrap().users += 1;
            whole = end;
        }
    }

    fn release(&mut self, whole: usize, tokens: &[u32]) {
        for end in (1..=whole / BLOCK).rev().map(|block| block * BLOCK) {
            let now = self.tick();
            let kept = self.blocks.get_mut(&tokens[..end]).unwrap();
            kept.users -= 1;
            kept.used_at = now;
        }
    }
}

/// A running sequence: its tokens, its lease, its whole blocks in the model.
type Running = (Vec<u32>, Lease, usize);

#[derive(Debug, Clone)]
enum Op {
    Open(Vec<u32>),
    /// Ends one of the running sequences; some are not kept.
    End(prop::sample::Index, bool),
    Clear,
}

/// Few letters, so that beginnings agree, and ids that agree in their low bits only.
fn tokens() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(prop_oneof![4 => 0u32..2, 1 => Just(1 | 1 << 16)], 1..18)
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => tokens().prop_map(Op::Open),
        5 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(at, kept)| Op::End(at, kept)),
        1 => Just(Op::Clear),
    ]
}

fn end(index: &mut Index, naive: &mut Naive, (tokens, mut lease, whole): Running, kept: bool) {
    let mut whole = whole;
    if kept {
        let there = keep(index, &mut lease, &tokens);
        assert_eq!(there, naive.keep(whole, &tokens));
        whole = index.whole_tokens(&lease);
    }
    index.release(lease);
    naive.release(whole, &tokens);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1500, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn it_finds_keeps_and_drops_what_the_model_does(
        ops in prop::collection::vec(op(), 1..60),
        bytes_max in prop_oneof![Just(1u64 << 30), 0u64..600],
    ) {
        let mut index = index(bytes_max);
        let mut naive = Naive { bytes_max, ..Naive::default() };
        let mut running: Vec<Running> = Vec::new();
        for op in ops {
            match op {
                Op::Open(tokens) => {
                    let mut lease = index.open(&tokens);
                    let expected = naive.open(&tokens);
                    let found = read(&index, &lease, &tokens);
                    prop_assert_eq!(found, expected);
                    // As an engine does, once it has copied the state.
                    index.drop_partial(&mut lease);
                    let whole = index.whole_tokens(&lease);
                    running.push((tokens, lease, whole));
                }
                Op::End(at, kept) if !running.is_empty() => {
                    let one = running.swap_remove(at.index(running.len()));
                    end(&mut index, &mut naive, one, kept);
                }
                Op::End(..) => {}
                Op::Clear => {
                    let before = index.figures().bytes;
                    let dropped = index.clear();
                    while let Some(prefix) =
                        naive.blocks.keys().find(|prefix| naive.removable(prefix)).cloned()
                    {
                        naive.blocks.remove(&prefix);
                    }
                    prop_assert_eq!(before - dropped, naive.bytes());
                }
            }
            prop_assert_eq!(index.figures().bytes, naive.bytes());
            prop_assert_eq!(index.figures().blocks as usize, naive.blocks.len());
            prop_assert!(index.figures().bytes <= bytes_max);
        }
        for one in running {
            end(&mut index, &mut naive, one, true);
        }
        index.clear();
        prop_assert_eq!((index.figures().blocks, index.figures().bytes), (0, 0));
    }
}
