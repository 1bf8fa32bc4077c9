//! When [`MlxEngine`] takes state from its [`PrefixCache`], and when it puts some in.
//!
//! In: the whole blocks of a prompt once its first token is out, which does not wait for that, or
//! sooner if somebody else might use them, and where layers forget after each chunk; what is to be
//! packed, before it is; with a disk, those of a long answer as it grows, so that whoever goes on with
//! it after this process need not compute it again; the rest, with what was generated, at the proper
//! end. Out: at the first call of `prefill`, whole or not at all; where blocks come from the disk, at
//! the call that has read the last of them.

use std::time::Instant;

use mlx_rs::error::Result;
use mlxd_engine::SeqId;
use mlxd_engine::prefix::{BlockHash, Lease};
use mlxd_protocol::TokenId;

use crate::arch::State;
use crate::batch::Batch;
use crate::disk::DiskTier;
use crate::engine::{MlxEngine, Sequence};
use crate::prefix::{History, PrefixCache, history};

/// Tokens of a long prompt that gather before they are kept: a sequence that is given up or waits
/// in the middle of it still serves others.
const GATHERED_TOKENS: usize = 4096;

/// Tokens of an answer that gather before they are kept on a disk.
const ANSWERED_TOKENS: usize = 256;

/// A sequence's part in the cache.
#[derive(Debug)]
pub(crate) struct Kept {
    lease: Lease,
    /// What was found is in its state.
    restored: bool,
    /// How many tokens that are, or will be.
    found: usize,
    /// How many tokens were collected since it was opened.
    generated: usize,
    /// How many of those were there when its blocks were last kept.
    answered: usize,
    /// Tokens of the prompt up to which nothing is to be kept any more.
    gathered: usize,
    /// After how many tokens a piece is to end: others went another way from there.
    branch: Option<usize>,
}

impl Kept {
    /// Tokens that a piece from `position` on may have.
    pub(crate) fn piece_max(&self, position: usize) -> usize {
        let left = self.branch.and_then(|branch| branch.checked_sub(position));
        left.filter(|left| *left > 0).unwrap_or(usize::MAX)
    }
}

impl MlxEngine {
    /// From now on keeps state for prompts that begin as earlier ones did, at most `bytes_max`
    /// bytes of it. `root` stands for all that a state depends on besides the tokens.
    ///
    /// Not in deterministic mode: a prompt that goes on from kept state is cut into other pieces
    /// than it would be without, and other pieces round differently.
    pub fn keep_prefixes(&mut self, root: BlockHash, bytes_max: u64) {
        let worth = bytes_max > 0 && !self.deterministic;
        self.prefixes = worth.then(|| PrefixCache::new(&self.empty_state(1, 1), root, bytes_max));
        if let (Some(prefixes), Some(most)) = (&mut self.prefixes, self.kv_tokens_max) {
            prefixes.keep_at_most(most as usize);
        }
    }

    /// A sequence's part in the cache, and how many of its `tokens` were found.
    pub(crate) fn begin(&mut self, seq: SeqId, tokens: &[TokenId]) -> (Option<Kept>, usize) {
        let Some(prefixes) = self.prefixes.as_mut().filter(|_| !seq.is_measured()) else {
            return (None, 0);
        };
        // The last token is always run: its logits are wanted.
        let lease = prefixes.open(&tokens[..tokens.len() - 1]);
        let found = prefixes.found(&lease);
        let kept = Kept {
            lease,
            restored: false,
            found,
            generated: 0,
            answered: 0,
            gathered: found,
            branch: None,
        };
        (Some(kept), found)
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
            kept.branch = prefixes.branch(&tokens[..tokens.len() - 1], kept.found);
            let begun = Instant::now();
            prefixes.restore(&mut kept.lease, state)?;
            if kept.found > 0 {
                let us = begun.elapsed().as_micros() as u64;
                tracing::debug!(tokens = kept.found, us, "prefix taken up");
            }
        }
        Ok(true)
    }

    /// Keeps the blocks that chunks completed, if enough have gathered. `left` tokens of the
    /// prompt are still to run.
    pub(crate) fn keep_chunk(&mut self, seq: SeqId, left: usize) -> Result<()> {
        let sequence = self.sequences.get_mut(&seq);
        if let Some(Sequence { kept: Some(kept), state: Some(state), tokens, .. }) = sequence
            && let Some(prefixes) = &mut self.prefixes
        {
            let position = state.position as usize;
            let gathered = left > 0 && position >= kept.gathered + GATHERED_TOKENS
                || position == prefixes.seam();
            if left == 0 && !prefixes.forgets() {
                self.due.push(seq);
            }
            if gathered || prefixes.forgets() {
                kept.gathered = position;
                let ran = prefixes.keepable(&tokens[..position]);
                let history = |count| history(state, count, ran.len());
                prefixes.keep(&mut kept.lease, ran, ran.len(), history)?;
            }
        }
        Ok(())
    }

    /// Keeps the prompts that have run, and answers that have grown: of prompts those whose first
    /// token is out, or `all`.
    pub(crate) fn keep_due(&mut self, all: bool) -> Result<()> {
        let is_out = |seq: &SeqId| {
            let kept = self.sequences.get(seq).and_then(|sequence| sequence.kept.as_ref());
            kept.is_none_or(|kept| kept.generated > 0)
        };
        let (now, later) = self.due.iter().partition(|seq| all || is_out(seq));
        self.due = later;
        let now: Vec<SeqId> = now;
        now.into_iter().try_for_each(|seq| self.keep_blocks(seq))
    }

    fn keep_blocks(&mut self, seq: SeqId) -> Result<()> {
        let sequence = self.sequences.get_mut(&seq);
        if let Some(Sequence { kept: Some(kept), state, tokens, known, .. }) = sequence
            && let Some(prefixes) = &mut self.prefixes
            && let Some(place) = Place::of(state.as_ref(), &mut self.batch, seq)
        {
            let begun = Instant::now();
            let position = place.position();
            // The last is yet to run; what ran beyond it nobody has read.
            let ran = &known[..position.min(tokens.len() + kept.generated - 1)];
            prefixes
                .keep(&mut kept.lease, ran, position, |count| place.history(count, position))?;
            let us = begun.elapsed().as_micros() as u64;
            tracing::debug!(tokens = ran.len(), us, "prefix kept");
        }
        Ok(())
    }

    /// Keeps the whole blocks of what the next step packs: of the rows `asked` for, and of those that
    /// decode together, some of which may leave.
    pub(crate) fn keep_before_packing(&mut self, asked: &[SeqId]) -> Result<()> {
        let Some(prefixes) = self.prefixes.as_mut().filter(|prefixes| prefixes.packs()) else {
            return Ok(());
        };
        let mut rows: Vec<SeqId> = self.batch.rows().iter().map(|row| row.seq).collect();
        rows.extend(asked.iter().filter(|seq| self.batch.index(**seq).is_none()));
        for seq in rows {
            if let Some(Sequence { kept: Some(kept), state, known, .. }) =
                self.sequences.get_mut(&seq)
                && let Some(place) = Place::of(state.as_ref(), &mut self.batch, seq)
                && let position = place.position()
                && position == prefixes.seam()
                && let Some(ran) = known.get(..position)
            {
                let ran = prefixes.whole_blocks(ran);
                prefixes
                    .keep(&mut kept.lease, ran, position, |count| place.history(count, position))?;
            }
        }
        Ok(())
    }

    /// Notes that a token of `seq` was collected.
    pub(crate) fn note_generated(&mut self, seq: SeqId) {
        let Some(prefixes) = &self.prefixes else { return };
        let Some(Sequence { kept: Some(kept), .. }) = self.sequences.get_mut(&seq) else { return };
        kept.generated += 1;
        let outlives = prefixes.has_disk() && !prefixes.forgets();
        if outlives && kept.generated >= kept.answered + ANSWERED_TOKENS {
            kept.answered = kept.generated;
            self.due.push(seq);
        }
    }

    /// Keeps all of a sequence that came to its proper end.
    pub(crate) fn keep_end(&mut self, seq: SeqId) -> Result<()> {
        let sequence = self.sequences.get_mut(&seq);
        let Some(Sequence { kept: Some(kept), state, tokens, known, .. }) = sequence else {
            return Ok(());
        };
        let (Some(prefixes), true) = (&mut self.prefixes, kept.restored) else {
            return Ok(());
        };
        let Some(place) = Place::of(state.as_ref(), &mut self.batch, seq) else { return Ok(()) };
        let position = place.position();
        if position > tokens.len() + kept.generated {
            return Ok(()); // it ran tokens that nobody has read
        }
        let ran = prefixes.keepable(&known[..position]);
        prefixes.keep_all(&mut kept.lease, ran, |count| place.history(count, ran.len()))
    }

    /// Gives back a sequence's part.
    pub(crate) fn let_go(&mut self, kept: Option<Kept>) {
        if let (Some(kept), Some(prefixes)) = (kept, &mut self.prefixes) {
            prefixes.release(kept.lease);
        }
    }
}

/// Where a sequence's state is.
enum Place<'a> {
    Alone(&'a State),
    Row(&'a mut Batch, usize),
}

impl<'a> Place<'a> {
    fn of(alone: Option<&'a State>, batch: &'a mut Batch, seq: SeqId) -> Option<Self> {
        match alone {
            Some(state) => Some(Self::Alone(state)),
            None => batch.index(seq).map(|row| Self::Row(batch, row)),
        }
    }

    /// Positions that it ran.
    fn position(&self) -> usize {
        let position = match self {
            Self::Alone(state) => state.position,
            Self::Row(batch, row) => batch.rows()[*row].state.position,
        };
        position as usize
    }

    /// See [`history`].
    fn history(self, count: usize, end: usize) -> Result<Option<Vec<History>>> {
        match self {
            Self::Alone(state) => history(state, count, end),
            Self::Row(batch, row) => batch.history(row, count, end),
        }
    }
}
