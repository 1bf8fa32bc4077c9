//! A loaded checkpoint beside what mlx-lm computed from it.
//!
//! What is compared with what: the loader widens weights to dense float32 on a CPU, so the
//! logits must equal those of mlx-lm's model with the same widened weights, and the 64 greedy
//! tokens must be the same. Beside that, the logits must be near those of mlx-lm on the
//! checkpoint as stored, and, where its weights are float32 or packed with float32 scales, its
//! greedy tokens must be the same too; half-precision arithmetic may rightly decide otherwise.

use std::fs;
use std::path::Path;

use mlxd_engine::{Engine, SeqId, SeqSpec};
use mlxd_models::MlxEngine;
use mlxd_protocol::{Sampling, TokenId};

/// Largest difference of logits from the same weights, in standard deviations of the logits.
const DENSE_TOLERANCE: f32 = 2e-5;
/// The same from mlx-lm on what is stored, where that computes in float32.
const STORED_TOLERANCE: f32 = 1e-4;
/// The same where mlx-lm computes in float16 (11 bits of mantissa).
const F16_TOLERANCE: f32 = 0.1;
/// The same where mlx-lm computes in bfloat16 (8 bits of mantissa). Its packed product on a
/// CPU also sums in bfloat16, which is where most of the distance comes from.
const BF16_TOLERANCE: f32 = 0.6;

/// `count` greedy tokens after `prompt`.
pub fn greedy(engine: &mut MlxEngine, prompt: &[TokenId], count: usize) -> Vec<TokenId> {
    let seq = SeqId(1);
    let spec = SeqSpec {
        tokens: prompt.to_vec(),
        prompt_len: prompt.len(),
        sampling: Sampling::default(),
        logprobs: None,
        capacity: prompt.len() + count,
    };
    engine.open(seq, spec).expect("a valid sequence");
    // In small chunks, so that chunking is compared too.
    while engine.prefill(seq, 7).expect("prefill") > 0 {}
    let mut out = Vec::new();
    while out.len() < count {
        engine.submit(&[seq]).expect("submit");
        engine.collect(&mut out).expect("collect");
    }
    engine.close(seq);
    out.into_iter().map(|step| step.token).collect()
}

/// The largest difference in standard deviations of `theirs`.
pub fn distance(ours: &[Vec<f32>], theirs: &[Vec<f32>]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    let count = theirs.iter().flatten().count() as f32;
    let mean = theirs.iter().flatten().sum::<f32>() / count;
    let squares = theirs.iter().flatten().map(|value| (value - mean).powi(2));
    let deviation = (squares.sum::<f32>() / count).sqrt();
    assert!(deviation > 0.1, "logits that say nothing: {deviation}");
    let pairs = ours.iter().flatten().zip(theirs.iter().flatten());
    // `max` would swallow a NaN.
    let largest = pairs.fold(0.0, |worst: f32, (a, b)| {
        let apart = (a - b).abs();
        if apart > worst || apart.is_nan() { apart } else { worst }
    });
    largest / deviation
}

fn compare(case: &Path) {
    let name = case.file_name().unwrap().to_string_lossy();
    let mut engine = super::load(case);
    let reference = super::reference(case);
    let vocab = engine.info().vocab_size as usize;
    let forced = &reference.tokens[..reference.tokens.len() - 1];
    let ours = engine.logits_along(&reference.prompt, forced).unwrap();

    let dense = distance(&ours, &super::rows(&case.join("dense.f32"), vocab));
    let stored = distance(&ours, &super::rows(&case.join("stored.f32"), vocab));
    println!("{name}: {dense:.1e} from the widened weights, {stored:.1e} from the stored");
    assert!(dense <= DENSE_TOLERANCE, "{name}: logits differ by {dense}");
    let (stored_tolerance, exact) = match name.as_ref() {
        // A router that computes in bfloat16 may choose other experts, and all is different.
        name if name.contains("half") && (name.contains("moe") || name.contains("experts")) => {
            (f32::INFINITY, false)
        }
        name if name.contains("half-bf16") => (BF16_TOLERANCE, false),
        name if name.contains("half-f16") => (F16_TOLERANCE, false),
        _ => (STORED_TOLERANCE, true),
    };
    assert!(
        stored <= stored_tolerance,
        "{name}: logits differ from mlx-lm's on the stored weights by {stored}"
    );
    assert!(reference.stored_agrees || !exact, "{name}: mlx-lm disagrees with itself");
    let tokens = greedy(&mut engine, &reference.prompt, reference.tokens.len());
    assert_eq!(tokens, reference.tokens, "{name}: greedy tokens differ");
}

/// Compares every case of `script` whose name begins with `prefix`.
pub fn compare_all(script: &str, prefix: &str, at_least: usize) {
    let folder = super::made_by(script);
    let names: Vec<String> =
        serde_json::from_slice(&fs::read(folder.join("cases.json")).unwrap()).unwrap();
    let chosen: Vec<&String> = names.iter().filter(|name| name.starts_with(prefix)).collect();
    assert!(chosen.len() >= at_least, "{} cases of {prefix}", chosen.len());
    for name in chosen {
        compare(&folder.join(name));
    }
}
