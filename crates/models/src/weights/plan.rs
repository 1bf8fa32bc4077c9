//! What a checkpoint must hold, given its config: every tensor by name, shape and type.
//!
//! The plan is checked whole before any tensor is read, so that a wrong file is refused in
//! milliseconds and by name.

use std::collections::{BTreeSet, HashMap};

use mlx_rs::Dtype;

use super::folder::Checkpoint;
use super::header::TensorEntry;
use crate::config::{ModelConfig, Packing};
use crate::fault::{Loaded, corrupt};

/// A matrix with an optional bias, as config and architecture describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// As in `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// Rows: the width of what comes out.
    pub rows: i32,
    /// Columns: the width of what goes in.
    pub columns: i32,
    /// Whether a bias of `rows` values is added.
    pub bias: bool,
}

/// What an architecture is made of.
#[derive(Debug, Default)]
pub struct Inventory {
    /// Matrices, which may be packed.
    pub modules: Vec<Module>,
    /// Vectors and their lengths, which never are.
    pub vectors: Vec<(String, i32)>,
    /// Names that may be there and are not read.
    pub ignored: Vec<String>,
}

/// The checked plan of one checkpoint.
#[derive(Debug)]
pub struct Plan {
    /// Module path → how its weights are packed.
    pub packings: HashMap<String, Option<Packing>>,
    /// Parameters, counted as if nothing were packed.
    pub parameters: u64,
    /// Bytes to be read.
    pub bytes: u64,
}

impl Plan {
    /// Checks every tensor of `checkpoint` against what `inventory` wants.
    pub fn check(
        config: &ModelConfig,
        inventory: &Inventory,
        checkpoint: &Checkpoint,
    ) -> Loaded<Self> {
        let mut plan = Self { packings: HashMap::new(), parameters: 0, bytes: 0 };
        let mut audit = Audit { checkpoint, seen: BTreeSet::new(), bytes: 0 };
        for (name, length) in &inventory.vectors {
            audit.floats(name, &[*length])?;
            plan.parameters += *length as u64;
        }
        for module in &inventory.modules {
            let packing = packing(config, module, checkpoint)?;
            audit.module(module, packing)?;
            plan.parameters += module.rows as u64 * module.columns as u64;
            plan.parameters += if module.bias { module.rows as u64 } else { 0 };
            plan.packings.insert(module.path.clone(), packing);
        }
        audit.nothing_else(&inventory.ignored)?;
        plan.bytes = audit.bytes;
        Ok(plan)
    }
}

/// How a module is packed: as its override says, or, where there are scales, as their shapes
/// say, which is how mlx-lm reads a checkpoint that mixes packings.
fn packing(
    config: &ModelConfig,
    module: &Module,
    checkpoint: &Checkpoint,
) -> Loaded<Option<Packing>> {
    let quantization = &config.quantization;
    if let Some(packing) = quantization.overrides.get(&module.path) {
        return Ok(*packing);
    }
    let scales = checkpoint.tensors.get(&format!("{}.scales", module.path));
    let (Some(default), Some(scales)) = (quantization.default, scales) else {
        return Ok(None);
    };
    let weight = checkpoint.tensors.get(&format!("{}.weight", module.path));
    let inferred = weight.and_then(|weight| {
        let groups = *scales.entry.shape.last()?;
        let words = i64::from(*weight.entry.shape.last()?);
        let group = module.columns.checked_div(groups)?;
        let bits = words * 32 / i64::from(module.columns);
        Packing::new(i32::try_from(bits).ok()?, group)
    });
    // Where the shapes fit no packing at all, the audit names the one that does not fit.
    Ok(Some(inferred.unwrap_or(default)))
}

struct Audit<'a> {
    checkpoint: &'a Checkpoint,
    seen: BTreeSet<String>,
    bytes: u64,
}

impl Audit<'_> {
    fn module(&mut self, module: &Module, packing: Option<Packing>) -> Loaded<()> {
        let Module { path, rows, columns, bias } = module;
        match packing {
            None => self.floats(&format!("{path}.weight"), &[*rows, *columns])?,
            Some(packing) => {
                let words = packing.words(*columns).ok_or_else(|| {
                    corrupt(format!(
                        "tensor {path}.weight: rows of {columns} do not pack into {} bits in groups of {}",
                        packing.bits, packing.group
                    ))
                })?;
                let why = format!(
                    " ({}-bit groups of {} of {rows} × {columns})",
                    packing.bits, packing.group
                );
                let name = format!("{path}.weight");
                self.tensor(&name, &[*rows, words], "U32", &why, |dtype| dtype == Dtype::Uint32)?;
                let groups = [*rows, columns / packing.group];
                for part in ["scales", "biases"] {
                    self.tensor(&format!("{path}.{part}"), &groups, FLOATS, &why, is_float)?;
                }
            }
        }
        if *bias {
            self.floats(&format!("{path}.bias"), &[*rows])?;
        }
        Ok(())
    }

    fn floats(&mut self, name: &str, shape: &[i32]) -> Loaded<()> {
        self.tensor(name, shape, FLOATS, "", is_float)
    }

    fn tensor(
        &mut self,
        name: &str,
        shape: &[i32],
        types: &str,
        why: &str,
        accepts: impl Fn(Dtype) -> bool,
    ) -> Loaded<()> {
        let Some(placed) = self.checkpoint.tensors.get(name) else {
            return Err(corrupt(format!(
                "tensor {name} is missing; config.json wants it with shape {shape:?}{why}"
            )));
        };
        let TensorEntry { dtype, shape: found, bytes } = &placed.entry;
        if found != shape {
            return Err(corrupt(format!(
                "tensor {name} has shape {found:?}; config.json wants {shape:?}{why}"
            )));
        }
        if !accepts(*dtype) {
            return Err(corrupt(format!(
                "tensor {name} has type {dtype:?}; expected {types}{why}"
            )));
        }
        self.bytes += bytes;
        self.seen.insert(name.to_owned());
        Ok(())
    }

    fn nothing_else(&self, ignored: &[String]) -> Loaded<()> {
        let mut extra: Vec<&str> = self
            .checkpoint
            .tensors
            .keys()
            .filter(|name| !self.seen.contains(*name))
            // Precomputed frequencies of old checkpoints, which mlx-lm drops too.
            .filter(|name| !name.ends_with(".rotary_emb.inv_freq"))
            .filter(|name| !ignored.contains(name))
            .map(String::as_str)
            .collect();
        extra.sort_unstable();
        let Some(first) = extra.first() else {
            return Ok(());
        };
        let more = match extra.len() - 1 {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Err(corrupt(format!(
            "tensor {first}{more} has no place in the model that config.json describes"
        )))
    }
}

const FLOATS: &str = "F32, F16 or BF16";

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16)
}
