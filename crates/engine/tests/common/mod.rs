//! An engine that notes what is asked of it, and a sink that keeps everything.

use mlxd_engine::{Engine, EngineFault, MemoryFigures, Opened, SeqId, SeqSpec, Sink, StepToken};
use mlxd_protocol::{
    ModelInfo, Priority, Refusal, Report, RequestId, Sampling, Submit, TokenRecord,
};
use mlxd_testkit::{Script, ScriptedEngine};
use std::collections::HashMap;

/// One call of an engine.
#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    Open(SeqId, SeqSpec),
    Prefill(SeqId, usize),
    Submit(Vec<SeqId>),
    Collect,
    Close(SeqId),
}

/// A scripted engine with a diary.
#[derive(Debug)]
pub struct Watched {
    pub inner: ScriptedEngine,
    pub calls: Vec<Call>,
    /// Steps submitted per sequence.
    pub row_steps: HashMap<SeqId, usize>,
    pub in_flight_max: usize,
}

impl Watched {
    pub fn new(script: Script) -> Self {
        Self {
            inner: ScriptedEngine::new(script),
            calls: Vec::new(),
            row_steps: HashMap::new(),
            in_flight_max: 0,
        }
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
        self.inner.open(seq, spec)
    }
    fn prefill(&mut self, seq: SeqId, tokens_max: usize) -> Result<usize, EngineFault> {
        self.calls.push(Call::Prefill(seq, tokens_max));
        self.inner.prefill(seq, tokens_max)
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
        self.inner.collect(out)
    }
    fn close(&mut self, seq: SeqId) {
        self.calls.push(Call::Close(seq));
        self.inner.close(seq);
    }
    fn memory(&self) -> MemoryFigures {
        self.inner.memory()
    }
    fn trim(&mut self) {
        self.inner.trim();
    }
}

/// What was published, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    Report(Report),
    Tokens(Vec<TokenRecord>),
}

#[derive(Debug, Default)]
pub struct Kept(pub Vec<Said>);

impl Kept {
    /// Everything published since the last call.
    pub fn take(&mut self) -> Vec<Said> {
        std::mem::take(&mut self.0)
    }
}

impl Sink for Kept {
    fn report(&mut self, report: Report) {
        self.0.push(Said::Report(report));
    }
    fn tokens(&mut self, records: &[TokenRecord]) {
        self.0.push(Said::Tokens(records.to_vec()));
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
