//! An engine that notes what is asked of it.

use mlxd_engine::{Engine, EngineFault, MemoryFigures, Opened, SeqId, SeqSpec, StepToken};
use mlxd_protocol::{ModelInfo, Priority, Refusal, RequestId, Sampling, Submit};
use mlxd_testkit::{Script, ScriptedEngine};
use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

/// One call of an engine.
#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    Open(SeqId, SeqSpec),
    Prefill(SeqId, usize),
    Submit(Vec<SeqId>),
    Collect,
    Close(SeqId),
    Finish(SeqId),
    Park(SeqId),
    Unpark(SeqId),
}

/// A scripted engine with a diary.
#[derive(Debug)]
pub struct Watched {
    pub inner: ScriptedEngine,
    pub calls: Vec<Call>,
    /// Steps submitted per sequence.
    pub row_steps: HashMap<SeqId, usize>,
    pub in_flight_max: usize,
    /// What all work took so far, by the two costs below.
    pub clock: Rc<Cell<Duration>>,
    pub step_cost: Duration,
    pub prompt_token_cost: Duration,
    unfilled: HashMap<SeqId, usize>,
}

impl Watched {
    pub fn new(script: Script) -> Self {
        Self {
            inner: ScriptedEngine::new(script),
            calls: Vec::new(),
            row_steps: HashMap::new(),
            in_flight_max: 0,
            clock: Rc::default(),
            step_cost: Duration::ZERO,
            prompt_token_cost: Duration::ZERO,
            unfilled: HashMap::new(),
        }
    }
}

impl Watched {
    fn took(&self, cost: Duration) {
        self.clock.set(self.clock.get() + cost);
    }
}

impl Engine for Watched {
    fn info(&self) -> &ModelInfo {
        self.inner.info()
    }
    fn depth(&self) -> usize {
        self.inner.depth()
    }
    fn open(&mut self, seq: SeqId, spec: SeqSpec) -> Result<Opened, Refusal> {
        self.calls.push(Call::Open(seq, spec.clone()));
        let tokens = spec.tokens.len();
        let opened = self.inner.open(seq, spec)?;
        self.unfilled.insert(seq, tokens - 1 - opened.cached_tokens);
        Ok(opened)
    }
    fn prefill(&mut self, seq: SeqId, tokens_max: usize) -> Result<usize, EngineFault> {
        self.calls.push(Call::Prefill(seq, tokens_max));
        let left = self.inner.prefill(seq, tokens_max)?;
        let before = self.unfilled.insert(seq, left).unwrap_or(left);
        self.took(self.prompt_token_cost * (before - left) as u32);
        Ok(left)
    }
    fn submit(&mut self, rows: &[SeqId]) -> Result<(), EngineFault> {
        self.calls.push(Call::Submit(rows.to_vec()));
        for &row in rows {
            *self.row_steps.entry(row).or_default() += 1;
        }
        self.inner.submit(rows)?;
        self.in_flight_max = self.in_flight_max.max(self.inner.in_flight_count());
        Ok(())
    }
    fn collect(&mut self, out: &mut Vec<StepToken>) -> Result<(), EngineFault> {
        self.calls.push(Call::Collect);
        self.took(self.step_cost);
        self.inner.collect(out)
    }
    fn close(&mut self, seq: SeqId) {
        self.calls.push(Call::Close(seq));
        self.inner.close(seq);
    }
    fn finish(&mut self, seq: SeqId) -> Result<(), EngineFault> {
        self.calls.push(Call::Finish(seq));
        self.inner.finish(seq)
    }
    fn park(&mut self, seq: SeqId) {
        self.calls.push(Call::Park(seq));
        self.inner.park(seq);
    }
    fn unpark(&mut self, seq: SeqId) {
        self.calls.push(Call::Unpark(seq));
        self.inner.unpark(seq);
    }
    fn memory(&self) -> MemoryFigures {
        self.inner.memory()
    }
    fn trim(&mut self) {
        self.inner.trim();
    }
}

/// A plain greedy request.
pub fn submit(request: u64, prompt: Vec<u32>, max_new: u32) -> Submit {
    Submit {
        request: RequestId(request),
        trace: format!("t{request}"),
        prompt_len: prompt.len() as u32,
        tokens: prompt,
        max_new,
        stop_tokens: vec![Script::END],
        sampling: Sampling::default(),
        logprobs: None,
        priority: Priority::Normal,
        tenant: 0,
        weight: 1,
        deadline_ms: None,
    }
}
