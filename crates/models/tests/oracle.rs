//! Every architecture, rope variant and packing against mlx-lm, on the CPU.

mod common;

use common::compare::compare_all;
use mlxd_engine::Engine;
use mlxd_models::Layout;

#[test]
fn architectures_equal_mlx_lm() {
    compare_all("make.py", "arch-", 15);
}

#[test]
fn rope_variants_equal_mlx_lm() {
    compare_all("make.py", "rope-", 7);
}

#[test]
fn packings_equal_mlx_lm() {
    compare_all("make.py", "quant-", 20);
}

#[test]
fn half_precision_is_widened_as_it_should_be() {
    compare_all("make.py", "half-", 6);
}

#[test]
fn infos_say_what_was_loaded() {
    let folder = common::made_by("make.py");
    let spec = common::load_spec(&folder.join("quant-4-128"));
    let mut seen = Vec::new();
    let engine = mlxd_models::load(&spec, &mut |done, total| seen.push((done, total))).unwrap();
    let info = engine.info();
    assert_eq!((info.vocab_size, info.context_tokens), (320, 512));
    assert_eq!(info.quantization, "4-bit g128");
    assert_eq!(info.backend, "cpu");
    // Dense float32 on the CPU, and two layers of 2 heads of 32 for keys and for values.
    assert_eq!(info.weight_bytes, 4 * info.parameters);
    assert_eq!(info.kv_bytes_per_token, 2 * 2 * 2 * 32 * 4);
    assert!(seen.windows(2).all(|pair| pair[0].0 <= pair[1].0), "progress only grows");
    let (done, total) = *seen.last().unwrap();
    assert!(done == total && total > 0, "{done} of {total}");

    let summary = mlxd_models::check(&spec.folder).unwrap();
    assert_eq!(summary.parameters, info.parameters);
    assert_eq!(summary.quantization, info.quantization);
}

#[test]
fn a_piece_in_strides_is_the_same() {
    for (script, name) in [("make.py", "arch-qwen3"), ("hybrids.py", "hybrid")] {
        let folder = common::made_by(script).join(name);
        let prompt: Vec<u32> = (0..400).map(|index| (index * 31 + 7) % 320).collect();
        let logits = |stride| {
            let layout = Layout { stride, ..Layout::PLAIN };
            let spec = common::load_spec(&folder);
            let engine = mlxd_models::load_with_layout(&spec, Some(layout), &mut |_, _| {});
            engine.expect("a model").logits_along(&prompt, &[1, 2]).expect("logits")
        };
        let expected = logits(None);
        for group in [1, 2, 100] {
            assert_eq!(logits(Some(group)), expected, "{name}, {group} layers at a time");
        }
    }
}
