//! Tokens guessed from what stands in the sequence already, and checked several at once.
//!
//! A sequence that decodes alone and repeats something that it holds is likely to go on as it did
//! there ("prompt lookup": Saxena, 2023). One pass over the last token and the guesses gives the
//! logits behind each of them; from each a token is drawn as a step would draw it, with the key of
//! its own index and the penalties of what came before. As long as the drawn token is the guess,
//! the next one is what the next step would have drawn. So the tokens are those of plain decoding,
//! greedy or sampled; only sums are made in another order, as they are in company.
//!
//! Tokens are given out one a step, as ever: those that came ahead of their step wait here. Guessing
//! goes on only while it gives tokens faster than plain steps do, by the clock; where it does not,
//! it is tried again later and later.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use mlx_rs::Array;
use mlx_rs::error::{Exception, Result};
use mlx_rs::transforms::{async_eval, eval};
use mlxd_engine::SeqId;
use mlxd_protocol::TokenId;

use crate::arch::{LayerState, State};
use crate::engine::MlxEngine;
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

/// When and how guesses are made.
pub(crate) struct Guessing {
    guesses_max: usize,
    guesser: Guesser,
    pace: Pace,
    figures: Guessed,
}

/// A sequence's tokens that came ahead of their step.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    ready: VecDeque<Token>,
    /// Steps in flight that will take one.
    promised: usize,
    pass: Option<Pass>,
}

/// A pass that was submitted.
#[derive(Debug)]
struct Pass {
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
            pace: Pace::default(),
            figures: Guessed::default(),
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

    pub(crate) fn figures(&self) -> Guessed {
        self.figures
    }

    /// What runs now is not one sequence's steps.
    pub(crate) fn interrupt(&mut self) {
        self.pace.since = None;
    }

    /// One plain step of one sequence was collected.
    pub(crate) fn step_done(&mut self) {
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
    /// How guessing went since the start.
    pub fn guessed(&self) -> Guessed {
        self.guessing.figures()
    }

    /// Guesses always, so many tokens a pass: as `guesser` says, else as looked up. For testing.
    pub fn always_guessing(mut self, guesses_max: u32, guesser: Option<Guesser>) -> Self {
        self.guessing = Guessing::always(guesses_max, guesser);
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
        let token = ahead.ready.pop_front();
        self.guessing.pace.token(ahead.ready.is_empty());
        token.map(Some).ok_or_else(|| Exception::custom("a step took a token that never came"))
    }

    /// Submits a pass over guesses for `seq`, which decodes alone, if that promises to be quicker
    /// than a step. Its first token is taken by the step that asked.
    pub(crate) fn guess(&mut self, seq: SeqId) -> Result<bool> {
        let guesses = self.guesses_for(seq)?;
        let Some(sequence) = self.sequences.get_mut(&seq).filter(|_| !guesses.is_empty()) else {
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
        self.guessing.figures.passes += 1;
        self.guessing.figures.guesses += guesses.len() as u64;
        sequence.ahead.promised += 1;
        sequence.ahead.pass = Some(Pass { guesses, drawn, samplers, step: self.steps });
        Ok(true)
    }

    fn guesses_for(&mut self, seq: SeqId) -> Result<Vec<TokenId>> {
        let unread = self.flights.iter().filter(|flight| flight.is_unread(seq)).count();
        let none = Vec::new();
        if self.guessing.guesses_max == 0 || self.deterministic || seq.is_measured() {
            return Ok(none);
        }
        let room = |engine: &Self| {
            let sequence = engine.sequences.get(&seq)?;
            let most = engine.guessing.guesses_max + 1;
            let state = sequence.state.as_ref().filter(|state| can_go_back(state, most))?;
            // As many tokens as the guesses and one more must have a place.
            let left = usize::try_from(state.capacity - state.position - 2).ok()?;
            Some((left.min(engine.guessing.guesses_max), state.position as usize))
        };
        let Some((most, position)) = room(self) else {
            return Ok(none);
        };
        let Guessing { guesser, pace, .. } = &mut self.guessing;
        let known = &self.sequences[&seq].known;
        if most == 0 || guesser(known, most + unread).len() <= unread || !pace.tries() {
            return Ok(none);
        }
        if unread > 0 {
            // Wait for what is on its way: guesses follow a token that is known.
            self.read_flights()?;
        }
        let known = &self.sequences[&seq].known;
        if known.len() != position + 1 {
            return Ok(none);
        }
        let vocab = self.info.vocab_size;
        let mut guesses = (self.guessing.guesser)(known, most);
        guesses.truncate(most);
        let sane = guesses.iter().take_while(|guess| **guess < vocab).count();
        guesses.truncate(sane);
        Ok(guesses)
    }

    /// Waits for the pass of `seq`, if there is one, and takes back what it ran too far.
    fn settle(&mut self, seq: SeqId) -> Result<()> {
        let Some(sequence) = self.sequences.get_mut(&seq) else {
            return Ok(());
        };
        let Some(Pass { guesses, drawn, mut samplers, step }) = sequence.ahead.pass.take() else {
            return Ok(());
        };
        eval(drawn.arrays())?;
        let mut tokens = drawn.read()?;
        let right = guesses.iter().zip(&tokens).take_while(|(guess, token)| **guess == token.id);
        let right = right.count();
        tokens.truncate(right + 1);
        self.guessing.figures.right += right as u64;
        if let Some(state) = sequence.state.as_mut() {
            state.position -= (guesses.len() - right) as i32;
        }
        sequence.sampler = samplers.swap_remove(right);
        sequence.last = Some(LastToken::known(tokens[right].id, step));
        sequence.known.extend(tokens.iter().map(|token| token.id));
        sequence.ahead.ready.extend(tokens);
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

/// Whether guessing is worth its time.
#[derive(Debug, Default)]
struct Pace {
    /// Seconds of a plain step.
    step: Mean,
    /// Seconds of a pass, and tokens that it gave.
    pass: Mean,
    tokens: Mean,
    /// When the last token of one sequence's steps was collected.
    since: Option<Instant>,
    /// Of the pass whose tokens are being given out.
    current: (Duration, u32),
    /// Passes left of a trial.
    trial: u32,
    /// Chances to let pass before the next trial, and before the one after that.
    rest: u32,
    pause: u32,
    always: bool,
}

impl Pace {
    /// Plain steps before the first trial.
    const STEPS_MIN: u32 = 8;
    /// Passes of a trial.
    const TRIAL: u32 = 4;
    /// Chances let pass after the first trial that was lost, and at the most.
    const PAUSE: (u32, u32) = (32, 4096);
    /// How much better guessing has to be.
    const MARGIN: f64 = 0.97;

    fn wins(&self) -> bool {
        let each = self.pass.value / self.tokens.value.max(1.0);
        self.pass.count >= Self::TRIAL && each < self.step.value * Self::MARGIN
    }

    /// Whether a chance to guess is taken.
    fn tries(&mut self) -> bool {
        if self.always || self.trial > 0 {
            return true;
        }
        if self.step.count < Self::STEPS_MIN {
            return false;
        }
        if self.wins() {
            return true;
        }
        if self.rest > 0 {
            self.rest -= 1;
            return false;
        }
        self.trial = Self::TRIAL;
        true
    }

    /// Time since the last token, if that was of the same run of steps.
    fn lap(&mut self) -> Option<Duration> {
        let now = Instant::now();
        let since = self.since.replace(now)?;
        Some(now - since)
    }

    /// A token of a pass was given out; the last of them or not.
    fn token(&mut self, last: bool) {
        let lap = self.lap();
        let (time, tokens) = self.current;
        self.current = (time + lap.unwrap_or_default(), tokens + 1);
        if last {
            let (time, tokens) = std::mem::take(&mut self.current);
            self.passed(time.as_secs_f64(), tokens);
        }
    }

    fn passed(&mut self, seconds: f64, tokens: u32) {
        if seconds > 0.0 {
            self.pass.add(seconds);
            self.tokens.add(f64::from(tokens));
        }
        if self.wins() {
            self.pause = Self::PAUSE.0;
        }
        if self.trial > 0 {
            self.trial -= 1;
            if self.trial == 0 && !self.wins() {
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

    #[test]
    fn guessing_that_wins_goes_on_and_ends_when_it_loses() {
        assert!(!Pace::default().tries(), "nothing to compare with");
        let mut pace = pace(1.0);
        for _ in 0..100 {
            assert!(pace.tries());
            pace.passed(1.5, 3);
        }
        let tried = (0..1000).filter(|_| pace.tries().then(|| pace.passed(1.5, 1)).is_some());
        let tried = tried.count();
        assert!(tried < 60, "{tried} of 1000 chances taken by what loses");
    }

    #[test]
    fn guessing_that_loses_rests_longer_and_longer() {
        let mut pace = pace(1.0);
        let mut taken = |chances: usize| {
            (0..chances).filter(|_| pace.tries().then(|| pace.passed(1.5, 1)).is_some()).count()
        };
        let first = taken(500);
        assert!((8..=24).contains(&first), "{first} of the first 500");
        assert!(taken(5000) <= 24);
        let mut better = 0;
        for _ in 0..2 * Pace::PAUSE.1 {
            if pace.tries() {
                better += 1;
                pace.passed(1.5, 4);
            }
        }
        assert!(better > 1000, "what wins later is found: {better}");
    }
}
