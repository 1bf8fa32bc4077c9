//! The real worker, killed in the middle of answers: with `deterministic` every token after the
//! death is the one that would have come anyway, without it the answer goes on all the same.

use crate::fixture::{DEMO, chat, config, python, repository, status_of};
use mlxd_testkit::{Answer, FrontConfig, FrontProcess, ModelFolder, Outcome, Script, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

const CHAT: &str = "/v1/chat/completions";

/// Tokens of an answer, and of it read before the worker is killed.
const TOKENS: u64 = 240;
const READ_BEFORE: usize = 30;

/// Ids that the random checkpoints have above those of the test tokenizer.
const FURTHER_IDS: std::ops::Range<u32> = Script::END + 1..320;

/// The built-in model and a random checkpoint of each architecture.
struct Models {
    checkpoints: Vec<(String, ModelFolder)>,
}

impl Models {
    fn make() -> Self {
        let made = tempfile::tempdir().expect("a folder");
        let script = repository().join("tests/python/checkpoints.py");
        let status = Command::new(python()).arg(script).arg(made.path()).status();
        assert!(status.expect("python starts").success(), "no checkpoints");
        let folders = std::fs::read_dir(made.path()).expect("checkpoints").flatten();
        let mut checkpoints: Vec<_> = folders
            .map(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                (format!("random/{name}"), with_tokenizer(&entry.path()))
            })
            .collect();
        checkpoints.sort_by(|a, b| a.0.cmp(&b.0));
        assert!(checkpoints.len() >= 4, "{} architectures", checkpoints.len());
        Self { checkpoints }
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.checkpoints.iter().map(|(name, _)| name.as_str()).chain([DEMO])
    }

    fn serve(&self, config: FrontConfig) -> FrontProcess {
        let with = |config: FrontConfig, (name, folder): &(String, ModelFolder)| {
            config.with_model(name, folder.path())
        };
        FrontProcess::start(&self.checkpoints.iter().fold(config.with_real_worker(), with))
    }
}

/// A checkpoint with a tokenizer in which every id has a text of its own.
fn with_tokenizer(checkpoint: &Path) -> ModelFolder {
    let folder = ModelFolder::new(&Script::default());
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(checkpoint.join(name), folder.file(name)).expect("a copy");
    }
    let path = folder.file("tokenizer.json");
    let mut tokenizer: Value =
        serde_json::from_slice(&std::fs::read(&path).expect("a tokenizer")).expect("JSON");
    for id in FURTHER_IDS {
        tokenizer["model"]["vocab"][format!("word{id}")] = json!(id);
    }
    std::fs::write(&path, tokenizer.to_string()).expect("a tokenizer");
    folder
}

/// One greedy request, one that draws with a seed and all penalties.
fn requests(model: &str) -> [Value; 2] {
    let more = |sampling: Value| {
        let mut more = json!({
            "max_tokens": TOKENS, "ignore_eos": true, "stream": true, "logprobs": true,
            "top_logprobs": 2, "stream_options": {"include_usage": true},
        });
        let fields = more.as_object_mut().expect("an object");
        fields.extend(sampling.as_object().expect("an object").clone());
        more
    };
    let question = "What is mlxd, and what does it do when one of its workers dies?";
    [
        chat(model, question, more(json!({"temperature": 0}))),
        chat(
            model,
            question,
            more(json!({
                "temperature": 1.0, "top_p": 0.95, "seed": 7, "repetition_penalty": 1.1,
                "presence_penalty": 0.3, "frequency_penalty": 0.2,
            })),
        ),
    ]
}

fn ask(front: &FrontProcess, body: &Value, mut seen: impl FnMut()) -> Answer {
    let response = front.client().post(CHAT, body);
    let read = |_: &_, _: &Answer| {
        seen();
        ControlFlow::Continue(())
    };
    Outcome::read(response, read).whole()
}

/// The answers to both requests at once, with their worker killed in the middle of both.
fn ask_disturbed(front: &FrontProcess, model: &str, bodies: &[Value; 2]) -> Vec<Answer> {
    let worker = until("a worker", || status_of(front, model)["pid"].as_i64());
    let seen = [const { AtomicUsize::new(0) }; 2];
    let seen = &seen;
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..bodies.len())
            .map(|index| {
                let count = move || {
                    seen[index].fetch_add(1, Ordering::Relaxed);
                };
                scope.spawn(move || ask(front, &bodies[index], count))
            })
            .collect();
        until("both answers to be under way", || {
            seen.iter().all(|seen| seen.load(Ordering::Relaxed) >= READ_BEFORE).then_some(())
        });
        kill(Pid::from_raw(worker as i32), Signal::SIGKILL).expect("the worker is there");
        clients.into_iter().map(|client| client.join().expect("a client")).collect()
    })
}

/// Sequences of the model that went on with another worker.
fn recoveries(front: &FrontProcess, model: &str) -> u64 {
    let line = format!("mlxd_recovery_seconds_count{{model=\"{model}\"}} ");
    let metrics = front.client().get("/metrics").text();
    let count = metrics.lines().find_map(|known| known.strip_prefix(&line).map(str::to_owned));
    count.map_or(0, |count| count.parse().expect("a number"))
}

#[test]
fn every_token_after_a_death_is_the_one_that_would_have_come() {
    let models = Models::make();
    let front = models.serve(config().with("models.deterministic", true));
    for model in models.names() {
        goes_on_the_same(&front, model);
    }
}

/// The same past the number of tokens whose keys and values are kept.
#[test]
fn what_was_dropped_before_a_death_stays_so() {
    let models = Models::make();
    let bounded = config().with("models.deterministic", true).with("models.max_kv_tokens", 64);
    let front = models.serve(bounded);
    for model in models.names() {
        goes_on_the_same(&front, model);
        let form = status_of(&front, model)["quantization"].clone();
        assert!(form.as_str().is_some_and(|form| form.ends_with("KV of 64 tokens")), "{form}");
    }
}

/// Both answers of a model are what they would have been without its worker's death.
fn goes_on_the_same(front: &FrontProcess, model: &str) {
    let bodies = requests(model);
    let undisturbed = bodies.each_ref().map(|body| ask(front, body, || {}));
    let disturbed = ask_disturbed(front, model, &bodies);
    assert_eq!(recoveries(front, model), 2, "{model}: both were in the middle");
    for (got, expected) in disturbed.iter().zip(&undisturbed) {
        assert_eq!(got.usage.expect("usage").1, TOKENS);
        assert_eq!(got, expected, "{model}");
    }
}

#[test]
fn without_that_mode_the_answer_goes_on_as_well() {
    let models = Models::make();
    let front = models.serve(config().with("models.deterministic", false));
    let (mut exact, mut equal, mut all) = (0, 0, 0);
    for model in models.names() {
        let bodies = requests(model);
        let undisturbed = bodies.each_ref().map(|body| ask(&front, body, || {}));
        let disturbed = ask_disturbed(&front, model, &bodies);
        assert_eq!(recoveries(&front, model), 2, "{model}: both were in the middle");
        for (got, expected) in disturbed.iter().zip(&undisturbed) {
            assert_eq!(got.usage, expected.usage);
            assert_eq!(got.choices[0].finish.as_deref(), Some("length"));
            exact += usize::from(got == expected);
            let tokens = |answer: &Answer| -> Vec<Value> {
                let tokens = answer.choices[0].logprobs.iter();
                tokens.map(|token| token["token"].clone()).collect()
            };
            let (got, expected) = (tokens(got), tokens(expected));
            assert_eq!((got.len(), expected.len()), (TOKENS as usize, TOKENS as usize));
            let same = got.iter().zip(&expected).take_while(|(got, expected)| got == expected);
            let same = same.count();
            assert!(same >= READ_BEFORE - 2, "{model}: it begins as the other did");
            equal += usize::from(same == got.len());
            all += 1;
            println!("{model}: the first {same} of {} tokens are equal", got.len());
        }
    }
    println!(
        "{equal} of {all} answers are equal to their undisturbed twins, {exact} in every log-probability"
    );
}
