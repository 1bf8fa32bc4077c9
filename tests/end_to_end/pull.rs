//! Models from a hub on loopback: mlxctl and mlxd as a person uses them, on a hub that fails.

use crate::fixture::{chat, config, repository, said};
use mlxd_testkit::{FakeHub, FrontConfig, FrontProcess, HubCall, HubFault, HubRequest, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

const NAME: &str = "org/small";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const WEIGHTS: &str = "model.safetensors";
const CHAT: &str = "/v1/chat/completions";
const CARD: &[u8] = b"---\nlicense: mit\n---\n# Small\n";

/// A hub that has the built-in model under another name, and a front that pulls from it.
struct Scene {
    hub: FakeHub,
    front: FrontProcess,
}

/// How mlxctl ended: exit code, standard output, standard error.
struct Done(i32, String, String);

impl Done {
    fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        let code = output.status.code().expect("mlxctl was not killed");
        Self(code, text(output.stdout), text(output.stderr))
    }

    fn succeeded(self) -> String {
        assert_eq!(self.0, 0, "{}{}", self.1, self.2);
        self.1
    }

    /// What it said while it failed with this code.
    fn failed(self, code: i32) -> String {
        assert_eq!(self.0, code, "{}{}", self.1, self.2);
        self.2
    }
}

impl Scene {
    fn start() -> Self {
        Self::start_with(|config| config)
    }

    fn start_with(change: impl FnOnce(FrontConfig) -> FrontConfig) -> Self {
        let hub = FakeHub::start();
        publish(&hub, NAME, &[("README.md", CARD), ("modeling_small.py", b"import os")]);
        let front = FrontProcess::start(&front_config(&hub, change));
        Self { hub, front }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.front.home().command("mlxctl");
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for variable in ["HF_ENDPOINT", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"] {
            command.env_remove(variable);
        }
        command
    }

    fn ctl(&self, arguments: &[&str]) -> Done {
        Done::of(self.command(arguments).output().expect("mlxctl runs"))
    }

    fn begin(&self, arguments: &[&str]) -> Child {
        self.command(arguments).spawn().expect("mlxctl starts")
    }

    /// The weights stop after this much and go on when the hub is released.
    fn hold(&self, bytes: usize) {
        self.hub.fail(HubCall::Get(WEIGHTS.into()), HubFault::HoldAfter(bytes));
    }

    fn pulls(&self) -> Vec<Value> {
        let shelf = self.front.admin().get("/admin/v1/models").json();
        shelf["pulls"].as_array().expect("a list of pulls").clone()
    }

    /// Waits until so much of the weights is here, watched by so many.
    fn until_here(&self, bytes: u64, watchers: u64) {
        until("the pull to have come so far", || {
            let pulls = self.pulls();
            let pull = pulls.first()?;
            let files = pull["files"].as_array()?;
            let weights = files.iter().find(|file| file["name"] == WEIGHTS)?;
            let enough = weights["bytes_done"].as_u64()? >= bytes && pull["watchers"] == watchers;
            enough.then_some(())
        });
    }

    fn until_no_pull(&self) {
        until("the pull's end", || self.pulls().is_empty().then_some(()));
    }

    fn blobs(&self) -> PathBuf {
        self.front.home().path().join("huggingface/hub/models--org--small/blobs")
    }

    /// What has come of the largest file that is not whole.
    fn partial_bytes(&self) -> u64 {
        let blobs = std::fs::read_dir(self.blobs()).expect("the folder of blobs").flatten();
        let partial = blobs.filter(|file| file.path().extension().is_some());
        let bytes = partial.map(|file| file.metadata().expect("its size").len());
        bytes.max().expect("a partial file")
    }

    /// Requests for the bytes of the weights.
    fn weight_requests(&self) -> Vec<HubRequest> {
        let mut requests = self.hub.requests();
        requests.retain(|r| r.at_storage && r.method == "GET" && r.path.ends_with(WEIGHTS));
        requests
    }
}

fn front_config(hub: &FakeHub, change: impl FnOnce(FrontConfig) -> FrontConfig) -> FrontConfig {
    let config = config().with_real_worker().with("hub.disk_reserve_bytes", 0);
    change(config.with("hub.endpoint", hub.endpoint()))
        // Machines that reach the world through a proxy do not reach loopback through it.
        .with_variable("NO_PROXY", "127.0.0.1,localhost")
        .with_variable("no_proxy", "127.0.0.1,localhost")
}

/// Puts the built-in model's files on the hub, and `more`.
fn publish(hub: &FakeHub, name: &str, more: &[(&str, &[u8])]) {
    let folder = repository().join("crates/demo/model");
    let entries = std::fs::read_dir(folder).expect("the built-in model");
    let mut files: Vec<(String, Vec<u8>)> = entries
        .flatten()
        .map(|file| {
            let name = file.file_name().into_string().expect("UTF-8");
            (name, std::fs::read(file.path()).expect("it can be read"))
        })
        .collect();
    for (name, bytes) in more {
        files.retain(|(there, _)| there != name);
        files.push(((*name).into(), bytes.to_vec()));
    }
    let files: Vec<(&str, &[u8])> =
        files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    hub.publish(name, COMMIT, &files);
}

#[test]
fn a_pulled_model_answers_and_goes_again() {
    let scene = Scene::start();
    let unknown = scene.front.client().post(CHAT, &chat(NAME, "hi", json!({})));
    assert_eq!(unknown.status, 404);
    let pulled = scene.ctl(&["pull", NAME]).succeeded();
    assert!(pulled.starts_with("org/small: pulled, 7 files, "), "{pulled}");
    assert!(pulled.ends_with(&format!(", commit {}\n", &COMMIT[..7])), "{pulled}");
    // Pulled once: the second time the hub is asked what there is, and sends no file.
    let again = scene.ctl(&["pull", NAME]).succeeded();
    assert!(again.starts_with("org/small: is here already"), "{again}");
    assert_eq!(scene.weight_requests().len(), 1);
    assert!(scene.hub.requests().iter().all(|request| !request.path.ends_with(".py")));

    let list = scene.ctl(&["list"]).succeeded();
    let line = list.lines().find(|line| line.starts_with(NAME)).expect(&list);
    assert!(line.contains("llama") || line.contains("qwen3"), "{line}");
    let shown = scene.ctl(&["show", NAME]).succeeded();
    for word in ["architecture ", "parameters ", "quantization ", "context ", "needs ", "mit\n"] {
        assert!(shown.contains(word), "{word:?} is not in\n{shown}");
    }
    let shown: Value = serde_json::from_str(&scene.ctl(&["show", NAME, "--json"]).1).unwrap();
    assert_eq!((&shown["licence"], &shown["commit"]), (&json!("mit"), &json!(COMMIT)));
    assert!(shown["weight_bytes"].as_u64().unwrap() > 1_000_000, "{shown}");
    let estimate: Value =
        serde_json::from_str(&scene.ctl(&["estimate", NAME, "--json"]).1).unwrap();
    assert_eq!(shown["weight_bytes"], estimate["parts"][0]["bytes"], "{shown} {estimate}");
    let how = estimate["parts"][1]["how"].as_str().unwrap();
    let per_token = format!(" {} bytes a token", shown["kv_bytes_per_token"]);
    assert!(how.ends_with(&per_token), "{how}, not{per_token}");

    let body = chat(NAME, "What is mlxd?", json!({"temperature": 0, "max_tokens": 40}));
    let answer = scene.front.client().post(CHAT, &body).json();
    assert!(said(&answer).to_lowercase().contains("mlxd"), "{answer}");

    let asked = scene.ctl(&["rm", NAME]).failed(1);
    assert!(asked.contains("--yes"), "{asked}");
    let refused = scene.ctl(&["rm", "--yes", NAME]).failed(1);
    assert!(refused.contains("org/small is loaded"), "{refused}");
    scene.ctl(&["stop", NAME]).succeeded();
    let removed = scene.ctl(&["rm", "--yes", NAME]).succeeded();
    assert!(removed.starts_with("org/small: removed, "), "{removed}");
    assert!(!scene.blobs().parent().unwrap().exists());
    assert!(!scene.ctl(&["list"]).succeeded().contains(NAME));
    assert_eq!(scene.front.client().post(CHAT, &body).status, 404);
    let gone = scene.ctl(&["rm", "-y", NAME]).failed(1);
    assert!(gone.contains("no model is called org/small"), "{gone}");
}

#[test]
fn a_pull_goes_on_after_the_connection_and_after_mlxd_itself() {
    let scene = Scene::start();
    scene.hub.fail(HubCall::Get(WEIGHTS.into()), HubFault::BreakAfter(1_000_000));
    scene.hold(1_000_000);
    let mut first = scene.begin(&["pull", NAME]);
    scene.until_here(2_000_000, 1);
    let ranges: Vec<_> = scene.weight_requests().into_iter().map(|r| r.range).collect();
    assert_eq!(ranges.len(), 2);
    assert!(ranges[0].is_none() && ranges[1].as_deref() == Some("bytes=1000000-"), "{ranges:?}");

    let Scene { hub, front } = scene;
    let home = front.kill();
    assert!(!first.wait().unwrap().success(), "mlxd was killed under it");
    let front = FrontProcess::start_in(home, &front_config(&hub, |config| config));
    let scene = Scene { hub, front };
    assert_eq!(scene.partial_bytes(), 2_000_000);
    let pulled = scene.ctl(&["pull", NAME]).succeeded();
    assert!(pulled.contains(" of it now"), "{pulled}");
    let last = scene.weight_requests().pop().unwrap();
    assert_eq!(last.range.as_deref(), Some("bytes=2000000-"));
    scene.ctl(&["start", NAME]).succeeded();
}

#[test]
fn two_who_pull_one_model_share_a_pull() {
    let scene = Scene::start();
    scene.hold(1_000_000);
    let first = scene.begin(&["pull", NAME]);
    scene.until_here(1_000_000, 1);
    let second = scene.begin(&["pull", NAME]);
    scene.until_here(1_000_000, 2);
    let listed = scene.ctl(&["list"]).succeeded();
    assert!(listed.contains("org/small: being pulled, "), "{listed}");
    assert!(!listed.contains("INCOMPLETE"), "it is on its way: {listed}");
    // One of them leaves: the other's pull goes on.
    interrupt(&second);
    let left = Done::of(second.wait_with_output().unwrap());
    assert!(left.1.contains("goes on"), "{}{}", left.1, left.2);
    scene.hub.release();
    Done::of(first.wait_with_output().unwrap()).succeeded();
    assert_eq!(scene.hub.gets(WEIGHTS), 1);
}

#[test]
fn an_interrupt_calls_a_pull_off_and_keeps_what_came() {
    let scene = Scene::start();
    scene.hold(1_000_000);
    let pull = scene.begin(&["pull", NAME]);
    scene.until_here(1_000_000, 1);
    interrupt(&pull);
    let said = Done::of(pull.wait_with_output().unwrap()).failed(1);
    assert!(said.contains("cancelled") && said.contains("goes on from there"), "{said}");
    scene.until_no_pull();
    assert_eq!(scene.partial_bytes(), 1_000_000);

    // Half a model is shown with what to do, and serves nobody.
    let listed = scene.ctl(&["list"]).succeeded();
    let lines: Vec<&str> = listed.lines().skip_while(|line| !line.starts_with(NAME)).collect();
    assert!(lines[0].ends_with("INCOMPLETE"), "{listed}");
    assert!(lines[1].starts_with("    lacks "), "{listed}");
    assert!(lines[1].ends_with("finish its download with `mlxctl pull org/small`"), "{listed}");
    let json: Value = serde_json::from_str(&scene.ctl(&["list", "--json"]).1).unwrap();
    let models = json["models"].as_array().unwrap();
    let half = models.iter().find(|model| model["name"] == NAME).expect("it is listed");
    let missing = half["incomplete"]["missing"].as_array().unwrap();
    assert!(
        missing.contains(&json!(WEIGHTS)) && half["bytes"].as_u64() >= Some(1_000_000),
        "{half}"
    );
    assert!(!scene.front.client().get("/v1/models").json().to_string().contains(NAME));
    let refused = scene.front.client().post(CHAT, &chat(NAME, "hi", json!({})));
    assert!(refused.status >= 400, "{}", refused.status);
    let refused = scene.ctl(&["start", NAME]);
    assert!(refused.0 != 0 && refused.1.contains("is incomplete"), "{}{}", refused.1, refused.2);

    scene.ctl(&["pull", NAME]).succeeded();
    assert!(!scene.ctl(&["list"]).succeeded().contains("INCOMPLETE"));
    assert_eq!(scene.weight_requests().pop().unwrap().range.as_deref(), Some("bytes=1000000-"));

    // The same from elsewhere, for a pull that nobody watches.
    scene.ctl(&["rm", "-y", NAME]).succeeded();
    scene.hold(1_000_000);
    let begun = scene.ctl(&["pull", "--background", NAME]).succeeded();
    assert!(begun.contains("goes on inside mlxd"), "{begun}");
    scene.until_here(1_000_000, 0);
    let busy = scene.ctl(&["rm", "-y", NAME]).failed(1);
    assert!(busy.contains("is being pulled"), "{busy}");
    scene.ctl(&["pull", "--cancel", NAME]).succeeded();
    scene.until_no_pull();
}

fn interrupt(child: &Child) {
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).expect("it is there");
}

#[test]
fn what_a_hub_does_wrong_is_said_in_words() {
    let scene = Scene::start_with(|config| config.with("hub.stall_timeout_ms", 300));
    let weights = || HubCall::Get(WEIGHTS.into());
    let twice =
        |fault: HubFault| [fault.clone(), fault].map(|fault| scene.hub.fail(weights(), fault));
    twice(HubFault::OtherContent);
    let damaged = scene.ctl(&["pull", NAME]).failed(1);
    assert!(damaged.contains("came damaged twice") && damaged.contains("SHA-256"), "{damaged}");
    let offered = scene.front.client().get("/v1/models").json();
    assert!(!offered.to_string().contains(NAME), "half a model is none: {offered}");

    let status = |status: u16| HubFault::Status(status, Vec::new());
    scene.hub.fail(HubCall::List, status(404));
    let missing = scene.ctl(&["pull", NAME]).failed(1);
    assert!(missing.contains("has no org/small"), "{missing}");
    let away = HubFault::Redirect("ftp://elsewhere/".into());
    scene.hub.fail(HubCall::List, away);
    let nowhere = scene.ctl(&["pull", NAME]).failed(1);
    assert!(nowhere.contains("nowhere"), "{nowhere}");
    let bad = scene.ctl(&["pull", "../up"]).failed(1);
    assert!(bad.contains("'..'"), "{bad}");
    let nobody = scene.ctl(&["pull", "--endpoint", "hub.example", NAME]).failed(1);
    assert!(nobody.contains("must begin with https://"), "{nobody}");

    // It refuses for a while, stalls, and is believed again.
    scene.hub.fail(HubCall::List, status(503));
    scene.hub.fail(weights(), HubFault::StallAfter(1_000_000));
    let done = scene.ctl(&["pull", NAME]);
    for retry in [
        "answered 503, trying again in 1 s (attempt 2 of 8): org/small at main from http://127.",
        "nothing came for 0.3 s, trying again in 1 s (attempt 2 of 8): model.safetensors\n",
    ] {
        assert_eq!(done.2.matches(retry).count(), 1, "{retry}: {}", done.2);
    }
    assert_eq!(done.2.matches("nothing came").count(), 1, "{}", done.2);
    done.succeeded();
}

#[test]
fn a_hub_that_nobody_answers_for_is_told_at_every_try() {
    let scene = Scene::start_with(|config| config.with("hub.attempts_max", 3));
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|bound| bound.local_addr());
    let nobody = format!("http://{}", free.expect("a port"));
    let told = scene.ctl(&["pull", "--endpoint", &nobody, NAME]).failed(1);
    let lines: Vec<&str> = told.lines().collect();
    let [second, third, end] = lines[..] else { panic!("{told}") };
    let reason = "mlxctl: the connection is refused, trying again in ";
    let of = format!("org/small at main from {nobody}");
    assert_eq!(second, format!("{reason}1 s (attempt 2 of 3): {of}"));
    assert_eq!(third, format!("{reason}1 s (attempt 3 of 3): {of}"));
    assert!(end.contains("the connection is refused, 3 times in a row"), "{end}");
    let json = scene.ctl(&["pull", "--json", "--endpoint", &nobody, NAME]).1;
    let statuses = json.lines().map(|line| serde_json::from_str::<Value>(line).expect(line));
    let retries: Vec<Value> = statuses.filter_map(|s| s["retries"].get(0).cloned()).collect();
    assert!(retries.iter().any(|r| r["attempt"] == 3 && r["endpoint"] == json!(nobody)), "{json}");
}

#[test]
fn a_full_disk_is_told_before_anything_comes() {
    let scene = Scene::start_with(|config| config.with("hub.disk_reserve_bytes", 1_i64 << 50));
    let full = scene.ctl(&["pull", NAME]).failed(1);
    assert!(full.contains("stay in reserve") && full.contains("mlxctl rm"), "{full}");
    assert_eq!(scene.hub.gets(WEIGHTS), 0);
}

#[test]
fn the_callers_token_and_hub_count_and_stay_out_of_the_log() {
    let scene = Scene::start();
    let other = FakeHub::start();
    publish(&other, NAME, &[]);
    other.require_token("hf_secret");
    let at_other = |token: Option<&str>| {
        let mut command = scene.command(&["pull", NAME]);
        command.env("HF_ENDPOINT", other.endpoint()).envs(token.map(|token| ("HF_TOKEN", token)));
        Done::of(command.output().unwrap())
    };
    let refused = at_other(None).failed(1);
    assert!(refused.contains("set HF_TOKEN"), "{refused}");
    at_other(Some("hf_secret")).succeeded();
    let seen = other.requests();
    assert!(seen.iter().filter(|r| r.at_storage).all(|r| r.authorization.is_none()));
    assert!(!scene.front.log().contains("hf_secret"));
    assert_eq!(scene.hub.requests(), []);
}

#[test]
fn offline_asks_nobody() {
    let scene = Scene::start();
    for offline in [true, false] {
        let mut command = scene.command(&["pull", NAME]);
        match offline {
            true => command.arg("--offline"),
            false => command.env("HF_HUB_OFFLINE", "1"),
        };
        let refused = Done::of(command.output().unwrap()).failed(1);
        assert!(refused.contains("offline is set"), "{refused}");
    }
    assert_eq!(scene.hub.requests(), []);
    scene.ctl(&["pull", NAME]).succeeded();
    let asked = scene.hub.requests().len();
    let here = scene.ctl(&["pull", "--offline", NAME]).succeeded();
    assert!(here.contains("is here already"), "{here}");
    assert_eq!(scene.hub.requests().len(), asked);
}

/// trust_remote_code never: what a repository brings to be run is not even fetched.
#[test]
fn a_model_that_needs_its_own_code_is_refused_in_words() {
    let scene = Scene::start();
    let own = br#"{"model_type": "newest", "auto_map": {"AutoConfig": "configuration_newest.C"},
        "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 100}"#;
    let code: (&str, &[u8]) = ("modeling_newest.py", b"import os; os.system('true')");
    publish(&scene.hub, "org/newest", &[("config.json", own), code]);
    scene.ctl(&["pull", "org/newest"]).succeeded();
    let refused = scene.ctl(&["start", "org/newest"]).1;
    assert!(refused.contains("which mlxd never runs"), "{refused}");
    let answer = scene.front.client().post(CHAT, &chat("org/newest", "hi", json!({})));
    let message = answer.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
    assert!(message.contains("which mlxd never runs"), "{message}");
    assert!(scene.hub.requests().iter().all(|request| !request.path.ends_with(".py")));
}
