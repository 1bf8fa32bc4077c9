//! What a model needs, part by part, before anything of it was ever measured.
//!
//! Weights are exact. Keys and values follow from the architecture. The rest is a formula of the
//! largest arrays alive at once; one measured run takes its place ([`crate::Measured`]).

use crate::{LayerMemory, ModelShape};

/// What the weights become when they are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// They stay as in the files: on a GPU.
    Stored,
    /// Every one becomes a float32: on a CPU.
    Float32,
}

/// A model's weights, from the headers of its files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WeightBytes {
    /// Bytes in the files.
    pub stored: u64,
    /// Parameters, counted before quantisation.
    pub parameters: u64,
}

/// What a worker is to do at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Tokens of each sequence, prompt and answer together.
    pub context: u64,
    /// Sequences.
    pub batch: u64,
}

/// Keys and values that are packed in long sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedKv {
    /// Bits of one.
    pub bits: u64,
    /// Tokens from which on a sequence's are.
    pub from_tokens: u64,
}

/// A model that guesses for another one. It is loaded in the same form and remembers one sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct DraftNeeds {
    /// Its architecture, as of [`Needs::shape`].
    pub shape: Option<ModelShape>,
    /// Its weights.
    pub weights: WeightBytes,
}

/// A model, and how it will be run.
#[derive(Debug, Clone, PartialEq)]
pub struct Needs {
    /// Its architecture; without it the keys and values are unknown and count as nothing.
    pub shape: Option<ModelShape>,
    /// Its weights.
    pub weights: WeightBytes,
    /// The model that guesses for it, if one does.
    pub draft: Option<DraftNeeds>,
    /// What becomes of the weights.
    pub form: Form,
    /// Tokens of a prompt run in one piece.
    pub chunk_tokens: u64,
    /// Bytes of freed buffers that the worker keeps; `None` is [`Needs::cache_bytes`]'s rule.
    pub cache_bytes_max: Option<u64>,
    /// Bytes that it may keep of prompts it has seen.
    pub prefix_bytes_max: u64,
    /// Whether keys and values are packed in long sequences.
    pub packed_kv: Option<PackedKv>,
    /// Positions that layers keep at the most which would keep all; `None` keeps all. Not with
    /// `packed_kv`.
    pub kv_tokens_max: Option<u64>,
}

/// A number of bytes and what they are for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What for.
    pub name: &'static str,
    /// How it comes about, in numbers.
    pub how: String,
    /// How many.
    pub bytes: u64,
}

/// A worker without a model: program, MLX, its threads, the rings.
const OVERHEAD_CPU: u64 = 24 << 20;
/// The same with a device's driver and its kernels.
const OVERHEAD_GPU: u64 = 320 << 20;
/// Layers of a piece of a prompt that are there at once on a GPU: two groups of two, one computed
/// while the next is built. Of a short piece all are built at once, and freed as fast as they are
/// computed. Seen on an H100 with a 0.5B, a 3B and a 7B: 3.8 to 4.3 layers of pieces of 512 and
/// 1,024 tokens, 6.1 to 7.9 of 32.
const LAYERS_AHEAD: u64 = 4;
const LAYERS_OF_SHORT: u64 = 8;
const SHORT_PIECE_TOKENS: u64 = 256;
/// What matrix products on a CPU pack their inputs into, for each token of a piece.
const SCRATCH_CPU: u64 = 4_500;
/// How often keys and values that grow are counted as freed: far more than a cache has room for.
const GROWTHS_MAX: u64 = 1024;
/// What is kept of freed buffers at least and at most, unless configuration says.
const CACHE_CPU: (u64, u64) = (64 << 20, 512 << 20);
const CACHE_GPU: (u64, u64) = (256 << 20, 2 << 30);

impl Needs {
    /// Bytes of the weights, loaded.
    pub fn weight_bytes(&self) -> u64 {
        self.loaded(self.weights)
    }

    fn loaded(&self, weights: WeightBytes) -> u64 {
        match self.form {
            Form::Stored => weights.stored,
            Form::Float32 => weights.parameters.saturating_mul(4),
        }
    }

    /// Bytes of the weights of the model that guesses, and of what it remembers of `tokens`.
    fn draft_bytes(&self, tokens: u64) -> (u64, u64) {
        let Some(DraftNeeds { shape, weights }) = &self.draft else { return (0, 0) };
        let kept = shape.as_ref().map_or(0, |shape| {
            let element = match self.form {
                Form::Float32 => 4,
                Form::Stored => shape.element_bytes,
            };
            let tokens = tokens.min(shape.context);
            shape.sequence_bytes(tokens, tokens, element)
        });
        (self.loaded(*weights), kept)
    }

    /// Bytes of one key or value.
    fn element_bytes(&self) -> u64 {
        match (self.form, &self.shape) {
            (Form::Float32, _) | (_, None) => 4,
            (Form::Stored, Some(shape)) => shape.element_bytes,
        }
    }

    /// Bytes that a sequence of `tokens` keeps while it runs.
    pub fn sequence_bytes(&self, tokens: u64) -> u64 {
        let Some(shape) = &self.shape else { return 0 };
        self.kept_bytes(shape, tokens)
    }

    /// A sequence is packed once it is long enough. Until then it is kept as it is computed; while
    /// it is packed, layer by layer, there is a piece's worth more.
    fn kept_bytes(&self, shape: &ModelShape, tokens: u64) -> u64 {
        let element = self.element_bytes();
        match self.packed_kv {
            None => shape.sequence_bytes(tokens, self.kept_tokens(tokens), element),
            Some(PackedKv { bits, from_tokens }) => {
                let before = tokens.min(from_tokens.saturating_add(self.chunk_tokens));
                let packed = match tokens > from_tokens {
                    true => shape.packed_sequence_bytes(tokens, element, bits),
                    false => 0,
                };
                shape.sequence_bytes(before, before, element).max(packed)
            }
        }
    }

    /// Positions of a sequence of `tokens` that layers keep which would keep all: those of the
    /// limit, and the piece of a prompt that runs.
    fn kept_tokens(&self, tokens: u64) -> u64 {
        let most = self.kv_tokens_max.map(|most| most.saturating_add(self.chunk_tokens));
        tokens.min(most.unwrap_or(tokens))
    }

    /// Bytes of one more token of a long sequence.
    pub fn bytes_per_token(&self) -> u64 {
        let Some(shape) = &self.shape else { return 0 };
        let element = self.element_bytes();
        match self.packed_kv {
            None => shape.kv_bytes_per_token(element),
            Some(PackedKv { bits, .. }) => shape.packed_kv_bytes_per_token(element, bits),
        }
    }

    /// Bytes that MLX may keep of freed buffers.
    pub fn cache_bytes(&self) -> u64 {
        let (least, most) = match self.form {
            Form::Float32 => CACHE_CPU,
            Form::Stored => CACHE_GPU,
        };
        let ordinary = Load { context: 4096, batch: 1 };
        self.cache_bytes_max.unwrap_or_else(|| self.own_transient(ordinary).clamp(least, most))
    }

    /// Bytes of a worker that has no model.
    pub fn overhead_bytes(&self) -> u64 {
        match self.form {
            Form::Float32 => OVERHEAD_CPU,
            Form::Stored => OVERHEAD_GPU,
        }
    }

    /// Bytes alive for a moment at the worst moment of `load`: a piece of a prompt against all that
    /// came before it, or a step of all rows; and what the model that guesses remembers of one
    /// sequence.
    pub fn transient_bytes(&self, load: Load) -> u64 {
        self.own_transient(load) + self.draft_bytes(load.context).1
    }

    fn own_transient(&self, load: Load) -> u64 {
        let Some(shape) = &self.shape else { return 0 };
        let element = self.element_bytes();
        let chunk = self.chunk_tokens.max(1);
        let of_tokens = |tokens| self.piece_bytes(shape, tokens);
        // Positions of a piece times those it sees: of the last whole piece, or of what is left.
        let whole = load.context / chunk * chunk;
        let seen = self.attended_tokens(shape, load.context);
        let pairs = (chunk * whole.min(seen)).max((load.context - whole) * seen);
        // Logits in float32, their copies while a token is chosen.
        let step = of_tokens(load.batch) + load.batch * shape.vocab * 4 * 4;
        let piece = of_tokens(chunk.min(load.context).max(1));
        // A layer's keys and values exist twice while they grow.
        let growing = shape.widest_layer_bytes(|one| self.kept_bytes(one, load.context));
        match self.form {
            // Without a fused kernel there are scores; growing is over before they are made.
            Form::Float32 => {
                let prefill = piece + pairs * shape.heads * 4;
                prefill.max(step).max(growing) + self.scratch_bytes(load.context)
            }
            // Nor is there a fused kernel for packed keys and values.
            Form::Stored if self.packed_kv.is_some_and(|kv| load.context > kv.from_tokens) => {
                let scores =
                    chunk.min(load.context) * load.context * (2 * shape.heads + 1) * element;
                (piece + scores).max(step) + growing
            }
            Form::Stored => piece.max(step) + growing,
        }
    }

    fn scratch_bytes(&self, tokens: u64) -> u64 {
        match self.form {
            Form::Float32 => tokens.min(self.chunk_tokens.max(1)) * SCRATCH_CPU,
            Form::Stored => 0,
        }
    }

    /// Bytes of all buffers of different sizes that the prompts of `load` have made when the last
    /// has run, besides the weights. MLX keeps what is freed and takes it again for the same size
    /// alone: pieces of a prompt have sizes of their own, and each sequence grows anew. On a CPU all
    /// of that is the process's.
    fn allocated_bytes(&self, load: Load) -> u64 {
        let Some(shape) = &self.shape else { return 0 };
        let (context, chunk) = (load.context.max(1), self.chunk_tokens.max(1));
        // The last piece may be whole. Of one that is nearly as long as those before it half is
        // made anew.
        let whole = (context - 1) / chunk;
        let rest = context - whole * chunk;
        let piece = |tokens| self.piece_bytes(shape, tokens);
        let pieces = match whole {
            0 => piece(rest),
            1 => piece(chunk) + piece(rest).min(piece(chunk) / 2),
            _ => piece(chunk) + piece(chunk) / 2,
        };
        // Each piece sees one more than the one before, as long as all of that is kept.
        let seen = self.attended_tokens(shape, context);
        let growing = (seen / chunk).min(whole);
        let pairs = (chunk * chunk)
            .saturating_mul(growing.saturating_mul(growing + 1) / 2)
            .saturating_add((chunk * (whole - growing)).saturating_mul(seen));
        let scores = pairs.saturating_add(rest * seen).saturating_mul(shape.heads * 4);
        // They grow by blocks, however short the pieces are.
        let step = chunk.max(ModelShape::KV_BLOCK);
        let steps = ((context - 1) / step).min(GROWTHS_MAX);
        let grown: u64 = (1..=steps).map(|steps| self.sequence_bytes(steps * step)).sum();
        let own = load.batch * self.sequence_bytes(context);
        let others = pieces + grown + own + self.scratch_bytes(context);
        scores.saturating_add(others)
    }

    /// Bytes that are alive for `tokens` of a piece, but for scores.
    fn piece_bytes(&self, shape: &ModelShape, tokens: u64) -> u64 {
        let (query, kv) = shape.attention_widths();
        let of_token = self.element_bytes()
            * (6 * shape.hidden + 2 * (query + 2 * kv) + 3 * shape.feed_forward);
        let layers = shape.layers.len() as u64;
        // What is built runs ahead of what is computed.
        match self.form {
            Form::Float32 => tokens * of_token * 3 / 2,
            Form::Stored => {
                let short = tokens.min(SHORT_PIECE_TOKENS) * layers.min(LAYERS_OF_SHORT);
                of_token * short.max(tokens * layers.min(LAYERS_AHEAD))
            }
        }
    }

    /// Bytes of all sequences at the worst moment of their joining: those that joined before are
    /// in shared buffers of a power of two of slots, which exist twice while they double, on a CPU
    /// one layer of them at a time, and the others still have buffers of their own.
    fn joining_bytes(&self, load: Load) -> u64 {
        let Some(shape) = &self.shape else { return 0 };
        let (tokens, element) = (self.kept_tokens(load.context), self.element_bytes());
        let shared = |slots| shape.shared_bytes(slots, tokens, element);
        let left = |slots| match self.form {
            Form::Float32 => {
                shape.widest_layer_bytes(|one| one.shared_bytes(slots, tokens, element))
            }
            Form::Stored => shared(slots),
        };
        let own = self.sequence_bytes(load.context);
        let at = |joined: u64| {
            let doubled = (joined * 2).max(1);
            left(joined) + shared(doubled) + (load.batch - joined) * own
        };
        let doublings = std::iter::successors(Some(1_u64), |joined| joined.checked_mul(2));
        let doublings = doublings.take_while(|joined| *joined < load.batch);
        std::iter::once(0).chain(doublings).map(at).max().unwrap_or(0)
    }

    /// Bytes alive while the last of `load`'s prompts runs and the others decode already: two and
    /// more of those share buffers, which have a power of two of slots and of columns.
    pub fn prompting_bytes(&self, load: Load) -> u64 {
        let own = self.sequence_bytes(load.context);
        let others = load.batch.saturating_sub(1);
        let shared = match &self.shape {
            Some(shape) if others > 1 => {
                let tokens = self.kept_tokens(load.context);
                shape.shared_bytes(others.next_power_of_two(), tokens, self.element_bytes())
            }
            _ => 0,
        };
        shared.max(others * own) + own + self.transient_bytes(load)
    }

    /// Positions of `context` that a piece of a prompt attends to, in the layer that keeps most.
    fn attended_tokens(&self, shape: &ModelShape, context: u64) -> u64 {
        let of_layer = |layer: &LayerMemory| match *layer {
            LayerMemory::Attention { window: None, .. } => Some(self.kept_tokens(context)),
            LayerMemory::Attention { .. } => Some(context),
            _ => None,
        };
        shape.layers.iter().filter_map(of_layer).max().unwrap_or(context)
    }

    /// What being loaded takes, with nothing running.
    pub fn loaded_bytes(&self) -> u64 {
        self.weight_bytes() + self.draft_bytes(0).0 + self.overhead_bytes()
    }

    /// What a worker is promised before its first sequence: all but the sequences' own.
    pub fn base_bytes(&self, load: Load) -> u64 {
        self.loaded_bytes()
            + self.cache_bytes().max(self.transient_bytes(load))
            + self.prefix_bytes_max
    }

    /// The most that the worker takes at `load`.
    pub fn peak_bytes(&self, load: Load) -> u64 {
        let running = load.batch * self.sequence_bytes(load.context) + self.transient_bytes(load);
        let draft = self.draft_bytes(load.context).1;
        let joining = self.joining_bytes(load) + self.scratch_bytes(load.context) + draft;
        let prompts = match self.form {
            // What is kept of freed buffers goes before sequences join.
            Form::Float32 => (self.allocated_bytes(load) + draft).min(running + self.cache_bytes()),
            // What a device's memory has of them goes when it is wanted.
            Form::Stored => 0,
        };
        self.loaded_bytes() + running.max(joining).max(prompts)
    }

    /// What is planned for `load`: the base and what sequences keep, or the peak where their
    /// joining takes more.
    pub fn planned_bytes(&self, load: Load) -> u64 {
        let kept = self.base_bytes(load) + load.batch * self.sequence_bytes(load.context);
        kept.max(self.peak_bytes(load) + self.prefix_bytes_max)
    }

    /// The parts of what is planned for `load`, which come to [`Needs::planned_bytes`].
    pub fn parts(&self, load: Load) -> Vec<Part> {
        let Load { context, batch } = load;
        let weights = match self.form {
            Form::Stored => "as stored, from the files' headers".to_owned(),
            Form::Float32 => format!("{} parameters, float32 on the CPU", self.weights.parameters),
        };
        let per_token = self.bytes_per_token();
        let part = |name, bytes, how| Part { name, how, bytes };
        let mut parts = vec![
            part("weights", self.weight_bytes(), weights),
            part(
                "sequences",
                batch * self.sequence_bytes(context),
                match self.kv_tokens_max.filter(|most| *most < context) {
                    Some(most) => format!(
                        "{batch} × {context} tokens, {per_token} bytes a token, {most} kept of each \
                         and a piece of its prompt"
                    ),
                    None => format!("{batch} × {context} tokens, {per_token} bytes a token"),
                },
            ),
            part(
                "transient and cache",
                self.cache_bytes().max(self.transient_bytes(load)),
                format!(
                    "the more of a piece of {} tokens, and of freed buffers kept",
                    self.chunk_tokens.min(context)
                ),
            ),
            part("worker", self.overhead_bytes(), "the process itself".to_owned()),
        ];
        if let Some(DraftNeeds { weights, .. }) = &self.draft {
            let how = format!("{} parameters that guess", weights.parameters);
            parts.push(part("draft model", self.draft_bytes(0).0, how));
        }
        if self.prefix_bytes_max > 0 {
            let how = "prompts kept for the next request".to_owned();
            parts.push(part("prefix cache", self.prefix_bytes_max, how));
        }
        let sum: u64 = parts.iter().map(|part| part.bytes).sum();
        let joining = self.planned_bytes(load).saturating_sub(sum);
        if joining > 0 {
            let how = match self.form {
                Form::Float32 => {
                    "freed buffers of prompts, or those that sequences share as they join"
                }
                Form::Stored => "buffers that sequences share, beside their own as they join",
            }
            .to_owned();
            parts.push(part("joining", joining, how));
        }
        parts
    }
}

impl ModelShape {
    /// Widths of all query heads, and of all key heads, of the widest attention layer.
    fn attention_widths(&self) -> (u64, u64) {
        let width = |layer: &LayerMemory| match *layer {
            LayerMemory::Attention { kv_heads, head_dim, .. } => {
                (self.heads * head_dim, kv_heads * head_dim)
            }
            _ => (0, 0),
        };
        self.layers.iter().map(width).max().unwrap_or((0, 0))
    }
}

#[cfg(test)]
#[path = "needs_tests.rs"]
mod tests;
