//! What several of these tests begin with.

use mlxd_testkit::{FrontConfig, FrontProcess, ModelFolder, Script, until};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The scripted model's name in requests.
pub const MODEL: &str = "org/scripted";

/// The built-in model.
pub const DEMO: &str = "mlxd-demo";

/// The programs that the tests start, and the packages they come from.
const PROGRAMS: [(&str, &str); 4] = [
    ("mlxd", "mlxd"),
    ("mlxctl", "mlxd-ctl"),
    ("mlxd-worker", "mlxd-worker"),
    ("mlxd-scripted-worker", "mlxd-testkit"),
];

/// Builds the programs if one is missing: running this package's tests alone builds none.
fn build_programs() {
    let test = std::env::current_exe().expect("a test knows its own program");
    let folder = test.parent().and_then(Path::parent).expect("target/PROFILE/deps");
    if PROGRAMS.iter().all(|(program, _)| folder.join(program).is_file()) {
        return;
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.arg("build").arg("--manifest-path").arg(repository().join("Cargo.toml"));
    for (program, package) in PROGRAMS {
        build.args(["--package", package, "--bin", program]);
    }
    if folder.ends_with("release") {
        build.arg("--release");
    }
    assert!(build.status().expect("cargo runs").success(), "the programs cannot be built");
}

/// The top of the checkout.
pub fn repository() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("tests is in the checkout").to_owned()
}

/// The Python that `scripts/setup` made, with what the tests need installed.
pub fn python() -> PathBuf {
    match std::env::var_os("MLXD_PYTHON") {
        Some(python) => python.into(),
        None => repository().join(".venv/bin/python"),
    }
}

/// The configuration that everything here starts from: the scripted worker, a free port.
pub fn config() -> FrontConfig {
    build_programs();
    FrontConfig::default()
}

/// A front with one scripted model.
pub struct Scripted {
    pub front: FrontProcess,
    pub folder: ModelFolder,
}

impl Scripted {
    pub fn start(script: &Script) -> Self {
        Self::start_with(script, |config| config)
    }

    pub fn start_with(script: &Script, change: impl FnOnce(FrontConfig) -> FrontConfig) -> Self {
        let folder = ModelFolder::new(script);
        let config = change(config().with_model(MODEL, folder.path()));
        Self { front: FrontProcess::start(&config), folder }
    }
}

/// A chat request with one user's message and `more` fields.
pub fn chat(model: &str, question: &str, more: Value) -> Value {
    let mut body = json!({"model": model, "messages": [{"role": "user", "content": question}]});
    let fields = body.as_object_mut().expect("an object");
    fields.extend(more.as_object().expect("an object of fields").clone());
    body
}

/// What the answer says.
pub fn said(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("{answer}"))
}

/// The text of a delta.
pub fn delta(chunk: &Value) -> &str {
    chunk["choices"][0]["delta"]["content"].as_str().unwrap_or("")
}

/// A model's line of the admin's status.
pub fn status_of(front: &FrontProcess, model: &str) -> Value {
    let status = front.admin().get("/admin/v1/status").json();
    let models = status["models"].as_array().expect("a list of models").clone();
    models.into_iter().find(|line| line["name"] == model).unwrap_or(Value::Null)
}

/// Waits until the model has no sequence open.
pub fn until_idle(front: &FrontProcess, model: &str) {
    until("the worker to be idle", || {
        let status = status_of(front, model);
        (status["running"] == 0 && status["queued"] == 0).then_some(())
    });
}
