//! Texts to vectors: BERT's kind against the published formulas in float64, Qwen3 against mlx-lm's
//! hidden states, on the CPU. `oracle/embeddings.py` has both.

mod common;

use mlxd_engine::{EmbedText, Engine, SeqId, SeqSpec};
use mlxd_models::MlxEngine;
use mlxd_protocol::{RefusalCode, Sampling, TokenId};
use serde::Deserialize;

#[derive(Deserialize)]
struct Expected {
    texts: Vec<Vec<TokenId>>,
    vectors: Vec<Vec<f32>>,
}

/// Largest difference of one number, beside the vector's own length.
const TOLERANCE: f32 = 5e-6;

fn embed(engine: &mut MlxEngine, texts: &[Vec<TokenId>], dimensions: Option<u32>) -> Vec<Vec<f32>> {
    let text = |tokens: &Vec<TokenId>| EmbedText { tokens: tokens.clone(), dimensions };
    let texts: Vec<EmbedText> = texts.iter().map(text).collect();
    let vectors = engine.embed(&texts).expect("MLX computes");
    vectors.into_iter().map(|vector| vector.expect("usable texts")).collect()
}

fn length(vector: &[f32]) -> f32 {
    vector.iter().map(|value| value * value).sum::<f32>().sqrt()
}

fn apart(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    let widest = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(ours.iter().all(|value| value.is_finite()));
    widest / length(theirs)
}

fn compare_all(prefix: &str, at_least: usize) {
    let folder = common::made_by("embeddings.py");
    let names = std::fs::read(folder.join("cases.json")).unwrap();
    let names: Vec<String> = serde_json::from_slice(&names).unwrap();
    let chosen: Vec<&String> = names.iter().filter(|name| name.starts_with(prefix)).collect();
    assert!(chosen.len() >= at_least, "{} cases of {prefix}", chosen.len());
    for name in chosen {
        let case = folder.join(name);
        let expected = std::fs::read(case.join("reference.json")).unwrap();
        let Expected { texts, vectors } = serde_json::from_slice(&expected).unwrap();
        let mut engine = common::load(&case);
        let together = embed(&mut engine, &texts, None);
        let mut widest: f32 = 0.0;
        for (index, (ours, theirs)) in together.iter().zip(&vectors).enumerate() {
            let alone = &embed(&mut engine, &texts[index..=index], None)[0];
            widest = widest.max(apart(ours, theirs)).max(apart(alone, theirs));
        }
        println!("{name}: {widest:.1e}");
        assert!(widest <= TOLERANCE, "{name}: vectors differ by {widest}");

        let short = embed(&mut engine, &texts, Some(16));
        for (short, whole) in short.iter().zip(&together) {
            let scale = if (length(whole) - 1.0).abs() < 1e-5 { length(&whole[..16]) } else { 1.0 };
            let cut: Vec<f32> = whole[..16].iter().map(|value| value / scale).collect();
            assert!(apart(short, &cut) < 1e-6, "{name}: {short:?} is not {cut:?}");
        }
    }
}

#[test]
fn encoders_equal_the_formulas() {
    compare_all("bert-", 6);
}

#[test]
fn qwen3_equals_mlx_lm() {
    compare_all("qwen3-", 4);
}

#[test]
fn one_unusable_text_keeps_no_other_from_its_vector() {
    let mut engine = common::load(&common::made_by("embeddings.py").join("bert-mean"));
    let text = |tokens: Vec<TokenId>, dimensions| EmbedText { tokens, dimensions };
    let good = text(vec![3, 4, 5], None);
    let texts = [
        text(vec![], None),
        good.clone(),
        text(vec![3, 300], None),
        text(vec![1; 49], None),
        text(vec![1], Some(65)),
        text(vec![1], Some(0)),
    ];
    let mixed = engine.embed(&texts).unwrap();
    let alone = engine.embed(&[good]).unwrap();
    assert_eq!(mixed[1], alone[0]);
    let codes: Vec<_> =
        mixed.iter().map(|each| each.as_ref().err().map(|refusal| refusal.code)).collect();
    let invalid = Some(RefusalCode::Invalid);
    let overflow = Some(RefusalCode::ContextOverflow);
    assert_eq!(codes, [invalid, None, invalid, overflow, invalid, invalid]);
}

#[test]
fn each_kind_of_model_refuses_the_others_work() {
    let mut encoder = common::load(&common::made_by("embeddings.py").join("bert-mean"));
    let spec = SeqSpec {
        tokens: vec![1, 2],
        prompt_len: 2,
        sampling: Sampling::default(),
        logprobs: None,
        capacity: 4,
    };
    let refusal = encoder.open(SeqId(1), spec).unwrap_err();
    assert!(refusal.message.contains("/v1/embeddings"), "{}", refusal.message);
    let mut decoder = common::load(&common::made_by("make.py").join("arch-qwen3"));
    let refused = decoder.embed(&[EmbedText { tokens: vec![1], dimensions: None }]).unwrap();
    let refusal = refused[0].as_ref().unwrap_err();
    assert!(refusal.message.contains("embedding model"), "{}", refusal.message);
}
