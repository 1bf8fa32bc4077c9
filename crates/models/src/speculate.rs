//! Tokens guessed from what stands in the sequence already, or by a small model, and checked
//! several at once.
//!
//! A sequence that decodes alone and repeats something that it holds is likely to go on as it did
//! there ("prompt lookup": Saxena, 2023); where it does not, a draft model guesses, if there is one
//! (Leviathan et al., 2023). One pass over the last token and the guesses gives the
//! logits behind each of them; from each a token is drawn as a step would draw it, with the key of
//! its own index and the penalties of what came before. As long as the drawn token is the guess,
//! the next one is what the next step would have drawn. So the tokens are those of plain decoding,
//! greedy or sampled; only sums are made in another order, as they are in company.
//!
//! Tokens are given out one a step, as ever: those that came ahead of their step wait here. Either
//! source is asked only while it gives tokens faster than plain steps do, by the clock; where it does
//! not, it is tried again later and later.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use mlx_rs::Array;
use mlx_rs::error::{Exception, Result};
use mlx_rs::transforms::{async_eval, eval};
use mlxd_engine::SeqId;
use mlxd_protocol::TokenId;

use crate::arch::{LayerState, State};
use crate::draft::{Draft, Guesses};
use crate::engine::{MlxEngine, Sequence};
use crate::sample::{Drawn, Sampler, Token, draw_along};
use crate::steps::LastToken;

/// How far back a repetition is looked for: further would cost more than it finds.
const LOOKED_BACK: usize = 16_384;
/// Tokens that must repeat before the next ones are guessed.
const ALIKE_MIN: usize = 3;
/// A repetition of so many is as good as any.
const ALIKE_ENOUGH: usize = 8;

/// Gives at most so many guesses for what follows a sequence's tokens.
pub type Guesser = Box<dyn FnMut(&[TokenId], usize) -> Vec<TokenId>>;

/// What guessing came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Guessed {
    /// Passes over guesses.
    pub passes: u64,
    /// Guesses checked.
    pub guesses: u64,
    /// Those that were right.
    pub right: u64,
}

/// Who guesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The sequence's own text.
    Text,
    /// A draft model.
    Draft,
}

/// When and how guesses are made.
pub(crate) struct Guessing {
    guesses_max: usize,
    guesser: Guesser,
    draft: Option<Draft>,
    pace: Pace,
    /// By [`Source`].
    figures: [Guessed; 2],
}

/// A sequence's tokens that came ahead of their step.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    /// The last of a pass says whose guesses it checked.
    ready: VecDeque<(Token, Option<Source>)>,
    /// Steps in flight that will take one.
    promised: usize,
    pass: Option<Pass>,
}

/// A pass that was submitted.
#[derive(Debug)]
struct Pass {
    source: Source,
    guesses: Vec<TokenId>,
    drawn: Drawn,
    /// The sampler as it is after each of the draws.
    samplers: Vec<Sampler>,
    /// Which step it was.
    step: u64,
}

/// What most likely follows `known`: what followed the same tokens the last time.
fn look_up(known: &[TokenId], most: usize) -> Vec<TokenId> {
    let len = known.len();
    let mut best = (ALIKE_MIN - 1, 0);
    for end in (len.saturating_sub(LOOKED_BACK)..len.saturating_sub(1)).rev() {
        if known[end] != known[len - 1] {
            continue;
        }
        let pairs = known[..=end].iter().rev().zip(known.iter().rev());
        let alike = pairs.take(ALIKE_ENOUGH).take_while(|(a, b)| a == b).count();
        if alike > best.0 {
            best = (alike, end + 1);
            if alike >= ALIKE_ENOUGH {
                break;
            }
        }
    }
    let (alike, from) = best;
    if alike < ALIKE_MIN {
        return Vec::new();
    }
    let mut guesses: Vec<TokenId> = Vec::with_capacity(most);
    for at in 0..most {
        // A repetition that reaches the end goes on with itself.
        let guess = known.get(from + at).copied().unwrap_or_else(|| guesses[from + at - len]);
        guesses.push(guess);
    }
    guesses
}

impl Guessing {
    /// At most so many guesses a pass, looked up in the sequence; 0 never guesses.
    pub(crate) fn new(guesses_max: u32) -> Self {
        Self {
            guesses_max: guesses_max as usize,
            guesser: Box::new(look_up),
            draft: None,
            pace: Pace::default(),
            figures: Default::default(),
        }
    }

    /// Another guesser, followed always.
    pub(crate) fn always(guesses_max: u32, guesser: Option<Guesser>) -> Self {
        let mut guessing = Self::new(guesses_max);
        guessing.pace.always = true;
        if let Some(guesser) = guesser {
            guessing.guesser = guesser;
        }
        guessing
    }

    /// From now on asks `draft` too.
    pub(crate) fn ask(&mut self, draft: Draft) {
        self.draft = Some(draft);
    }

    /// Runs what a guess runs, so that the first one waits for no kernel.
    pub(crate) fn warm_up(
        &mut self,
        known: &[TokenId],
        sampler: &Sampler,
        vocab: i32,
        depth: usize,
    ) -> Result<()> {
        if let Some(draft) = &mut self.draft {
            draft.guess(known, 2, sampler, vocab, depth)?;
            draft.forget();
        }
        Ok(())
    }

    /// Gives back what the draft model remembers.
    pub(crate) fn forget(&mut self) {
        self.draft.iter_mut().for_each(Draft::forget);
    }

    /// How many tokens a pass may have to take back.
    fn most(&self) -> usize {
        let drafts = self.draft.as_ref().map_or(0, Draft::guesses_max);
        self.guesses_max.max(drafts)
    }

    /// What runs now is not one sequence's steps.
    pub(crate) fn interrupt(&mut self) {
        self.pace.since = None;
    }

    /// One plain step of one sequence was collected.
    pub(crate) fn step_done(&mut self) {
        self.pace.passes = 0;
        if let Some(took) = self.pace.lap() {
            self.pace.step.add(took.as_secs_f64());
        }
    }
}

impl Ahead {
    /// A step takes one of the tokens that are there, if one is left.
    fn promise(&mut self) -> bool {
        let left = self.ready.len() > self.promised;
        self.promised += usize::from(left);
        left
    }
}

/// So many positions can be computed at once and taken back from it.
fn can_go_back(state: &State, positions: usize) -> bool {
    let end = state.position + positions as i32;
    let all = |layer: &LayerState| match layer {
        LayerState::Kv(kv) => {
            kv.window().is_none() && kv.rotation().is_none_or(|by| !by.drops_at(end))
        }
        LayerState::Recurrent(_) => false,
    };
    state.layers.iter().all(all)
}

impl MlxEngine {
    /// How guessing from `source` went since the start.
    pub fn guessed(&self, source: Source) -> Guessed {
        self.guessing.figures[source as usize]
    }

    /// Guesses always, so many tokens a pass: as `guesser` says, else as looked up. For testing.
    pub fn always_guessing(mut self, guesses_max: u32, guesser: Option<Guesser>) -> Self {
        let draft = self.guessing.draft.take();
        self.guessing = Guessing { draft, ..Guessing::always(guesses_max, guesser) };
        self
    }

    /// Whether the next token of `seq` came ahead of its step, which then takes it.
    pub(crate) fn comes_ahead(&mut self, seq: SeqId) -> Result<bool> {
        let promise = |engine: &mut Self| {
            engine.sequences.get_mut(&seq).is_some_and(|sequence| sequence.ahead.promise())
        };
        if promise(self) {
            return Ok(true);
        }
        self.settle(seq)?;
        Ok(promise(self))
    }

    /// The token of a step that [took](Self::comes_ahead) one.
    pub(crate) fn take_ahead(&mut self, seq: SeqId) -> Result<Option<Token>> {
        self.settle(seq)?;
        let Some(sequence) = self.sequences.get_mut(&seq) else {
            return Ok(None); // closed meanwhile
        };
        let ahead = &mut sequence.ahead;
        ahead.promised -= 1;
        let (token, ends) = ahead
            .ready
            .pop_front()
            .ok_or_else(|| Exception::custom("a step took a token that never came"))?;
        self.guessing.pace.token(ends);
        Ok(Some(token))
    }

    /// Submits a pass over guesses for `seq`, which decodes alone, if that promises to be quicker
    /// than a step. Its first token is taken by the step that asked.
    pub(crate) fn guess(&mut self, seq: SeqId) -> Result<bool> {
        let Some((source, guesses)) = self.guesses_for(seq)? else {
            return Ok(false);
        };
        let Some(sequence) = self.sequences.get_mut(&seq) else {
            return Ok(false);
        };
        let (Some(state), Some(last)) = (sequence.state.as_mut(), sequence.known.last()) else {
            return Ok(false);
        };
        let ids: Vec<TokenId> = std::iter::once(*last).chain(guesses.iter().copied()).collect();
        let count = ids.len() as i32;
        let hidden = self.model.forward(&Array::from_slice(&ids, &[1, count]), state)?;
        let hidden = hidden.reshape(&[count, 1, hidden.dim(2)])?;
        let logits = self.model.logits(&hidden)?;
        let (drawn, samplers) = draw_along(&logits, &sequence.sampler, &guesses)?;
        if self.depth > 1 {
            async_eval(drawn.arrays())?;
        }
        let figures = &mut self.guessing.figures[source as usize];
        figures.passes += 1;
        figures.guesses += guesses.len() as u64;
        sequence.ahead.promised += 1;
        sequence.ahead.pass = Some(Pass { source, guesses, drawn, samplers, step: self.steps });
        Ok(true)
    }

    /// At least one guess of what follows the tokens of `seq`, and whose it is.
    fn guesses_for(&mut self, seq: SeqId) -> Result<Option<(Source, Vec<TokenId>)>> {
        let unread = self.flights.iter().filter(|flight| flight.is_unread(seq)).count();
        if self.guessing.most() == 0 || self.deterministic || seq.is_measured() {
            return Ok(None);
        }
        let room = |engine: &Self| {
            let sequence = engine.sequences.get(&seq)?;
            let most = engine.guessing.most();
            let state = sequence.state.as_ref().filter(|state| can_go_back(state, most + 1))?;
            // As many tokens as the guesses and one more must have a place.
            let left = usize::try_from(state.capacity - state.position - 2).ok()?;
            let most = state.at_once(left.min(most) + 1) - 1;
            Some((most, state.position as usize))
        };
        let Some((most, position)) = room(self).filter(|(most, _)| *most > 0) else {
            return Ok(None);
        };
        let Guessing { guesses_max, guesser, draft, pace, .. } = &mut self.guessing;
        let known = &self.sequences[&seq].known;
        let of_text = most.min(*guesses_max);
        let repeats = of_text > 0 && guesser(known, of_text + unread).len() > unread;
        let source = if repeats && pace.tries(Source::Text) {
            Source::Text
        } else if draft.is_some() && pace.tries(Source::Draft) {
            Source::Draft
        } else {
            return Ok(None);
        };
        if unread > 0 {
            // Wait for what is on its way: guesses follow a token that is known.
            self.read_flights()?;
        }
        let Sequence { known, sampler, .. } = &self.sequences[&seq];
        if known.len() != position + 1 {
            return Ok(None);
        }
        let vocab = self.info.vocab_size;
        let Guessing { guesser, draft, pace, .. } = &mut self.guessing;
        let mut guesses = match (source, draft) {
            (Source::Draft, Some(draft)) => {
                match draft.guess(known, most, sampler, vocab as i32, self.depth)? {
                    Guesses::Made(guesses) => guesses,
                    Guesses::Behind => {
                        // The step that comes now took longer than steps do.
                        pace.since = None;
                        Vec::new()
                    }
                }
            }
            _ => guesser(known, of_text),
        };
        guesses.truncate(most);
        let sane = guesses.iter().take_while(|guess| **guess < vocab).count();
        guesses.truncate(sane);
        Ok(Some((source, guesses)).filter(|(_, guesses)| !guesses.is_empty()))
    }

    /// Waits for the pass of `seq`, if there is one, and takes back what it ran too far.
    fn settle(&mut self, seq: SeqId) -> Result<()> {
        let Some(sequence) = self.sequences.get_mut(&seq) else {
            return Ok(());
        };
        let Some(pass) = sequence.ahead.pass.take() else {
            return Ok(());
        };
        let Pass { source, guesses, drawn, mut samplers, step } = pass;
        eval(drawn.arrays())?;
        let mut tokens = drawn.read()?;
        let right = guesses.iter().zip(&tokens).take_while(|(guess, token)| **guess == token.id);
        let right = right.count();
        tokens.truncate(right + 1);
        self.guessing.figures[source as usize].right += right as u64;
        if let Some(state) = sequence.state.as_mut() {
            state.position -= (guesses.len() - right) as i32;
        }
        sequence.sampler = samplers.swap_remove(right);
        sequence.last = Some(LastToken::known(tokens[right].id, step));
        sequence.known.extend(tokens.iter().map(|token| token.id));
        let last = tokens.len() - 1;
        let ends = |at| (at == last).then_some(source);
        let ready = tokens.into_iter().enumerate().map(|(at, token)| (token, ends(at)));
        sequence.ahead.ready.extend(ready);
        Ok(())
    }

    /// Takes back what `seq` ran beyond the tokens that were given out.
    pub(crate) fn forget_ahead(&mut self, seq: SeqId) -> Result<()> {
        self.settle(seq)?;
        if let Some(sequence) = self.sequences.get_mut(&seq)
            && let Some(state) = sequence.state.as_mut()
        {
            state.position -= sequence.ahead.ready.len() as i32;
            sequence.ahead.ready.clear();
        }
        Ok(())
    }
}

/// A mean in which the last few count most.
#[derive(Debug, Clone, Copy, Default)]
struct Mean {
    value: f64,
    count: u32,
}

impl Mean {
    /// The share of a new value, once there are enough.
    const SHARE: f64 = 0.1;

    fn add(&mut self, value: f64) {
        self.count = self.count.saturating_add(1);
        let share = (1.0 / f64::from(self.count)).max(Self::SHARE);
        self.value += share * (value - self.value);
    }
}

/// The last few values, of which one that is far off says nothing.
#[derive(Debug, Clone, Default)]
struct Recent {
    last: [f64; Self::KEPT],
    count: usize,
    /// The one in the middle; 0 for none.
    typical: f64,
}

impl Recent {
    const KEPT: usize = 9;

    fn add(&mut self, value: f64) {
        self.last[self.count % Self::KEPT] = value;
        self.count += 1;
        let mut sorted = self.last;
        let there = &mut sorted[..self.count.min(Self::KEPT)];
        there.sort_by(f64::total_cmp);
        self.typical = there[there.len() / 2];
    }
}

/// Whether guessing is worth its time.
#[derive(Debug, Default)]
struct Pace {
    /// Seconds of a plain step.
    step: Recent,
    /// Passes since the last plain step, and plain steps that are to come whatever pays: what they
    /// take may have changed.
    passes: u32,
    plain: u32,
    /// By [`Source`].
    worth: [Worth; 2],
    /// When the last token of one sequence's steps was collected.
    since: Option<Instant>,
    /// Of the pass whose tokens are being given out.
    current: (Duration, u32),
    always: bool,
}

/// What one source's guesses come to.
#[derive(Debug, Default)]
struct Worth {
    /// Seconds of a pass, and tokens that it gave.
    pass: Recent,
    tokens: Mean,
    /// Passes left of a trial.
    trial: u32,
    /// Chances to let pass before the next trial, and before the one after that.
    rest: u32,
    pause: u32,
}

impl Pace {
    /// Plain steps before the first trial.
    const STEPS_MIN: usize = 8;
    /// Passes one after the other, and the plain steps then.
    const PASSES_MAX: u32 = 64;
    const STEPS_AGAIN: u32 = 3;

    /// Whether a chance to guess is taken.
    fn tries(&mut self, source: Source) -> bool {
        if self.always {
            return true;
        }
        if self.passes >= Self::PASSES_MAX {
            (self.passes, self.plain) = (0, Self::STEPS_AGAIN);
        }
        if self.plain > 0 {
            self.plain -= 1;
            return false;
        }
        self.step.count >= Self::STEPS_MIN && self.takes(source)
    }

    fn takes(&mut self, source: Source) -> bool {
        let step = self.step.typical;
        self.worth(source).tries(step)
    }

    fn worth(&mut self, source: Source) -> &mut Worth {
        &mut self.worth[source as usize]
    }

    /// Time since the last token, if that was of the same run of steps.
    fn lap(&mut self) -> Option<Duration> {
        let now = Instant::now();
        let since = self.since.replace(now)?;
        Some(now - since)
    }

    /// A token of a pass was given out; the last of one says whose it was.
    fn token(&mut self, ends: Option<Source>) {
        let lap = self.lap();
        let (time, tokens) = self.current;
        self.current = (time + lap.unwrap_or_default(), tokens + 1);
        if let Some(source) = ends {
            let (time, tokens) = std::mem::take(&mut self.current);
            self.passed(source, time.as_secs_f64(), tokens);
        }
    }

    fn passed(&mut self, source: Source, seconds: f64, tokens: u32) {
        let step = self.step.typical;
        self.passes += 1;
        self.worth(source).passed(step, seconds, tokens);
    }
}

impl Worth {
    /// Passes of a trial.
    const TRIAL: u32 = 4;
    /// Chances let pass after the first trial that was lost, and at the most.
    const PAUSE: (u32, u32) = (32, 4096);
    /// How much better guessing has to be.
    const MARGIN: f64 = 0.97;

    /// Whether a token of its passes takes less than a step, of which `step` are the seconds.
    fn wins(&self, step: f64) -> bool {
        let each = self.pass.typical / self.tokens.value.max(1.0);
        self.pass.count >= Self::TRIAL as usize && each < step * Self::MARGIN
    }

    fn tries(&mut self, step: f64) -> bool {
        if self.trial > 0 || self.wins(step) {
            return true;
        }
        if self.rest > 0 {
            self.rest -= 1;
            return false;
        }
        self.trial = Self::TRIAL;
        true
    }

    fn passed(&mut self, step: f64, seconds: f64, tokens: u32) {
        if seconds > 0.0 {
            self.pass.add(seconds);
            self.tokens.add(f64::from(tokens));
        }
        let wins = self.wins(step);
        if wins {
            self.pause = Self::PAUSE.0;
        }
        if self.trial > 0 {
            self.trial -= 1;
            if self.trial == 0 {
                let ms = |seconds: f64| 1e3 * seconds;
                let (pass, tokens) = (self.pass.typical, self.tokens.value);
                tracing::debug!(
                    wins,
                    pass_ms = ms(pass),
                    tokens,
                    step_ms = ms(step),
                    "a trial of guessing ended"
                );
            }
            if self.trial == 0 && !wins {
                self.rest = self.pause.max(Self::PAUSE.0);
                self.pause = (self.rest * 2).min(Self::PAUSE.1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_followed_the_last_time_is_guessed() {
        let known = [1, 2, 3, 4, 9, 1, 2, 3, 5, 6, 7, 8, 1, 2, 3];
        assert_eq!(look_up(&known, 4), [5, 6, 7, 8]);
        // A longer likeness goes before a later one.
        let known = [9, 1, 2, 3, 4, 7, 1, 2, 3, 5, 9, 1, 2, 3];
        assert_eq!(look_up(&known, 2), [4, 7]);
        assert_eq!(look_up(&[7, 8, 9, 7, 8, 9], 5), [7, 8, 9, 7, 8]);
        assert_eq!(look_up(&[5, 5, 5, 5], 3), [5, 5, 5]);
        for nothing in [&[][..], &[1], &[1, 2, 3], &[2, 3, 0, 2, 3]] {
            assert_eq!(look_up(nothing, 3), [0; 0], "{nothing:?}");
        }
    }

    proptest! {
        #[test]
        fn guesses_come_from_what_is_known(
            known in proptest::collection::vec(0u32..4, 0..60),
            most in 0usize..12,
        ) {
            let guesses = look_up(&known, most);
            prop_assert!(guesses.is_empty() || guesses.len() == most);
            prop_assert!(guesses.iter().all(|guess| known.contains(guess)));
        }
    }

    fn pace(step: f64) -> Pace {
        let mut pace = Pace::default();
        (0..Pace::STEPS_MIN).for_each(|_| pace.step.add(step));
        pace
    }

    /// A chance that, taken, gives so many tokens for the time of one and a half.
    fn tries_and_gives(pace: &mut Pace, tokens: u32) -> bool {
        let tries = pace.tries(Source::Text);
        if tries {
            pace.passed(Source::Text, 1.5, tokens);
        }
        tries
    }

    #[test]
    fn guessing_that_wins_goes_on_and_ends_when_it_loses() {
        assert!(!Pace::default().tries(Source::Text), "nothing to compare with");
        let mut pace = pace(1.0);
        let wins = (0..1000).filter(|_| tries_and_gives(&mut pace, 3)).count();
        assert!(wins > 900, "{wins} of 1000 chances taken by what wins");
        let tried = (0..1000).filter(|_| tries_and_gives(&mut pace, 1)).count();
        assert!(tried < 60, "{tried} of 1000 chances taken by what loses");
    }

    /// The first steps of a process may wait for kernels.
    #[test]
    fn what_looked_better_than_slow_first_steps_is_found_out() {
        let mut pace = pace(10.0);
        let mut chance = || match tries_and_gives(&mut pace, 1) {
            true => true,
            false => {
                pace.step.add(1.0);
                false
            }
        };
        let first = (0..300).filter(|_| chance()).count();
        let later = (0..1000).filter(|_| chance()).count();
        assert!(first > 100 && later < 60, "{first} of 300, then {later} of 1000");
    }

    #[test]
    fn guessing_that_loses_rests_longer_and_longer() {
        let mut pace = pace(1.0);
        let mut taken =
            |chances: usize| (0..chances).filter(|_| tries_and_gives(&mut pace, 1)).count();
        let first = taken(500);
        assert!((8..=24).contains(&first), "{first} of the first 500");
        assert!(taken(5000) <= 24);
        let better = (0..2 * Worth::PAUSE.1).filter(|_| tries_and_gives(&mut pace, 4)).count();
        assert!(better > 1000, "what wins later is found: {better}");
    }

    #[test]
    fn one_source_that_loses_does_not_stop_the_other() {
        let mut pace = pace(1.0);
        while pace.tries(Source::Text) {
            pace.passed(Source::Text, 1.5, 1);
        }
        for _ in 0..30 {
            assert!(pace.tries(Source::Draft));
            pace.passed(Source::Draft, 1.5, 3);
        }
    }
}
