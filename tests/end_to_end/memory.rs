//! Many models and memory for some of them: who is loaded, who makes room, who waits, who is
//! refused, what pressure does, and who dies of taking too much. Real processes throughout; the
//! machine's figures are a file's where a test needs others than this machine's.

use crate::fixture::{DEMO, chat, config, delta, said, status_of};
use mlxd_protocol::bytes_in_short;
use mlxd_testkit::{
    Answer, Body, Events, Fault, FrontConfig, FrontProcess, How, ModelFolder, Outcome, Response,
    Script, When, until,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

const CHAT: &str = "/v1/chat/completions";
const MIB: u64 = 1 << 20;

/// What a scripted model takes besides its worker.
const BALLAST_MIB: usize = 150;
/// More than any of these tests asks for.
const AMPLE: u64 = 4096 * MIB;
/// Tokens of an answer that goes on until it is dropped.
const ENDLESS: u32 = 3000;

/// A front with models `a`, `b`, … and a machine that a file tells about.
struct Machine {
    front: FrontProcess,
    models: Vec<ModelFolder>,
    budget: u64,
    figures: PathBuf,
    _folder: tempfile::TempDir,
}

impl Machine {
    fn start(budget: u64, scripts: &[Script]) -> Self {
        Self::start_with(budget, scripts, |config| config)
    }

    fn start_with(
        budget: u64,
        scripts: &[Script],
        change: impl FnOnce(FrontConfig) -> FrontConfig,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let figures = folder.path().join("machine.json");
        let models: Vec<ModelFolder> = scripts.iter().map(ModelFolder::new).collect();
        let config = Self::config(budget, &models, &figures);
        let front = FrontProcess::start(&change(config));
        Self { front, models, budget, figures, _folder: folder }
    }

    /// With memory for `many` of the models with a long answer each, and not for one more with the
    /// shortest ones. How much that is, a front says that has loaded each of them once; this one
    /// begins with what it has measured.
    fn with_room_for(many: u64, scripts: &[Script]) -> Self {
        Self::with_room_for_and(many, scripts, |config| config)
    }

    fn with_room_for_and(
        many: u64,
        scripts: &[Script],
        change: impl FnOnce(FrontConfig) -> FrontConfig,
    ) -> Self {
        let learning = Self::start(AMPLE, scripts);
        let names: Vec<String> = names().take(scripts.len()).collect();
        for name in &names {
            learning.answered(name);
        }
        until("every model's memory to be measured and written down", || {
            learning.has_written_down(&names).then_some(())
        });
        let all = |tokens| names.iter().map(move |name| (name, tokens));
        let needs = |(name, tokens): (&String, u32)| learning.needs(name, tokens, 1);
        let (least, most) = (all(1).map(needs).min(), all(ENDLESS).map(needs).max());
        let (enough, too_much) = (most.unwrap() * many, least.unwrap() * (many + 1));
        assert!(enough < too_much, "{least:?} for one token, {most:?} for all");
        let budget = enough.midpoint(too_much);
        let Self { front, models, figures, _folder, .. } = learning;
        let config = change(Self::config(budget, &models, &figures));
        let front = FrontProcess::start_in(front.kill(), &config);
        Self { front, models, budget, figures, _folder }
    }

    fn config(budget: u64, models: &[ModelFolder], figures: &Path) -> FrontConfig {
        let mut config = config()
            .with("memory.budget_bytes", budget as i64)
            .with("memory.reserve_bytes", 0)
            .with("memory.residence_min_ms", 0)
            .with("memory.look_interval_ms", 50)
            .with("memory.pressure_calm_ms", 200)
            .with("memory.rehearsal", figures.to_string_lossy().as_ref())
            .with("models.device", "cpu")
            .with("models.prefill_chunk_tokens", 64)
            .with("models.prefix_cache_bytes_max", 0);
        for (name, model) in names().zip(models) {
            config = config.with_model(&name, model.path());
        }
        config
    }

    /// Writes `[memory]`'s keys into the configuration, which nobody reads again by that.
    fn rewrite(&self, keys: Value) {
        let file = self.front.home().path().join("config/mlxd/mlxd.toml");
        let mut config: toml::Table = std::fs::read_to_string(&file).unwrap().parse().unwrap();
        let memory = config.get_mut("memory").and_then(toml::Value::as_table_mut).unwrap();
        let keys: toml::Table = serde_json::from_value(keys).unwrap();
        memory.extend(keys);
        std::fs::write(&file, config.to_string()).unwrap();
    }

    /// What the front would say before it loads the model.
    fn estimate(&self, model: &str, context: u32, batch: u32) -> Value {
        let model = model.replace('/', "%2F");
        let query = format!("model={model}&context={context}&batch={batch}");
        self.front.admin().get(&format!("/admin/v1/estimate?{query}")).json()
    }

    fn needs(&self, model: &str, context: u32, batch: u32) -> u64 {
        let estimate = self.estimate(model, context, batch);
        estimate["needs_bytes"].as_u64().unwrap_or_else(|| panic!("{estimate}"))
    }

    fn has_written_down(&self, names: &[String]) -> bool {
        let file = self.front.home().path().join("state/mlxd/memory.json");
        let Ok(text) = std::fs::read_to_string(file) else { return false };
        let file: Value = serde_json::from_str(&text).unwrap();
        let models = file["models"].as_array().unwrap();
        let is_known = |name: &String| {
            let of_it = |one: &&Value| one["key"]["model"] == **name;
            models.iter().find(of_it).is_some_and(|one| one["resting_bytes"].is_u64())
        };
        names.iter().all(is_known)
    }

    /// The machine's figures from now on.
    fn set(&self, figures: Value) {
        let draft = self.figures.with_extension("new");
        std::fs::write(&draft, figures.to_string()).unwrap();
        std::fs::rename(draft, &self.figures).unwrap();
    }

    fn post(&self, model: &str, more: Value) -> Response {
        self.front.client().post(CHAT, &chat(model, "tell me", more))
    }

    fn ask(&self, model: &str, more: Value) -> Outcome {
        Outcome::read(self.post(model, more), |_, _| ControlFlow::Continue(()))
    }

    /// A whole short answer.
    fn answered(&self, model: &str) -> Answer {
        self.ask(model, json!({"max_tokens": 8, "seed": 1})).whole()
    }

    /// A stream that goes on until it is dropped.
    fn begun(&self, model: &str) -> Events<Body> {
        let more = json!({"max_tokens": ENDLESS, "seed": 1, "stream": true});
        let mut events = self.post(model, more).events();
        while delta(&events.expect_event().json()).is_empty() {}
        events
    }

    fn status(&self) -> Value {
        self.front.admin().get("/admin/v1/status").json()
    }

    fn state(&self, model: &str) -> String {
        status_of(&self.front, model)["state"].as_str().unwrap_or_default().to_owned()
    }

    fn until_state(&self, model: &str, state: &str) {
        until(&format!("{model} to be {state}"), || (self.state(model) == state).then_some(()));
    }

    fn loaded(&self) -> Vec<String> {
        let models = self.status()["models"].as_array().unwrap().clone();
        let running = models.iter().filter(|model| model["state"] == "RUNNING");
        running.map(|model| model["name"].as_str().unwrap().to_owned()).collect()
    }

    fn events(&self) -> Vec<Value> {
        let text = self.front.admin().get("/admin/v1/events?last=1000").text();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn happened(&self, event: &str, model: &str) -> Vec<Value> {
        let is_it = |seen: &Value| seen["event"] == event && seen["model"] == model;
        self.events().into_iter().filter(is_it).collect()
    }

    fn mlxctl(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.front.home().command("mlxctl").args(arguments).output().unwrap();
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        (output.status.code().unwrap(), text.concat())
    }

    fn metric(&self, line_begins: &str) -> f64 {
        let text = self.front.client().get("/metrics").text();
        let line = text.lines().find(|line| line.starts_with(line_begins));
        let line = line.unwrap_or_else(|| panic!("no {line_begins} in\n{text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

fn names() -> impl Iterator<Item = String> {
    ('a'..='z').map(|letter| format!("org/{letter}"))
}

fn script() -> Script {
    Script { allocate_mib: BALLAST_MIB, ..Script::default() }
}

fn slow() -> Script {
    Script { step_us: 5000, ..script() }
}

/// What the operating system counts for a process; 0 for one that is gone.
fn resident_mib(pid: u32) -> u64 {
    let pid = pid.to_string();
    let listed = Command::new("ps").args(["-o", "rss=", "-p", &pid]).output();
    let listed = listed.expect("ps is there");
    let kib = String::from_utf8(listed.stdout).unwrap().trim().parse::<u64>();
    kib.unwrap_or(0) / 1024
}

#[test]
fn the_least_recently_used_idle_model_makes_room() {
    let machine = Machine::with_room_for(2, &[script(), script(), script()]);
    for model in ["org/a", "org/b"] {
        machine.answered(model);
    }
    // Idle for long enough that what loading it took, on a busy machine, does not outweigh it.
    std::thread::sleep(std::time::Duration::from_millis(500));
    machine.answered("org/a");
    assert_eq!(machine.loaded(), ["org/a", "org/b"]);
    machine.answered("org/c");
    assert_eq!(machine.loaded(), ["org/a", "org/c"]);
    let [unloading] = &machine.happened("unloading", "org/b")[..] else {
        panic!("{:?}", machine.events())
    };
    assert_eq!(unloading["reason"], "to make room for org/c");
    assert_eq!(machine.metric("mlxd_evictions_total{model=\"org/b\",reason=\"room\"}"), 1.0);
    assert_eq!(machine.front.workers().len(), 2);
    let memory = &machine.status()["memory"];
    let bytes = |key: &str| memory[key].as_u64().unwrap();
    assert_eq!(bytes("budget_bytes"), machine.budget);
    assert_eq!(bytes("promised_bytes") + bytes("free_bytes"), machine.budget, "{memory}");
}

#[test]
fn a_busy_model_stays_and_who_waits_for_its_memory_is_served_after_it() {
    let machine = Machine::with_room_for(1, &[slow(), script()]);
    let busy = machine.begun("org/a");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| machine.answered("org/b"));
        let residence = until("b to wait", || {
            let residence = status_of(&machine.front, "org/b")["residence"].clone();
            (residence["waiting"] == 1).then_some(residence)
        });
        let why = residence["waits_for"].as_str().unwrap();
        assert!(why.contains("org/b needs") && why.contains("org/a holds"), "{why}");
        assert!(why.contains("(busy)"), "{why}");
        let (code, shown) = machine.mlxctl(&["status"]);
        assert_eq!(code, 3, "b is not running");
        assert!(shown.contains("1 wait for memory: org/b needs"), "{shown}");
        assert_eq!(machine.metric("mlxd_memory_waiting"), 1.0);
        assert_eq!(machine.loaded(), ["org/a"]);
        drop(busy);
        waiting.join().expect("an answer");
    });
    assert_eq!(machine.loaded(), ["org/b"]);
}

#[test]
fn a_stream_is_told_what_it_waits_for() {
    let cold = Script { load_ms: 1500, load_steps: 10, ..script() };
    let machine = Machine::with_room_for_and(1, &[slow(), cold], |config| {
        config.with("http.stream_progress_ms", 100)
    });
    let busy = machine.begun("org/a");
    let more = json!({"max_tokens": 4, "seed": 1, "stream": true});
    let mut body = BufReader::new(machine.post("org/b", more).body());
    let mut until_told = |words: &str| loop {
        let mut line = String::new();
        assert!(body.read_line(&mut line).expect("a line") > 0, "the end came before {words}");
        if line.starts_with(": ") && line.contains(words) {
            return line;
        }
    };
    let told = until_told("waiting for memory, 0 before it");
    assert!(told.contains("org/a holds"), "{told}");
    drop(busy);
    until_told("org/b is being loaded, ");
    let mut rest = String::new();
    body.read_to_string(&mut rest).expect("the rest");
    assert!(rest.trim_end().ends_with("data: [DONE]"), "{rest}");
}

#[test]
fn a_pinned_model_is_never_unloaded_and_unpinning_lets_the_next_one_in() {
    let machine = Machine::with_room_for(1, &[script(), script()]);
    machine.answered("org/a");
    let (code, told) = machine.mlxctl(&["pin", "org/a"]);
    assert_eq!((code, told.as_str()), (0, "org/a: pinned\n"));
    assert!(machine.mlxctl(&["status", "org/a"]).1.contains("pinned"));
    let Outcome::Error { status, code, message, .. } = machine.ask("org/b", json!({})) else {
        panic!("an error")
    };
    assert_eq!((status, code.as_str()), (507, "insufficient_memory"));
    assert!(message.contains("org/a holds") && message.contains("(pinned)"), "{message}");
    assert_eq!(machine.mlxctl(&["start", "org/b"]).0, 7);
    assert_eq!(machine.mlxctl(&["unpin", "org/a"]).0, 0);
    machine.answered("org/b");
    assert_eq!(machine.loaded(), ["org/b"]);
}

#[test]
fn many_requests_for_a_cold_model_load_it_once() {
    let cold = Script { load_ms: 300, ..script() };
    let machine = Machine::start(AMPLE, &[cold]);
    let alone = machine.ask("org/a", json!({"max_tokens": 8, "seed": 1})).whole();
    assert_eq!(machine.mlxctl(&["stop", "org/a"]).0, 0);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..6).map(|_| scope.spawn(|| machine.answered("org/a"))).collect();
        for client in clients {
            assert_eq!(client.join().unwrap().choices, alone.choices);
        }
    });
    assert_eq!(machine.happened("worker_spawned", "org/a").len(), 2, "one for each load");
}

#[test]
fn who_waits_too_long_and_who_is_one_too_many_are_refused_with_the_numbers() {
    let machine = Machine::with_room_for_and(1, &[slow(), script()], |config| {
        config.with("requests.queue_timeout_ms", 1500).with("memory.waiting_max", 1)
    });
    machine.front.admin().post("/admin/v1/start", &json!({"model": "org/a"})).json();
    let _busy = machine.begun("org/a");
    std::thread::scope(|scope| {
        let first = scope.spawn(|| machine.post("org/b", json!({})));
        until("b to wait", || {
            let waits = status_of(&machine.front, "org/b")["residence"]["waiting"] == 1;
            waits.then_some(())
        });
        let second = machine.post("org/b", json!({}));
        for (response, words) in [(second, "waiting_max"), (first.join().unwrap(), "queue_timeout")]
        {
            assert_eq!(response.status, 503);
            assert!(response.header("retry-after").is_some());
            let error = response.json()["error"].clone();
            assert_eq!(error["code"], "memory_full");
            let message = error["message"].as_str().unwrap();
            let free = format!("of {} are free", bytes_in_short(machine.budget));
            for word in [words, "org/b needs", &free, "org/a holds", "(busy)"] {
                assert!(message.contains(word), "{message} lacks {word}");
            }
        }
    });
    assert_eq!(machine.loaded(), ["org/a"]);
}

#[test]
fn what_never_fits_is_refused_at_once_and_estimated_before() {
    // A budget has a least size that a scripted model alone does not come to.
    let large = |config: FrontConfig| config.with("models.cache_bytes_max", 512 * MIB as i64);
    let least = Machine::start_with(AMPLE, &[script()], large).needs("org/a", 1, 1);
    let machine = Machine::start_with(least / 2, &[script()], large);
    let (code, told) = machine.mlxctl(&["estimate", "org/a", "--context", "1024", "--batch", "2"]);
    assert_eq!(code, 1, "{told}");
    for word in ["2 sequences of 1024 tokens", "weights", "never", "can never fit"] {
        assert!(told.contains(word), "{told} lacks {word}");
    }
    let response = machine.post("org/a", json!({}));
    assert_eq!((response.status, response.header("x-should-retry")), (507, Some("false")));
    assert_eq!(response.header("retry-after"), None);
    let error = response.json()["error"].clone();
    assert_eq!(
        (&error["code"], &error["type"]),
        (&json!("insufficient_memory"), &json!("server_error"))
    );
    let free = format!("of {} are free", bytes_in_short(machine.budget));
    assert!(error["message"].as_str().unwrap().contains(&free), "{error}");
    assert!(machine.happened("worker_spawned", "org/a").is_empty());
    assert_eq!(machine.metric("mlxd_memory_refusals_total"), 1.0);
}

#[test]
fn a_preload_without_room_says_so_until_there_is_room() {
    let large = |config: FrontConfig| config.with("models.cache_bytes_max", 512 * MIB as i64);
    let least = Machine::start_with(AMPLE, &[script()], large).needs("org/a", 1, 1);
    let machine = Machine::start_with(least / 2, &[script()], |config| {
        large(config).with_model_key("org/a", "preload", true)
    });
    let (brief, reason) = until("the preload to be refused", || {
        let status = status_of(&machine.front, "org/a");
        assert_eq!(status["state"], "STOPPED");
        let brief = status["residence"]["refused"].as_str()?.to_owned();
        Some((brief, status["reason"].as_str()?.to_owned()))
    });
    let free = format!("of {} are free", bytes_in_short(machine.budget));
    assert!(brief.starts_with("needs ") && brief.ends_with(&free), "{brief}");
    assert!(reason.contains("can never fit") && reason.contains(&free), "{reason}");
    let shown = machine.mlxctl(&["status"]).1;
    let line = format!("\n    not loaded: {brief}; `mlxctl why org/a` says more\n");
    assert!(shown.contains(&line) && !shown.contains("can never fit"), "{shown}");
    let told = machine.mlxctl(&["--json", "status"]).1;
    assert!(told.contains(&brief) && told.contains("can never fit"), "{told}");
    let (code, why) = machine.mlxctl(&["why", "org/a"]);
    assert_eq!(code, 0, "{why}");
    assert!(why.contains(&format!("not loaded when that was asked for last: {reason}.")), "{why}");
    // With more it loads, and nothing of that is left.
    machine.rewrite(json!({"budget_bytes": AMPLE}));
    assert_eq!(machine.mlxctl(&["update"]).0, 0);
    let (code, told) = machine.mlxctl(&["start", "org/a"]);
    assert_eq!(code, 0, "{told}");
    let status = status_of(&machine.front, "org/a");
    assert_eq!((&status["reason"], &status["residence"]["refused"]), (&Value::Null, &Value::Null));
    let why = machine.mlxctl(&["why", "org/a"]).1;
    assert!(!why.contains("not loaded"), "{why}");
}

#[test]
fn other_limits_are_put_to_work_and_only_idle_models_go_for_them() {
    let scripts = [slow(), script(), script(), script()];
    let machine = Machine::start(AMPLE, &scripts);
    let mut stream = machine.begun("org/a");
    for model in ["org/b", "org/c", "org/d"] {
        machine.answered(model);
    }
    assert_eq!(machine.mlxctl(&["pin", "org/b"]).0, 0);
    let workers = machine.front.workers();
    // One place less, by the command.
    machine.rewrite(json!({"max_loaded": 3}));
    let told = machine.mlxctl(&["reread"]).1;
    assert!(told.contains("memory.max_loaded: ") && !told.contains("new start"), "{told}");
    let told = machine.mlxctl(&["update"]).1;
    assert!(told.contains("memory.max_loaded: not set -> 3; at work\n"), "{told}");
    machine.until_state("org/c", "STOPPED");
    assert_eq!(machine.loaded(), ["org/a", "org/b", "org/d"]);
    let [unloading] = &machine.happened("unloading", "org/c")[..] else { panic!("one") };
    assert!(unloading["reason"].as_str().unwrap().contains("new limits"), "{unloading}");
    assert_eq!(machine.metric("mlxd_evictions_total{model=\"org/c\",reason=\"limits\"}"), 1.0);
    // Far too little, by the signal: who is busy or pinned stays.
    let small = 64 * MIB;
    machine.rewrite(json!({"budget_bytes": small, "pressure_warning_percent": 90}));
    machine.front.signal(Signal::SIGHUP);
    machine.until_state("org/d", "STOPPED");
    let memory = machine.status()["memory"].clone();
    assert_eq!((&memory["budget_bytes"], &memory["free_bytes"]), (&json!(small), &json!(0)));
    assert_eq!(machine.loaded(), ["org/a", "org/b"]);
    assert!(!delta(&stream.expect_event().json()).is_empty(), "a's stream goes on");
    assert_eq!(machine.post("org/d", json!({"max_tokens": 4})).status, 507);
    assert!(machine.front.workers().iter().all(|worker| workers.contains(worker)));
    // What cannot change is still to be done, and stays listed.
    machine.rewrite(json!({"budget_bytes": AMPLE, "rehearsal": "/nowhere/figures.json"}));
    for command in ["reread", "update", "update"] {
        let told = machine.mlxctl(&[command]).1;
        let line = told.lines().find(|line| line.starts_with("memory.rehearsal: "));
        assert!(line.is_some_and(|line| line.ends_with("needs a new start of mlxd")), "{told}");
    }
    machine.answered("org/d");
    assert_eq!(machine.loaded(), ["org/a", "org/b", "org/d"]);
}

#[test]
fn an_idle_model_goes_after_its_time_and_its_memory_is_back_by_the_systems_number() {
    let large = Script { allocate_mib: 200, ..Script::default() };
    let machine = Machine::start_with(AMPLE, &[large, script(), script()], |config| {
        config
            .with_model_key("org/a", "ttl_s", 0)
            .with_model_key("org/c", "ttl_s", 0)
            .with_model_key("org/c", "pinned", true)
    });
    machine.front.admin().post("/admin/v1/start", &json!({"model": "org/c"})).json();
    let worker = std::thread::scope(|scope| {
        let asked =
            scope.spawn(|| machine.ask("org/a", json!({"max_tokens": 3000, "keep_alive": 60})));
        let worker = until("a to be loaded", || {
            let status = status_of(&machine.front, "org/a");
            status["pid"].as_u64().filter(|_| status["state"] == "RUNNING")
        });
        asked.join().unwrap().whole();
        worker as u32
    });
    // keep_alive is the request's word over ttl_s.
    assert!(resident_mib(worker) >= 200, "{} MiB", resident_mib(worker));
    let leaves = &status_of(&machine.front, "org/a")["residence"]["leaves_in_s"];
    assert!(leaves.as_u64().is_some_and(|seconds| seconds > 30), "{leaves}");
    machine.ask("org/a", json!({"max_tokens": 4, "keep_alive": "0s"})).whole();
    machine.until_state("org/a", "STOPPED");
    assert_eq!(resident_mib(worker), 0, "the process is gone");
    assert_eq!(status_of(&machine.front, "org/a")["residence"]["promised_bytes"], 0);
    let [unloading] = &machine.happened("unloading", "org/a")[..] else { panic!("one") };
    assert!(unloading["reason"].as_str().unwrap().contains("keep_alive"));
    assert_eq!(machine.loaded(), ["org/c"], "pinned");
}

#[test]
fn pressure_unloads_the_idle_then_refuses_and_passes() {
    let machine = Machine::start(AMPLE, &[slow(), script(), script()]);
    let mut running = machine.begun("org/a");
    machine.answered("org/b");
    let pressure = |level: &str| {
        machine.set(json!({ "pressure": level }));
        until(&format!("pressure to be {level}"), || {
            (machine.status()["memory"]["pressure"] == level).then_some(())
        });
    };
    pressure("warning");
    assert_eq!(machine.loaded(), ["org/a", "org/b"], "a warning unloads nobody");
    pressure("critical");
    machine.until_state("org/b", "STOPPED");
    assert_eq!(machine.loaded(), ["org/a"], "nobody busy goes");
    assert_eq!(machine.metric("mlxd_memory_pressure{level=\"critical\"}"), 1.0);
    let refused = until("new work to be refused", || {
        let response = machine.post("org/a", json!({"max_tokens": 4}));
        (response.status != 200).then_some(response)
    });
    assert_eq!(refused.status, 503);
    assert!(refused.header("retry-after").is_some());
    assert_eq!(refused.json()["error"]["code"], "memory_pressure");
    assert!(!delta(&running.expect_event().json()).is_empty(), "what runs goes on");
    pressure("normal");
    machine.answered("org/c");
    let levels: Vec<Value> = machine
        .events()
        .into_iter()
        .filter(|event| event["event"] == "memory_pressure")
        .map(|event| event["level"].clone())
        .collect();
    assert_eq!(levels, ["warning", "critical", "warning", "normal"], "down by one step at a time");
}

/// Far more than a scripted model is promised with all that containment adds.
const OVERRUN_MIB: usize = 700;

/// A worker that takes `mib` more when it is asked to.
fn outgrows(mib: usize, times_max: Option<u32>) -> Script {
    let fault = Fault { when: When::Asked, how: How::Outgrow(mib), times_max };
    Script { faults: vec![fault], ..slow() }
}

/// An answer of a model undisturbed.
fn undisturbed(model: usize, tokens: u32) -> Answer {
    let scripts: Vec<Script> = (0..=model).map(|_| script()).collect();
    let machine = Machine::start(AMPLE, &scripts);
    let name = names().nth(model).unwrap();
    machine.ask(&name, json!({"max_tokens": tokens, "seed": 1})).whole()
}

#[test]
fn a_worker_that_outgrows_its_promise_dies_alone_and_its_requests_go_on() {
    let machine = Machine::start(AMPLE, &[outgrows(OVERRUN_MIB, Some(1)), slow()]);
    let mut sibling = machine.begun("org/b");
    let promised = |model| status_of(&machine.front, model)["residence"]["promised_bytes"].clone();
    std::thread::scope(|scope| {
        let ask = json!({"max_tokens": 200, "seed": 1});
        let offender = scope.spawn(|| machine.ask("org/a", ask));
        until("a to answer", || (status_of(&machine.front, "org/a")["running"] == 1).then_some(()));
        machine.models[0].ask_fault(0);
        let answer = offender.join().unwrap().whole();
        assert_eq!(answer.choices, undisturbed(0, 200).choices, "replayed");
        let after = promised("org/a").as_u64().unwrap();
        assert!(after < OVERRUN_MIB as u64 * MIB, "{after}: not held to the overrun");
    });
    let status = status_of(&machine.front, "org/a");
    assert_eq!((&status["state"], &status["deaths"]), (&json!("RUNNING"), &json!(1)));
    let sibling_status = status_of(&machine.front, "org/b");
    assert_eq!(sibling_status["deaths"], 0);
    assert!(!delta(&sibling.expect_event().json()).is_empty(), "b's stream goes on");
    assert_eq!(machine.front.client().get("/health").status, 200);
}

#[test]
fn who_always_outgrows_is_refused_with_the_reason() {
    let always = Script {
        faults: vec![Fault {
            when: When::Tokens(20),
            how: How::Outgrow(OVERRUN_MIB),
            times_max: None,
        }],
        ..slow()
    };
    let machine = Machine::start(AMPLE, &[always, slow()]);
    let mut sibling = machine.begun("org/b");
    let (code, message, _) = machine.ask("org/a", json!({"max_tokens": 200})).error();
    assert_eq!(code, "quarantined");
    assert!(message.contains("died 2 times"), "{message}");
    assert!(!delta(&sibling.expect_event().json()).is_empty(), "b's stream goes on");
}

#[test]
fn where_the_system_holds_no_process_to_a_limit_the_front_ends_who_outgrows() {
    // What a GPU's driver maps is no measure, so the system is told of no limit there.
    let machine = Machine::start_with(AMPLE, &[outgrows(1400, Some(1)), slow()], |config| {
        config.with_model_key("org/a", "device", "gpu")
    });
    let mut sibling = machine.begun("org/b");
    let _cut = machine.begun("org/a");
    machine.models[0].ask_fault(0);
    let why = until("its death to be told of", || {
        let why = machine.front.admin().get("/admin/v1/why?model=org%2Fa").json();
        why["report"].is_object().then_some(why)
    });
    assert!(why.to_string().contains("outgrew its memory"), "{why}");
    machine.until_state("org/a", "RUNNING");
    assert!(!delta(&sibling.expect_event().json()).is_empty(), "b's stream goes on");
}

#[test]
fn no_worker_is_started_into_memory_that_did_not_come_back() {
    let machine = Machine::start(AMPLE, &[slow()]);
    let stream = machine.begun("org/a");
    let [worker] = machine.front.workers()[..] else { panic!("one worker") };
    machine.set(json!({"available_bytes": 10 * MIB}));
    until("the shortage to be seen", || {
        (machine.status()["memory"]["available_bytes"] == 10 * MIB).then_some(())
    });
    machine.mlxctl(&["signal", "kill", "org/a"]);
    let reason = until("the model to wait", || {
        let status = status_of(&machine.front, "org/a");
        let reason = status["reason"].as_str()?.to_owned();
        (status["state"] == "BACKOFF" && reason.contains("may not have come back"))
            .then_some(reason)
    });
    assert!(reason.contains("10.5 MB"), "{reason}");
    assert!(machine.front.workers().is_empty());
    assert!(!machine.happened("no_room", "org/a").is_empty());
    assert_eq!(machine.happened("worker_spawned", "org/a").len(), 1);
    // It comes back, and the stream goes on.
    machine.set(json!({}));
    machine.until_state("org/a", "RUNNING");
    let [next] = machine.front.workers()[..] else { panic!("one worker") };
    assert_ne!(next, worker);
    let mut stream = stream;
    assert!(!delta(&stream.expect_event().json()).is_empty());
}

#[test]
fn models_are_loaded_at_the_start_and_no_more_of_them_than_are_allowed() {
    let machine = Machine::start_with(AMPLE, &[script(), script(), script()], |config| {
        config
            .with_model_key("org/a", "preload", true)
            .with_model_key("org/a", "pinned", true)
            .with("memory.max_loaded", 2)
    });
    machine.until_state("org/a", "RUNNING");
    machine.answered("org/b");
    machine.answered("org/c");
    assert_eq!(machine.loaded(), ["org/a", "org/c"]);
    assert_eq!(machine.front.workers().len(), 2);
}

#[test]
fn what_was_measured_is_kept_over_a_restart() {
    let machine = Machine::start(AMPLE, &[script()]);
    let estimate = |front: &FrontProcess| {
        front.admin().get("/admin/v1/estimate?model=org%2Fa&context=256").json()
    };
    assert_eq!(estimate(&machine.front)["measured_loaded_bytes"], Value::Null);
    assert_eq!(said(&machine.post("org/a", json!({"max_tokens": 8})).json()).len(), 8);
    let measured = |front: &FrontProcess| {
        estimate(front)["measured_peak_bytes"].as_u64().filter(|bytes| *bytes > 100 * MIB)
    };
    until("a measured peak", || measured(&machine.front));
    let file = machine.front.home().path().join("state/mlxd/memory.json");
    until("it to be written down", || {
        std::fs::read_to_string(&file).ok()?.contains("256 x 1").then_some(())
    });
    let config =
        config().with_model("org/a", machine.models[0].path()).with("models.device", "cpu");
    let front = FrontProcess::start_in(machine.front.kill(), &config);
    assert!(measured(&front).is_some(), "{}", estimate(&front));
}

#[test]
fn a_model_on_mlx_is_held_to_a_limit_measured_and_gone_with_all_its_memory() {
    let config = config().with_real_worker().with("log.level", "debug");
    let front = FrontProcess::start(&config.with("memory.look_interval_ms", 50));
    let ask = |more| front.client().post(CHAT, &chat(DEMO, "Who are you?", more)).json();
    assert!(!said(&ask(json!({"max_tokens": 16}))).is_empty());
    let worker = status_of(&front, DEMO)["pid"].as_u64().unwrap() as u32;
    let log = || front.admin().get("/admin/v1/log?model=mlxd-demo&bytes=100000").text();
    until("MLX to be told its limit", || log().contains("MLX's memory limit").then_some(()));
    let estimate = || front.admin().get("/admin/v1/estimate?model=mlxd-demo&context=256").json();
    until("its memory to be measured", || estimate()["measured_peak_bytes"].as_u64());
    assert!(resident_mib(worker) > 20, "{} MiB", resident_mib(worker));
    ask(json!({"max_tokens": 4, "keep_alive": 0}));
    until("it to be unloaded", || (status_of(&front, DEMO)["state"] == "STOPPED").then_some(()));
    assert_eq!(resident_mib(worker), 0, "the process is gone");
    assert_eq!(status_of(&front, DEMO)["residence"]["promised_bytes"], 0);
}
