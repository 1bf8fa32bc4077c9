//! Which sequence runs next.
//!
//! [`Scheduler`] is a plain state machine owned by the engine's thread: commands go in by
//! [`command`](Scheduler::command), [`tick`](Scheduler::tick) does one unit of work, and what
//! there is to say goes to a [`Sink`]. It never waits for anything but the engine, reads no
//! clock, and knows neither rings nor processes.

use crate::check::check;
use crate::engine::{Engine, EngineFault, SeqId, StepToken};
use crate::row::Row;
use crate::shares::Shares;
use crate::waiting::{Pending, Waiter, Waiting};
use mlxd_protocol::{
    Command, Ended, LoadSpec, ModelInfo, Phase, Refusal, RefusalCode, Report, RequestId, Submit,
    TokenRecord,
};
use std::time::{Duration, Instant};

/// Where a scheduler's output goes. A step's reports come before its records.
pub trait Sink {
    /// Something about a sequence besides its tokens.
    fn report(&mut self, report: Report);
    /// The tokens of one step; never empty.
    fn tokens(&mut self, records: &[TokenRecord]);
}

/// How much a scheduler takes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Prompt tokens run in one piece at the most while nothing decodes.
    pub prefill_chunk_tokens: usize,
    /// Prompt tokens run between two decode steps at the most.
    pub prefill_chunk_tokens_busy: usize,
    /// Sequences the engine holds at the most.
    pub running_max: usize,
    /// Sequences waiting at the most.
    pub queued_max: usize,
    /// Sequences that gave up their place to more urgent ones at the most.
    pub parked_max: usize,
    /// Waiting so long lifts a sequence by one priority; zero never does. As long, one that was
    /// lifted keeps its place.
    pub ageing: Duration,
    /// Prompts are cut into the same pieces whatever else runs: each piece is a whole chunk. The
    /// last one begun may then go over the chunk's budget.
    pub whole_chunks: bool,
}

impl From<&LoadSpec> for Limits {
    fn from(spec: &LoadSpec) -> Self {
        Self {
            prefill_chunk_tokens: spec.prefill_chunk_tokens.max(1) as usize,
            prefill_chunk_tokens_busy: spec.prefill_chunk_tokens_busy.max(1) as usize,
            running_max: spec.running_max.max(1) as usize,
            queued_max: spec.queued_max as usize,
            parked_max: spec.parked_max as usize,
            ageing: Duration::from_millis(spec.ageing_ms),
            whole_chunks: spec.deterministic,
        }
    }
}

/// What a scheduler holds and has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Sequences waiting.
    pub queued: usize,
    /// Sequences that have a place.
    pub running: usize,
    /// Sequences that gave up their place and will go on.
    pub parked: usize,
    /// How often one gave up its place.
    pub preemptions: u64,
    /// Sequences whose deadline passed before their first token.
    pub expired: u64,
    /// Units of work done: prefill chunks and decode steps.
    pub steps: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Prompt tokens run through the model.
    pub prefilled_tokens: u64,
}

/// Continuous batching over one engine.
#[derive(Debug)]
pub struct Scheduler<E> {
    pub(crate) engine: E,
    pub(crate) limits: Limits,
    pub(crate) waiting: Waiting,
    pub(crate) shares: Shares,
    /// By `seq`, which is the order of first admission.
    pub(crate) rows: Vec<Row>,
    pub(crate) next_seq: u64,
    pub(crate) next_order: u64,
    /// Steps submitted and not collected.
    in_flight: usize,
    draining: bool,
    /// The last unit of work was a prefill chunk: decode is next, if anything decodes.
    decode_next: bool,
    steps: u64,
    generated_tokens: u64,
    pub(crate) prefilled_tokens: u64,
    pub(crate) preemptions: u64,
    pub(crate) expired: u64,
    /// Kept for their allocation.
    step_rows: Vec<SeqId>,
    collected: Vec<StepToken>,
    records: Vec<TokenRecord>,
    finished: Vec<SeqId>,
}

impl<E: Engine> Scheduler<E> {
    /// A scheduler with nothing to do.
    pub fn new(engine: E, limits: Limits) -> Self {
        Self {
            engine,
            limits,
            waiting: Waiting::new(limits.ageing),
            shares: Shares::default(),
            rows: Vec::new(),
            next_seq: 1,
            next_order: 0,
            in_flight: 0,
            draining: false,
            decode_next: false,
            steps: 0,
            generated_tokens: 0,
            prefilled_tokens: 0,
            preemptions: 0,
            expired: 0,
            step_rows: Vec::new(),
            collected: Vec::new(),
            records: Vec::new(),
            finished: Vec::new(),
        }
    }

    /// The engine, for what does not concern sequences.
    pub fn engine(&self) -> &E {
        &self.engine
    }

    /// The engine, for what leaves its sequences alone.
    pub fn engine_mut(&mut self) -> &mut E {
        &mut self.engine
    }

    /// From now on new sequences are refused.
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// The engine, while nothing runs on it; `None` while something does.
    pub fn idle_engine(&mut self) -> Option<&mut E> {
        self.is_idle().then_some(&mut self.engine)
    }

    /// Gives back what is only kept for reuse, prefixes included.
    pub fn trim(&mut self) {
        self.engine.clear_cache();
        self.engine.trim();
    }

    /// The engine may take so many bytes.
    pub fn limit_memory(&mut self, bytes: u64) {
        self.engine.limit_memory(bytes);
    }

    /// What the engine serves.
    pub fn info(&self) -> &ModelInfo {
        self.engine.info()
    }

    /// How much it takes on.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// What is held and was done.
    pub fn counts(&self) -> Counts {
        Counts {
            queued: self.waiting.new_count(),
            running: self.rows.len(),
            parked: self.waiting.parked_count(),
            preemptions: self.preemptions,
            expired: self.expired,
            steps: self.steps,
            generated_tokens: self.generated_tokens,
            prefilled_tokens: self.prefilled_tokens,
        }
    }

    /// The traces of the sequences the engine holds, for a last log line.
    pub fn running_traces(&self) -> impl Iterator<Item = &str> {
        let rows = self.rows.iter().map(|row| row.trace.as_str());
        rows.chain(self.waiting.parked_traces())
    }

    /// From now on new sequences are refused; those here are finished.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Nothing waits, runs or is in flight.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.rows.is_empty() && self.in_flight == 0
    }

    /// What a [`tick`](Self::tick) at `now` will do: `Prefill`, `Decode` or `Idle`.
    pub fn next_phase(&self, now: Instant) -> Phase {
        let admits = !self.waiting.is_empty() && self.rows.len() < self.limits.running_max;
        let prefill = admits || self.rows.iter().any(Row::prefilling) || self.preempts(now);
        let decode = self.in_flight > 0 || self.rows.iter().any(Row::wants_step);
        match (prefill, decode) {
            (true, true) if self.decode_next => Phase::Decode,
            (true, _) => Phase::Prefill,
            (false, true) => Phase::Decode,
            (false, false) => Phase::Idle,
        }
    }

    /// Takes a command that was read at `now`.
    pub fn command(&mut self, command: Command, now: Instant, sink: &mut impl Sink) {
        match command {
            Command::Submit(submit) => self.submit(submit, now, sink),
            Command::Cancel(request) => self.cancel(request),
            // Texts never come here: they wait in an `EmbedQueue`.
            Command::Embed(embed) => {
                let message = "texts are not generated from".to_owned();
                let refusal = Refusal { code: RefusalCode::Invalid, message };
                refuse(&embed.trace, embed.request, refusal, sink);
            }
        }
    }

    fn submit(&mut self, submit: Submit, now: Instant, sink: &mut impl Sink) {
        let request = submit.request;
        if self.waiting.contains(request) || self.rows.iter().any(|row| row.request == request) {
            // A report would end the sequence of that name, which is well.
            tracing::error!(trace = submit.trace, %request, "submitted twice, ignored");
            return;
        }
        let bounds = match self.room().and_then(|()| check(&submit, self.engine.info())) {
            Ok(bounds) => bounds,
            Err(refusal) => return refuse(&submit.trace, request, refusal, sink),
        };
        self.enqueue(Pending { submit, bounds, arrived: now });
    }

    fn room(&self) -> Result<(), Refusal> {
        if self.draining {
            let message = "the worker is finishing its last answers; ask again".into();
            return Err(Refusal { code: RefusalCode::Draining, message });
        }
        let Limits { running_max, queued_max, .. } = self.limits;
        let places = running_max.min(self.rows.len() + self.waiting.parked_count());
        if places + self.waiting.new_count() >= running_max + queued_max {
            let message = format!(
                "{running_max} requests are running and {queued_max} are waiting, which is all \
                 this worker takes; ask again later"
            );
            return Err(Refusal { code: RefusalCode::Busy, message });
        }
        Ok(())
    }

    fn cancel(&mut self, request: RequestId) {
        let row = match self.waiting.remove(request) {
            Some(Waiter::New(_)) => return,
            Some(Waiter::Parked(row)) => Some(*row),
            None => {
                let position = self.rows.iter().position(|row| row.request == request);
                position.map(|position| self.rows.remove(position))
            }
        };
        if let Some(row) = row {
            self.engine.close(row.seq);
            self.shares.settle(row.ticket.tenant, row.deposit);
            tracing::info!(trace = row.trace, %request, generated = row.generated(), "cancelled");
        }
    }

    /// Does one unit of work, the one that [`next_phase`](Self::next_phase) names. After an
    /// error nothing here can be trusted any more: the process must end.
    pub fn tick(&mut self, now: Instant, sink: &mut impl Sink) -> Result<(), EngineFault> {
        let phase = self.next_phase(now);
        self.expire(now, sink);
        match phase {
            Phase::Prefill => {
                // Finished tokens must not wait for the chunk.
                while self.in_flight > 0 {
                    self.collect(now, sink)?;
                }
                self.admit(now, sink);
                self.preempt(now, sink);
                self.prefill(now)?;
                self.decode_next = true;
                self.steps += 1;
            }
            Phase::Decode => {
                self.admit(now, sink);
                self.decode(now, sink)?;
                self.decode_next = false;
                self.steps += 1;
            }
            _ => {}
        }
        Ok(())
    }

    /// Fills the pipeline and collects its oldest step.
    fn decode(&mut self, now: Instant, sink: &mut impl Sink) -> Result<(), EngineFault> {
        while self.in_flight < self.engine.depth() && !self.awaits_first_tokens() {
            self.step_rows.clear();
            for row in self.rows.iter_mut().filter(|row| row.wants_step()) {
                row.clock_prefill(now);
                row.step_submitted();
                self.step_rows.push(row.seq);
            }
            if self.step_rows.is_empty() {
                break;
            }
            self.engine.submit(&self.step_rows)?;
            self.in_flight += 1;
        }
        if self.in_flight > 0 {
            self.collect(now, sink)?;
        }
        Ok(())
    }

    /// Whether all that is in flight are first tokens: nobody's next step is built before they are
    /// out. Building one takes as long as computing it, and more where buffers are new.
    fn awaits_first_tokens(&self) -> bool {
        let mut stepping = self.rows.iter().filter(|row| row.in_flight() || row.wants_step());
        self.in_flight > 0 && stepping.all(|row| row.in_flight() && row.generated() == 0)
    }

    /// Waits for the oldest step and publishes it.
    fn collect(&mut self, now: Instant, sink: &mut impl Sink) -> Result<(), EngineFault> {
        self.collected.clear();
        self.engine.collect(&mut self.collected)?;
        self.in_flight -= 1;
        for token in &mut self.collected {
            let position = self.rows.binary_search_by_key(&token.seq, |row| row.seq);
            let row = match position {
                Ok(position) if self.rows[position].in_flight() => &mut self.rows[position],
                _ => {
                    return Err(engine_confused("gave a token for a sequence that asked for none"));
                }
            };
            if let Some(started) = row.started() {
                sink.report(Report::Started(started));
            }
            let (record, top) = row.take(token);
            self.shares.generated(row.ticket.tenant, &mut row.deposit);
            if let Some(top) = top {
                sink.report(Report::TopLogprobs(top));
            }
            if record.flags != 0 {
                self.finished.push(row.seq);
            }
            self.records.push(record);
        }
        if !self.records.is_empty() {
            self.generated_tokens += self.records.len() as u64;
            sink.tokens(&self.records);
            self.records.clear();
        }
        self.close_finished(now)?;
        if self.in_flight == 0 && self.rows.iter().any(Row::in_flight) {
            return Err(engine_confused("left a sequence out of a step"));
        }
        Ok(())
    }

    fn close_finished(&mut self, now: Instant) -> Result<(), EngineFault> {
        for seq in self.finished.drain(..) {
            self.engine.finish(seq)?;
            let Ok(position) = self.rows.binary_search_by_key(&seq, |row| row.seq) else {
                continue;
            };
            let row = self.rows.remove(position);
            self.shares.settle(row.ticket.tenant, row.deposit);
            tracing::info!(
                trace = row.trace,
                request = %row.request,
                tokens = row.tokens(),
                generated = row.generated(),
                total_ms = row.age(now).as_millis() as u64,
                "finished"
            );
        }
        Ok(())
    }
}

pub(crate) fn refuse(trace: &str, request: RequestId, refusal: Refusal, sink: &mut impl Sink) {
    tracing::info!(trace, %request, code = ?refusal.code, "refused: {refusal}");
    sink.report(Report::Ended(Ended { request, refusal }));
}

fn engine_confused(reason: &str) -> EngineFault {
    EngineFault { doing: "collecting a step", reason: format!("the engine {reason}") }
}
