//! An [`Engine`] that computes nothing: its tokens come from a [`Script`].

use crate::fault::Faults;
use crate::script::{Fault, Script, When, digest};
use mlxd_engine::{Engine, EngineFault, MemoryFigures, Opened, SeqId, SeqSpec, StepToken};
use mlxd_protocol::{ModelInfo, Refusal, TokenId};
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// A scripted model. Panics when its caller breaks the [`Engine`] contract: a test that drives
/// a scheduler with it tests that too.
#[derive(Debug)]
pub struct ScriptedEngine {
    script: Script,
    info: ModelInfo,
    faults: Faults,
    sequences: HashMap<SeqId, Sequence>,
    in_flight: VecDeque<Step>,
    /// Steps whose token lists can be used again.
    spare: Vec<Vec<(SeqId, u32)>>,
    tokens_given: u64,
    ballast: Vec<u8>,
}

#[derive(Debug)]
struct Sequence {
    digest: u64,
    prompt: Vec<TokenId>,
    prefill_left: usize,
    /// The index of the next token to be submitted.
    next: u32,
    capacity_left: usize,
    logprobs: Option<u8>,
    parked: bool,
}

#[derive(Debug)]
struct Step {
    rows: Vec<(SeqId, u32)>,
    ready_at: Instant,
}

impl ScriptedEngine {
    /// An engine with this plan and nothing loaded.
    pub fn new(script: Script) -> Self {
        Self::with_faults(script, Faults::default(), Vec::new())
    }

    pub(crate) fn with_faults(script: Script, faults: Faults, ballast: Vec<u8>) -> Self {
        Self {
            info: script.info(),
            script,
            faults,
            sequences: HashMap::new(),
            in_flight: VecDeque::new(),
            spare: Vec::new(),
            tokens_given: 0,
            ballast,
        }
    }

    /// Arms faults, outside any model folder: none that is counted.
    pub fn plan_faults(&mut self, faults: &[Fault]) {
        self.faults = Faults::new(faults, std::path::Path::new(""));
    }

    /// Sequences open now.
    pub fn open_count(&self) -> usize {
        self.sequences.len()
    }

    /// Steps submitted and not collected.
    pub fn in_flight_count(&self) -> usize {
        self.in_flight.len()
    }

    fn step_token(&self, seq: SeqId, index: u32, now_ns: u64) -> Option<StepToken> {
        let sequence = self.sequences.get(&seq)?;
        let token = match self.script.clock {
            true => Script::clock_token(now_ns),
            false => self.script.token_of(sequence.digest, index),
        };
        let count = u32::from(sequence.logprobs.unwrap_or(0));
        Some(StepToken {
            seq,
            token,
            logprob: sequence.logprobs.map_or(f32::NAN, |_| logprob(0)),
            top: (0..count)
                .map(|rank| ((token + rank) % self.info.vocab_size, logprob(rank)))
                .collect(),
        })
    }
}

/// The log-probability of the token `rank` places after the likeliest.
fn logprob(rank: u32) -> f32 {
    -0.25 - rank as f32
}

impl Engine for ScriptedEngine {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn depth(&self) -> usize {
        self.script.depth
    }

    fn open(&mut self, seq: SeqId, spec: SeqSpec) -> Result<Opened, Refusal> {
        assert!(spec.tokens.iter().all(|&id| id < self.info.vocab_size));
        assert!((1..=spec.tokens.len()).contains(&spec.prompt_len));
        let sequence = Sequence {
            digest: digest(&spec.tokens[..spec.prompt_len], spec.sampling.seed),
            prefill_left: spec.tokens.len() - 1,
            next: (spec.tokens.len() - spec.prompt_len) as u32,
            capacity_left: spec.capacity - spec.tokens.len(),
            logprobs: spec.logprobs,
            parked: false,
            prompt: spec.tokens[..spec.prompt_len].to_vec(),
        };
        let before = self.sequences.insert(seq, sequence);
        assert!(before.is_none(), "{seq:?} opened twice");
        Ok(Opened::default())
    }

    fn prefill(&mut self, seq: SeqId, tokens_max: usize) -> Result<usize, EngineFault> {
        let sequence = self.sequences.get_mut(&seq).expect("prefill of an open sequence");
        assert!(tokens_max > 0);
        self.faults.strike(When::Asked)?;
        self.faults.strike(When::Prefill)?;
        for &token in &sequence.prompt {
            self.faults.strike(When::PromptToken(token))?;
        }
        let ran = sequence.prefill_left.min(tokens_max);
        sequence.prefill_left -= ran;
        assert!(!sequence.parked, "{seq:?} prefilled while parked");
        let took = Duration::from_micros(self.script.prefill_token_us) * ran as u32;
        if !took.is_zero() {
            std::thread::sleep(took);
        }
        Ok(sequence.prefill_left)
    }

    fn submit(&mut self, rows: &[SeqId]) -> Result<(), EngineFault> {
        assert!(!rows.is_empty() && self.in_flight.len() < self.script.depth);
        let mut step = self.spare.pop().unwrap_or_default();
        step.clear();
        for &seq in rows {
            let sequence = self.sequences.get_mut(&seq).expect("submit of an open sequence");
            assert!(!sequence.parked, "{seq:?} submitted while parked");
            assert_eq!(sequence.prefill_left, 0, "{seq:?} submitted before its prompt was done");
            assert!(sequence.capacity_left > 0, "{seq:?} submitted past its capacity");
            sequence.capacity_left -= 1;
            step.push((seq, sequence.next));
            sequence.next += 1;
        }
        // The device runs one step after the other.
        let free_at = self.in_flight.back().map(|last| last.ready_at);
        let begins = Instant::now().max(free_at.unwrap_or_else(Instant::now));
        self.in_flight.push_back(Step {
            rows: step,
            ready_at: begins + Duration::from_micros(self.script.step_us),
        });
        Ok(())
    }

    fn collect(&mut self, out: &mut Vec<StepToken>) -> Result<(), EngineFault> {
        self.faults.strike(When::Asked)?;
        self.faults.strike(When::Tokens(self.tokens_given))?;
        let step = self.in_flight.pop_front().expect("collect with a step in flight");
        if self.script.step_us > 0 {
            std::thread::sleep(step.ready_at.saturating_duration_since(Instant::now()));
        }
        let before = out.len();
        let now_ns = mlxd_ring::monotonic_ns();
        for &(seq, index) in &step.rows {
            out.extend(self.step_token(seq, index, now_ns));
        }
        self.tokens_given += (out.len() - before) as u64;
        self.spare.push(step.rows);
        Ok(())
    }

    fn close(&mut self, seq: SeqId) {
        let closed = self.sequences.remove(&seq);
        assert!(closed.is_some(), "{seq:?} closed but not open");
    }

    fn park(&mut self, seq: SeqId) {
        let in_flight = |step: &Step| step.rows.iter().any(|(row, _)| *row == seq);
        assert!(!self.in_flight.iter().any(in_flight), "{seq:?} parked in flight");
        let sequence = self.sequences.get_mut(&seq).expect("park of an open sequence");
        assert!(!std::mem::replace(&mut sequence.parked, true), "{seq:?} parked twice");
    }

    fn unpark(&mut self, seq: SeqId) {
        let sequence = self.sequences.get_mut(&seq).expect("unpark of an open sequence");
        assert!(std::mem::replace(&mut sequence.parked, false), "{seq:?} was not parked");
    }

    fn memory(&self) -> MemoryFigures {
        let active = self.ballast.len() as u64;
        MemoryFigures { active, peak: active, cache: 0 }
    }

    fn trim(&mut self) {}
}
