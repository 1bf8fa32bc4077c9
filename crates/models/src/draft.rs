//! A small model that guesses for a large one.
//!
//! It follows the one sequence that decodes alone: what it ran of the last one and both begin with
//! alike stays, the rest is run anew, a piece at a time, so that no step of the sequence waits for a
//! long prompt. Each guess is drawn as the large model's token will be, by the same sampler with the
//! same noise ([`Sampler`]), so that sampled tokens agree as often as the two models do.

use mlx_rs::Array;
use mlx_rs::error::Result;
use mlx_rs::ops::concatenate;
use mlx_rs::transforms::{async_eval, eval};
use mlxd_protocol::TokenId;

use crate::arch::{Model, State};
use crate::sample::{Drawn, Sampler};
use crate::sys;

/// A loaded model, and what it remembers of one sequence.
pub(crate) struct Draft {
    model: Box<dyn Model>,
    state: State,
    /// What `state` is of.
    ran: Vec<TokenId>,
    /// Rows of its embedding.
    vocab: u32,
    context: usize,
    guesses_max: usize,
    /// Tokens run in one piece.
    piece: usize,
}

/// What a [`Draft`] had to say.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Guesses {
    /// It guesses these; none where it knows the sequence's tokens not, or has no room for them.
    Made(Vec<TokenId>),
    /// It ran a piece and has more to run first.
    Behind,
}

impl Draft {
    /// Guesses `guesses_max` tokens at the most, and runs `piece` at the most before it does.
    pub(crate) fn new(
        model: Box<dyn Model>,
        (vocab, context): (u32, u32),
        guesses_max: u32,
        piece: u32,
    ) -> Self {
        Self {
            state: model.state(context as i32),
            model,
            ran: Vec::new(),
            vocab,
            context: context as usize,
            guesses_max: guesses_max as usize,
            piece: piece.max(1) as usize,
        }
    }

    /// Guesses at a time.
    pub(crate) fn guesses_max(&self) -> usize {
        self.guesses_max
    }

    /// Forgets the sequence.
    pub(crate) fn forget(&mut self) {
        self.state = self.model.state(self.context as i32);
        self.ran.clear();
    }

    /// What follows `known`: `most` tokens at the most, of a vocabulary of `vocab`. `depth` as the
    /// engine's.
    pub(crate) fn guess(
        &mut self,
        known: &[TokenId],
        most: usize,
        sampler: &Sampler,
        vocab: i32,
        depth: usize,
    ) -> Result<Guesses> {
        let most = most.min(self.guesses_max).min(self.context.saturating_sub(known.len()));
        let alike = self.ran.iter().zip(known).take_while(|(a, b)| a == b).count();
        let alike = alike.min(known.len().saturating_sub(1));
        let new = &known[alike..];
        if most == 0 || new.is_empty() || new.iter().any(|token| *token >= self.vocab) {
            return Ok(Guesses::Made(Vec::new()));
        }
        self.ran.truncate(alike);
        self.state.position = alike as i32;
        let behind = new.len() > self.piece;
        let new = &new[..new.len().min(self.piece)];
        let ids = Array::from_slice(new, &[1, new.len() as i32]);
        let mut hidden = self.model.forward(&ids, &mut self.state)?;
        self.ran.extend(new);
        if behind {
            eval(self.state.arrays())?;
            return Ok(Guesses::Behind);
        }
        let mut sampler = sampler.without_logprobs();
        let mut tokens = Vec::with_capacity(most);
        loop {
            let logits = as_wide(&self.model.logits(&hidden)?, vocab)?;
            let token = sampler.draw(&logits)?.tokens;
            match depth {
                1 => eval([&token])?,
                _ => async_eval([&token])?,
            }
            tokens.push(token);
            if tokens.len() == most {
                break;
            }
            hidden = self.model.forward(&tokens[tokens.len() - 1], &mut self.state)?;
        }
        let logprobs = tokens.iter().map(|_| None).collect();
        let drawn = Drawn { tokens: concatenate(&tokens, 0)?, logprobs };
        eval(drawn.arrays())?;
        let guesses: Vec<TokenId> = drawn.read()?.into_iter().map(|token| token.id).collect();
        // The last was not run.
        self.ran.extend(&guesses[..most - 1]);
        Ok(Guesses::Made(guesses))
    }
}

/// `logits`, `[1, n]`, as those of a vocabulary of `vocab`: what is beyond is never drawn, what
/// lacks neither.
fn as_wide(logits: &Array, vocab: i32) -> Result<Array> {
    let width = logits.dim(1);
    if width > vocab {
        return sys::slice(logits, &[0, 0], &[1, vocab]);
    }
    if width == vocab {
        return Ok(logits.clone());
    }
    let lacking = vec![f32::NEG_INFINITY; (vocab - width) as usize];
    let lacking = Array::from_slice(&lacking, &[1, vocab - width]).as_dtype(logits.dtype())?;
    concatenate(&[logits, &lacking], 1)
}
