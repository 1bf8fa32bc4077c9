//! What a checkpoint must hold, given its config: every tensor by name, shape and type.
//!
//! The plan is checked whole before any tensor is read, so that a wrong file is refused in
//! milliseconds and by name.

use std::collections::{BTreeSet, HashMap};

use mlx_rs::Dtype;

use super::folder::Checkpoint;
use super::header::TensorEntry;
use crate::config::{Packing, Quantization};
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

/// One matrix per expert, stacked in one tensor or each in its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack {
    /// The module when stacked, as in `model.layers.0.mlp.switch_mlp.gate_proj`.
    pub path: String,
    /// What the experts' own modules are called before and after their number, as in
    /// `model.layers.0.mlp.experts` and `gate_proj`.
    pub apart: (String, &'static str),
    /// Experts.
    pub count: i32,
    /// Rows of each matrix.
    pub rows: i32,
    /// Columns of each matrix.
    pub columns: i32,
}

impl Stack {
    /// The module of one expert where each has its own.
    pub fn expert(&self, index: i32) -> String {
        format!("{}.{index}.{}", self.apart.0, self.apart.1)
    }

    fn module(&self, path: String) -> Module {
        Module { path, rows: self.rows, columns: self.columns, bias: false }
    }
}

/// What an architecture is made of.
#[derive(Debug, Default)]
pub struct Inventory {
    /// Matrices, which may be packed.
    pub modules: Vec<Module>,
    /// Matrices of experts, which may be packed.
    pub stacks: Vec<Stack>,
    /// Vectors and their lengths, which never are.
    pub vectors: Vec<(String, i32)>,
    /// Other tensors that never are packed, with the shapes they may have.
    pub others: Vec<(String, Vec<Vec<i32>>)>,
    /// Names that may be there and are not read.
    pub ignored: Vec<String>,
    /// Beginnings of such names.
    pub ignored_prefixes: Vec<String>,
}

/// The checked plan of one checkpoint.
#[derive(Debug)]
pub struct Plan {
    /// Module path → how its weights are packed.
    pub packings: HashMap<String, Option<Packing>>,
    /// Paths of stacks whose experts have tensors of their own.
    pub apart: BTreeSet<String>,
    /// Parameters, counted as if nothing were packed.
    pub parameters: u64,
    /// Bytes to be read.
    pub bytes: u64,
}

impl Plan {
    /// Checks every tensor of `checkpoint` against what `inventory` wants.
    pub fn check(
        quantization: &Quantization,
        inventory: &Inventory,
        checkpoint: &Checkpoint,
    ) -> Loaded<Self> {
        let mut plan =
            Self { packings: HashMap::new(), apart: BTreeSet::new(), parameters: 0, bytes: 0 };
        let mut audit = Audit { checkpoint, seen: BTreeSet::new(), bytes: 0 };
        for (name, length) in &inventory.vectors {
            audit.floats(name, &[*length])?;
            plan.parameters += *length as u64;
        }
        for (name, shapes) in &inventory.others {
            let found = checkpoint.tensors.get(name).map(|placed| &placed.entry.shape);
            let fits = shapes.iter().find(|shape| Some(*shape) == found);
            let shape = fits.unwrap_or(&shapes[0]);
            audit.floats(name, shape)?;
            plan.parameters += elements(shape);
        }
        for stack in &inventory.stacks {
            let packing = audit.stack(stack, quantization, &mut plan.apart)?;
            plan.parameters += elements(&[stack.count, stack.rows, stack.columns]);
            plan.packings.insert(stack.path.clone(), packing);
        }
        for module in &inventory.modules {
            let packing = packing(quantization, module, checkpoint)?;
            audit.module(module, packing)?;
            plan.parameters += module.rows as u64 * module.columns as u64;
            plan.parameters += if module.bias { module.rows as u64 } else { 0 };
            plan.packings.insert(module.path.clone(), packing);
        }
        audit.nothing_else(inventory)?;
        plan.bytes = audit.bytes;
        Ok(plan)
    }
}

fn elements(shape: &[i32]) -> u64 {
    shape.iter().map(|&size| size as u64).product()
}

/// How a module is packed: as its override says, or, where there are scales, as their shapes
/// say, which is how mlx-lm reads a checkpoint that mixes packings.
fn packing(
    quantization: &Quantization,
    module: &Module,
    checkpoint: &Checkpoint,
) -> Loaded<Option<Packing>> {
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
        self.matrix(module, &[], packing)?;
        match module.bias {
            true => self.floats(&format!("{}.bias", module.path), &[module.rows]),
            false => Ok(()),
        }
    }

    /// Finds out which of the two ways a stack is stored, and checks it.
    fn stack(
        &mut self,
        stack: &Stack,
        quantization: &Quantization,
        apart: &mut BTreeSet<String>,
    ) -> Loaded<Option<Packing>> {
        let has = |path: &str| self.checkpoint.tensors.contains_key(&format!("{path}.weight"));
        if has(&stack.path) || !has(&stack.expert(0)) {
            let module = stack.module(stack.path.clone());
            let packing = packing(quantization, &module, self.checkpoint)?;
            self.matrix(&module, &[stack.count], packing)?;
            return Ok(packing);
        }
        let mut first = None;
        for index in 0..stack.count {
            let module = stack.module(stack.expert(index));
            let packing = packing(quantization, &module, self.checkpoint)?;
            self.matrix(&module, &[], packing)?;
            if *first.get_or_insert(packing) != packing {
                return Err(corrupt(format!(
                    "tensor {}.weight is packed otherwise than expert 0's; experts of a layer must be packed alike",
                    module.path
                )));
            }
        }
        apart.insert(stack.path.clone());
        Ok(first.flatten())
    }

    /// A matrix's tensors; `lead` comes before rows and columns in their shapes.
    fn matrix(&mut self, module: &Module, lead: &[i32], packing: Option<Packing>) -> Loaded<()> {
        let Module { path, rows, columns, .. } = module;
        let shape = |last: i32| [lead, &[*rows, last]].concat();
        match packing {
            None => self.floats(&format!("{path}.weight"), &shape(*columns))?,
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
                let words = shape(words);
                self.tensor(&name, &words, "U32", &why, |dtype| dtype == Dtype::Uint32)?;
                let groups = shape(columns / packing.group);
                for part in ["scales", "biases"] {
                    self.tensor(&format!("{path}.{part}"), &groups, FLOATS, &why, is_float)?;
                }
            }
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

    fn nothing_else(&self, inventory: &Inventory) -> Loaded<()> {
        let Inventory { ignored, ignored_prefixes, .. } = inventory;
        let mut extra: Vec<&str> = self
            .checkpoint
            .tensors
            .keys()
            .filter(|name| !self.seen.contains(*name))
            // Precomputed frequencies of old checkpoints, which mlx-lm drops too.
            .filter(|name| !name.ends_with(".rotary_emb.inv_freq"))
            .filter(|name| !ignored.contains(name))
            .filter(|name| !ignored_prefixes.iter().any(|prefix| name.starts_with(prefix)))
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
