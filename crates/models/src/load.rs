//! From a folder to a warm engine.

use std::path::Path;
use std::time::Instant;

use mlx_rs::memory;
use mlxd_engine::{EmbedText, Engine, SeqId, SeqSpec};
use mlxd_protocol::{
    KvQuantization, LoadFault, LoadFaultKind, LoadSpec, ModelInfo, Sampling, parameters_in_short,
};

use crate::arch::{self, BertModel, DenseModel, LayerState, Layout, Model, NemotronModel, State};
use crate::config::{Described, Packing};
use crate::device::{self, Backend};
use crate::disk::{DiskLimits, DiskTier};
use crate::draft::Draft;
use crate::engine::MlxEngine;
use crate::fault::{Loaded, in_load, unsupported};
use crate::fingerprint;
use crate::kv::{KEPT_FIRST, group_of};
use crate::pooling::{Pooling, Taken};
use crate::speculate::Guessing;
use crate::weights::{Checkpoint, Plan, Progress, Reader};

/// What a folder's files promise, found without reading a tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// `model_type` of its config.
    pub architecture: String,
    /// Rows of the embedding.
    pub vocab_size: u32,
    /// Tokens a sequence may have.
    pub context_tokens: u32,
    /// Parameters, counted before quantisation.
    pub parameters: u64,
    /// Bytes of the tensors in the files.
    pub file_bytes: u64,
    /// As `4-bit g64`, `bf16`, `f32`.
    pub quantization: String,
}

struct Checked {
    config: Described,
    checkpoint: Checkpoint,
    plan: Plan,
    quantization: String,
    pooling: Option<Pooling>,
}

fn checked(folder: &Path) -> Loaded<Checked> {
    let config = Described::read(folder)?;
    let pooling = pooling_of(folder, &config)?;
    let mut checkpoint = Checkpoint::open(folder)?;
    if !checkpoint.tensors.contains_key(config.embedding()) {
        match &config {
            Described::Decoder(_) => checkpoint.rename(arch::decoder_name),
            Described::Encoder(_) => checkpoint.rename(arch::encoder_name),
            Described::Hybrid(_) => {}
        }
    }
    let inventory = match &config {
        Described::Decoder(config) => arch::inventory(config),
        Described::Hybrid(config) => arch::hybrid_inventory(config),
        Described::Encoder(config) => arch::encoder_inventory(config),
    };
    let plan = Plan::check(config.quantization(), &inventory, &checkpoint)?;
    let quantization = quantization_name(&config, &checkpoint, &plan);
    Ok(Checked { config, checkpoint, plan, quantization, pooling })
}

/// How a model makes vectors; `None` for one that writes text.
fn pooling_of(folder: &Path, config: &Described) -> Loaded<Option<Pooling>> {
    match config {
        // What sentence-transformers does with an encoder that says nothing.
        Described::Encoder(_) => {
            let mean = Pooling { taken: Taken::Mean, normalised: true };
            Ok(Some(Pooling::read(folder, None)?.unwrap_or(mean)))
        }
        Described::Decoder(config) => {
            let pooling = Pooling::read(folder, Some(Taken::Last))?;
            if pooling.is_some() && config.windows.iter().any(Option::is_some) {
                return Err(unsupported(
                    "config.json: this build makes no vectors with layers that slide",
                ));
            }
            Ok(pooling)
        }
        Described::Hybrid(_) => Ok(None),
    }
}

/// Checks everything about `folder` that can be checked without MLX: config, headers, and
/// every tensor's name, shape and type.
pub fn check(folder: &Path) -> Result<Summary, LoadFault> {
    let Checked { config, plan, quantization, .. } = checked(folder)?;
    Ok(Summary {
        architecture: config.model_type().to_owned(),
        vocab_size: config.vocab() as u32,
        context_tokens: config.context(),
        parameters: plan.parameters,
        file_bytes: plan.bytes,
        quantization,
    })
}

/// Loads a model and warms it up. Call it on the thread that will own the engine.
///
/// `progress` is told bytes read and bytes to read.
pub fn load(spec: &LoadSpec, progress: &mut dyn FnMut(u64, u64)) -> Result<MlxEngine, LoadFault> {
    load_with_layout(spec, None, progress)
}

/// [`load`] with another layout than the one measured best for the device; for measuring.
pub fn load_with_layout(
    spec: &LoadSpec,
    layout: Option<Layout>,
    progress: Progress,
) -> Result<MlxEngine, LoadFault> {
    let begin = Instant::now();
    let checked = checked(&spec.folder)?;
    let draft = spec.draft.as_ref().filter(|_| !spec.deterministic && checked.pooling.is_none());
    let draft =
        draft.map(|draft| Ok((draft, checked_draft(&draft.folder, &checked)?))).transpose()?;
    let drafts_bytes = draft.as_ref().map_or(0, |(_, draft)| draft.plan.bytes);
    let bytes = checked.plan.bytes;
    let backend = device::choose(spec.device)?;
    if let Some(bytes) = spec.cache_bytes_max {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        memory::set_cache_limit(bytes).map_err(in_load("limiting MLX's cache"))?;
    }
    let layout = layout.unwrap_or(default_layout(backend));
    let most = checked.config.context();
    let context = spec.context_tokens_max.map_or(most, |max| max.clamp(1, most));
    let parameters = checked.plan.parameters;
    let architecture = checked.config.model_type().to_owned();
    let vocab = checked.config.vocab();
    let (pooling, quantization) = (checked.pooling, checked.quantization.clone());
    let mut of_all = |done, _: u64| progress(done, bytes + drafts_bytes);
    let model = read_model(checked, backend, layout, &mut of_all)?;
    let mut state = model.state(1);
    // A model of vectors keeps no keys and values.
    let kv = spec.kv_quantization.filter(|_| pooling.is_none());
    if let Some(kv) = kv {
        can_be_packed(&state, kv)?;
        state.quantize(kv);
    }
    let rotating = kv_tokens_max(&state, spec, context)?.filter(|_| pooling.is_none());
    let info = ModelInfo {
        architecture,
        vocab_size: vocab as u32,
        context_tokens: context,
        parameters,
        weight_bytes: model.weight_bytes(),
        kv_bytes_per_token: state.kv_bytes_per_token(),
        quantization: match (kv, rotating) {
            (None, None) => quantization,
            (Some(KvQuantization { bits, from_tokens }), _) => {
                format!("{}, {bits}-bit KV from {from_tokens} tokens", quantization)
            }
            (None, Some(most)) => format!("{}, KV of {most} tokens", quantization),
        },
        backend: backend.name().to_owned(),
        mlx: crate::sys::version(),
        load_ms: 0,
    };
    // On the CPU evaluation blocks, and a step built on an unread one would copy the KV.
    let depth = if backend.is_gpu() { 2 } else { 1 };
    let mut engine = MlxEngine::new(model, info, depth, spec.deterministic);
    engine.pooling = pooling;
    engine.guessing = Guessing::new(spec.guesses_max);
    if let Some(kv) = kv {
        pack_once(&mut engine, kv.bits)?;
    }
    engine.kv = kv;
    engine.kv_tokens_max = rotating;
    let drafted = spec.draft.as_ref().map_or(0, |draft| draft.tokens_max);
    let guessed = spec.guesses_max.max(drafted) + 1;
    let most = spec.running_max.max(guessed) as usize;
    let crowds = if backend.is_gpu() { crowds(most) } else { Vec::new() };
    let first_pass = Instant::now();
    warm_up(&mut engine, &crowds).map_err(|reason| LoadFault {
        kind: LoadFaultKind::Engine,
        message: format!("the model is loaded but does not run: {reason}"),
    })?;
    let warm_up = first_pass.elapsed();
    engine.trim();
    if engine.pooling.is_none() {
        keep_prefixes(&mut engine, spec);
    }
    if let Some((draft, checked)) = draft {
        let drafting =
            format!("{} {}", parameters_in_short(checked.plan.parameters), checked.quantization);
        let vocab_and_context = (checked.config.vocab() as u32, checked.config.context());
        let mut of_all = |done, _: u64| progress(bytes + done, bytes + drafts_bytes);
        let model = read_model(checked, backend, layout, &mut of_all)?;
        let draft =
            Draft::new(model, vocab_and_context, draft.tokens_max, spec.prefill_chunk_tokens_busy);
        engine.draft_with(draft).map_err(in_load("running the draft model"))?;
        // Behind the prefixes: what they keep is the same with it and without.
        engine.info.quantization.push_str(&format!(", drafts by {drafting}"));
    }
    engine.set_load_times(begin.elapsed().as_millis() as u64, warm_up);
    Ok(engine)
}

fn read_model(
    checked: Checked,
    backend: Backend,
    layout: Layout,
    progress: Progress,
) -> Loaded<Box<dyn Model>> {
    let mut reader = Reader::new(checked.checkpoint, checked.plan, !backend.is_gpu(), progress)?;
    Ok(match checked.config {
        Described::Decoder(config) => Box::new(DenseModel::load(config, &mut reader, layout)?),
        Described::Hybrid(config) => Box::new(NemotronModel::load(config, &mut reader, layout)?),
        Described::Encoder(config) => Box::new(BertModel::load(config, &mut reader, layout)?),
    })
}

/// What `folder` promises, if it can guess for the model that was checked.
fn checked_draft(folder: &Path, target: &Checked) -> Loaded<Checked> {
    let draft = checked(folder)?;
    let refuse = |why: String| {
        Err(unsupported(format!(
            "the draft model in {}: {why}; choose a small model of the same family as the large \
             one, or leave draft_model out",
            folder.display()
        )))
    };
    let (own, theirs) = (draft.config.vocab(), target.config.vocab());
    match &draft.config {
        _ if draft.pooling.is_some() => refuse("it makes vectors and writes no text".to_owned()),
        Described::Decoder(config) if config.windows.iter().all(Option::is_none) => {
            // Paddings of the same vocabulary differ by some hundreds; other vocabularies by more.
            match own.abs_diff(theirs) <= 1024 {
                true => Ok(draft),
                false => refuse(format!("it has {own} tokens, and the model has {theirs}")),
            }
        }
        _ => refuse("its layers forget, and a guess that was wrong is to be taken back".to_owned()),
    }
}

/// Fewer positions of keys and values are no context: the first ones are always among them.
const KV_TOKENS_MIN: u32 = 4 * KEPT_FIRST as u32;

/// Positions that layers keep which would keep all; `None` where that is the whole context, or
/// where there are no such layers.
fn kv_tokens_max(state: &State, spec: &LoadSpec, context: u32) -> Loaded<Option<u32>> {
    let Some(most) = spec.kv_tokens_max else { return Ok(None) };
    if most < KV_TOKENS_MIN {
        return Err(unsupported(format!(
            "max_kv_tokens = {most}: the keys and values of {KV_TOKENS_MIN} tokens are the fewest \
             that a sequence can go on with; 0 keeps all"
        )));
    }
    if let Some(KvQuantization { bits, .. }) = spec.kv_quantization {
        return Err(unsupported(format!(
            "kv_bits = {bits} and max_kv_tokens = {most}: keys and values that are packed keep \
             their place; set one of the two to 0 for this model"
        )));
    }
    let keeps_all = |layer: &LayerState| match layer {
        LayerState::Kv(kv) => kv.window().is_none(),
        LayerState::Recurrent(_) => false,
    };
    Ok(Some(most).filter(|most| *most < context && state.layers.iter().any(keeps_all)))
}

/// Refuses what [`KvLayer::quantize`](crate::kv::KvLayer::quantize) would leave as it is.
pub(crate) fn can_be_packed(state: &State, kv: KvQuantization) -> Loaded<()> {
    let KvQuantization { bits, .. } = kv;
    if !matches!(bits, 4 | 8) {
        return Err(unsupported(format!("kv_bits = {bits}: keys and values are packed in 4 or 8")));
    }
    for layer in &state.layers {
        if let LayerState::Kv(kv) = layer
            && kv.window().is_none()
            && group_of(kv.shape().1).is_none()
        {
            let width = kv.shape().1;
            return Err(unsupported(format!(
                "kv_bits = {bits}: the heads of this model are {width} wide, and keys and values \
                 are packed in groups of 64 or 32; set kv_bits = 0 for this model"
            )));
        }
    }
    Ok(())
}

/// A model serves without kept prefixes too: what stands in their way is said, and no fault.
fn keep_prefixes(engine: &mut MlxEngine, spec: &LoadSpec) {
    let root = match fingerprint::root(&spec.folder, engine.info()) {
        Ok(root) => root,
        Err(error) => {
            let folder = spec.folder.display();
            tracing::warn!(%folder, %error, "no prefixes are kept: the model's files changed");
            return;
        }
    };
    engine.keep_prefixes(root, spec.prefix_cache_bytes_max);
    let Some(disk) = &spec.prefix_disk else { return };
    let limits = DiskLimits {
        bytes_max: disk.bytes_max,
        write_bytes_per_hour_max: disk.write_bytes_per_hour_max,
    };
    match DiskTier::open(&disk.folder, limits) {
        Ok(tier) => engine.keep_prefixes_on(tier),
        Err(error) => {
            let folder = disk.folder.display();
            tracing::warn!(%folder, %error, "no prefixes are kept on the disk");
        }
    }
}

/// What was measured faster; the crate's page has the figures.
fn default_layout(backend: Backend) -> Layout {
    if !backend.is_gpu() {
        return Layout::PLAIN;
    }
    let cuda = backend == Backend::Cuda;
    Layout {
        join_qkv: true,
        join_gate_up: true,
        compile: true,
        fuse_decode: cuda,
        stride: Some(2),
        split_few: cuda,
    }
}

/// Numbers of rows that between them need every kernel that steps of up to `most` rows, and passes
/// over as many tokens, need.
fn crowds(most: usize) -> Vec<usize> {
    [2, 9, 17].into_iter().filter(|rows| *rows <= most).collect()
}

/// Runs what requests will run, alone and in each of these crowds, so that the first of them does
/// not wait for kernels.
fn warm_up(engine: &mut MlxEngine, crowds: &[usize]) -> Result<(), String> {
    let context = engine.info().context_tokens as usize;
    if engine.pooling.is_some() {
        let text =
            |tokens: usize| EmbedText { tokens: vec![0; tokens.min(context)], dimensions: None };
        let vectors = engine.embed(&[text(5), text(16)]).map_err(|fault| fault.to_string())?;
        let refused = vectors.into_iter().find_map(Result::err);
        return refused.map_or(Ok(()), |refusal| Err(refusal.message));
    }
    let sampled = Sampling {
        temperature: 1.0,
        top_p: 0.9,
        top_k: 2,
        repetition_penalty: 1.1,
        presence_penalty: 0.1,
        ..Sampling::default()
    };
    let kinds = [(Sampling::default(), None), (sampled, Some(1))];
    for (index, (sampling, logprobs)) in kinds.into_iter().enumerate() {
        let seq = SeqId(u64::MAX - index as u64);
        let prompt = context.clamp(1, 16);
        let steps = (context - prompt).min(3);
        let spec = SeqSpec {
            tokens: vec![0; prompt],
            prompt_len: prompt,
            sampling,
            logprobs,
            capacity: prompt + steps,
        };
        engine.open(seq, spec).map_err(|refusal| refusal.message)?;
        let ran = drive(engine, &[seq], prompt, steps);
        engine.close(seq);
        ran.map_err(|fault| fault.to_string())?;
    }
    for &rows in crowds.iter().filter(|_| context > 2) {
        let rows: Vec<SeqId> = (0..rows as u64).map(|row| SeqId(u64::MAX - row)).collect();
        for seq in &rows {
            let spec = SeqSpec {
                tokens: vec![0; 2],
                prompt_len: 2,
                sampling: Sampling::default(),
                logprobs: None,
                capacity: 3,
            };
            engine.open(*seq, spec).map_err(|refusal| refusal.message)?;
        }
        let ran = drive(engine, &rows, 2, 1);
        rows.iter().for_each(|seq| engine.close(*seq));
        ran.map_err(|fault| fault.to_string())?;
    }
    Ok(())
}

/// Runs a prompt in pieces and a step with packed keys and values, which a device may not know:
/// MLX's CUDA backend has no product with a part of a packed buffer.
pub(crate) fn pack_once(engine: &mut MlxEngine, bits: u32) -> Loaded<()> {
    let before = engine.kv.replace(KvQuantization { bits, from_tokens: 0 });
    let ran = run_once(engine);
    engine.kv = before;
    ran.map_err(|reason| {
        unsupported(format!(
            "kv_bits = {bits}: keys and values cannot be packed on this device ({reason}); set \
             kv_bits = 0 for this model"
        ))
    })
}

fn run_once(engine: &mut MlxEngine) -> Result<(), String> {
    let prompt = (engine.info().context_tokens as usize).saturating_sub(1).clamp(1, 16);
    let seq = SeqId(u64::MAX);
    let spec = SeqSpec {
        tokens: vec![0; prompt],
        prompt_len: prompt,
        sampling: Sampling::default(),
        logprobs: None,
        capacity: prompt + 1,
    };
    engine.open(seq, spec).map_err(|refusal| refusal.message)?;
    let ran = drive(engine, &[seq], prompt.div_ceil(2), 1);
    engine.close(seq);
    ran.map_err(|fault| fault.to_string())
}

fn drive(
    engine: &mut MlxEngine,
    rows: &[SeqId],
    chunk: usize,
    steps: usize,
) -> Result<(), mlxd_engine::EngineFault> {
    for seq in rows {
        while engine.prefill(*seq, chunk)? > 0 {}
    }
    let mut out = Vec::new();
    for _ in 0..steps {
        engine.submit(rows)?;
        engine.collect(&mut out)?;
    }
    Ok(())
}

/// The packing that most parameters have, or the type of the embedding.
fn quantization_name(config: &Described, checkpoint: &Checkpoint, plan: &Plan) -> String {
    let packed = plan.packings.values().flatten().next().is_some();
    let name = |packing: Packing| format!("{}-bit g{}", packing.bits, packing.group);
    if let Some(default) = config.quantization().default.filter(|_| packed) {
        let mixed = plan.packings.values().any(|packing| *packing != Some(default));
        let suffix = if mixed { " mixed" } else { "" };
        return format!("{}{suffix}", name(default));
    }
    let embedding = checkpoint.tensors.get(config.embedding());
    match embedding.map(|placed| placed.entry.dtype) {
        Some(mlx_rs::Dtype::Float16) => "f16".to_owned(),
        Some(mlx_rs::Dtype::Bfloat16) => "bf16".to_owned(),
        _ => "f32".to_owned(),
    }
}
