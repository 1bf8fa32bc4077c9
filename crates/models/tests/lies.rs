//! Checkpoints that lie are refused by name, before MLX sees them.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use mlxd_protocol::{DeviceChoice, LoadFaultKind};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A copy of a true checkpoint that a test may spoil.
struct Spoiled {
    folder: TempDir,
}

impl Spoiled {
    fn of(case: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(common::made_by("make.py").join(case)).unwrap() {
            let from = entry.unwrap().path();
            fs::copy(&from, folder.path().join(from.file_name().unwrap())).unwrap();
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn config(&self, change: impl FnOnce(&mut Value)) {
        edit(&self.path("config.json"), change);
    }

    /// Changes the header of `model.safetensors` and leaves the data as it is.
    fn header(&self, change: impl FnOnce(&mut Value)) {
        let path = self.path("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        change(&mut header);
        let text = header.to_string();
        let mut spoiled = (text.len() as u64).to_le_bytes().to_vec();
        spoiled.extend_from_slice(text.as_bytes());
        spoiled.extend_from_slice(&bytes[8 + length..]);
        fs::write(path, spoiled).unwrap();
    }

    /// Loading and checking alike refuse it, with this kind, naming all of `words`.
    fn refused(&self, kind: LoadFaultKind, words: &[&str]) {
        let spec = common::load_spec(self.folder.path());
        let Err(loading) = mlxd_models::load(&spec, &mut |_, _| {}) else {
            panic!("loaded although it lies about {words:?}");
        };
        let checking = mlxd_models::check(self.folder.path()).unwrap_err();
        for fault in [loading, checking] {
            assert_eq!(fault.kind, kind, "{fault}");
            for word in words {
                assert!(fault.message.contains(word), "{word:?} not in: {fault}");
            }
        }
    }
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

const Q_PROJ: &str = "model.layers.0.self_attn.q_proj.weight";
const FILE: &str = "model.safetensors";

#[test]
fn an_untouched_copy_loads() {
    let copy = Spoiled::of("arch-llama");
    common::load(copy.folder.path());
}

#[test]
fn a_folder_without_anything() {
    let empty = Spoiled { folder: tempfile::tempdir().unwrap() };
    empty.refused(LoadFaultKind::Missing, &["config.json"]);
}

#[test]
fn no_weights() {
    let spoiled = Spoiled::of("arch-llama");
    fs::remove_file(spoiled.path(FILE)).unwrap();
    spoiled.refused(LoadFaultKind::Missing, &["no safetensors file"]);
}

#[test]
fn a_config_that_is_no_json() {
    let spoiled = Spoiled::of("arch-llama");
    fs::write(spoiled.path("config.json"), "{\"model_type\": ").unwrap();
    spoiled.refused(LoadFaultKind::Corrupt, &["config.json"]);
}

#[test]
fn an_absurd_number_in_the_config() {
    let spoiled = Spoiled::of("arch-llama");
    spoiled.config(|config| config["hidden_size"] = json!(1_u64 << 60));
    spoiled.refused(LoadFaultKind::Corrupt, &["hidden_size", "1152921504606846976"]);
}

#[test]
fn an_unknown_architecture() {
    let spoiled = Spoiled::of("arch-llama");
    spoiled.config(|config| config["model_type"] = json!("mamba"));
    spoiled.refused(LoadFaultKind::Unsupported, &["mamba"]);
}

#[test]
fn a_truncated_file() {
    let spoiled = Spoiled::of("arch-llama");
    let bytes = fs::read(spoiled.path(FILE)).unwrap();
    fs::write(spoiled.path(FILE), &bytes[..bytes.len() - 1000]).unwrap();
    spoiled.refused(LoadFaultKind::Corrupt, &[FILE, "tensor ", "truncated"]);
}

#[test]
fn a_file_that_ends_inside_its_header() {
    let spoiled = Spoiled::of("arch-llama");
    let bytes = fs::read(spoiled.path(FILE)).unwrap();
    fs::write(spoiled.path(FILE), &bytes[..100]).unwrap();
    spoiled.refused(LoadFaultKind::Corrupt, &[FILE, "100 bytes"]);
    fs::write(spoiled.path(FILE), &bytes[..5]).unwrap();
    spoiled.refused(LoadFaultKind::Corrupt, &[FILE, "5 bytes"]);
}

#[test]
fn a_huge_header() {
    let spoiled = Spoiled::of("arch-llama");
    let mut bytes = fs::read(spoiled.path(FILE)).unwrap();
    bytes[..8].copy_from_slice(&(1_u64 << 40).to_le_bytes());
    fs::write(spoiled.path(FILE), bytes).unwrap();
    spoiled.refused(LoadFaultKind::Corrupt, &[FILE, "1099511627776"]);
}

#[test]
fn overlapping_offsets() {
    let spoiled = Spoiled::of("arch-llama");
    spoiled.header(|header| {
        let offsets = header[Q_PROJ]["data_offsets"].as_array_mut().unwrap();
        for offset in offsets {
            *offset = json!(offset.as_u64().unwrap() - 4096);
        }
    });
    spoiled.refused(LoadFaultKind::Corrupt, &[FILE, "overlaps", Q_PROJ]);
}

#[test]
fn a_shape_that_does_not_fill_its_bytes() {
    let spoiled = Spoiled::of("arch-llama");
    spoiled.header(|header| header[Q_PROJ]["shape"] = json!([128, 127]));
    spoiled.refused(LoadFaultKind::Corrupt, &[Q_PROJ, "[128, 127]"]);
}

#[test]
fn a_shape_that_the_config_does_not_want() {
    let spoiled = Spoiled::of("arch-llama");
    spoiled.header(|header| header[Q_PROJ]["shape"] = json!([64, 256]));
    spoiled.refused(LoadFaultKind::Corrupt, &[Q_PROJ, "[64, 256]", "[128, 128]"]);
}

#[test]
fn a_type_that_is_no_weight() {
    let spoiled = Spoiled::of("arch-llama");
    spoiled.header(|header| header[Q_PROJ]["dtype"] = json!("I32"));
    spoiled.refused(LoadFaultKind::Corrupt, &[Q_PROJ, "Int32"]);
}

#[test]
fn a_missing_tensor() {
    let spoiled = Spoiled::of("arch-llama");
    spoiled.config(|config| config["num_hidden_layers"] = json!(3));
    spoiled.refused(LoadFaultKind::Corrupt, &["model.layers.2.", "missing"]);
}

#[test]
fn an_unexpected_tensor() {
    let spoiled = Spoiled::of("arch-llama");
    spoiled.config(|config| config["num_hidden_layers"] = json!(1));
    spoiled.refused(LoadFaultKind::Corrupt, &["model.layers.1.", "and 8 more"]);
}

#[test]
fn bits_that_the_packed_rows_do_not_have() {
    let spoiled = Spoiled::of("quant-overrides");
    spoiled.config(|config| {
        config["quantization"]["model.layers.0.self_attn.q_proj"]["bits"] = json!(3);
    });
    spoiled.refused(LoadFaultKind::Corrupt, &[Q_PROJ, "3-bit groups of 32"]);
}

#[test]
fn a_packed_model_that_says_it_is_not() {
    let spoiled = Spoiled::of("quant-4-64");
    spoiled.config(|config| {
        config.as_object_mut().unwrap().remove("quantization");
    });
    spoiled.refused(LoadFaultKind::Corrupt, &["model.", ".weight", "config.json wants"]);
}

#[test]
fn a_missing_shard() {
    let spoiled = Spoiled::of("arch-llama-sharded");
    let shard = "model-00002-of-00003.safetensors";
    fs::remove_file(spoiled.path(shard)).unwrap();
    spoiled.refused(LoadFaultKind::Missing, &[shard]);
}

#[test]
fn an_index_that_misplaces_a_tensor() {
    let spoiled = Spoiled::of("arch-llama-sharded");
    edit(&spoiled.path("model.safetensors.index.json"), |index| {
        let places = index["weight_map"].as_object_mut().unwrap();
        let other = places.values().find(|name| **name != places[Q_PROJ]);
        let other = other.unwrap().clone();
        places[Q_PROJ] = other;
    });
    spoiled.refused(LoadFaultKind::Corrupt, &[Q_PROJ, "index"]);
}

#[test]
fn an_index_that_reaches_outside_the_folder() {
    let spoiled = Spoiled::of("arch-llama-sharded");
    edit(&spoiled.path("model.safetensors.index.json"), |index| {
        index["weight_map"][Q_PROJ] = json!("../elsewhere/model.safetensors");
    });
    spoiled.refused(LoadFaultKind::Corrupt, &["../elsewhere", "index"]);
}

#[test]
fn a_gpu_that_is_not_there() {
    let copy = Spoiled::of("arch-llama");
    let mut spec = common::load_spec(copy.folder.path());
    spec.device = DeviceChoice::Gpu;
    match mlxd_models::load(&spec, &mut |_, _| {}) {
        // On a machine with a GPU this is a plain load.
        Ok(engine) => assert_ne!(mlxd_engine::Engine::info(&engine).backend, "cpu"),
        Err(fault) => assert!(fault.message.contains("no GPU"), "{fault}"),
    }
}
