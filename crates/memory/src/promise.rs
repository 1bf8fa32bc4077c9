//! What a model is promised for being there and for what it runs, by all that is known of it.

use crate::{Load, Measured, Needs};

/// A model as admission reckons with it.
#[derive(Debug, Clone, Copy)]
pub struct Promise<'a> {
    /// What it needs by formula.
    pub needs: &'a Needs,
    /// What it was seen to take.
    pub measured: &'a Measured,
}

/// The load that a model is promised room for beforehand as long as nothing of it was measured.
const ORDINARY: Load = Load { context: 4096, batch: 1 };

impl Promise<'_> {
    fn ordinary(&self) -> Load {
        let context = self.needs.shape.as_ref().map_or(ORDINARY.context, |shape| shape.context);
        Load { context: ORDINARY.context.min(context), ..ORDINARY }
    }

    /// For being there.
    pub fn base_bytes(&self) -> u64 {
        self.measured.base_bytes(self.needs, self.ordinary())
    }

    /// What `held` bytes lack for `load`.
    pub fn lacking_bytes(&self, load: Load, held: u64) -> u64 {
        let peak = self.measured.peak_bytes(self.needs, load);
        let margin = match self.measured.has(load) {
            true => self.measured.margin_bytes(self.needs, load),
            false => 0,
        };
        (peak + margin + self.needs.prefix_bytes_max).saturating_sub(held)
    }

    /// For one more sequence of `tokens`, besides the `held` bytes, with `after` running then: as
    /// many sequences of their mean length. Where such a load was measured, that decides, with a
    /// margin; else the formula.
    pub fn more_bytes(&self, tokens: u64, after: Load, held: u64) -> u64 {
        let lacking = self.lacking_bytes(after, held);
        let is_long = tokens > after.context.saturating_mul(2);
        match self.measured.has(after) {
            false => {
                let of_one = self.sequence_bytes(tokens, after, held);
                lacking.max(of_one).max(self.prompting_bytes(after, held))
            }
            // The mean says little of a long one among short ones.
            true if is_long => {
                lacking.max(self.lacking_bytes(Load { context: tokens, batch: 1 }, held))
            }
            true => lacking,
        }
    }

    /// By formula: what `held` bytes lack for the last prompt of `load` while the others decode. How
    /// they come is not known beforehand.
    fn prompting_bytes(&self, load: Load, held: u64) -> u64 {
        let loaded = self.measured.loaded_bytes(self.needs) + self.needs.prefix_bytes_max;
        (loaded + self.needs.prompting_bytes(load)).saturating_sub(held)
    }

    /// By formula: what it keeps, and what its length takes for a moment beyond what `held` has for
    /// that, of which the others of `after` keep their part.
    fn sequence_bytes(&self, tokens: u64, after: Load, held: u64) -> u64 {
        let others = after.batch.saturating_sub(1);
        let of_others = (after.context * after.batch).saturating_sub(tokens);
        let kept = others * self.needs.sequence_bytes(of_others.div_ceil(others.max(1)));
        let there = held
            .saturating_sub(self.measured.loaded_bytes(self.needs))
            .saturating_sub(self.needs.prefix_bytes_max)
            .saturating_sub(kept);
        let transient = self.needs.transient_bytes(Load { context: tokens, batch: 1 });
        self.needs.sequence_bytes(tokens) + transient.saturating_sub(there)
    }

    /// For being there and for all of `load`, its sequences coming one after another.
    pub fn load_bytes(&self, load: Load) -> u64 {
        (1..=load.batch).fold(self.base_bytes(), |held, batch| {
            held + self.more_bytes(load.context, Load { batch, ..load }, held)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Form, ModelShape, Sample, WeightBytes};
    use serde_json::json;

    const MIB: u64 = 1 << 20;

    fn needs() -> Needs {
        let config = json!({
            "model_type": "llama", "hidden_size": 256, "num_hidden_layers": 6,
            "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 768,
            "vocab_size": 8192, "max_position_embeddings": 32768,
        });
        Needs {
            shape: ModelShape::from_config(&config).ok(),
            weights: WeightBytes { stored: 36 * MIB, parameters: 9 * MIB },
            form: Form::Float32,
            chunk_tokens: 512,
            cache_bytes_max: None,
            prefix_bytes_max: 0,
            draft: None,
            packed_kv: None,
            kv_tokens_max: None,
        }
    }

    #[test]
    fn a_measured_load_is_promised_what_it_took_and_a_margin() {
        let (needs, mut measured) = (needs(), Measured::default());
        let load = Load { context: 1024, batch: 16 };
        let before = Promise { needs: &needs, measured: &measured }.load_bytes(load);
        assert!(before >= needs.peak_bytes(load));
        let peak_bytes = needs.peak_bytes(load) / 5 * 4;
        measured.loaded_bytes = Some(needs.loaded_bytes());
        measured.resting_bytes = Some(needs.loaded_bytes() + MIB);
        measured.record(Sample { context: 1024, batch: 16, peak_bytes });
        let after = Promise { needs: &needs, measured: &measured }.load_bytes(load);
        assert_eq!(after, peak_bytes + measured.margin_bytes(&needs, load));
        assert!(after < before);
    }

    #[test]
    fn a_prompt_beside_those_that_share_buffers_is_promised_before_it_was_measured() {
        let (needs, mut measured) = (needs(), Measured::default());
        // Five in eight slots of 2048 columns, and the sixth with blocks of its own.
        let load = Load { context: 1100, batch: 6 };
        let position = 6 * 2 * 4 * 32 * 4;
        let alive = (8 * 2048 + 1280) * position + needs.transient_bytes(load);
        assert_eq!(needs.prompting_bytes(load), alive);
        let of = |measured: &Measured| Promise { needs: &needs, measured }.load_bytes(load);
        assert!(of(&measured) >= needs.loaded_bytes() + alive);
        measured.resting_bytes = Some(needs.loaded_bytes());
        assert!(of(&measured) >= needs.loaded_bytes() + alive);
        // One that decodes alone shares nothing.
        let two = Load { batch: 2, ..load };
        let kept = 2 * needs.sequence_bytes(1100);
        assert_eq!(needs.prompting_bytes(two), kept + needs.transient_bytes(two));
    }

    #[test]
    fn what_lasts_a_moment_is_promised_once_and_for_the_longest() {
        let (needs, mut measured) = (needs(), Measured::default());
        measured.resting_bytes = Some(needs.loaded_bytes());
        let promise = Promise { needs: &needs, measured: &measured };
        let transient = |context| needs.transient_bytes(Load { context, batch: 1 });
        let (short, long) = (512, 16_384);
        let base = promise.base_bytes();
        let first = promise.more_bytes(long, Load { context: long, batch: 1 }, base);
        assert!(first >= needs.sequence_bytes(long) + transient(long), "{first}");
        let both = Load { context: (long + short) / 2, batch: 2 };
        let second = promise.more_bytes(short, both, base + first);
        assert!(second < needs.sequence_bytes(short) + transient(short), "{second}");
        // The other way round it is as much.
        let first = promise.more_bytes(short, Load { context: short, batch: 1 }, base);
        let second = promise.more_bytes(long, both, base + first);
        let kept = needs.sequence_bytes(short) + needs.sequence_bytes(long);
        assert!(first + second >= kept + transient(long));
        // Nor does a measured mean hide it.
        let (context, batch) = (both.context, both.batch);
        measured.record(Sample { context, batch, peak_bytes: base });
        let twelve = Load { context: (long + 11 * short) / 12, batch: 12 };
        let (context, batch) = (twelve.context, twelve.batch);
        measured.record(Sample { context, batch, peak_bytes: base });
        let promise = Promise { needs: &needs, measured: &measured };
        assert!(promise.more_bytes(long, twelve, base) >= transient(long));
    }
}
