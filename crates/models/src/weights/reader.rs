//! Reads the tensors of a checked checkpoint into the form they are computed in.

use std::collections::HashMap;

use mlx_rs::ops::{dequantize, stack};
use mlx_rs::transforms::eval;
use mlx_rs::{Array, Dtype};

use super::folder::Checkpoint;
use super::plan::{Plan, Stack};
use crate::arch::linear::{Linear, Matrix};
use crate::arch::moe::Pool;
use crate::config::Packing;
use crate::fault::{Loaded, corrupt, in_load};

/// Told how many bytes of how many have been read.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// Hands out a checkpoint's tensors, each once.
pub struct Reader<'a> {
    lazy: HashMap<String, Array>,
    sizes: HashMap<String, u64>,
    plan: Plan,
    dense_f32: bool,
    done: u64,
    progress: Progress<'a>,
}

impl<'a> Reader<'a> {
    /// Opens the files. MLX reads a tensor when it is first evaluated.
    ///
    /// With `dense_f32` everything becomes dense float32, packed or not: MLX's CPU backend is
    /// slow and less exact with anything else.
    pub fn new(
        checkpoint: Checkpoint,
        plan: Plan,
        dense_f32: bool,
        progress: Progress<'a>,
    ) -> Loaded<Self> {
        let mut lazy = HashMap::new();
        for path in &checkpoint.files {
            let arrays = Array::load_safetensors(path)
                .map_err(|error| corrupt(format!("{}: {error}", path.display())))?;
            lazy.extend(arrays.into_iter().map(|(name, array)| ((checkpoint.names)(&name), array)));
        }
        let sizes = checkpoint
            .tensors
            .into_iter()
            .map(|(name, placed)| (name, placed.entry.bytes))
            .collect();
        progress(0, plan.bytes);
        Ok(Self { lazy, sizes, plan, dense_f32, done: 0, progress })
    }

    /// How `path` is packed in the file.
    pub fn packing(&self, path: &str) -> Option<Packing> {
        self.plan.packings.get(path).copied().flatten()
    }

    fn take(&mut self, name: &str) -> Loaded<Array> {
        let array = self
            .lazy
            .remove(name)
            .ok_or_else(|| corrupt(format!("tensor {name} vanished while loading")))?;
        self.done += self.sizes.get(name).copied().unwrap_or(0);
        Ok(array)
    }

    /// Evaluates what was taken since the last call and tells the progress.
    pub fn settle<'b>(&mut self, arrays: impl IntoIterator<Item = &'b Array>) -> Loaded<()> {
        eval(arrays).map_err(in_load("reading the weights"))?;
        (self.progress)(self.done, self.plan.bytes);
        Ok(())
    }

    /// A vector, evaluated.
    pub fn vector(&mut self, name: &str) -> Loaded<Array> {
        let array = self.take(name)?;
        let array = self.cast(array)?;
        self.settle([&array])?;
        Ok(array)
    }

    /// A matrix as stored, `[rows, columns]`, not evaluated.
    pub fn matrix(&mut self, path: &str) -> Loaded<Matrix> {
        let weight = self.take(&format!("{path}.weight"))?;
        let Some(packing) = self.packing(path) else {
            let weight = self.cast(weight)?;
            return Matrix::dense(weight).map_err(in_load("reading the weights"));
        };
        let scales = self.take(&format!("{path}.scales"))?;
        let scales = self.cast(scales)?;
        let biases = self.take(&format!("{path}.biases"))?;
        let biases = self.cast(biases)?;
        if self.dense_f32 {
            let dense = dequantize(&weight, &scales, &biases, packing.group, packing.bits)
                .and_then(Matrix::dense);
            return dense.map_err(in_load("unpacking the weights"));
        }
        Ok(Matrix::Packed { weight, scales, biases, packing })
    }

    /// A matrix with its bias, not evaluated.
    pub fn linear(&mut self, path: &str, bias: bool) -> Loaded<Linear> {
        let matrix = self.matrix(path)?;
        let bias = match bias {
            true => {
                let bias = self.take(&format!("{path}.bias"))?;
                Some(self.cast(bias)?)
            }
            false => None,
        };
        Ok(Linear { matrix, bias })
    }

    /// Experts' matrices stacked, not evaluated.
    pub fn pool(&mut self, stack: &Stack) -> Loaded<Pool> {
        let weight = self.stacked(stack, "weight")?;
        let Some(packing) = self.packing(&stack.path) else {
            let weight = self.cast(weight)?;
            return Pool::dense(weight).map_err(in_load("reading the experts"));
        };
        let scales = self.stacked(stack, "scales")?;
        let scales = self.cast(scales)?;
        let biases = self.stacked(stack, "biases")?;
        let biases = self.cast(biases)?;
        if self.dense_f32 {
            let dense = dequantize(&weight, &scales, &biases, packing.group, packing.bits)
                .and_then(Pool::dense);
            return dense.map_err(in_load("unpacking the experts"));
        }
        Ok(Pool::Packed { weight, scales, biases, packing })
    }

    fn stacked(&mut self, experts: &Stack, part: &str) -> Loaded<Array> {
        if !self.plan.apart.contains(&experts.path) {
            return self.take(&format!("{}.{part}", experts.path));
        }
        let parts: Loaded<Vec<Array>> = (0..experts.count)
            .map(|index| self.take(&format!("{}.{part}", experts.expert(index))))
            .collect();
        stack(&parts?, 0).map_err(in_load("stacking the experts"))
    }

    fn cast(&self, array: Array) -> Loaded<Array> {
        if !self.dense_f32 || array.dtype() == Dtype::Float32 {
            return Ok(array);
        }
        array.as_dtype(Dtype::Float32).map_err(in_load("widening the weights"))
    }
}
