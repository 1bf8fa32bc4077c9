//! One running sequence, as the scheduler sees it.

use crate::engine::{Opened, SeqId, SeqSpec, StepToken};
use crate::shares::Deposit;
use crate::waiting::{Pending, Ticket};
use mlxd_protocol::{RequestId, Started, TokenFlags, TokenId, TokenRecord, TopLogprobs};
use std::time::{Duration, Instant};

/// A sequence that the engine holds.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) seq: SeqId,
    pub(crate) request: RequestId,
    pub(crate) trace: String,
    pub(crate) ticket: Ticket,
    pub(crate) deposit: Deposit,
    /// Until then nobody pushes it out: it waited long for its place.
    pub(crate) protected_until: Option<Instant>,
    stop_tokens: Vec<TokenId>,
    logprobs: Option<u8>,
    prompt_len: usize,
    /// Tokens collected, by this and earlier incarnations: the next record's index.
    generated: u32,
    /// Tokens asked of the engine, those in flight included.
    submitted: u32,
    generated_max: u32,
    arrived: Instant,
    prefill: Prefill,
    cached_tokens: u32,
    first_published: bool,
}

#[derive(Debug, Clone, Copy)]
enum Prefill {
    NotBegun {
        tokens: usize,
    },
    Begun {
        at: Instant,
        left: usize,
    },
    /// `took` is filled in by the first tick after the last chunk.
    Done {
        at: Instant,
        took: Option<Duration>,
    },
}

impl Row {
    /// A row for `pending`, and what the engine must know of it.
    pub(crate) fn new(seq: SeqId, ticket: Ticket, pending: Pending) -> (Self, SeqSpec) {
        let Pending { submit, bounds, arrived } = pending;
        let prompt_len = submit.prompt_len as usize;
        let row = Self {
            seq,
            request: submit.request,
            trace: submit.trace,
            ticket,
            deposit: Deposit::default(),
            protected_until: None,
            stop_tokens: submit.stop_tokens,
            logprobs: submit.logprobs,
            prompt_len,
            generated: bounds.generated,
            submitted: bounds.generated,
            generated_max: bounds.generated_max,
            arrived,
            prefill: Prefill::NotBegun { tokens: submit.tokens.len() - 1 },
            cached_tokens: 0,
            first_published: false,
        };
        let spec = SeqSpec {
            tokens: submit.tokens,
            prompt_len,
            sampling: submit.sampling,
            logprobs: submit.logprobs,
            capacity: prompt_len + bounds.generated_max as usize,
        };
        (row, spec)
    }

    /// Notes what the engine had of it already.
    pub(crate) fn opened(&mut self, opened: Opened) {
        if let Prefill::NotBegun { tokens } = &mut self.prefill {
            let cached = opened.cached_tokens.min(*tokens);
            *tokens -= cached;
            // Of a replayed sequence, only what is prompt counts as the client's.
            self.cached_tokens = cached.min(self.prompt_len) as u32;
        }
    }

    /// Notes how much the engine had of it in all. Returns how much that is more than was known.
    pub(crate) fn found(&mut self, tokens: usize) -> usize {
        let tokens = tokens.min(self.prompt_len) as u32;
        let more = tokens.saturating_sub(self.cached_tokens);
        self.cached_tokens += more;
        more as usize
    }

    /// Prompt and generated tokens so far.
    pub(crate) fn tokens(&self) -> usize {
        self.prompt_len + self.generated as usize
    }

    /// Tokens that may still be generated.
    pub(crate) fn generated_left(&self) -> u32 {
        self.generated_max - self.generated
    }

    /// Tokens generated so far, by all incarnations.
    pub(crate) fn generated(&self) -> u32 {
        self.generated
    }

    /// Time since its submit was read.
    pub(crate) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.arrived)
    }

    /// Known tokens to run before the first step.
    pub(crate) fn unfilled(&self) -> usize {
        match self.prefill {
            Prefill::NotBegun { tokens } => tokens,
            Prefill::Begun { left, .. } => left,
            Prefill::Done { .. } => 0,
        }
    }

    /// Whether its deadline passed before its first token was on its way.
    pub(crate) fn is_late(&self, now: Instant) -> bool {
        self.prefilling() && self.ticket.is_late(now)
    }

    pub(crate) fn prefilling(&self) -> bool {
        !matches!(self.prefill, Prefill::Done { .. })
    }

    /// Whether another step may be submitted for it.
    pub(crate) fn wants_step(&self) -> bool {
        !self.prefilling() && self.submitted < self.generated_max
    }

    /// Whether a submitted step of it has not been collected.
    pub(crate) fn in_flight(&self) -> bool {
        self.submitted > self.generated
    }

    pub(crate) fn step_submitted(&mut self) {
        self.submitted += 1;
    }

    /// Notes that a chunk ran which began at `now` and left `left` tokens. Returns how many ran.
    pub(crate) fn chunk_ran(&mut self, now: Instant, left: usize) -> usize {
        let (at, before) = match self.prefill {
            Prefill::NotBegun { tokens } => (now, tokens),
            Prefill::Begun { at, left } => (at, left),
            Prefill::Done { at, .. } => (at, 0),
        };
        self.prefill =
            if left == 0 { Prefill::Done { at, took: None } } else { Prefill::Begun { at, left } };
        before.saturating_sub(left)
    }

    /// Notes when the prefill was first seen to be over.
    pub(crate) fn clock_prefill(&mut self, now: Instant) {
        if let Prefill::Done { at, took: took @ None } = &mut self.prefill {
            *took = Some(now.saturating_duration_since(*at));
        }
    }

    /// What to publish before the first token of this incarnation; `None` afterwards.
    pub(crate) fn started(&mut self) -> Option<Started> {
        let Prefill::Done { at, took } = self.prefill else {
            return None;
        };
        if std::mem::replace(&mut self.first_published, true) {
            return None;
        }
        Some(Started {
            request: self.request,
            cached_tokens: self.cached_tokens,
            queued_us: micros(at.saturating_duration_since(self.arrived)),
            prefill_us: micros(took.unwrap_or_default()),
        })
    }

    /// Takes a collected token: its record, and its alternatives if they were asked for.
    pub(crate) fn take(&mut self, token: &mut StepToken) -> (TokenRecord, Option<TopLogprobs>) {
        let index = self.generated;
        self.generated += 1;
        let flags = if self.stop_tokens.contains(&token.token) {
            TokenFlags::STOP
        } else if self.generated == self.generated_max {
            TokenFlags::LENGTH
        } else {
            0
        };
        let record = TokenRecord {
            request: self.request.0,
            index,
            token: token.token,
            flags,
            logprob: if self.logprobs.is_some() { token.logprob } else { f32::NAN },
        };
        let wanted = usize::from(self.logprobs.unwrap_or(0));
        let top = (wanted > 0).then(|| {
            let mut top = std::mem::take(&mut token.top);
            top.truncate(wanted);
            TopLogprobs { request: self.request, index, top }
        });
        // The first token is there: what is left takes the time it takes.
        self.ticket.deadline = None;
        (record, top)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
