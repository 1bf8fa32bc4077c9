//! [`Engine`] on MLX: sequences, the pipeline of decode steps, and every check before MLX.
//!
//! MLX checks no index: an id beyond the vocabulary reads foreign memory. So ids, positions and
//! lengths are checked when a sequence is opened, and drawn tokens when they are read.

use std::collections::{HashMap, VecDeque};

use mlx_rs::error::Exception;
use mlx_rs::transforms::{async_eval, eval};
use mlx_rs::{Array, Dtype, memory};
use mlxd_engine::{Engine, EngineFault, MemoryFigures, Opened, SeqId, SeqSpec, StepToken};
use mlxd_protocol::{ModelInfo, Refusal, RefusalCode, Sampling, TokenId};

use crate::arch::{Model, State};
use crate::fault::in_engine;
use crate::sample::{Drawn, Sampler, Token};

/// Alternatives a sequence may ask for.
const TOP_LOGPROBS_MAX: u8 = 20;

/// Tokens of an earlier worker's answer decoded again in one call of
/// [`prefill`](Engine::prefill), so that the other rows' steps do not wait for all of them.
const DECODED_AGAIN_MAX: usize = 4;

/// A loaded model and its sequences. Bound to the thread that loaded it: MLX's lazy arrays are.
pub struct MlxEngine {
    model: Box<dyn Model>,
    info: ModelInfo,
    depth: usize,
    /// See [`LoadSpec::deterministic`](mlxd_protocol::LoadSpec::deterministic).
    deterministic: bool,
    sequences: HashMap<SeqId, Sequence>,
    flights: VecDeque<Vec<(SeqId, Drawn)>>,
    /// mlx-rs calls arrays `Send`; they are not, and this says so.
    _thread: std::marker::PhantomData<*const ()>,
}

struct Sequence {
    tokens: Vec<TokenId>,
    prompt_len: usize,
    state: State,
    sampler: Sampler,
    /// The next step's input once it comes from a draw.
    drawn: Option<Array>,
}

impl Sequence {
    /// Known tokens that prefill has yet to run: all but the last.
    fn unfilled(&self) -> usize {
        (self.tokens.len() - 1).saturating_sub(self.state.position as usize)
    }

    /// The part of those that belongs to the prompt, less its last token: that one is decoded.
    fn unfilled_prompt(&self) -> usize {
        (self.prompt_len - 1).saturating_sub(self.state.position as usize)
    }

    /// Runs the next `count` known tokens in one piece.
    fn fill(&mut self, model: &dyn Model, count: usize) -> mlx_rs::error::Result<()> {
        let from = self.state.position as usize;
        let ids = Array::from_slice(&self.tokens[from..from + count], &[1, count as i32]);
        // Only the KV arrays are evaluated, so the last layer's output is never computed.
        model.forward(&ids, &mut self.state)?;
        eval(self.state.arrays())
    }
}

impl MlxEngine {
    /// Wraps a loaded model. `depth` is 2 where the device works meanwhile.
    pub(crate) fn new(
        model: Box<dyn Model>,
        info: ModelInfo,
        depth: usize,
        deterministic: bool,
    ) -> Self {
        Self {
            model,
            info,
            depth,
            deterministic,
            sequences: HashMap::new(),
            flights: VecDeque::new(),
            _thread: std::marker::PhantomData,
        }
    }

    pub(crate) fn set_load_ms(&mut self, load_ms: u64) {
        self.info.load_ms = load_ms;
    }

    /// Logits of the last token of `prompt`, then of each of `forced`, as a decode would
    /// compute them. For comparing with other implementations.
    pub fn logits_along(
        &self,
        prompt: &[TokenId],
        forced: &[TokenId],
    ) -> Result<Vec<Vec<f32>>, EngineFault> {
        let ids: Vec<TokenId> = prompt.iter().chain(forced).copied().collect();
        let known = ids.iter().all(|id| *id < self.info.vocab_size);
        if prompt.is_empty() || !known || ids.len() > self.info.context_tokens as usize {
            return Err(EngineFault {
                doing: "computing logits",
                reason: "an empty prompt, an unknown id, or too many of them".to_owned(),
            });
        }
        let first = prompt.len() - 1;
        let rows = || -> mlx_rs::error::Result<Vec<Vec<f32>>> {
            let mut state = self.model.state(ids.len() as i32);
            if first > 0 {
                let ids = Array::from_slice(&ids[..first], &[1, first as i32]);
                self.model.forward(&ids, &mut state)?;
                eval(state.arrays())?;
            }
            let row = |id: &TokenId| {
                let hidden = self.model.forward(&Array::from_slice(&[*id], &[1, 1]), &mut state)?;
                let logits = self.model.logits(&hidden)?.as_dtype(Dtype::Float32)?;
                let row = logits.to_vec_exact::<f32>();
                row.map_err(|error| Exception::custom(error.to_string()))
            };
            ids[first..].iter().map(row).collect()
        };
        rows().map_err(in_engine("computing logits"))
    }

    fn step(model: &dyn Model, sequence: &mut Sequence) -> mlx_rs::error::Result<Drawn> {
        let ids = match &sequence.drawn {
            Some(drawn) => drawn.clone(),
            None => {
                let last = sequence.tokens[sequence.tokens.len() - 1];
                Array::from_slice(&[last], &[1, 1])
            }
        };
        let hidden = model.forward(&ids, &mut sequence.state)?;
        let logits = model.logits(&hidden)?;
        let drawn = sequence.sampler.draw(&logits)?;
        sequence.drawn = Some(drawn.token.clone());
        Ok(drawn)
    }
}

fn unknown(doing: &'static str, seq: SeqId) -> EngineFault {
    EngineFault { doing, reason: format!("sequence {} is not open", seq.0) }
}

impl Engine for MlxEngine {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn depth(&self) -> usize {
        self.depth
    }

    fn open(&mut self, seq: SeqId, spec: SeqSpec) -> Result<Opened, Refusal> {
        check(&self.info, &spec)?;
        let vocab = self.info.vocab_size as i32;
        let sampler =
            Sampler::new(spec.sampling, spec.logprobs, vocab, &spec.tokens, spec.prompt_len);
        let sequence = Sequence {
            state: self.model.state(spec.capacity as i32),
            tokens: spec.tokens,
            prompt_len: spec.prompt_len,
            sampler,
            drawn: None,
        };
        self.sequences.insert(seq, sequence);
        Ok(Opened::default())
    }

    fn prefill(&mut self, seq: SeqId, tokens_max: usize) -> Result<usize, EngineFault> {
        let fault = in_engine("prefill");
        let sequence = self.sequences.get_mut(&seq).ok_or_else(|| unknown("prefill", seq))?;
        let model = self.model.as_ref();
        let prompt = sequence.unfilled_prompt();
        if self.deterministic && prompt == 0 {
            // What an earlier worker generated: computed as it was there.
            for _ in 0..sequence.unfilled().min(tokens_max).min(DECODED_AGAIN_MAX) {
                sequence.fill(model, 1).map_err(&fault)?;
            }
            return Ok(sequence.unfilled());
        }
        let known = if self.deterministic { prompt } else { sequence.unfilled() };
        let count = known.min(tokens_max);
        if count > 0 {
            sequence.fill(model, count).map_err(&fault)?;
        }
        Ok(sequence.unfilled())
    }

    fn submit(&mut self, rows: &[SeqId]) -> Result<(), EngineFault> {
        let fault = in_engine("decode");
        let mut flight = Vec::with_capacity(rows.len());
        for &seq in rows {
            let sequence = self.sequences.get_mut(&seq).ok_or_else(|| unknown("decode", seq))?;
            if sequence.unfilled() > 0 || sequence.state.position >= sequence.state.capacity {
                return Err(EngineFault {
                    doing: "decode",
                    reason: format!(
                        "sequence {} is not prefilled, or at its capacity of {} tokens",
                        seq.0, sequence.state.capacity
                    ),
                });
            }
            let drawn = Self::step(self.model.as_ref(), sequence).map_err(&fault)?;
            flight.push((seq, drawn));
        }
        if self.depth > 1 {
            async_eval(flight.iter().flat_map(|(_, drawn)| drawn.arrays())).map_err(&fault)?;
        }
        self.flights.push_back(flight);
        Ok(())
    }

    fn collect(&mut self, out: &mut Vec<StepToken>) -> Result<(), EngineFault> {
        let fault = in_engine("decode");
        let Some(flight) = self.flights.pop_front() else {
            return Ok(());
        };
        if self.depth == 1 {
            eval(flight.iter().flat_map(|(_, drawn)| drawn.arrays())).map_err(&fault)?;
        }
        for (seq, drawn) in flight {
            if !self.sequences.contains_key(&seq) {
                continue;
            }
            let Token { id: token, logprob, top } = drawn.read().map_err(&fault)?;
            if token >= self.info.vocab_size {
                return Err(EngineFault {
                    doing: "decode",
                    reason: format!(
                        "token {token} drawn from a vocabulary of {}",
                        self.info.vocab_size
                    ),
                });
            }
            out.push(StepToken { seq, token, logprob, top });
        }
        Ok(())
    }

    fn close(&mut self, seq: SeqId) {
        self.sequences.remove(&seq);
    }

    fn memory(&self) -> MemoryFigures {
        let figure = |read: mlx_rs::error::Result<usize>| read.unwrap_or(0) as u64;
        MemoryFigures {
            active: figure(memory::active_memory()),
            peak: figure(memory::peak_memory()),
            cache: figure(memory::cache_memory()),
        }
    }

    fn trim(&mut self) {
        if let Err(error) = memory::clear_cache() {
            tracing::warn!(reason = error.what(), "MLX's cache could not be cleared");
        }
    }
}

fn check(info: &ModelInfo, spec: &SeqSpec) -> Result<(), Refusal> {
    let refuse = |code, message: String| Err(Refusal { code, message });
    let invalid = |message: String| refuse(RefusalCode::Invalid, message);
    let SeqSpec { tokens, prompt_len, capacity, .. } = spec;
    if tokens.is_empty() || !(1..=tokens.len()).contains(prompt_len) {
        return invalid(format!(
            "a prompt of {prompt_len} tokens out of {} cannot be continued; send at least one token",
            tokens.len()
        ));
    }
    if let Some(id) = tokens.iter().find(|id| **id >= info.vocab_size) {
        return invalid(format!(
            "token id {id} is outside the model's vocabulary of {}",
            info.vocab_size
        ));
    }
    let wanted = tokens.len().max(*capacity);
    if wanted > info.context_tokens as usize {
        return refuse(
            RefusalCode::ContextOverflow,
            format!(
                "{wanted} tokens do not fit the context of {}; shorten the prompt or ask for fewer new tokens",
                info.context_tokens
            ),
        );
    }
    if *capacity < tokens.len() {
        return invalid(format!("{} tokens do not fit a capacity of {capacity}", tokens.len()));
    }
    if let Some(top) = spec.logprobs.filter(|top| *top > TOP_LOGPROBS_MAX) {
        return invalid(format!("{top} log-probabilities; at most {TOP_LOGPROBS_MAX}"));
    }
    check_sampling(&spec.sampling, info.vocab_size).or_else(invalid)
}

fn check_sampling(sampling: &Sampling, vocab: u32) -> Result<(), String> {
    let within = |name: &str, value: f32, low: f32, high: f32| {
        // Written so that NaN fails.
        match value >= low && value <= high {
            true => Ok(()),
            false => Err(format!("{name} is {value}; it must be from {low} to {high}")),
        }
    };
    const LARGE: f32 = 1e6;
    within("temperature", sampling.temperature, 0.0, LARGE)?;
    within("top_p", sampling.top_p, 0.0, 1.0)?;
    within("min_p", sampling.min_p, 0.0, 1.0)?;
    within("repetition_penalty", sampling.repetition_penalty, 1e-6, LARGE)?;
    within("presence_penalty", sampling.presence_penalty, -LARGE, LARGE)?;
    within("frequency_penalty", sampling.frequency_penalty, -LARGE, LARGE)?;
    for (token, bias) in &sampling.logit_bias {
        if *token >= vocab {
            return Err(format!(
                "logit_bias names token {token}, outside the model's vocabulary of {vocab}"
            ));
        }
        within("logit_bias", *bias, -LARGE, LARGE)?;
    }
    Ok(())
}
