//! Sixteen answers of the built-in model in the middle of being computed by MLX when their worker
//! dies, of every cause that a real engine has: in deterministic mode all are what they would have
//! been anyway.

use crate::fixture::{DEMO, chat, config, status_of, until_idle};
use mlxd_testkit::chaos::leave_no_memory;
use mlxd_testkit::{Answer, FrontProcess, Outcome, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::ops::ControlFlow;

const REQUESTS: usize = 16;
/// Two of them want two answers.
const SEQUENCES: u64 = 18;

/// Tokens over all answers that are there when the worker dies.
const TOKENS_BEFORE: u64 = 200;

/// Greedy and seeded; with several choices, log-probabilities, stop strings, penalties; streamed
/// with usage and whole.
fn request(number: usize) -> Value {
    let mut more = json!({"max_tokens": 40 + 2 * number, "ignore_eos": true});
    if number.is_multiple_of(2) {
        (more["temperature"], more["seed"]) = (json!(1.0), json!(number));
    } else {
        more["temperature"] = json!(0);
    }
    match number % 8 {
        0 => more["n"] = json!(2),
        1 | 2 => (more["logprobs"], more["top_logprobs"]) = (json!(true), json!(3)),
        // Not before the answers have begun: with letters that are rare.
        3 | 4 => more["stop"] = json!(["zz", "q"]),
        5 | 6 => {
            more["repetition_penalty"] = json!(1.1);
            (more["presence_penalty"], more["frequency_penalty"]) = (json!(0.3), json!(0.2));
        }
        _ => {}
    }
    if number % 4 != 3 {
        more["stream"] = json!(true);
        more["stream_options"] = json!({"include_usage": true});
    }
    chat(DEMO, &format!("What does mlxd do when a worker dies? Say it in {number} words."), more)
}

/// A prompt that takes far more memory to run than all the others.
fn long() -> Value {
    chat(DEMO, &"What is mlxd? ".repeat(90), json!({"max_tokens": 1}))
}

fn ask(front: &FrontProcess, body: &Value) -> Outcome {
    let response = front.client().post("/v1/chat/completions", body);
    Outcome::read(response, |_, _| ControlFlow::Continue(()))
}

/// What ends or stops a worker.
#[derive(Debug, Clone, Copy)]
enum Cause {
    Signal(Signal),
    /// The system gives it no more memory: an allocation fails, MLX's or any other. What it has freed
    /// would do for short sequences, so a long prompt comes after them.
    #[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "Linux alone can do that"))]
    NoMemory,
}

impl Cause {
    fn strike(self, worker: Pid) {
        match self {
            // The first is taken by the handler of Rust's runtime, which then leaves the field.
            Self::Signal(Signal::SIGSEGV) => {
                until("the worker's end", || kill(worker, Signal::SIGSEGV).is_err().then_some(()))
            }
            Self::Signal(signal) => kill(worker, signal).expect("the worker is there"),
            Self::NoMemory => leave_no_memory(worker),
        }
    }
}

fn number(front: &FrontProcess, key: &str) -> u64 {
    status_of(front, DEMO)[key].as_u64().expect("a number")
}

fn worker(front: &FrontProcess) -> Pid {
    Pid::from_raw(number(front, "pid") as i32)
}

/// Answers to everything at once, with the worker struck when all are in the middle.
fn ask_all_disturbed(front: &FrontProcess, bodies: &[Value], cause: Cause) -> Vec<Answer> {
    let tokens = number(front, "tokens_total");
    std::thread::scope(|scope| {
        let clients: Vec<_> =
            bodies.iter().map(|body| scope.spawn(move || ask(front, body).whole())).collect();
        until("all answers to be under way", || {
            let under_way = number(front, "running") >= REQUESTS as u64 - 2
                && number(front, "queued") == 0
                && number(front, "tokens_total") >= tokens + TOKENS_BEFORE;
            under_way.then_some(())
        });
        cause.strike(worker(front));
        let longer =
            matches!(cause, Cause::NoMemory).then(|| scope.spawn(|| ask(front, &long()).whole()));
        let answers = clients.into_iter().map(|client| client.join().expect("a client")).collect();
        if let Some(longer) = longer {
            longer.join().expect("an answer to the long prompt");
        }
        answers
    })
}

fn goes_on_after(cause: Cause) {
    let front = FrontProcess::start(
        &config()
            .with_real_worker()
            .with("models.deterministic", true)
            .with("models.running_max", SEQUENCES as i64),
    );
    let bodies: Vec<Value> = (0..REQUESTS).map(request).collect();
    // One after the other: what else runs makes no difference in that mode.
    let undisturbed: Vec<Answer> = bodies.iter().map(|body| ask(&front, body).whole()).collect();
    let disturbed = ask_all_disturbed(&front, &bodies, cause);
    for (number, (got, expected)) in disturbed.iter().zip(&undisturbed).enumerate() {
        assert_eq!(got, expected, "request {number} after {cause:?}");
    }
    let status = status_of(&front, DEMO);
    assert_eq!((&status["state"], &status["deaths"]), (&json!("RUNNING"), &json!(1)), "{cause:?}");
    let why = front.admin().get(&format!("/admin/v1/why?model={DEMO}")).json();
    println!("{cause:?}: {}", why["report"]["end"]);
    until_idle(&front, DEMO);
}

#[test]
fn sixteen_answers_go_on_after_a_sigkill() {
    goes_on_after(Cause::Signal(Signal::SIGKILL));
}

#[test]
fn sixteen_answers_go_on_after_a_sigsegv() {
    goes_on_after(Cause::Signal(Signal::SIGSEGV));
}

#[test]
fn sixteen_answers_go_on_after_a_sigabrt() {
    goes_on_after(Cause::Signal(Signal::SIGABRT));
}

#[test]
fn sixteen_answers_go_on_after_a_sigstop() {
    goes_on_after(Cause::Signal(Signal::SIGSTOP));
}

#[cfg(target_os = "linux")]
#[test]
fn sixteen_answers_go_on_after_an_allocation_that_fails() {
    goes_on_after(Cause::NoMemory);
}
