//! What is kept of earlier prompts, seen from outside: a chat that goes on uses its own answers,
//! and with the disk it does so after a worker's death and after mlxd's.

use crate::fixture::{DEMO, config, said, status_of, until_idle};
use mlxd_testkit::{Answer, FrontConfig, FrontProcess, Outcome, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::ops::ControlFlow;

/// Tokens between two messages that the template and not the model writes, and a cut at a message's
/// end that falls inside a token.
const SEAM_TOKENS: u64 = 8;

/// A disk keeps whole blocks.
const BLOCK_TOKENS: u64 = 64;

fn say(front: &FrontProcess, messages: &[Value]) -> Value {
    let body = json!({"model": DEMO, "messages": messages, "temperature": 0, "max_tokens": 60});
    let answer = front.client().post("/v1/chat/completions", &body).json();
    until_idle(front, DEMO);
    answer
}

fn user(content: &str) -> Value {
    json!({"role": "user", "content": content})
}

fn assistant(answer: &Value) -> Value {
    json!({"role": "assistant", "content": said(answer)})
}

/// Tokens of the prompt, of the answer, and of the prompt those that were there already.
fn usage(answer: &Value) -> (u64, u64, u64) {
    let usage = &answer["usage"];
    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("{answer}"));
    (
        number(&usage["prompt_tokens"]),
        number(&usage["completion_tokens"]),
        number(&usage["prompt_tokens_details"]["cached_tokens"]),
    )
}

pub fn mlxctl(front: &FrontProcess, arguments: &[&str]) -> String {
    let output = front.home().command("mlxctl").args(arguments).output().expect("mlxctl runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn cache(front: &FrontProcess) -> Value {
    let report = front.client().get(&format!("/v1/cache?model={DEMO}")).json();
    report["models"][0]["cache"].clone()
}

#[test]
fn a_chat_that_goes_on_uses_its_own_answers() {
    let front = FrontProcess::start(&config().with_real_worker());
    let mut messages =
        vec![user("What is mlxd, and what does it do when one of its workers dies?")];
    let (mut told, mut saved) = (0, 0);
    for question in ["How do I start it?", "And how do I stop it?", "Thank you."] {
        let answer = say(&front, &messages);
        let (prompt, completion, cached) = usage(&answer);
        assert!(cached + SEAM_TOKENS >= told && cached < prompt, "{cached} of {told}: {answer}");
        (told, saved) = (prompt + completion, saved + cached);
        messages.extend([assistant(&answer), user(question)]);
    }
    assert!(saved > 100, "{saved}");
    let kept = cache(&front);
    assert_eq!((&kept["hits"], &kept["lookups"]), (&json!(2), &json!(3)), "{kept}");
    assert_eq!(kept["tokens_saved"], saved);
    assert!(kept["bytes"].as_u64() > Some(0) && kept["disk"].is_null(), "{kept}");
    let metrics = front.client().get("/metrics").text();
    assert!(metrics.contains(&format!("mlxd_prefix_cache_hits{{model=\"{DEMO}\"}} 2")));
    assert!(mlxctl(&front, &["cache"]).contains(&format!("2 of 3 prompts, {saved} tokens saved")));

    let cleared = mlxctl(&front, &["cache", DEMO, "--clear"]);
    assert!(cleared.starts_with("mlxd-demo: dropped ") && !cleared.contains("dropped 0"));
    assert_eq!(cache(&front)["bytes"], 0);
    assert_eq!(usage(&say(&front, &messages)).2, 0, "nothing is there any more");
    assert_ne!(usage(&say(&front, &messages)).2, 0);
    let unknown = front.client().get("/v1/cache?model=nobody");
    assert_eq!(unknown.status, 404);
}

/// A chat that outgrows what is kept of a sequence says the same with kept prefixes and without.
#[test]
fn what_is_kept_of_bounded_sequences_changes_no_answer() {
    const MOST: u64 = 160;
    let bounded = config().with_real_worker().with("models.max_kv_tokens", MOST as i64);
    let without = bounded.clone().with("models.prefix_cache_bytes_max", 0);
    let (kept, fresh) = (FrontProcess::start(&bounded), FrontProcess::start(&without));
    let mut messages =
        vec![user("What is mlxd, and what does it do when one of its workers dies?")];
    let (mut told, mut found) = (0, 0);
    for question in
        ["How do I start it?", "And how do I stop it?", "How do I pull a model?", "Bye."]
    {
        let (answer, other) = (say(&kept, &messages), say(&fresh, &messages));
        assert_eq!(said(&answer), said(&other), "after {told} tokens");
        let (prompt, completion, cached) = usage(&answer);
        assert!(cached <= MOST, "{cached} tokens found beyond {MOST}");
        assert_eq!(usage(&other).2, 0);
        (told, found) = (prompt + completion, found.max(cached));
        messages.extend([assistant(&answer), user(question)]);
    }
    assert!(told > MOST && found > MOST / 2, "{told} tokens, {found} found");
}

fn with_disk() -> FrontConfig {
    config().with_real_worker().with("models.prefix_disk_bytes_max", 1_i64 << 30)
}

/// Waits until files have been written for so many prompts' tokens.
fn until_written(front: &FrontProcess, tokens: u64) {
    until("blocks on the disk", || {
        let blocks = cache(front)["disk"]["blocks"].as_u64()?;
        (blocks * BLOCK_TOKENS + BLOCK_TOKENS > tokens).then_some(())
    });
}

#[test]
fn what_is_on_the_disk_serves_after_a_death_and_after_a_restart() {
    let front = FrontProcess::start(&with_disk());
    let long = "What does mlxd do when a worker dies, and how do I see why it died? ".repeat(14);
    let messages = [user(&long)];
    let first = say(&front, &messages);
    let (prompt, _, cached) = usage(&first);
    assert!(prompt > 2 * BLOCK_TOKENS && cached == 0, "{first}");
    until_written(&front, prompt);
    let found = |answer: &Value, when: &str| {
        let (_, _, cached) = usage(answer);
        assert!(cached + BLOCK_TOKENS >= prompt && cached > 0, "{when}: {answer}");
        assert_eq!(said(answer), said(&first), "{when}");
    };

    let pid = status_of(&front, DEMO)["pid"].as_i64().expect("a worker");
    kill(Pid::from_raw(pid as i32), Signal::SIGKILL).expect("the worker is there");
    until("the next worker", || {
        let status = status_of(&front, DEMO);
        (status["state"] == "RUNNING" && status["pid"] != pid).then_some(())
    });
    found(&say(&front, &messages), "after a death");

    let home = front.kill();
    let front = FrontProcess::start_in(home, &with_disk());
    found(&say(&front, &messages), "after a restart");
    let disk = cache(&front)["disk"].clone();
    assert!(disk["reads"].as_u64() > Some(1) && disk["damaged"] == 0, "{disk}");
    assert!(mlxctl(&front, &["cache", DEMO]).contains("  disk    "));

    // Of a model that is not loaded too.
    mlxctl(&front, &["stop", DEMO]);
    let path = format!("/v1/cache?model={DEMO}");
    let cleared = front.client().request("DELETE", &path, &[], b"").json();
    assert!(cleared["models"][0]["cleared_disk_bytes"].as_u64() > Some(0), "{cleared}");
    assert_eq!(usage(&say(&front, &messages)).2, 0);
}

/// Whoever goes on with a long answer finds its beginning there.
#[test]
fn a_long_answer_is_on_the_disk_before_it_ends() {
    const TOKENS: usize = 1500;
    const READ_BEFORE: usize = 300;
    // The engine keeps an answer at every 256 tokens.
    const BLOCKS: u64 = 4;
    let front = FrontProcess::start(&with_disk().with("models.guesses_max", 0));
    let body = json!({
        "model": DEMO, "messages": [user("What is mlxd?")], "temperature": 0, "stream": true,
        "max_tokens": TOKENS, "ignore_eos": true, "stream_options": {"include_usage": true},
    });
    let mut seen = 0;
    let read = |_: &_, _: &Answer| {
        seen += 1;
        if seen == READ_BEFORE {
            until("the answer's beginning on the disk", || {
                (cache(&front)["disk"]["blocks"].as_u64()? >= BLOCKS).then_some(())
            });
            let pid = status_of(&front, DEMO)["pid"].as_i64().expect("a worker");
            kill(Pid::from_raw(pid as i32), Signal::SIGKILL).expect("the worker is there");
        }
        ControlFlow::Continue(())
    };
    let answer = Outcome::read(front.client().post("/v1/chat/completions", &body), read).whole();
    until_idle(&front, DEMO);
    let status = status_of(&front, DEMO);
    assert_eq!(status["deaths"], 1, "killed in the middle: {status}");
    let disk = cache(&front)["disk"].clone();
    assert!(disk["reads"].as_u64() >= Some(BLOCKS) && disk["damaged"] == 0, "{disk}");
    assert!(answer.text().len() > TOKENS, "{} bytes", answer.text().len());
}
