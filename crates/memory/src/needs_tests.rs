//! Against what is known of published models: their configs' numbers, written down here, and the
//! sizes that follow from them by hand.

use super::*;
use serde_json::{Value, json};

struct Known {
    name: &'static str,
    config: Value,
    parameters: u64,
    /// In the type of its files, of a long sequence.
    kv_bytes_per_token: u64,
}

fn known() -> Vec<Known> {
    let dense = |kind: &str, numbers: [u64; 7], head_dim: Option<u64>| {
        let [hidden, layers, heads, kv_heads, intermediate, vocab, context] = numbers;
        let mut config = json!({
            "model_type": kind, "hidden_size": hidden, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv_heads,
            "intermediate_size": intermediate, "vocab_size": vocab,
            "max_position_embeddings": context, "torch_dtype": "bfloat16",
        });
        if let Some(head_dim) = head_dim {
            config["head_dim"] = json!(head_dim);
        }
        config
    };
    let mut mistral = dense("mistral", [4096, 32, 32, 8, 14_336, 32_000, 32_768], None);
    mistral["sliding_window"] = json!(4096);
    let mut mixture = dense("qwen3_moe", [2048, 48, 32, 4, 6144, 151_936, 40_960], Some(128));
    mixture["num_experts"] = json!(128);
    mixture["num_experts_per_tok"] = json!(8);
    mixture["moe_intermediate_size"] = json!(768);
    let mut hybrid = dense("nemotron_h", [4096, 52, 32, 8, 21_504, 131_072, 8192], Some(128));
    hybrid["hybrid_override_pattern"] =
        json!("M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-");
    for (key, value) in [
        ("mamba_num_heads", 128),
        ("mamba_head_dim", 64),
        ("ssm_state_size", 128),
        ("n_groups", 8),
        ("conv_kernel", 4),
    ] {
        hybrid[key] = json!(value);
    }
    let model = |name, config, parameters, kv_bytes_per_token| Known {
        name,
        config,
        parameters,
        kv_bytes_per_token,
    };
    vec![
        model(
            "Llama-3.2-1B",
            dense("llama", [2048, 16, 32, 8, 8192, 128_256, 131_072], Some(64)),
            1_235_814_400,
            32_768,
        ),
        model(
            "Qwen2.5-0.5B",
            dense("qwen2", [896, 24, 14, 2, 4864, 151_936, 32_768], None),
            494_032_768,
            12_288,
        ),
        model(
            "Qwen2.5-7B",
            dense("qwen2", [3584, 28, 28, 4, 18_944, 152_064, 131_072], None),
            7_615_616_512,
            57_344,
        ),
        model(
            "Qwen3-0.6B",
            dense("qwen3", [1024, 28, 16, 8, 3072, 151_936, 40_960], Some(128)),
            596_049_920,
            114_688,
        ),
        model("Qwen3-30B-A3B", mixture, 30_532_122_624, 98_304),
        // Every layer slides: nothing keeps all of a long sequence.
        model("Mistral-7B-v0.1", mistral, 7_241_732_096, 0),
        model("Nemotron-H-8B", hybrid, 8_099_000_000, 16_384),
    ]
}

fn needs(known: &Known, form: Form) -> Needs {
    Needs {
        shape: Some(ModelShape::from_config(&known.config).expect(known.name)),
        weights: WeightBytes { stored: known.parameters * 2, parameters: known.parameters },
        form,
        chunk_tokens: 512,
        cache_bytes_max: None,
        prefix_bytes_max: 0,
        draft: None,
        packed_kv: None,
        kv_tokens_max: None,
    }
}

fn of(name: &str, form: Form) -> Needs {
    let all = known();
    needs(all.iter().find(|known| known.name == name).expect(name), form)
}

#[test]
fn a_tokens_keys_and_values_are_as_the_configs_say() {
    for known in known() {
        let shape = needs(&known, Form::Stored).shape.unwrap();
        assert_eq!(shape.kv_bytes_per_token(2), known.kv_bytes_per_token, "{}", known.name);
    }
}

#[test]
fn sequences_by_kind_of_layer() {
    // 32 layers of 2 × 8 heads × 128 × 2 bytes, by hand.
    let llama_like = 32 * 2 * 8 * 128 * 2;
    let mistral = of("Mistral-7B-v0.1", Form::Stored);
    assert_eq!(mistral.sequence_bytes(1024), 1024 * llama_like);
    // A window of 4096 and the block that it is written into, however long the sequence is.
    assert_eq!(mistral.sequence_bytes(32_768), (4096 + 256) * llama_like);
    // 24 Mamba layers of 128 heads × 64 × 128 floats and 3 × (8192 + 2 × 8 × 128) bfloat16s,
    // whatever the length, and 4 attention layers.
    let hybrid = of("Nemotron-H-8B", Form::Stored);
    let fixed = 24 * (128 * 64 * 128 * 4 + 3 * (8192 + 2048) * 2);
    assert_eq!(hybrid.sequence_bytes(0), fixed);
    assert_eq!(hybrid.sequence_bytes(8192), fixed + 8192 * 16_384);
    // Blocks of 256 positions.
    let qwen = of("Qwen2.5-0.5B", Form::Stored);
    assert_eq!(qwen.sequence_bytes(1), qwen.sequence_bytes(256));
    assert_eq!(qwen.sequence_bytes(257), 512 * 12_288);
    // On a CPU keys and values are float32.
    assert_eq!(of("Qwen2.5-0.5B", Form::Float32).sequence_bytes(256), 256 * 24_576);
}

#[test]
fn weights_are_exact_in_both_forms() {
    for known in known() {
        assert_eq!(needs(&known, Form::Stored).weight_bytes(), known.parameters * 2);
        assert_eq!(needs(&known, Form::Float32).weight_bytes(), known.parameters * 4);
    }
}

#[test]
fn the_transient_grows_with_the_piece_the_context_and_the_batch() {
    for known in known() {
        for form in [Form::Stored, Form::Float32] {
            let needs = needs(&known, form);
            let at = |context, batch| needs.transient_bytes(Load { context, batch });
            assert!(at(64, 1) < at(512, 1), "{}", known.name);
            assert!(at(512, 1) <= at(8192, 1), "{}", known.name);
            assert!(at(64, 1) < at(64, 256), "{}", known.name);
            // A whole prompt in one piece against itself: the part that pieces are there to avoid.
            let whole = Needs { chunk_tokens: 8192, ..needs.clone() };
            assert!(whole.transient_bytes(Load { context: 8192, batch: 1 }) > 4 * at(8192, 1));
        }
    }
}

#[test]
fn joining_sequences_have_their_own_and_shared_buffers_that_double() {
    // Without what a moment's work takes, keys and values are all there is beside the weights.
    let needs = Needs { chunk_tokens: 1, ..of("Llama-3.2-1B", Form::Stored) };
    let of_position = 32_768;
    let kept = |context, batch| {
        let load = Load { context, batch };
        (needs.peak_bytes(load) - needs.loaded_bytes()) / of_position
    };
    // One: 1280 positions of its own (blocks of 256), and 2048 of a shared slot.
    assert_eq!(kept(1100, 1), 1280 + 2048);
    // Four: two slots become four while the other two have their own.
    assert_eq!(kept(1100, 4), (2 + 4) * 2048 + 2 * 1280);
    // Five: four become eight.
    assert_eq!(kept(1100, 5), (4 + 8) * 2048 + 1280);
    assert_eq!(kept(2048, 4), (2 + 4) * 2048 + 2 * 2048);
    // On a CPU, in float32, one layer of 16 exists twice.
    let on_cpu = Needs { form: Form::Float32, ..needs };
    let position = 2 * of_position;
    let joining = on_cpu.joining_bytes(Load { context: 2048, batch: 4 });
    assert_eq!(joining, (4 + 2) * 2048 * position + 2 * 2048 * position / 16);
}

#[test]
fn scores_are_of_the_largest_piece_against_what_it_sees() {
    let needs = of("Qwen2.5-0.5B", Form::Float32);
    let at = |context| needs.transient_bytes(Load { context, batch: 1 });
    let scratch = |context| needs.scratch_bytes(context);
    let scores = |positions: u64, seen: u64| positions * seen * 14 * 4;
    let gap = |more: u64, less: u64| at(more) - scratch(more) + scratch(less) - at(less);
    // 512 and 511 more: the first piece's scores until the second's are larger.
    assert_eq!(gap(700, 512), 0);
    assert_eq!(gap(1023, 512), scores(511, 1023) - scores(512, 512));
    assert_eq!(gap(1536, 1024), scores(512, 1536) - scores(512, 1024));
}

/// What workers took on a CPU, in MB, with prompts in pieces of 1024 (`mlxd bench admission`, random
/// checkpoints of 3M and 9M parameters): what the formula says of the way between two loads of a
/// bucket is that way, within 2 % of where it leads.
#[test]
fn on_a_cpu_the_formula_bridges_what_was_measured() {
    let needs = |hidden: u64, layers: u64, vocab: u64| {
        let config = json!({
            "model_type": "qwen3", "hidden_size": hidden, "num_hidden_layers": layers,
            "num_attention_heads": hidden / 32, "num_key_value_heads": hidden / 64,
            "head_dim": 32, "intermediate_size": 3 * hidden, "vocab_size": vocab,
            "max_position_embeddings": 16_384,
        });
        Needs {
            shape: ModelShape::from_config(&config).ok(),
            chunk_tokens: 1024,
            ..of("Qwen3-0.6B", Form::Float32)
        }
    };
    let (small, large) = (needs(192, 6, 4096), needs(256, 8, 8192));
    let taken = [
        (&small, 1, [(384, 49.5), (512, 55.5)]),
        (&small, 4, [(384, 56.9), (512, 63.0)]),
        (&small, 1, [(1536, 127.4), (2048, 160.8)]),
        (&small, 4, [(1536, 148.6), (2048, 190.5)]),
        (&small, 1, [(6144, 350.0), (8192, 412.6)]),
        (&small, 4, [(6144, 438.7), (8192, 531.8)]),
        (&large, 1, [(384, 75.7), (512, 83.7)]),
        (&large, 4, [(384, 89.0), (512, 96.9)]),
        (&large, 1, [(1536, 185.3), (2048, 233.2)]),
        (&large, 4, [(1536, 223.3), (2048, 285.4)]),
        (&large, 1, [(6144, 487.9), (8192, 575.6)]),
        (&large, 4, [(6144, 639.4), (8192, 769.8)]),
    ];
    for (needs, batch, [(from, before), (to, after)]) in taken {
        let peak = |context| needs.peak_bytes(Load { context, batch }) as f64 / 1e6;
        let error = (before + peak(to) - peak(from)) / after - 1.0;
        assert!(error.abs() < 0.02, "{batch} × {to} tokens: {error:.3}");
    }
    // Freed buffers are bounded: far beyond the bound it is what is alive that decides.
    let bounded = Needs { cache_bytes_max: Some(1 << 20), ..large.clone() };
    let load = Load { context: 8192, batch: 4 };
    assert!(bounded.peak_bytes(load) + (100 << 20) < large.peak_bytes(load));
}

proptest::proptest! {
    /// More tokens or more sequences never take less.
    #[test]
    fn the_peak_grows_with_the_load(
        which in 0..7_usize, context in 1..9000_u64, batch in 1..17_u64,
        more in 0..3000_u64, beside in 0..5_u64,
    ) {
        for form in [Form::Stored, Form::Float32] {
            let needs = needs(&known()[which], form);
            let less = needs.peak_bytes(Load { context, batch });
            let more = Load { context: context + more, batch: batch + beside };
            proptest::prop_assert!(needs.peak_bytes(more) >= less);
        }
    }
}

#[test]
fn an_experts_layer_counts_the_experts_that_a_token_visits() {
    let shape = of("Qwen3-30B-A3B", Form::Stored).shape.unwrap();
    assert_eq!((shape.feed_forward, shape.experts, shape.expert_width), (8 * 768, 128, 768));
}

#[test]
fn parts_come_to_the_plan() {
    let load = Load { context: 8192, batch: 4 };
    for known in known() {
        let needs = needs(&known, Form::Stored);
        let sum: u64 = needs.parts(load).iter().map(|part| part.bytes).sum();
        assert_eq!(sum, needs.planned_bytes(load), "{}", known.name);
        assert!(sum >= needs.base_bytes(load) + 4 * needs.sequence_bytes(8192));
        assert!(needs.peak_bytes(load) <= sum, "{}", known.name);
    }
}

/// `mlxd bench admission --models 3B,7B --contexts 2048 --batches 1` on an H100, 4-bit weights: what
/// the worker took, its own overhead as planned.
#[test]
fn a_gpus_peaks_are_as_they_were_measured() {
    let qwen = |[hidden, layers, heads, kv_heads, feed_forward]: [u64; 5], stored| {
        let config = json!({
            "model_type": "qwen2", "hidden_size": hidden, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv_heads,
            "intermediate_size": feed_forward, "vocab_size": 151_936,
            "max_position_embeddings": 32_768, "torch_dtype": "bfloat16",
        });
        Needs {
            shape: Some(ModelShape::from_config(&config).unwrap()),
            weights: WeightBytes { stored, parameters: 2 * stored },
            chunk_tokens: 1024,
            ..of("Qwen2.5-7B", Form::Stored)
        }
    };
    let small = qwen([2048, 36, 16, 2, 11_008], 1_736_200_000);
    let large = qwen([3584, 28, 28, 4, 18_944], 4_284_300_000);
    for (needs, context, took) in [
        (&small, 1536, 2_516_984_904_u64),
        (&small, 2048, 2_567_775_304),
        (&large, 1536, 5_384_844_360),
        (&large, 2048, 5_446_677_576),
    ] {
        let said = needs.peak_bytes(Load { context, batch: 1 });
        let error = (said as f64 / took as f64 - 1.0) * 100.0;
        println!("{context} tokens: {said} for {took}, {error:.2} %");
        assert!(error.abs() < 2.0, "{context} tokens: {said} for {took}, {error:.2} %");
    }
}

#[test]
fn a_vision_models_language_part_is_read() {
    let mut inner = known().remove(1).config;
    inner.as_object_mut().unwrap().remove("model_type");
    let config = json!({"model_type": "qwen2_vl", "text_config": inner, "vision_config": {}});
    let shape = ModelShape::from_config(&config).unwrap();
    assert_eq!((shape.hidden, shape.architecture.as_str()), (896, "qwen2_vl"));
}

#[test]
fn what_is_missing_or_absurd_is_named() {
    for (key, value) in [
        ("hidden_size", Value::Null),
        ("hidden_size", json!(0)),
        ("num_attention_heads", json!(-4)),
        ("vocab_size", json!("many")),
        ("num_hidden_layers", json!(1_000_000)),
    ] {
        let mut config = known().remove(0).config;
        config[key] = value;
        let error = ModelShape::from_config(&config).unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
    }
    assert!(ModelShape::from_config(&Value::Null).is_err());
}

#[test]
fn packed_keys_and_values_take_what_their_bits_say() {
    let plain = of("Llama-3.2-1B", Form::Stored);
    for (bits, of_head) in [(8, 64 + 2 * 2), (4, 32 + 2 * 2)] {
        let packed_kv = Some(PackedKv { bits, from_tokens: 4096 });
        let packed = Needs { packed_kv, ..plain.clone() };
        // Up to there, and while it is being packed.
        assert_eq!(packed.sequence_bytes(4096), plain.sequence_bytes(4096));
        assert!(packed.sequence_bytes(5000) >= plain.sequence_bytes(4608));
        // 16 layers of keys and values of 8 heads.
        assert_eq!(packed.sequence_bytes(32_768), 32_768 * 16 * 2 * 8 * of_head, "{bits} bits");
        let per_token = format!("{} bytes a token", 16 * 2 * 8 * of_head);
        let load = Load { context: 32_768, batch: 1 };
        assert!(packed.parts(load).iter().any(|part| part.how.contains(&per_token)));
        let mut last = 0;
        for tokens in (0..40_000).step_by(100) {
            let bytes = packed.sequence_bytes(tokens);
            assert!(bytes >= last, "a longer sequence takes no less: {tokens}");
            assert!(bytes <= plain.sequence_bytes(tokens));
            last = bytes;
        }
    }
    // A window stays as it is, and so does a scan's state.
    for (name, layers) in [("Mistral-7B-v0.1", 0), ("Nemotron-H-8B", 4)] {
        let plain = of(name, Form::Stored);
        let packed_kv = Some(PackedKv { bits: 8, from_tokens: 0 });
        let packed = Needs { packed_kv, ..plain.clone() };
        let saved = layers * 2 * 8 * (128 * 2 - (128 + 2 * 2 * 2)) * 8192;
        assert_eq!(plain.sequence_bytes(8192) - packed.sequence_bytes(8192), saved, "{name}");
    }
}

#[test]
fn bounded_sequences_stop_growing() {
    let plain = of("Llama-3.2-1B", Form::Stored);
    let bounded = Needs { kv_tokens_max: Some(4096), chunk_tokens: 1024, ..plain.clone() };
    for tokens in [1, 300, 4096, 5120] {
        assert_eq!(bounded.sequence_bytes(tokens), plain.sequence_bytes(tokens), "{tokens}");
    }
    // 16 layers of keys and values of 8 heads of 64, in 16 bits; the piece of a prompt beside them.
    for tokens in [5121, 8192, 131_072] {
        assert_eq!(bounded.sequence_bytes(tokens), (4096 + 1024) * 16 * 2 * 8 * 64 * 2, "{tokens}");
    }
    let load = Load { context: 131_072, batch: 4 };
    let sequences = bounded.parts(load).into_iter().find(|part| part.name == "sequences").unwrap();
    assert!(sequences.how.contains("4096 kept of each"), "{}", sequences.how);
    assert!(bounded.peak_bytes(load) < plain.peak_bytes(load) / 4);
    // On a CPU a piece's scores are as wide as what is kept.
    let on_cpu = Needs { form: Form::Float32, ..bounded.clone() };
    let long = Load { context: 32_768, batch: 1 };
    let longer = Load { context: 131_072, batch: 1 };
    assert_eq!(on_cpu.transient_bytes(long), on_cpu.transient_bytes(longer));
    // A window stays as it is, and so does a scan's state.
    let sliding = of("Mistral-7B-v0.1", Form::Stored);
    let both = Needs { kv_tokens_max: Some(64), ..sliding.clone() };
    assert_eq!(both.sequence_bytes(8192), sliding.sequence_bytes(8192));
    let hybrid = of("Nemotron-H-8B", Form::Stored);
    let both = Needs { kv_tokens_max: Some(1024), chunk_tokens: 512, ..hybrid.clone() };
    let saved = (8192 - 1536) * 4 * 2 * 8 * 128 * 2;
    assert_eq!(hybrid.sequence_bytes(8192) - both.sequence_bytes(8192), saved);
}

#[test]
fn a_draft_model_is_counted_in() {
    let (plain, small) = (of("Llama-3.2-1B", Form::Stored), of("Qwen2.5-0.5B", Form::Stored));
    let shape = small.shape.clone();
    let kept = shape.as_ref().map(|shape| shape.sequence_bytes(4096, 4096, shape.element_bytes));
    let draft = Some(DraftNeeds { shape, weights: small.weights });
    let drafted = Needs { draft, ..plain.clone() };
    assert_eq!(drafted.loaded_bytes() - plain.loaded_bytes(), small.weights.stored);
    for batch in [1, 4] {
        let load = Load { context: 4096, batch };
        let more = drafted.peak_bytes(load) - plain.peak_bytes(load);
        assert_eq!(more, small.weights.stored + kept.unwrap(), "one sequence, however many run");
        let parts = drafted.parts(load);
        assert!(parts.iter().any(|part| part.name == "draft model"));
        let sum: u64 = parts.iter().map(|part| part.bytes).sum();
        assert_eq!(sum, drafted.planned_bytes(load));
    }
}
