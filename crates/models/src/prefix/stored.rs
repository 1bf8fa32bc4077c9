//! Blocks to the disk and back.
//!
//! Out: as soon as a block is there, its bytes are copied and given to the disk's thread. In:
//! before a new sequence's first chunk, some blocks a call, so that others decode in between.
//! What comes back is a block like any other, and must have the very shapes of this model's.

use mlx_rs::error::{Exception, Result};
use mlx_rs::transforms::eval;
use mlx_rs::{Array, Dtype};
use mlxd_engine::prefix::{BlockHash, Lease};
use mlxd_protocol::TokenId;

use super::{BLOCK_TOKENS, Block, PrefixCache};
use crate::disk::{DiskTier, Plain, Saved};
use crate::recurrent::Recurrent;
use crate::weights::header::element_bytes;

/// Blocks read in one call at the most: about as many tokens as a chunk has.
const BLOCKS_PER_CALL: usize = 16;

/// Ends the name of a block from whose end a scan can go on.
const END: &str = "-end";

/// A block that was just made: its tokens' places, and what is in it.
pub(super) type Made = (usize, usize, Block);

/// Blocks on the disk that a sequence begins with, after those in memory.
#[derive(Debug, Default)]
struct Missing {
    /// Whole ones, by name.
    whole: Vec<String>,
    /// After all of those, a tail's name and length.
    tail: Option<(String, usize)>,
}

fn name_of(hash: &BlockHash, ends: bool) -> String {
    format!("{hash}{}", if ends { END } else { "" })
}

impl PrefixCache {
    /// From now on blocks are kept on `disk` too, and looked for there.
    pub fn store_on(&mut self, disk: DiskTier) {
        self.disk = Some(disk);
    }

    /// Reads blocks that `tokens` begin with and that memory has not got. True: there are more.
    pub fn fetch(&mut self, lease: &mut Lease, tokens: &[TokenId]) -> Result<bool> {
        let tokens = self.keepable(tokens);
        let Missing { whole, tail } = self.missing(lease, tokens);
        if whole.is_empty() && tail.is_none() {
            return Ok(false);
        }
        let turn = whole.len().min(BLOCKS_PER_CALL);
        let mut at = self.index.whole_tokens(lease);
        let mut read = 0;
        while read < turn {
            let to = at + BLOCK_TOKENS;
            if !self.fetch_block(lease, &whole[read], tokens, (at, to))? {
                break;
            }
            at = to;
            read += 1;
        }
        let all = read == whole.len();
        if let Some((name, length)) = tail.filter(|_| all) {
            self.fetch_block(lease, &name, tokens, (at, at + length))?;
        }
        let old = std::mem::take(lease);
        *lease = match self.snapshot_bytes {
            0 => self.index.open_again(old, tokens),
            _ => self.index.open_again_at_ends(old, tokens, |block| block.snapshot.is_some()),
        };
        Ok(read == turn && !all)
    }

    /// What is worth reading.
    fn missing(&self, lease: &Lease, tokens: &[TokenId]) -> Missing {
        let Some(disk) = &self.disk else {
            return Missing::default();
        };
        let scans = self.snapshot_bytes > 0;
        let from = self.index.whole_tokens(lease);
        let mut hashes = vec![self.index.hash(lease, from / BLOCK_TOKENS)];
        let mut whole = Vec::new();
        for block in tokens[from..].chunks_exact(BLOCK_TOKENS) {
            let hash = hashes[hashes.len() - 1].then(block);
            let ended = Some(name_of(&hash, true)).filter(|name| scans && disk.has(name));
            let name = ended.or_else(|| Some(name_of(&hash, false)).filter(|name| disk.has(name)));
            let Some(name) = name else { break };
            whole.push(name);
            hashes.push(hash);
        }
        if !scans {
            return Missing { whole, tail: None };
        }
        // The last place where a scan can go on, if it is farther on than what memory has.
        let found = self.index.tokens(lease);
        for (blocks, hash) in hashes.iter().enumerate().rev() {
            let at = from + blocks * BLOCK_TOKENS;
            let rest = &tokens[at..];
            let lengths = (1..BLOCK_TOKENS.min(rest.len() + 1)).rev();
            let mut tails =
                lengths.map(|length| (name_of(&hash.then(&rest[..length]), true), length));
            let tail = tails.find(|(name, _)| disk.has(name));
            let length = tail.as_ref().map_or(0, |(_, length)| *length);
            let ends = blocks > 0 && whole[blocks - 1].ends_with(END);
            if (tail.is_some() || ends) && at + length > found {
                whole.truncate(blocks);
                return Missing { whole, tail };
            }
        }
        Missing::default()
    }

    /// Reads one block into memory, whole or a tail. False: it is not there, or has no room.
    fn fetch_block(
        &mut self,
        lease: &mut Lease,
        name: &str,
        tokens: &[TokenId],
        (from, to): (usize, usize),
    ) -> Result<bool> {
        let own = &tokens[from..to];
        let Some(disk) = &self.disk else { return Ok(false) };
        let Some(saved) = disk.read(name, own) else { return Ok(false) };
        let Some(block) = self.block_of(&saved, (from, to))? else {
            tracing::warn!(name, "a kept prefix is of another model");
            disk.throw_away(name);
            return Ok(false);
        };
        let snapshot = if block.snapshot.is_some() { self.snapshot_bytes } else { 0 };
        let bytes = self.bytes(from, to) + snapshot;
        let make = || Ok(block);
        match own.len() {
            BLOCK_TOKENS => self.index.extend::<Exception>(lease, own, bytes, make),
            _ => self.index.add_tail::<Exception>(lease, from, own, bytes, make),
        }
    }

    /// The block of positions `from..to` that was saved; `None` if it is not of this model's shape.
    fn block_of(&self, saved: &Saved, (from, to): (usize, usize)) -> Result<Option<Block>> {
        let ends = saved.name.ends_with(END);
        let scans = if ends { &self.scans[..] } else { &[] };
        let form = self.form(to);
        let columns = self.groups.iter().flat_map(|group| {
            let rows = 2 * group.layers.len() as i32;
            let shape = move |width| vec![rows, group.heads, (to - from) as i32, width];
            group.columns(form).into_iter().map(move |(width, dtype)| (shape(width), dtype))
        });
        let wanted: Vec<(Vec<i32>, Dtype)> = columns.chain(scans.iter().cloned()).collect();
        let alike = |(part, (shape, dtype)): (&Plain, &(Vec<i32>, Dtype))| {
            part.shape == *shape && part.dtype == *dtype && part.bytes.len() == bytes(shape, *dtype)
        };
        if saved.parts.len() != wanted.len() || !saved.parts.iter().zip(&wanted).all(alike) {
            return Ok(None);
        }
        let arrays: Vec<Array> = saved.parts.iter().map(array).collect::<Result<_>>()?;
        eval(&arrays)?;
        let mut arrays = arrays.into_iter();
        let mut columns = Vec::with_capacity(self.groups.len());
        for group in &self.groups {
            columns.push(arrays.by_ref().take(group.columns(form).len()).collect());
        }
        let scans: Vec<Array> = arrays.collect();
        let scan = |pair: &[Array]| Recurrent { conv: pair[0].clone(), scan: pair[1].clone() };
        let snapshot = ends.then(|| scans.chunks_exact(2).map(scan).collect());
        Ok(Some(Block { columns, snapshot }))
    }

    /// Gives copies of new blocks, whole ones of `lease` and a tail after them, to the disk.
    pub(super) fn store(&self, lease: &Lease, tokens: &[TokenId], new: &[Made]) -> Result<()> {
        let Some(disk) = &self.disk else { return Ok(()) };
        for (from, to, block) in new {
            let (own, ends) = (&tokens[*from..*to], block.snapshot.is_some());
            let hash = match own.len() {
                BLOCK_TOKENS => self.index.hash(lease, to / BLOCK_TOKENS),
                // Where state can be cut, whole blocks serve.
                _ if !ends => continue,
                _ => self.index.hash(lease, from / BLOCK_TOKENS).then(own),
            };
            let name = name_of(&hash, ends);
            if disk.has(&name) {
                continue;
            }
            let scans = block.snapshot.iter().flatten().flat_map(Recurrent::arrays);
            let parts =
                block.columns.iter().flatten().chain(scans).map(plain).collect::<Result<_>>()?;
            disk.write(Saved { name, tokens: own.to_vec(), parts });
        }
        Ok(())
    }
}

fn bytes(shape: &[i32], dtype: Dtype) -> usize {
    shape.iter().map(|length| *length as usize).product::<usize>() * width(dtype)
}

/// Bytes of an element that state has.
fn width(dtype: Dtype) -> usize {
    element_bytes(dtype) as usize
}

/// A copy of an array's bytes.
fn plain(array: &Array) -> Result<Plain> {
    let bytes = array.contiguous()?.view_dtype(Dtype::Uint8)?;
    let bytes = bytes.to_vec_exact::<u8>();
    let bytes = bytes.map_err(|error| Exception::custom(error.to_string()))?;
    Ok(Plain { dtype: array.dtype(), shape: array.shape().to_vec(), bytes })
}

fn array(plain: &Plain) -> Result<Array> {
    let mut shape = plain.shape.clone();
    if let Some(last) = shape.last_mut() {
        *last *= width(plain.dtype) as i32;
    }
    Array::from_slice(&plain.bytes, &shape).view_dtype(plain.dtype)
}
