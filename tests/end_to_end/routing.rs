//! Virtual models and aliases on a real mlxd: two scripted models, rules between them.

use crate::fixture::{chat, config, delta, said, status_of};
use mlxd_protocol::LoadFaultKind;
use mlxd_testkit::{FrontConfig, FrontProcess, LoadFailure, ModelFolder, Response, Script, until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::io::Write;
use std::process::{Command, Stdio};

const SMALL: &str = "org/small";
const LARGE: &str = "org/large";
const CHAT: &str = "/v1/chat/completions";

/// "The small one up to 100 tokens if loaded, else the large; pictures go to the one that sees."
const AUTO: &str = r#"
    aliases = ["gpt-4o"]
    fallback = ["org/large", "little"]
    rules = [
        { modality = "image", model = "org/sees" },
        { prompt_tokens_max = 100, loaded = true, model = "little" },
    ]
"#;

struct Scene {
    front: FrontProcess,
    small: ModelFolder,
    large: ModelFolder,
}

fn says(answer: &str) -> Script {
    Script { answer: Some(answer.into()), ..Script::default() }
}

fn cannot_load(message: &str) -> Script {
    let kind = LoadFaultKind::Corrupt;
    Script { load_failure: Some(LoadFailure { kind, message: message.into() }), ..says("large") }
}

fn with_route(config: FrontConfig, route: &str) -> FrontConfig {
    let route: toml::Table = toml::from_str(route).expect("TOML");
    config.with("routes.auto", route)
}

impl Scene {
    fn start() -> Self {
        Self::start_with(&says("large"), |config| config)
    }

    fn start_with(large: &Script, change: impl FnOnce(FrontConfig) -> FrontConfig) -> Self {
        let (small, large) = (ModelFolder::new(&says("small")), ModelFolder::new(large));
        let config = with_route(config(), AUTO)
            .with_model(SMALL, small.path())
            .with_model_key(SMALL, "aliases", vec!["little".to_owned()])
            .with_model(LARGE, large.path());
        Self { front: FrontProcess::start(&change(config)), small, large }
    }

    fn load(&self, model: &str) {
        let started = self.front.admin().post("/admin/v1/start", &json!({"model": model}));
        assert_eq!(started.json()["state"], "RUNNING");
    }

    fn ask(&self, body: &Value) -> Response {
        self.front.client().post(CHAT, body)
    }

    /// Runs mlxctl with this standard input: exit code and output.
    fn ctl(&self, arguments: &[&str], input: &str) -> (i32, String) {
        let mut command = self.front.home().command("mlxctl");
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("mlxctl starts");
        child.stdin.take().unwrap().write_all(input.as_bytes()).expect("it reads");
        let output = child.wait_with_output().expect("it ends");
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    }

    /// Replaces the rules in the configuration file.
    fn rewrite(&self, from: &str, to: &str) {
        let file = self.front.home().path().join("config/mlxd/mlxd.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(&file, text.replace(from, to)).unwrap();
    }
}

/// Who answered: by the answer's field, by its header, and by what the model says.
fn who(response: Response) -> (String, String, String) {
    assert_eq!(response.status, 200);
    let header = response.header("x-mlxd-model").expect("who answers").to_owned();
    let answer = response.json();
    (answer["model"].as_str().unwrap().to_owned(), header, said(&answer).to_owned())
}

fn is(name: &str, says: &str) -> (String, String, String) {
    (name.to_owned(), name.to_owned(), says.to_owned())
}

#[test]
fn rules_choose_by_length_and_by_what_is_loaded() {
    let scene = Scene::start();
    let short = chat("auto", "hi", json!({}));
    assert_eq!(who(scene.ask(&short)), is(LARGE, "large"), "the small one is not loaded");
    scene.load(SMALL);
    assert_eq!(who(scene.ask(&short)), is(SMALL, "small"));
    let long = chat("gpt-4o", &"x".repeat(200), json!({}));
    assert_eq!(who(scene.ask(&long)), is(LARGE, "large"), "and by the alias");
    assert_eq!(who(scene.ask(&chat("little", "hi", json!({})))), is(SMALL, "small"));

    let streamed = scene.ask(&chat("auto", "hi", json!({"stream": true})));
    assert_eq!(streamed.header("x-mlxd-model"), Some(SMALL));
    let events = streamed.events().all().expect("a clean end");
    let (last, chunks) = events.split_last().unwrap();
    assert_eq!(last.data, "[DONE]");
    let chunks: Vec<Value> = chunks.iter().map(mlxd_testkit::Event::json).collect();
    assert!(chunks.iter().all(|chunk| chunk["model"] == SMALL));
    assert_eq!(chunks.iter().map(delta).collect::<String>(), "small");

    let kept = scene.ask(&chat("auto", "hi", json!({"stream": true, "resumable": true})));
    assert_eq!(kept.header("x-mlxd-model"), Some(SMALL));
    assert_eq!(kept.events().all().unwrap().last().unwrap().data, "[DONE]");
    let text = json!({"model": "auto", "prompt": "hi", "max_tokens": 9});
    let answer = scene.front.client().post("/v1/completions", &text).json();
    assert_eq!((&answer["model"], &answer["choices"][0]["text"]), (&json!(SMALL), &json!("small")));
}

#[test]
fn names_that_are_no_models_are_listed() {
    let scene = Scene::start();
    scene.load(SMALL);
    let listed = scene.front.client().get("/v1/models").json();
    let one = |id: &str| {
        let models = listed["data"].as_array().unwrap();
        models.iter().find(|model| model["id"] == id).unwrap_or_else(|| panic!("{id}: {listed}"))
    };
    assert_eq!(one("little")["alias_of"], SMALL);
    assert_eq!(one("auto")["one_of"], json!(["org/sees", SMALL, LARGE]));
    assert_eq!((&one("gpt-4o")["loaded"], &one(LARGE)["loaded"]), (&json!(true), &json!(false)));
    assert_eq!(&scene.front.client().get("/v1/models/auto").json(), one("auto"));
    let refused = scene.front.admin().post("/admin/v1/start", &json!({"model": "auto"}));
    assert!(refused.text().contains("virtual model"));
    let unknown = scene.ask(&chat("auti", "hi", json!({}))).json();
    assert!(unknown["error"]["message"].as_str().unwrap().contains("did you mean \"auto\"?"));
}

#[test]
fn a_model_that_cannot_be_loaded_is_passed_over_before_any_token() {
    let scene = Scene::start_with(&cannot_load("tensor x is cut"), |config| config);
    let short = |more: Value| chat("auto", "hi", more);
    // The small one is not loaded, the large one fails, the last fallback is the small one.
    let streamed = scene.ask(&short(json!({"stream": true})));
    assert_eq!(streamed.header("x-mlxd-model"), Some(SMALL));
    let events = streamed.events().all().expect("a clean end");
    let text: String =
        events[..events.len() - 1].iter().map(|event| delta(&event.json()).to_owned()).collect();
    assert_eq!(text, "small");
    assert_eq!(status_of(&scene.front, LARGE)["state"], "FATAL");
    // Now it is known to be FATAL.
    let long = chat("auto", &"x".repeat(200), json!({}));
    assert_eq!(who(scene.ask(&long)), is(SMALL, "small"));
    let (_, told) = scene.ctl(&["route"], &long.to_string());
    assert!(told.contains("org/large  no: its worker is FATAL: "), "{told}");

    // With the other one gone too, the error names both.
    scene.front.admin().post("/admin/v1/stop", &json!({"model": SMALL}));
    scene.small.set_script(&cannot_load("tensor y is cut"));
    let error = scene.ask(&long);
    assert_eq!(error.status, 500);
    let error = error.json()["error"].clone();
    let message = error["message"].as_str().unwrap();
    assert_eq!(error["code"], "load_failed");
    assert!(message.starts_with("auto: no model takes the request. org/large: "), "{message}");
    assert!(
        message.contains("tensor x is cut") && message.contains("tensor y is cut"),
        "{message}"
    );
    // Mended, and by hand started again.
    scene.large.set_script(&says("large"));
    scene.load(LARGE);
    assert_eq!(who(scene.ask(&long)), is(LARGE, "large"));
}

#[test]
fn a_long_wait_before_the_choice_is_filled_and_ends_well() {
    let script = Script { load_ms: 1500, ..cannot_load("tensor x is cut") };
    let scene = Scene::start_with(&script, |config| config.with("http.stream_ping_ms", 100));
    let body = chat("auto", "hi", json!({"stream": true}));
    let mut events = scene.ask(&body).events();
    let mut text = String::new();
    while let Some(event) = events.next_event().expect("a clean end") {
        if event.data != "[DONE]" {
            assert_eq!(event.json()["model"], SMALL);
            text += delta(&event.json());
        }
    }
    assert_eq!(text, "small");
    assert!(events.comments() >= 2, "{} comments in more than a second", events.comments());
    // A stream that is kept goes the same way; one that comes to nothing says so in its status.
    scene.front.admin().post("/admin/v1/stop", &json!({"model": SMALL}));
    scene.small.set_script(&cannot_load("tensor y is cut"));
    let kept = scene.ask(&chat("auto", "hi", json!({"stream": true, "background": true})));
    let refused = kept.text();
    assert!(refused.contains("tensor y is cut"), "{refused}");
}

/// Weights that claim 8 GiB, of which the disk holds nothing.
fn enormous(folder: &ModelFolder) {
    let bytes = 8_u64 << 30;
    let header = json!({"model.embed_tokens.weight":
        {"dtype": "F32", "shape": [bytes / 4], "data_offsets": [0, bytes]}});
    let header = header.to_string();
    let mut file = std::fs::File::create(folder.file("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + bytes).unwrap();
}

#[test]
fn a_model_that_can_never_fit_is_passed_over() {
    let scene =
        Scene::start_with(&says("large"), |config| config.with("memory.budget_bytes", 2_i64 << 30));
    enormous(&scene.large);
    let plain = scene.ask(&chat(LARGE, "hi", json!({})));
    let plain = plain.json()["error"]["code"].clone();
    assert_eq!(plain, "insufficient_memory");
    assert_eq!(who(scene.ask(&chat("auto", "hi", json!({})))), is(SMALL, "small"));
    assert!(scene.front.log().contains("the next one is tried"));
}

#[test]
fn a_dry_run_passes_over_what_can_never_fit() {
    let scene =
        Scene::start_with(&says("large"), |config| config.with("memory.budget_bytes", 2_i64 << 30));
    enormous(&scene.large);
    let body = chat("auto", "hi", json!({"max_tokens": 10}));
    let (code, told) = scene.ctl(&["route"], &body.to_string());
    assert!(code == 0 && told.starts_with("auto: org/small\n"), "{told}");
    let line = told.lines().find(|line| line.contains("org/large")).expect(&told);
    assert!(
        line.contains("org/large  no: org/large needs ") && line.contains("never fit"),
        "{line}"
    );
    assert!(line.contains(" of 2.15 GB are free"), "{line}");
    let report: Value =
        serde_json::from_str(&scene.ctl(&["route", "--json"], &body.to_string()).1).unwrap();
    let large = report["steps"].as_array().unwrap().iter().find(|s| s["target"] == LARGE).unwrap();
    assert_eq!(large["outcome"], "passed");
    let estimate = scene.ctl(&["estimate", LARGE, "--json"], "").1;
    let estimate: Value = serde_json::from_str(&estimate).unwrap();
    assert_eq!(estimate["verdict"], "never");

    // The same of a model by its own name.
    let (code, told) = scene.ctl(&["route", "--model", LARGE], &body.to_string());
    assert!(code == 1 && told.starts_with("org/large: no model\n"), "{told}");
    assert!(told.contains("problem: org/large needs ") && told.contains("never fit"), "{told}");
    assert_eq!(scene.front.workers(), Vec::<u32>::new(), "nothing was loaded for it");
    // Who would answer does.
    assert_eq!(who(scene.ask(&body)), is(SMALL, "small"));
}

#[test]
fn a_dry_run_says_which_and_why() {
    let scene = Scene::start();
    let body =
        chat("auto", "hi", json!({"tools": [{"type": "function", "function": {"name": "f"}}]}));
    let (code, told) = scene.ctl(&["route"], &body.to_string());
    let tokens = 1 + "user\nhi".len() + 2 + 1 + "assistant\n".len();
    assert_eq!(
        (code, told),
        (
            0,
            format!(
                "\
auto: org/large
  rule 1      org/sees   no: the request holds no image
  rule 2      little     no: it is not loaded
  fallback 1  org/large  yes: the first that is left
request: text, tools, no JSON, priority normal, {tokens} tokens to org/large
"
            )
        )
    );
    assert_eq!(scene.front.workers(), Vec::<u32>::new(), "nothing was loaded for it");
    scene.load(SMALL);
    let (_, report) = scene.ctl(&["route", "--json", "--priority", "high"], &body.to_string());
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!((&report["model"], &report["request"]["priority"]), (&json!(SMALL), &json!("high")));
    assert_eq!(report["steps"][1]["outcome"], "taken");
    let (code, told) = scene.ctl(&["route", "--model", "little"], &body.to_string());
    assert_eq!((code, told.lines().next()), (0, Some("little: org/small")));

    let image = json!([{"type": "text", "text": "what?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]);
    let image = json!({"model": "auto", "messages": [{"role": "user", "content": image}]});
    let (code, told) = scene.ctl(&["route", "-"], &image.to_string());
    assert_eq!(code, 1);
    assert!(told.contains("org/sees   no: no model is called org/sees"), "{told}");
    assert!(told.contains("org/large  no: it takes no image"), "{told}");
    assert_eq!(scene.ctl(&["route"], "{").0, 1);
    assert_eq!(scene.ctl(&["route"], &chat("nobody", "hi", json!({})).to_string()).0, 1);
}

#[test]
fn new_rules_are_put_to_work_and_nothing_else_moves() {
    let scene = Scene::start();
    scene.load(SMALL);
    scene.load(LARGE);
    let workers = || {
        let mut workers = scene.front.workers();
        workers.sort_unstable();
        workers
    };
    let before = workers();
    let short = chat("auto", "hi", json!({}));
    assert_eq!(who(scene.ask(&short)), is(SMALL, "small"));
    scene.rewrite("prompt_tokens_max = 100", "prompt_tokens_max = 1");
    let (code, told) = scene.ctl(&["update"], "");
    assert_eq!(code, 0);
    assert!(told.contains("routes.\"auto\": "), "{told}");
    assert_eq!(who(scene.ask(&short)), is(LARGE, "large"));
    scene.rewrite("prompt_tokens_max = 1", "prompt_tokens_max = 1000");
    scene.front.signal(Signal::SIGHUP);
    until("the new rules", || (who(scene.ask(&short)) == is(SMALL, "small")).then_some(()));
    // What is wrong is not taken.
    scene.rewrite("prompt_tokens_max = 1000", "prompt_tokens_max = -1");
    assert_eq!(scene.ctl(&["update"], "").0, 1);
    assert_eq!(who(scene.ask(&short)), is(SMALL, "small"));
    assert_eq!(workers(), before);
}

#[test]
fn a_check_finds_circles_and_names_that_are_nobodys() {
    let folder = tempfile::tempdir().unwrap();
    let small = ModelFolder::new(&Script::default());
    let check = |text: &str| {
        let file = folder.path().join("m.toml");
        std::fs::write(&file, text).unwrap();
        let mut command: Command = lone_mlxd(&folder);
        let output = command.args(["config", "check", "--config"]).arg(&file).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout) + &text(&output.stderr))
    };
    let small = format!("[models.small]\npath = {:?}\naliases = [\"s\"]\n", small.path());
    let (code, told) = check(&format!("{small}[routes.auto]\nfallback = [\"smal\", \"s\"]"));
    assert_eq!(code, 2);
    assert!(told.contains("[routes.\"auto\"] leads to \"smal\""), "{told}");
    assert!(told.contains("did you mean small?"), "{told}");
    let (code, told) = check("[routes.a]\nfallback = [\"b\"]\n[routes.b]\nfallback = [\"a\"]");
    assert!(code == 2 && told.contains("\"a\" to \"b\" to \"a\""), "{told}");
    let (code, told) = check(&format!(
        "{small}[routes.auto]\nfallback = [\"s\", \"mlxd-demo\", \"b\"]\n[routes.b]\nfallback = [\"s\"]"
    ));
    assert_eq!(code, 0, "{told}");
}

/// mlxd with every folder of its own.
fn lone_mlxd(folder: &tempfile::TempDir) -> Command {
    // Builds the programs.
    let _ = config();
    let mut command = Command::new(mlxd_testkit::program("mlxd"));
    for name in ["HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "HF_HOME"] {
        command.env(name, folder.path());
    }
    command
}
