//! When [`MlxEngine`] takes state from its [`PrefixCache`], and when it puts some in.
//!
//! In: the whole blocks of a prompt as soon as their chunk has run, so that a sequence that is
//! given up or waits still serves others; the rest, with what was generated, at the proper end.
//! Out: at the first call of `prefill`, whole or not at all; where blocks come from the disk, at
//! the call that has read the last of them.

use mlx_rs::error::Result;
use mlxd_engine::SeqId;
use mlxd_engine::prefix::{BlockHash, Lease};
use mlxd_protocol::TokenId;

use crate::disk::DiskTier;
use crate::engine::{MlxEngine, Sequence};
use crate::prefix::{PrefixCache, history};

/// A sequence's part in the cache.
#[derive(Debug)]
pub(crate) struct Kept {
    lease: Lease,
    /// What was found is in its state.
    restored: bool,
    /// How many tokens that are, or will be.
    found: usize,
    /// Tokens collected since it was opened.
    generated: Vec<TokenId>,
}

impl MlxEngine {
    /// From now on keeps state for prompts that begin as earlier ones did, at most `bytes_max`
    /// bytes of it. `root` stands for all that a state depends on besides the tokens.
    ///
    /// Not in deterministic mode: a prompt that goes on from kept state is cut into other pieces
    /// than it would be without, and other pieces round differently.
    pub fn keep_prefixes(&mut self, root: BlockHash, bytes_max: u64) {
        let worth = bytes_max > 0 && !self.deterministic;
        self.prefixes = worth.then(|| PrefixCache::new(&self.model.state(1), root, bytes_max));
    }

    /// A sequence's part in the cache, and how many of its `tokens` were found.
    pub(crate) fn begin(&mut self, seq: SeqId, tokens: &[TokenId]) -> (Option<Kept>, usize) {
        let Some(prefixes) = self.prefixes.as_mut().filter(|_| !seq.is_measured()) else {
            return (None, 0);
        };
        // The last token is always run: its logits are wanted.
        let lease = prefixes.open(&tokens[..tokens.len() - 1]);
        let found = prefixes.found(&lease);
        (Some(Kept { lease, restored: false, found, generated: Vec::new() }), found)
    }

    /// Keeps on the disk too what is kept, and looks for it there.
    pub(crate) fn keep_prefixes_on(&mut self, disk: DiskTier) {
        if let Some(prefixes) = &mut self.prefixes {
            prefixes.store_on(disk);
        }
    }

    /// How many tokens of a sequence were found.
    pub(crate) fn found_of(&self, seq: SeqId) -> Option<usize> {
        self.sequences.get(&seq)?.kept.as_ref().map(|kept| kept.found)
    }

    /// Puts what was found into the state, the first time. False: there is more to find first.
    pub(crate) fn restore(&mut self, seq: SeqId) -> Result<bool> {
        let sequence = self.sequences.get_mut(&seq);
        if let Some(Sequence { kept: Some(kept), state: Some(state), tokens, .. }) = sequence
            && let Some(prefixes) = &mut self.prefixes
            && !kept.restored
        {
            let more = prefixes.fetch(&mut kept.lease, &tokens[..tokens.len() - 1])?;
            kept.found = prefixes.found(&kept.lease);
            if more {
                return Ok(false);
            }
            kept.restored = true;
            prefixes.restore(&mut kept.lease, state)?;
        }
        Ok(true)
    }

    /// Keeps the blocks that a chunk completed.
    pub(crate) fn keep_chunk(&mut self, seq: SeqId) -> Result<()> {
        let sequence = self.sequences.get_mut(&seq);
        if let Some(Sequence { kept: Some(kept), state: Some(state), tokens, .. }) = sequence
            && let Some(prefixes) = &mut self.prefixes
        {
            let ran = &tokens[..state.position as usize];
            prefixes.keep(&mut kept.lease, ran, |count| history(state, count))?;
        }
        Ok(())
    }

    /// Notes a token of `seq`.
    pub(crate) fn note_generated(&mut self, seq: SeqId, token: TokenId) {
        let sequence = self.sequences.get_mut(&seq);
        if let Some(kept) = sequence.and_then(|sequence| sequence.kept.as_mut()) {
            kept.generated.push(token);
        }
    }

    /// Keeps all of a sequence that came to its proper end.
    pub(crate) fn keep_end(&mut self, seq: SeqId) -> Result<()> {
        let sequence = self.sequences.get_mut(&seq);
        let Some(Sequence { kept: Some(kept), state, tokens, .. }) = sequence else {
            return Ok(());
        };
        let (Some(prefixes), true) = (&mut self.prefixes, kept.restored) else {
            return Ok(());
        };
        let row = self.batch.index(seq);
        let position = match (&*state, row) {
            (Some(state), _) => state.position,
            (None, Some(row)) => self.batch.rows()[row].state.position,
            (None, None) => return Ok(()),
        } as usize;
        let mut ran = tokens.clone();
        ran.append(&mut kept.generated);
        if position > ran.len() {
            return Ok(()); // it ran tokens that nobody has read
        }
        ran.truncate(position);
        let batch = &mut self.batch;
        prefixes.keep_all(&mut kept.lease, &ran, |count| match (&*state, row) {
            (Some(state), _) => history(state, count),
            (None, Some(row)) => batch.history(row, count),
            (None, None) => Ok(None),
        })
    }

    /// Gives back a sequence's part.
    pub(crate) fn let_go(&mut self, kept: Option<Kept>) {
        if let (Some(kept), Some(prefixes)) = (kept, &mut self.prefixes) {
            prefixes.release(kept.lease);
        }
    }
}
