//! Measurements of the device and of a model outside of serving, for `mlxd bench`.
//!
//! Runs in a process of its own: it may fill memory, and nobody waits for its tokens. Every timed
//! run is preceded by one that is not, so that kernels are compiled; every result is evaluated
//! before the clock is read.

mod kv;

use std::time::Instant;

use mlx_rs::error::{Exception, Result};
use mlx_rs::fast::{ScaledDotProductAttentionMask as Mask, scaled_dot_product_attention};
use mlx_rs::ops::{matmul, softmax_axis, tri};
use mlx_rs::transforms::eval;
use mlx_rs::{Array, Dtype, memory, random};
use mlxd_engine::{BenchError, Engine, EngineFault, SeqId, SeqSpec, bench_direct};
use mlxd_protocol::measure::{Figure, Measured, MeasuredDevice, MeasuredModel, Measurement};
use mlxd_protocol::{BenchSpec, LoadSpec, Sampling, TokenId};

use crate::device::{self, Backend};
use crate::engine::MlxEngine;
use crate::sys;

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The device or the model cannot be had.
    #[error(transparent)]
    Load(#[from] mlxd_protocol::LoadFault),
    /// The model does not take the measured length, or failed.
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// MLX failed.
    #[error("MLX failed: {0}")]
    Mlx(#[from] Exception),
}

/// Tokens that sequences run together generate.
const STEPS_TOGETHER: u32 = 4;

/// Told steps done and steps in all.
pub type Steps<'a> = &'a mut dyn FnMut(u64, u64);

/// Measures. Call it once, on a thread that does nothing else.
///
/// # Errors
/// See [`MeasureError`]. A length beyond the model's context is left out, not an error.
pub fn measure(what: &Measurement, progress: Steps) -> std::result::Result<Measured, MeasureError> {
    match what {
        Measurement::Device { device } => Ok(done(device::choose(*device)?)),
        Measurement::Bandwidth { device, sizes_bytes, runs } => {
            let mut measured = done(device::choose(*device)?);
            for (at, bytes) in sizes_bytes.iter().enumerate() {
                measured.figures.push(bandwidth(*bytes, *runs)?);
                memory::clear_cache()?;
                progress(at as u64 + 1, sizes_bytes.len() as u64);
            }
            Ok(measured)
        }
        Measurement::Attention { device, lengths, heads, head_dim, runs } => {
            let backend = device::choose(*device)?;
            let mut measured = done(backend);
            let inputs = Inputs { heads: *heads as i32, head_dim: *head_dim as i32, backend };
            for (at, length) in lengths.iter().enumerate() {
                measured.figures.push(inputs.attention(*length, *runs)?);
                memory::clear_cache()?;
                progress(at as u64 + 1, lengths.len() as u64);
            }
            Ok(measured)
        }
        Measurement::Forward { load, lengths, runs } => {
            let (mut model, mut measured) = Model::load(load)?;
            let all = u64::from(*runs) * lengths.len() as u64;
            for (at, length) in model.fitting(lengths, &mut measured).into_iter().enumerate() {
                model.pass(length, &mut || {})?;
                let mut seconds = Vec::new();
                for run in 0..*runs {
                    seconds.push(model.pass(length, &mut || {})?);
                    progress(at as u64 * u64::from(*runs) + u64::from(run) + 1, all);
                }
                measured.figures.push(Figure::Forward { length, seconds });
            }
            Ok(measured)
        }
        Measurement::Memory { load, lengths } => {
            let (mut model, mut measured) = Model::load(load)?;
            for (at, length) in model.fitting(lengths, &mut measured).into_iter().enumerate() {
                let figure = model.memory(length)?;
                measured.figures.push(figure);
                progress(at as u64 + 1, lengths.len() as u64);
            }
            Ok(measured)
        }
        Measurement::Kv { load, bits, lengths, new_tokens, runs, prompts, answer_tokens } => {
            let (new_tokens, runs, answer_tokens) = (*new_tokens, *runs, *answer_tokens);
            let asked = kv::Asked { bits, lengths, new_tokens, runs, prompts, answer_tokens };
            kv::measure(load, &asked, progress)
        }
        Measurement::Start { load, length } => start(load, *length),
        Measurement::Peak { load, context, batch } => {
            let (mut model, mut measured) = Model::load(load)?;
            let loading_bytes = memory::peak_memory()? as u64;
            memory::reset_peak_memory()?;
            progress(1, 2);
            model.run_together(*context, *batch)?;
            let peak_bytes = memory::peak_memory()? as u64;
            let (context, batch) = (*context, *batch);
            let resting_bytes = (memory::active_memory()? + memory::cache_memory()?) as u64;
            measured.figures.push(Figure::Peak {
                context,
                batch,
                loading_bytes,
                peak_bytes,
                resting_bytes,
            });
            Ok(measured)
        }
    }
}

/// Loads with the clock running, and asks for a first token.
fn start(load: &LoadSpec, length: u32) -> std::result::Result<Measured, MeasureError> {
    let begun = Instant::now();
    device::choose(load.device)?;
    let device_s = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    let (mut model, mut measured) = Model::load(load)?;
    let kernels_s = model.engine.warm_up_time().as_secs_f64();
    let weights_s = begun.elapsed().as_secs_f64() - kernels_s;
    let first_token_s = model.pass(length, &mut || {})?;
    measured.figures.push(Figure::Start { device_s, weights_s, kernels_s, first_token_s });
    Ok(measured)
}

fn done(backend: Backend) -> Measured {
    let (backend, mlx) = (backend.name().to_owned(), sys::version());
    let device = MeasuredDevice { backend, mlx, name: None };
    Measured { device, model: None, figures: Vec::new(), left_out: Vec::new() }
}

/// Seconds that evaluating takes, once without the clock and then as often as said.
fn timed(runs: u32, mut build: impl FnMut() -> Result<Array>) -> Result<Vec<f64>> {
    eval([&build()?])?;
    let once = |_| {
        let begun = Instant::now();
        eval([&build()?])?;
        Ok(begun.elapsed().as_secs_f64())
    };
    (0..runs).map(once).collect()
}

fn bandwidth(size_bytes: u64, runs: u32) -> Result<Figure> {
    let numbers = i32::try_from(size_bytes / 4).unwrap_or(i32::MAX);
    let array = Array::ones::<f32>(&[numbers])?;
    eval([&array])?;
    let one = Array::from_f32(1.0);
    let copy_s = timed(runs, || array.add(&one))?;
    let read_s = timed(runs, || array.sum(None))?;
    Ok(Figure::Bandwidth { size_bytes: numbers as u64 * 4, copy_s, read_s })
}

/// What attention is measured on.
struct Inputs {
    heads: i32,
    head_dim: i32,
    backend: Backend,
}

impl Inputs {
    fn attention(&self, length: u32, runs: u32) -> Result<Figure> {
        let shape = [1, self.heads, length as i32, self.head_dim];
        // As the engine has it: the CPU backend is at its best with float32.
        let dtype = if self.backend.is_gpu() { Dtype::Bfloat16 } else { Dtype::Float32 };
        let mut drawn = Vec::new();
        for seed in 0..3 {
            let key = random::key(seed)?;
            drawn.push(random::normal::<f32>(&shape, None, None, &key)?.as_dtype(dtype)?);
        }
        eval(&drawn)?;
        let [queries, keys, values] = &drawn[..] else { unreachable!("three were drawn") };
        let scale = (self.head_dim as f32).sqrt().recip();
        let fused =
            || scaled_dot_product_attention(queries, keys, values, scale, Mask::Causal, None);
        let naive = || written_out(queries, keys, values, scale);
        let (fused_s, fused_peak_bytes) = with_peak(|| timed(runs, fused))?;
        let (naive_s, naive_peak_bytes) = with_peak(|| timed(runs, naive))?;
        let difference = fused()?.subtract(naive()?)?.as_dtype(Dtype::Float32)?.abs()?.max(None)?;
        Ok(Figure::Attention {
            length,
            dtype: format!("{dtype:?}").to_lowercase(),
            naive_s,
            fused_s,
            naive_peak_bytes,
            fused_peak_bytes,
            difference: f64::from(difference.item_cast::<f32>()),
        })
    }
}

/// Softmax of the masked products, times the values.
fn written_out(queries: &Array, keys: &Array, values: &Array, scale: f32) -> Result<Array> {
    let dtype = queries.dtype();
    let length = queries.dim(2);
    let scale = Array::from_f32(scale).as_dtype(dtype)?;
    let scores = matmul(&queries.multiply(&scale)?, &keys.transpose_axes(&[0, 1, 3, 2])?)?;
    let seen = tri::<bool>(length, None, None)?;
    let far = Array::from_f32(-1e9).as_dtype(dtype)?;
    let scores = mlx_rs::ops::select(&seen, &scores, &far)?;
    matmul(&softmax_axis(&scores, -1, true)?, values)
}

/// A result, and the highest bytes in live arrays beyond those at the start.
fn with_peak<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, u64)> {
    memory::clear_cache()?;
    let before = memory::active_memory()?;
    memory::reset_peak_memory()?;
    let result = work()?;
    Ok((result, memory::peak_memory()?.saturating_sub(before) as u64))
}

/// A model with no sequence open.
struct Model {
    engine: MlxEngine,
    chunk_tokens: usize,
    active_bytes: usize,
    /// Runs so far: each has a prompt of its own.
    runs: u32,
}

impl Model {
    fn load(spec: &LoadSpec) -> std::result::Result<(Self, Measured), MeasureError> {
        let mut engine = crate::load(spec, &mut |_, _| {})?;
        engine.trim();
        let active_bytes = memory::active_memory()?;
        let info = engine.info();
        let mut measured = done(device::choose(spec.device)?);
        measured.model = Some(MeasuredModel {
            architecture: info.architecture.clone(),
            quantization: info.quantization.clone(),
            parameters: info.parameters,
            weight_bytes: info.weight_bytes,
            kv_bytes_per_token: info.kv_bytes_per_token,
            active_bytes: active_bytes as u64,
        });
        let chunk_tokens = spec.prefill_chunk_tokens as usize;
        Ok((Self { engine, chunk_tokens, active_bytes, runs: 0 }, measured))
    }

    /// The lengths that the context has room for, with a token to spare.
    fn fitting(&self, lengths: &[u32], measured: &mut Measured) -> Vec<u32> {
        let context = self.engine.info().context_tokens;
        let (fit, rest): (Vec<u32>, Vec<u32>) =
            lengths.iter().partition(|length| (1..context).contains(*length));
        let left_out = |length| format!("{length} tokens: the model's context is {context}");
        measured.left_out.extend(rest.into_iter().map(left_out));
        fit
    }

    /// Seconds from a prompt of so many tokens to the token after it.
    fn pass(
        &mut self,
        length: u32,
        alive: &mut dyn FnMut(),
    ) -> std::result::Result<f64, MeasureError> {
        let prompt = self.prompt(length);
        let spec = BenchSpec { prompt, new_tokens: 1, warmup_runs: 0, runs: 1 };
        let leg = bench_direct(&mut self.engine, &spec, self.chunk_tokens, alive)?;
        Ok(leg.seconds[0])
    }

    /// As no other run's.
    fn prompt(&mut self, length: u32) -> Vec<TokenId> {
        self.runs += 1;
        let vocab = u64::from(self.engine.info().vocab_size);
        let run = u64::from(self.runs);
        let token = |at: u32| (((u64::from(at) + run) * 7919 + run * 104_729) % vocab) as u32;
        (0..length).map(token).collect()
    }

    /// Runs sequences of so many tokens as a worker would: their prompts in pieces, one after
    /// another, then steps of all of them.
    fn run_together(&mut self, context: u32, batch: u32) -> std::result::Result<(), MeasureError> {
        let most = self.engine.info().context_tokens;
        let asked = context.clamp(2, most);
        let new = STEPS_TOGETHER.min(asked - 1);
        let rows: Vec<SeqId> = (0..u64::from(batch)).map(SeqId).collect();
        for row in &rows {
            let tokens = self.prompt(asked - new);
            let spec = SeqSpec {
                prompt_len: tokens.len(),
                tokens,
                sampling: Sampling::default(),
                logprobs: None,
                capacity: asked as usize,
            };
            self.engine.open(*row, spec).map_err(BenchError::from)?;
        }
        let mut run = || -> std::result::Result<(), EngineFault> {
            for row in &rows {
                while self.engine.prefill(*row, self.chunk_tokens)? > 0 {}
            }
            for _ in 0..new {
                self.engine.submit(&rows)?;
                self.engine.collect(&mut Vec::new())?;
            }
            Ok(())
        };
        run().map_err(BenchError::from)?;
        rows.into_iter().for_each(|row| self.engine.close(row));
        Ok(())
    }

    fn memory(&mut self, length: u32) -> std::result::Result<Figure, MeasureError> {
        memory::clear_cache()?;
        memory::reset_peak_memory()?;
        let mut state_bytes = 0;
        // Called after every piece and after the token, while the sequence is open.
        self.pass(length, &mut || {
            state_bytes = memory::active_memory().unwrap_or(0);
        })?;
        let beyond = |bytes: usize| bytes.saturating_sub(self.active_bytes) as u64;
        Ok(Figure::Memory {
            length,
            state_bytes: beyond(state_bytes),
            peak_bytes: beyond(memory::peak_memory()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlxd_protocol::DeviceChoice;

    #[test]
    fn what_is_measured_names_the_mlx_that_ran() {
        let what = Measurement::Device { device: DeviceChoice::Cpu };
        let measured = measure(&what, &mut |_, _| {}).expect("measured");
        let version = measured.device.mlx.expect("MLX tells its version");
        let number = |part: &str| part.parse::<u32>().is_ok();
        assert_eq!(version.split('.').take(3).filter(|part| number(part)).count(), 3, "{version}");
    }

    #[test]
    fn both_ways_to_attend_agree() {
        let what = Measurement::Attention {
            device: DeviceChoice::Cpu,
            lengths: vec![3, 40],
            heads: 2,
            head_dim: 16,
            runs: 2,
        };
        let mut steps = Vec::new();
        let measured = measure(&what, &mut |done, of| steps.push((done, of))).expect("measured");
        assert_eq!(steps, [(1, 2), (2, 2)]);
        assert_eq!(measured.device.backend, "cpu");
        for (figure, expected) in measured.figures.iter().zip([3, 40]) {
            let Figure::Attention { length, naive_s, fused_s, difference, .. } = figure else {
                panic!("{figure:?}")
            };
            assert_eq!((*length, naive_s.len(), fused_s.len()), (expected, 2, 2));
            assert!(*difference < 1e-4, "{difference}");
        }
    }

    #[test]
    fn bandwidth_runs_over_whole_arrays() {
        let sizes_bytes = vec![1 << 16, 1 << 18];
        let what = Measurement::Bandwidth { device: DeviceChoice::Cpu, sizes_bytes, runs: 3 };
        let measured = measure(&what, &mut |_, _| {}).expect("measured");
        let Figure::Bandwidth { size_bytes, copy_s, read_s } = &measured.figures[1] else {
            panic!("{measured:?}")
        };
        assert_eq!((*size_bytes, copy_s.len(), read_s.len()), (1 << 18, 3, 3));
        assert!(copy_s.iter().chain(read_s).all(|seconds| *seconds > 0.0));
    }
}
