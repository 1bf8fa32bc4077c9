//! The fixtures of `oracle/make.py`, made when first needed.
//!
//! They are made at test time and not committed: they are 50 MB, the script that makes them is
//! one page, and mlx-lm, whose word they are, is pinned in the test environment. They lie under
//! the target folder by a hash of the script and the pin, and stay until either changes.

// Each test program uses a part of this.
#![allow(dead_code)]

pub mod compare;
pub mod scheduled;

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use mlxd_models::MlxEngine;
use mlxd_protocol::{DeviceChoice, LoadSpec, TokenId};
use serde::Deserialize;

/// What mlx-lm said about one checkpoint.
#[derive(Deserialize)]
pub struct Reference {
    pub prompt: Vec<TokenId>,
    pub tokens: Vec<TokenId>,
    pub stored_agrees: bool,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Python of the test environment that `scripts/setup` makes.
pub fn python() -> PathBuf {
    let python = root().join(".venv/bin/python");
    assert!(python.exists(), "{} is missing: run scripts/setup", python.display());
    python
}

/// Runs `script` with a folder to fill, once for all test processes, and gives the folder.
pub fn made_by(script: &str) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("oracle").join(script);
    let pins = root().join("scripts/requirements.txt");
    let mut hasher = DefaultHasher::new();
    fs::read(&script).expect("the script").hash(&mut hasher);
    fs::read(pins).expect("the pins").hash(&mut hasher);
    let base = Path::new(env!("CARGO_TARGET_TMPDIR"));
    fs::create_dir_all(base).expect("a folder for fixtures");
    let stem = script.file_stem().expect("a name").to_string_lossy();
    let folder = base.join(format!("oracle-{stem}-{:016x}", hasher.finish()));
    let lock = File::create(base.join(format!("oracle-{stem}.lock"))).expect("a lock file");
    lock.lock().expect("the lock");
    let complete = folder.join("complete");
    if !complete.exists() {
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("the fixture folder");
        let status =
            Command::new(python()).arg(&script).arg(&folder).status().expect("python starts");
        assert!(status.success(), "{} failed", script.display());
        File::create(complete).expect("the mark of completion");
    }
    folder
}

pub fn load_spec(folder: &Path) -> LoadSpec {
    LoadSpec {
        folder: folder.to_owned(),
        device: DeviceChoice::Cpu,
        prefill_chunk_tokens: 512,
        prefill_chunk_tokens_busy: 512,
        context_tokens_max: None,
        running_max: 4,
        queued_max: 16,
        parked_max: 4,
        ageing_ms: 10_000,
        prefix_cache_bytes_max: 0,
        guesses_max: 0,
        draft: None,
        kv_quantization: None,
        kv_tokens_max: None,
        prefix_disk: None,
        cache_bytes_max: None,
        deterministic: false,
    }
}

pub fn load(folder: &Path) -> MlxEngine {
    mlxd_models::load(&load_spec(folder), &mut |_, _| {})
        .unwrap_or_else(|fault| panic!("{}: {fault}", folder.display()))
}

/// Little-endian float32, in rows of `width`.
pub fn rows(path: &Path, width: usize) -> Vec<Vec<f32>> {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let numbers: Vec<f32> =
        bytes.as_chunks::<4>().0.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect();
    numbers.chunks(width).map(<[f32]>::to_vec).collect()
}

pub fn reference(case: &Path) -> Reference {
    let text = fs::read(case.join("reference.json")).expect("a reference");
    serde_json::from_slice(&text).expect("a reference in JSON")
}
