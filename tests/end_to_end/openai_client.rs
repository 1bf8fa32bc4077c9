//! OpenAI's own Python client, against the scripted and against the real worker.

use crate::fixture::{DEMO, MODEL, Scripted, config, python, repository};
use mlxd_testkit::{FrontProcess, How, Script, When};
use std::process::Command;

fn run(front: &FrontProcess, checks: &str, model: &str) {
    let python = python();
    let output = Command::new(&python)
        .arg(repository().join("tests/python/openai_client.py"))
        .args([checks, front.base_url(), model])
        .env_remove("OPENAI_API_KEY")
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}; run scripts/setup", python.display()));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn it_talks_to_the_scripted_worker() {
    let script = Script { context_tokens: 500, ..Script::default() };
    let scripted = Scripted::start(&script);
    run(&scripted.front, "scripted", MODEL);
}

#[test]
fn it_is_told_of_a_worker_that_dies() {
    let script = Script { step_us: 1000, ..Script::default() };
    let scripted = Scripted::start(&script.with_fault(When::Tokens(20), How::Kill));
    run(&scripted.front, "dying", MODEL);
}

#[test]
fn it_talks_to_the_built_in_model() {
    let front = FrontProcess::start(&config().with_real_worker());
    run(&front, "demo", DEMO);
}
