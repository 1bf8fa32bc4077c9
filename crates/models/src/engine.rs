//! [`Engine`] on MLX: sequences, the pipeline of decode steps, and every check before MLX.
//!
//! MLX checks no index: an id beyond the vocabulary reads foreign memory. So ids, positions and
//! lengths are checked when a sequence is opened, and drawn tokens when they are read.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use mlx_rs::error::Exception;
use mlx_rs::transforms::{async_eval, eval};
use mlx_rs::{Array, Dtype, memory};
use mlxd_engine::{
    CacheFigures, EmbedText, Engine, EngineFault, GuessFigures, MemoryFigures, Opened, SeqId,
    SeqSpec, StepToken,
};
use mlxd_protocol::{KvQuantization, ModelInfo, Refusal, RefusalCode, Sampling, TokenId};

use crate::arch::{Model, State};
use crate::batch::{Batch, Evaluation};
use crate::check::check;
use crate::draft::Draft;
use crate::embed;
use crate::fault::in_engine;
use crate::keep::Kept;
use crate::kv::Rotation;
use crate::pooling::Pooling;
use crate::prefix::PrefixCache;
use crate::sample::{Sampler, Token};
use crate::speculate::{Ahead, Guessing, Source};
use crate::steps::{Flight, LastToken};

/// Tokens of an earlier worker's answer decoded again in one call of
/// [`prefill`](Engine::prefill), so that the other rows' steps do not wait for all of them.
const DECODED_AGAIN_MAX: usize = 4;

/// A loaded model and its sequences. Bound to the thread that loaded it: MLX's lazy arrays are.
pub struct MlxEngine {
    pub(crate) model: Box<dyn Model>,
    pub(crate) info: ModelInfo,
    pub(crate) depth: usize,
    /// See [`LoadSpec::deterministic`](mlxd_protocol::LoadSpec::deterministic).
    pub(crate) deterministic: bool,
    pub(crate) sequences: HashMap<SeqId, Sequence>,
    /// Sequences that decode together; their state is here and not with them.
    pub(crate) batch: Batch,
    /// State kept for prompts that begin alike.
    pub(crate) prefixes: Option<PrefixCache>,
    /// Sequences whose prompt has run and is still to be kept; some may be closed.
    pub(crate) due: Vec<SeqId>,
    /// How vectors are made, of a model that makes vectors and no text.
    pub(crate) pooling: Option<Pooling>,
    pub(crate) flights: VecDeque<Flight>,
    /// Tokens guessed ahead.
    pub(crate) guessing: Guessing,
    /// How keys and values are packed in long sequences.
    pub(crate) kv: Option<KvQuantization>,
    /// Positions whose keys and values a sequence keeps, in layers that would keep all.
    pub(crate) kv_tokens_max: Option<u32>,
    /// How many steps were submitted since the start.
    pub(crate) steps: u64,
    warm_up: Duration,
    /// mlx-rs calls arrays `Send`; they are not, and this says so.
    _thread: std::marker::PhantomData<*const ()>,
}

pub(crate) struct Sequence {
    pub(crate) tokens: Vec<TokenId>,
    prompt_len: usize,
    /// `None` while it decodes in the batch.
    pub(crate) state: Option<State>,
    pub(crate) sampler: Sampler,
    /// Its part in the kept prefixes.
    pub(crate) kept: Option<Kept>,
    /// Where the next step's input is, once it comes from a draw.
    pub(crate) last: Option<LastToken>,
    /// Every token that is known here, those included that were not given out yet.
    pub(crate) known: Vec<TokenId>,
    /// Tokens that came ahead of their step.
    pub(crate) ahead: Ahead,
}

impl Sequence {
    /// Known tokens that prefill has yet to run: all but the last.
    pub(crate) fn unfilled(&self) -> usize {
        self.left_of(self.tokens.len())
    }

    /// The part of those that belongs to the prompt, less its last token: that one is decoded.
    fn unfilled_prompt(&self) -> usize {
        self.left_of(self.prompt_len)
    }

    /// How many of the next `count` tokens may be one piece.
    fn at_once(&self, count: usize) -> usize {
        let Some(state) = &self.state else { return count };
        let branch =
            self.kept.as_ref().map_or(count, |kept| kept.piece_max(state.position as usize));
        state.at_once(count.min(branch))
    }

    fn left_of(&self, tokens: usize) -> usize {
        let Some(state) = &self.state else {
            return 0; // it decodes
        };
        (tokens - 1).saturating_sub(state.position as usize)
    }

    /// The last of the known tokens.
    pub(crate) fn known_last(&self) -> TokenId {
        self.tokens[self.tokens.len() - 1]
    }

    /// Runs the next `count` known tokens in one piece.
    fn fill(&mut self, model: &dyn Model, count: usize) -> mlx_rs::error::Result<()> {
        let Some(state) = &mut self.state else {
            return Ok(());
        };
        let from = state.position as usize;
        let ids = Array::from_slice(&self.tokens[from..from + count], &[1, count as i32]);
        // Only the KV arrays are evaluated, so the last layer's output is never computed.
        model.forward(&ids, state)?;
        eval(state.arrays())
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
        let evaluation = match depth {
            1 => Evaluation::Waiting,
            _ => Evaluation::Submitted,
        };
        Self {
            batch: Batch::new(&model.state(1), evaluation),
            model,
            info,
            depth,
            deterministic,
            sequences: HashMap::new(),
            prefixes: None,
            due: Vec::new(),
            pooling: None,
            flights: VecDeque::new(),
            guessing: Guessing::new(0),
            kv: None,
            kv_tokens_max: None,
            steps: 0,
            warm_up: Duration::ZERO,
            _thread: std::marker::PhantomData,
        }
    }

    /// From now on `draft` guesses too.
    pub(crate) fn draft_with(&mut self, draft: Draft) -> mlx_rs::error::Result<()> {
        let known = vec![0; (self.info.context_tokens as usize).clamp(1, 16)];
        let vocab = self.info.vocab_size as i32;
        let sampler = Sampler::new(Sampling::default(), None, vocab, &known, known.len());
        self.guessing.ask(draft);
        self.guessing.warm_up(&known, &sampler, vocab, self.depth)
    }

    pub(crate) fn set_load_times(&mut self, load_ms: u64, warm_up: Duration) {
        self.info.load_ms = load_ms;
        self.warm_up = warm_up;
    }

    /// How long the first passes took, of the time that loading took.
    pub(crate) fn warm_up_time(&self) -> Duration {
        self.warm_up
    }

    /// Another pipeline than the device's own, for measuring and testing.
    pub fn with_depth(self, depth: usize) -> Self {
        let (model, info, deterministic) = (self.model, self.info, self.deterministic);
        let (prefixes, pooling, guessing) = (self.prefixes, self.pooling, self.guessing);
        let (kv, kv_tokens_max) = (self.kv, self.kv_tokens_max);
        let new = Self::new(model, info, depth, deterministic);
        Self { prefixes, pooling, guessing, kv, kv_tokens_max, ..new }
    }

    /// Of a sequence of at most `capacity` positions, before the first of a prompt of so many
    /// tokens, the last of which is decoded.
    pub(crate) fn empty_state(&self, prompt_len: usize, capacity: usize) -> State {
        let mut state = self.model.state(capacity as i32);
        if let Some(kv) = self.kv {
            state.quantize(kv);
        }
        if let Some(most) = self.kv_tokens_max {
            let steps_from = prompt_len as i32 - 1;
            state.rotate(Rotation { most: most as i32, steps_from });
        }
        state
    }

    /// Logits of the last token of `prompt`, then of each of `forced`, as a decode would
    /// compute them. For comparing with other implementations.
    pub fn logits_along(
        &self,
        prompt: &[TokenId],
        forced: &[TokenId],
    ) -> Result<Vec<Vec<f32>>, EngineFault> {
        self.check_given(prompt, forced)?;
        let rows = || -> mlx_rs::error::Result<Vec<Vec<f32>>> {
            let mut state = self.prefilled(prompt, forced.len())?;
            let row = |id: &TokenId| {
                let hidden = self.model.forward(&Array::from_slice(&[*id], &[1, 1]), &mut state)?;
                Ok(read_rows(&self.model.logits(&hidden)?)?.remove(0))
            };
            prompt[prompt.len() - 1..].iter().chain(forced).map(row).collect()
        };
        rows().map_err(in_engine("computing logits"))
    }

    /// [`logits_along`](Self::logits_along) for several prompts whose tokens, the same number
    /// each, are decoded together: by prompt, then by token.
    pub fn logits_together(
        &self,
        given: &[(Vec<TokenId>, Vec<TokenId>)],
    ) -> Result<Vec<Vec<Vec<f32>>>, EngineFault> {
        for (prompt, forced) in given {
            self.check_given(prompt, forced)?;
        }
        let steps = given.iter().map(|(_, forced)| forced.len() + 1).min().unwrap_or(0);
        let rows = || -> mlx_rs::error::Result<Vec<Vec<Vec<f32>>>> {
            let mut batch = Batch::new(&self.model.state(1), self.batch.evaluation());
            for (index, (prompt, forced)) in given.iter().enumerate() {
                batch.join(SeqId(index as u64), self.prefilled(prompt, forced.len())?)?;
            }
            let mut all = vec![Vec::new(); given.len()];
            for step in 0..steps {
                batch.prepare()?;
                let order: Vec<usize> = batch.rows().iter().map(|row| row.seq.0 as usize).collect();
                let input = |index: &usize| match (&given[*index], step) {
                    ((prompt, _), 0) => prompt[prompt.len() - 1],
                    ((_, forced), step) => forced[step - 1],
                };
                let ids: Vec<TokenId> = order.iter().map(input).collect();
                let ids = Array::from_slice(&ids, &[ids.len() as i32, 1]);
                let hidden = self.model.forward_rows(&ids, &mut batch)?;
                let logits = read_rows(&self.model.logits(&hidden)?)?;
                for (index, row) in order.into_iter().zip(logits) {
                    all[index].push(row);
                }
            }
            Ok(all)
        };
        rows().map_err(in_engine("computing logits"))
    }

    fn check_given(&self, prompt: &[TokenId], forced: &[TokenId]) -> Result<(), EngineFault> {
        let known = prompt.iter().chain(forced).all(|id| *id < self.info.vocab_size);
        let fits = prompt.len() + forced.len() <= self.info.context_tokens as usize;
        match !prompt.is_empty() && known && fits {
            true => Ok(()),
            false => Err(EngineFault {
                doing: "computing logits",
                reason: "an empty prompt, an unknown id, or too many of them".to_owned(),
            }),
        }
    }

    /// The state after all but the last of `prompt`, with room for `more`.
    fn prefilled(&self, prompt: &[TokenId], more: usize) -> mlx_rs::error::Result<State> {
        let mut state = self.empty_state(prompt.len(), prompt.len() + more);
        let mut left = &prompt[..prompt.len() - 1];
        while !left.is_empty() {
            let (piece, rest) = left.split_at(state.at_once(left.len()));
            let ids = Array::from_slice(piece, &[1, piece.len() as i32]);
            self.model.forward(&ids, &mut state)?;
            eval(state.arrays())?;
            left = rest;
        }
        Ok(state)
    }
}

/// `logits`, `[rows, vocabulary]`, row by row.
fn read_rows(logits: &Array) -> mlx_rs::error::Result<Vec<Vec<f32>>> {
    let width = logits.dim(1) as usize;
    let all = logits.as_dtype(Dtype::Float32)?.to_vec_exact::<f32>();
    let all = all.map_err(|error| Exception::custom(error.to_string()))?;
    Ok(all.chunks(width).map(<[f32]>::to_vec).collect())
}

pub(crate) fn unknown(doing: &'static str, seq: SeqId) -> EngineFault {
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
        if self.pooling.is_some() {
            return Err(Refusal {
                code: RefusalCode::Invalid,
                message: "this model turns texts into vectors and writes none; use /v1/embeddings, or choose a chat model".to_owned(),
            });
        }
        check(&self.info, &spec)?;
        // It may begin as those do. What fails here fails again at the next step, which says so.
        if let Err(error) = self.keep_due(true) {
            tracing::warn!(reason = error.what(), "a prompt's state was not kept");
        }
        let vocab = self.info.vocab_size as i32;
        let sampler =
            Sampler::new(spec.sampling, spec.logprobs, vocab, &spec.tokens, spec.prompt_len);
        let (kept, cached_tokens) = self.begin(seq, &spec.tokens);
        let sequence = Sequence {
            state: Some(self.empty_state(spec.prompt_len, spec.capacity)),
            known: spec.tokens.clone(),
            ahead: Ahead::default(),
            tokens: spec.tokens,
            prompt_len: spec.prompt_len,
            sampler,
            kept,
            last: None,
        };
        self.sequences.insert(seq, sequence);
        Ok(Opened { cached_tokens })
    }

    fn prefill(&mut self, seq: SeqId, tokens_max: usize) -> Result<usize, EngineFault> {
        let fault = in_engine("prefill");
        self.guessing.interrupt();
        self.keep_due(false).map_err(&fault)?;
        let restored = self.restore(seq).map_err(&fault)?;
        let found = self.found_of(seq).unwrap_or(0);
        let sequence = self.sequences.get_mut(&seq).ok_or_else(|| unknown("prefill", seq))?;
        if !restored {
            return Ok(sequence.unfilled().saturating_sub(found).max(1));
        }
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
        let count = sequence.at_once(known.min(tokens_max));
        if count > 0 {
            sequence.fill(model, count).map_err(&fault)?;
        }
        let left = sequence.unfilled();
        self.keep_chunk(seq, left).map_err(&fault)?;
        Ok(left)
    }

    fn submit(&mut self, rows: &[SeqId]) -> Result<(), EngineFault> {
        self.check_ready(rows)?;
        self.keep_due(false).map_err(in_engine("keeping a prompt's state"))?;
        let flight = self.step(rows).map_err(in_engine("decode"))?;
        self.steps += 1;
        if self.depth > 1 {
            async_eval(flight.arrays()).map_err(in_engine("decode"))?;
        }
        self.flights.push_back(flight);
        Ok(())
    }

    fn collect(&mut self, out: &mut Vec<StepToken>) -> Result<(), EngineFault> {
        let fault = in_engine("decode");
        let Some(flight) = self.flights.pop_front() else {
            return Ok(());
        };
        for (seq, token) in self.read(flight).map_err(&fault)? {
            let Token { id: token, logprob, top } = token;
            if token >= self.info.vocab_size {
                return Err(EngineFault {
                    doing: "decode",
                    reason: format!(
                        "token {token} drawn from a vocabulary of {}",
                        self.info.vocab_size
                    ),
                });
            }
            self.note_generated(seq);
            out.push(StepToken { seq, token, logprob, top });
        }
        Ok(())
    }

    fn finish(&mut self, seq: SeqId) -> Result<(), EngineFault> {
        self.forget_ahead(seq).map_err(in_engine("decode"))?;
        self.keep_end(seq).map_err(in_engine("keeping a sequence's state"))?;
        self.close(seq);
        Ok(())
    }

    fn embed(
        &mut self,
        texts: &[EmbedText],
    ) -> Result<Vec<Result<Vec<f32>, Refusal>>, EngineFault> {
        let refusal = || Refusal {
            code: RefusalCode::Invalid,
            message: "this model makes no embeddings; choose an embedding model".to_owned(),
        };
        match self.pooling {
            Some(pooling) => embed::embed(self.model.as_ref(), &self.info, pooling, texts),
            None => Ok(texts.iter().map(|_| Err(refusal())).collect()),
        }
    }

    fn cache_figures(&self) -> CacheFigures {
        self.prefixes.as_ref().map(PrefixCache::figures).unwrap_or_default()
    }

    fn guess_figures(&self) -> GuessFigures {
        let (text, draft) = (self.guessed(Source::Text), self.guessed(Source::Draft));
        GuessFigures {
            text: text.guesses,
            text_right: text.right,
            draft: draft.guesses,
            draft_right: draft.right,
        }
    }

    fn found(&self, seq: SeqId) -> Option<usize> {
        self.found_of(seq)
    }

    fn clear_disk(&mut self) {
        if let Some(prefixes) = &self.prefixes {
            prefixes.clear_disk();
        }
    }

    fn clear_cache(&mut self) {
        if let Some(prefixes) = &mut self.prefixes {
            prefixes.clear();
        }
    }

    fn close(&mut self, seq: SeqId) {
        self.guessing.interrupt();
        let sequence = self.sequences.remove(&seq);
        self.let_go(sequence.and_then(|sequence| sequence.kept));
        // Its slot is taken away when the next step is built, once for all that end together.
        if !self.batch.rows().iter().any(|row| self.sequences.contains_key(&row.seq)) {
            self.batch.clear();
        }
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
        self.guessing.forget();
        if let Err(error) = memory::clear_cache() {
            tracing::warn!(reason = error.what(), "MLX's cache could not be cleared");
        }
    }

    fn limit_memory(&mut self, bytes: u64) {
        match memory::set_memory_limit(bytes as usize) {
            Ok(before) => tracing::debug!(bytes, before, "MLX's memory limit"),
            Err(error) => tracing::warn!(reason = error.what(), "MLX took no memory limit"),
        }
    }
}
