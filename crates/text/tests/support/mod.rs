//! Runs the Python reference of these tests.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// The second that the reference takes for now.
pub const NOW: u64 = 1_756_900_805;

/// The folder of these tests.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

/// Hands a request to `reference.py` and returns its answer. The interpreter is the one that
/// `scripts/setup` makes, or `MLXD_PYTHON`.
pub fn reference(request: &Value) -> Value {
    let python = match std::env::var_os("MLXD_PYTHON") {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.venv/bin/python"),
    };
    assert!(
        python.exists(),
        "{} is missing: run scripts/setup first, or name a Python with transformers in \
         MLXD_PYTHON",
        python.display()
    );
    let mut child = Command::new(&python)
        .arg(folder().join("reference.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env("TRANSFORMERS_VERBOSITY", "error")
        .env("HF_HUB_OFFLINE", "1")
        .spawn()
        .expect("Python starts");
    let mut input = child.stdin.take().expect("a pipe");
    let text = request.to_string();
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
    let output = child.wait_with_output().expect("Python ends");
    writer.join().expect("no panic").ok();
    assert!(
        output.status.success(),
        "the reference failed; if transformers is missing run scripts/setup again:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("JSON")
}
