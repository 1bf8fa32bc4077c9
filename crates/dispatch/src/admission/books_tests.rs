//! The books, driven by events and a simulated clock: no process, no sleep.

mod refusals;
mod reload;
mod schedules;

use super::account::{Stage, Turn};
use super::books::{Act, Books, EngineMemory, Look, Seen, WorkerMemory};
use super::limits::{KeepAlive, Lifetime, MemoryLimits};
use crate::job::{Job, Tenant};
use crate::journal::{Failure, Journal};
use mlxd_memory::{Footprint, Form, Level, MachineMemory, ModelShape, Needs, WeightBytes};
use mlxd_protocol::admin::{Verdict, WorkerState};
use mlxd_protocol::{ModelId, ModelInfo, Priority, RequestId, Sampling};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const S: Duration = Duration::from_secs(1);

/// Keys and values of 256 tokens take 1 MiB; the transient and the overhead are the formula's.
fn needs(weights_mib: u64) -> Needs {
    let config = json!({
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 4,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 128,
        "intermediate_size": 64, "vocab_size": 128, "max_position_embeddings": 8192,
        "torch_dtype": "float32",
    });
    Needs {
        shape: ModelShape::from_config(&config).ok(),
        weights: WeightBytes { stored: weights_mib * MIB, parameters: weights_mib * MIB / 4 },
        form: Form::Float32,
        chunk_tokens: 512,
        cache_bytes_max: None,
        prefix_bytes_max: 0,
        draft: None,
        packed_kv: None,
        kv_tokens_max: None,
    }
}

fn id(name: &str) -> ModelId {
    ModelId::new(name).unwrap()
}

/// The books and a world that does what they say.
struct World {
    books: Books,
    now: Instant,
    next: u64,
    /// Handed to a pump, by request.
    pumps: BTreeMap<u64, ModelId>,
    workers: BTreeMap<ModelId, u32>,
    unloading: BTreeSet<ModelId>,
    failed: Vec<(u64, Failure)>,
    trimmed: Vec<ModelId>,
    condemned: Vec<String>,
    pids: u32,
}

impl World {
    /// A machine where `models` of 200 MiB fit beside `spare_mib` of growth.
    fn new(budget_mib: u64, names: &[&str]) -> Self {
        Self::with(names, |limits| limits.budget = Some(budget_mib * MIB))
    }

    fn with(names: &[&str], change: impl FnOnce(&mut MemoryLimits)) -> Self {
        let mut limits = MemoryLimits { reserve: Some(0), ..MemoryLimits::default() };
        change(&mut limits);
        let now = Instant::now();
        let mut books = Books::new(limits, None);
        for name in names {
            books.register(&id(name), needs(200), Lifetime::default(), now);
        }
        Self {
            books,
            now,
            next: 1,
            pumps: BTreeMap::new(),
            workers: BTreeMap::new(),
            unloading: BTreeSet::new(),
            failed: Vec::new(),
            trimmed: Vec::new(),
            condemned: Vec::new(),
            pids: 100,
        }
    }

    fn journal(&mut self, model: &str, tokens: u32, keep_alive: Option<KeepAlive>) -> Arc<Journal> {
        let request = RequestId(self.next);
        self.next += 1;
        let job = Job {
            model: id(model),
            trace: "t".into(),
            prompt: [7].into(),
            sampling: Sampling::default(),
            max_new: tokens - 1,
            stop_tokens: [2].into(),
            logprobs: None,
            embed: None,
            priority: Priority::Normal,
            tenant: Tenant::default(),
            deadline: None,
            keep_alive,
        };
        Journal::open(request, job)
    }

    fn ask_with(
        &mut self,
        model: &str,
        tokens: u32,
        keep_alive: Option<KeepAlive>,
    ) -> Result<u64, Failure> {
        let journal = self.journal(model, tokens, keep_alive);
        let request = journal.request.0;
        let acts = self.books.ask(&id(model), Turn::Sequence(journal), self.now)?;
        self.perform(acts);
        Ok(request)
    }

    fn ask(&mut self, model: &str, tokens: u32) -> u64 {
        self.ask_with(model, tokens, None).unwrap()
    }

    fn perform(&mut self, acts: Vec<Act>) {
        for act in acts {
            match act {
                Act::Submit(model, journal) => {
                    let before = self.pumps.insert(journal.request.0, model);
                    assert!(before.is_none(), "submitted twice");
                }
                Act::Start(reply) => drop(reply.send(Ok(()))),
                Act::Refuse(reply, failure) => drop(reply.send(Err(failure))),
                Act::Unload(model, _) => assert!(self.unloading.insert(model), "unloaded twice"),
                Act::Fail(_, journal, failure) => self.failed.push((journal.request.0, failure)),
                Act::Cancel(model, request) => {
                    assert_eq!(self.pumps.get(&request.0), Some(&model));
                }
                Act::Forget(_) => {}
                Act::Trim(model) => self.trimmed.push(model),
                Act::Condemn(_, why) => self.condemned.push(why),
            }
        }
    }

    fn seen(&mut self, model: &ModelId, state: WorkerState) {
        let info = (state == WorkerState::Running).then(|| ModelInfo {
            architecture: "llama".into(),
            vocab_size: 128,
            context_tokens: 8192,
            parameters: 1,
            weight_bytes: 1,
            kv_bytes_per_token: 1,
            quantization: "f32".into(),
            backend: "cpu".into(),
            mlx: None,
            load_ms: 1000,
        });
        let pid = self.workers.get(model).copied();
        let acts = self.books.saw(model, &Seen { state, pid, info }, self.now);
        self.perform(acts);
    }

    /// Workers start, load and end as they are asked to.
    fn settle(&mut self) {
        loop {
            let wanted: BTreeSet<ModelId> = self.pumps.values().cloned().collect();
            let cold = wanted.into_iter().find(|model| !self.workers.contains_key(model));
            if let Some(model) = cold {
                self.books.may_spawn(&model, None).unwrap();
                self.pids += 1;
                self.workers.insert(model.clone(), self.pids);
                self.seen(&model, WorkerState::Starting);
                self.seen(&model, WorkerState::Running);
            } else if let Some(model) = self.unloading.pop_first() {
                self.workers.remove(&model);
                self.seen(&model, WorkerState::Stopped);
            } else {
                return;
            }
        }
    }

    fn end(&mut self, request: u64) {
        let model = self.pumps.remove(&request).expect("a request that runs");
        let acts = self.books.ended(&model, RequestId(request), self.now);
        self.perform(acts);
    }

    fn pass_time(&mut self, time: Duration) {
        self.now += time;
        self.look(Look::default());
    }

    fn look(&mut self, look: Look) {
        let (acts, _) = self.books.look(&look, self.now);
        self.perform(acts);
    }

    fn waiting(&self, model: &str) -> usize {
        self.books.accounts[&id(model)].waiting.len()
    }

    fn pin(&mut self, model: &str, pinned: bool) {
        let acts = self.books.pin(&id(model), pinned, self.now);
        self.perform(acts);
    }

    /// A look that finds this process to take so many MiB now, and at its peak.
    fn look_at(&mut self, pid: u32, mib: u64, peak_mib: u64) {
        let footprint = Footprint { bytes: mib * MIB, peak_bytes: Some(peak_mib * MIB) };
        let taken = WorkerMemory { footprint, engine: EngineMemory::default() };
        self.look(Look { workers: HashMap::from([(pid, taken)]), ..Look::default() });
    }

    fn runs(&self, request: u64) -> bool {
        self.pumps.contains_key(&request)
    }

    fn loaded(&self) -> Vec<&str> {
        self.workers.keys().map(ModelId::as_str).collect()
    }

    fn base(&self) -> u64 {
        needs(200).base_bytes(mlxd_memory::Load { context: 4096, batch: 1 }) / MIB
    }
}

/// Room for one model and some sequences.
fn room_for_one() -> u64 {
    World::new(1, &[]).base() + 40
}

#[test]
fn many_requests_for_a_cold_model_are_one_load() {
    let mut world = World::new(2000, &["a"]);
    let requests: Vec<u64> = (0..5).map(|_| world.ask("a", 256)).collect();
    assert!(requests.iter().all(|request| world.runs(*request)));
    let held = world.books.ledger.held("a").unwrap();
    assert_eq!((held.base / MIB, held.grown), (world.base(), 5 * MIB));
    world.settle();
    assert_eq!(world.loaded(), ["a"]);
    requests.into_iter().for_each(|request| world.end(request));
    let held = world.books.ledger.held("a").unwrap();
    assert_eq!(held.grown, 0, "returned when idle");
}

#[test]
fn an_idle_model_makes_room_and_a_busy_one_does_not() {
    let mut world = World::new(room_for_one(), &["a", "b"]);
    let first = world.ask("a", 256);
    world.settle();
    world.pass_time(60 * S);
    let second = world.ask("b", 256);
    assert!(!world.runs(second) && world.unloading.is_empty());
    world.pass_time(60 * S);
    assert!(!world.runs(second), "a is busy");
    world.end(first);
    assert_eq!(world.unloading.iter().map(ModelId::as_str).collect::<Vec<_>>(), ["a"]);
    assert!(!world.runs(second), "a's memory is not back yet");
    world.settle();
    assert!(world.runs(second));
    assert_eq!(world.loaded(), ["b"]);
    assert!(world.books.ledger.held("a").is_none());
}

#[test]
fn what_leaves_already_is_not_unloaded_for_twice() {
    let mut world = World::new(2 * World::new(1, &[]).base() + 40, &["a", "b", "c"]);
    for name in ["a", "b"] {
        let request = world.ask(name, 256);
        world.settle();
        world.end(request);
        world.pass_time(60 * S);
    }
    let third = world.ask("c", 256);
    let leaving: Vec<&str> = world.unloading.iter().map(ModelId::as_str).collect();
    assert_eq!(leaving, ["a"]);
    // Whatever happens meanwhile: a's memory will be enough.
    world.seen(&id("a"), WorkerState::Stopping);
    world.pass_time(S);
    assert_eq!(world.unloading.len(), 1, "b stays");
    world.settle();
    assert!(world.runs(third));
    assert_eq!(world.loaded(), ["b", "c"]);
}

#[test]
fn who_comes_while_his_model_leaves_waits_and_is_served() {
    let mut world = World::new(room_for_one(), &["a", "b"]);
    let first = world.ask("a", 256);
    world.settle();
    world.end(first);
    world.pass_time(60 * S);
    let second = world.ask("b", 256);
    let third = world.ask("a", 256);
    assert!(world.unloading.len() == 1 && !world.runs(third));
    world.settle();
    assert!(world.runs(second) && !world.runs(third));
    world.end(second);
    world.pass_time(6 * S);
    world.settle();
    assert!(world.runs(third));
}

#[test]
fn a_worker_that_a_crossing_sequence_asked_for_lets_everybody_in() {
    let mut world = World::new(room_for_one(), &["a"]);
    let first = world.ask("a", 256);
    world.settle();
    world.books.leave(&id("a"));
    let second = world.ask("a", 256);
    assert!(!world.runs(second), "the model leaves");
    // The first did not reach the worker that was told to stop, so there is another at once.
    world.seen(&id("a"), WorkerState::Stopping);
    world.workers.insert(id("a"), 777);
    world.seen(&id("a"), WorkerState::Starting);
    let seen = Seen { state: WorkerState::Starting, pid: Some(777), info: None };
    let acts = world.books.left(&id("a"), &seen, world.now);
    world.perform(acts);
    assert_eq!(world.books.accounts[&id("a")].stage, Stage::Alive { pid: 777 });
    assert!(world.runs(first) && world.runs(second));
}

#[test]
fn what_can_never_fit_is_refused_with_the_numbers() {
    let mut world = World::new(250, &["a"]);
    let failure = world.ask_with("a", 256, None).unwrap_err();
    assert_eq!((failure.code, failure.retry), ("insufficient_memory", false));
    for word in ["a needs", "MB", "of 262 MB are free", "no other model is loaded"] {
        assert!(failure.message.contains(word), "{}", failure.message);
    }
    // The model alone fits; a sequence this long does not.
    let mut world = World::new(room_for_one(), &["a"]);
    let small = world.ask("a", 256);
    world.settle();
    let failure = world.ask_with("a", 256 * 100, None).unwrap_err();
    assert_eq!(failure.code, "insufficient_memory");
    assert!(world.runs(small));
}

#[test]
fn a_pinned_model_is_part_of_never_and_unpinning_helps() {
    let mut world = World::new(room_for_one(), &["a", "b"]);
    let first = world.ask("a", 256);
    world.settle();
    world.end(first);
    world.pass_time(60 * S);
    world.pin("a", true);
    let failure = world.ask_with("b", 256, None).unwrap_err();
    assert!(failure.message.contains("a holds") && failure.message.contains("(pinned)"));
    world.pin("a", false);
    world.pass_time(60 * S);
    let second = world.ask("b", 256);
    world.settle();
    assert!(world.runs(second));
}

#[test]
fn growth_waits_for_its_bytes_and_unloads_the_idle_for_them() {
    // Room for both, a short sequence and a long one.
    let long = mlxd_memory::Load { context: 256 * 30, batch: 1 };
    let (needs, measured) = (needs(200), mlxd_memory::Measured::default());
    let promise = mlxd_memory::Promise { needs: &needs, measured: &measured };
    let (base, with_long) = (promise.base_bytes() / MIB, promise.load_bytes(long) / MIB);
    let mut world = World::new(base + with_long + 5, &["a", "b"]);
    let other = world.ask("b", 256);
    let long = world.ask("a", 256 * 30);
    world.settle();
    let more = world.ask("a", 256 * 30);
    assert!(world.runs(long) && !world.runs(more), "b is busy");
    world.pass_time(20 * S);
    world.end(other);
    world.settle();
    assert!(world.runs(more));
    assert_eq!(world.loaded(), ["a"]);
}

#[test]
fn the_queue_is_bounded_and_has_a_deadline() {
    let mut world = World::with(&["a", "b"], |limits| {
        limits.budget = Some(room_for_one() * MIB);
        limits.waiting_max = 2;
        limits.waiting_timeout = 30 * S;
    });
    let busy = world.ask("a", 256);
    world.settle();
    let waiting = [world.ask("b", 256), world.ask("b", 256)];
    let failure = world.ask_with("b", 256, None).unwrap_err();
    assert_eq!((failure.code, failure.retry), ("memory_full", true));
    assert!(failure.message.contains("waiting_max") && failure.message.contains("a holds"));
    world.pass_time(31 * S);
    let failed: Vec<u64> = world.failed.iter().map(|(request, _)| *request).collect();
    assert_eq!(failed, waiting);
    let message = &world.failed[0].1.message;
    assert!(
        message.contains("queue_timeout_ms = 30000") && message.contains("(busy)"),
        "{message}"
    );
    assert!(world.runs(busy));
}

#[test]
fn who_starves_is_next_and_whoever_is_in_the_way_takes_nothing_new() {
    let mut world = World::new(room_for_one(), &["a", "b"]);
    let mut running = vec![world.ask("a", 256)];
    world.settle();
    let starving = world.ask("b", 256);
    for _ in 0..5 {
        // Always one of a's is running: without a bound b would never come.
        running.push(world.ask("a", 256));
        let done = running.remove(0);
        world.end(done);
        assert!(world.runs(running[0]) && !world.runs(starving));
        world.pass_time(2 * S);
    }
    let late = world.ask("a", 256);
    assert!(!world.runs(late), "a takes nothing new");
    world.end(running[0]);
    world.settle();
    assert!(world.runs(starving));
    assert_eq!(world.loaded(), ["b"]);
    // And back again, by the same rule.
    world.pass_time(11 * S);
    world.end(starving);
    world.settle();
    assert!(world.runs(late));
}

#[test]
fn lifetimes_end_idle_models_and_only_those() {
    let mut world = World::new(4000, &["short", "kept", "long", "busy"]);
    let ttl = |ttl| Lifetime { ttl: Some(ttl), pinned: false };
    let now = world.now;
    for name in ["short", "kept", "busy"] {
        world.books.register(&id(name), needs(200), ttl(30 * S), now);
    }
    let requests = [
        world.ask("short", 256),
        world.ask_with("kept", 256, Some(KeepAlive::Forever)).unwrap(),
        world.ask_with("long", 256, Some(KeepAlive::For(100 * S))).unwrap(),
    ];
    world.ask("busy", 256);
    world.settle();
    requests.into_iter().for_each(|request| world.end(request));
    world.pass_time(29 * S);
    assert!(world.unloading.is_empty());
    world.pass_time(2 * S);
    world.settle();
    assert_eq!(world.loaded(), ["busy", "kept", "long"]);
    world.pass_time(100 * S);
    world.settle();
    assert_eq!(world.loaded(), ["busy", "kept"]);
    // 0 is at once.
    let request = world.ask_with("kept", 256, Some(KeepAlive::For(Duration::ZERO))).unwrap();
    world.end(request);
    world.pass_time(Duration::ZERO);
    world.settle();
    assert_eq!(world.loaded(), ["busy"]);
}

#[test]
fn a_direct_run_keeps_its_model() {
    let mut world = World::new(room_for_one(), &["a", "b"]);
    let request = world.ask_with("a", 256, Some(KeepAlive::For(S))).unwrap();
    world.settle();
    world.end(request);
    let promised = world.books.ledger.promised();
    let bytes = world.books.guest_comes(&id("a"), 256, world.now).unwrap();
    assert_eq!(world.books.ledger.promised(), promised + bytes);
    assert!(bytes > 0 && world.books.guest_comes(&id("a"), 1 << 40, world.now).is_err());
    world.pass_time(60 * S);
    let other = world.ask("b", 256);
    assert!(world.unloading.is_empty() && !world.runs(other));
    let acts = world.books.guest_goes(&id("a"), bytes, world.now);
    world.perform(acts);
    world.settle();
    assert!(world.runs(other));
}

fn memory(available_mib: u64) -> MachineMemory {
    let total = 8000 * MIB;
    MachineMemory { total, available: available_mib * MIB, working_set: total }
}

#[test]
fn no_worker_starts_in_memory_that_did_not_come_back() {
    let mut world = World::new(4000, &["a"]);
    world.ask("a", 256);
    world.settle();
    // It dies; of its memory nothing comes back.
    world.workers.remove(&id("a"));
    world.seen(&id("a"), WorkerState::Backoff);
    let refused = world.books.may_spawn(&id("a"), Some(memory(100))).unwrap_err();
    assert!(refused.contains("105 MB") && refused.contains("may not have come back"), "{refused}");
    assert!(world.books.ledger.held("a").is_some(), "its promise stays");
    assert_eq!(world.books.may_spawn(&id("a"), Some(memory(1000))), Ok(()));
}

#[test]
fn memory_that_others_took_is_not_promised() {
    let mut world = World::new(4000, &["a", "b"]);
    world.look(Look { memory: Some(memory(world.base() + 20)), ..Look::default() });
    let first = world.ask("a", 256);
    assert!(world.runs(first));
    // What a was promised is not taken yet, and not there for b.
    let second = world.ask("b", 256);
    assert!(!world.runs(second));
    world.settle();
    world.end(first);
    let pid = world.workers[&id("a")];
    let footprint = Footprint { bytes: world.base() * MIB, peak_bytes: None };
    let taken = WorkerMemory { footprint, engine: EngineMemory::default() };
    let workers = HashMap::from([(pid, taken)]);
    let free = Some(memory(world.base() + 20));
    world.look(Look { memory: free, workers, level: Level::Normal });
    assert!(world.runs(second), "a has all that it was promised, and there is as much again");
}

#[test]
fn what_a_worker_really_takes_corrects_the_ledger() {
    let mut world = World::new(4000, &["a"]);
    let request = world.ask("a", 256);
    world.settle();
    world.end(request);
    let pid = world.workers[&id("a")];
    world.look_at(pid, 3000, 3000);
    let held = world.books.ledger.held("a").unwrap();
    assert!(held.base >= 3000 * MIB, "{held:?}");
    world.look_at(pid, 100, 3000);
    let held = world.books.ledger.held("a").unwrap();
    assert!(held.base < 3100 * MIB, "{held:?}");
}

#[test]
fn who_outgrows_the_promise_is_ended_and_the_ledger_forgets_it() {
    let mut world = World::new(4000, &["a", "b"]);
    world.ask("a", 256);
    world.settle();
    let pid = world.workers[&id("a")];
    let may = world.books.containment(&id("a")).unwrap() / MIB;
    // Little by little, so that the ledger follows.
    for mib in (world.base()..=may).step_by(10) {
        world.look_at(pid, mib, mib);
    }
    assert!(world.condemned.is_empty());
    world.look_at(pid, may + 1, may + 1);
    let [why] = &world.condemned[..] else { panic!("{:?}", world.condemned) };
    assert!(why.contains("outgrew its memory") && why.contains("overrun_percent"), "{why}");
    world.look_at(pid, may + 2, may + 2);
    assert_eq!(world.condemned.len(), 1, "it is going already");
    let held = |world: &World| world.books.ledger.held("a").unwrap().base;
    let overgrown = held(&world);
    world.workers.remove(&id("a"));
    world.seen(&id("a"), WorkerState::Backoff);
    assert!(held(&world) < overgrown, "the next one is not held to what this one took");
    world.settle();
    let next = world.workers[&id("a")];
    world.look_at(next, 10 * may, 10 * may);
    assert_eq!(world.condemned.len(), 2, "a new life, a new word");
}

#[test]
fn an_estimate_says_what_admission_then_does() {
    let mut world = World::new(room_for_one(), &["a", "b"]);
    let estimate = |world: &World, model: &str, context, batch| {
        let load = mlxd_memory::Load { context, batch };
        world.books.estimate(&id(model), load, world.now).unwrap()
    };
    let four = estimate(&world, "a", 256, 4);
    assert_eq!(four.needs_bytes, (world.base() + 4) * MIB);
    assert_eq!((four.verdict, four.promised_bytes), (Verdict::Fits, 0));
    assert!(four.parts.iter().any(|part| part.name == "weights" && part.bytes == 200 * MIB));
    let requests: Vec<u64> = (0..4).map(|_| world.ask("a", 256)).collect();
    assert_eq!(world.books.ledger.promised(), four.needs_bytes);
    assert_eq!(estimate(&world, "b", 256, 1).verdict, Verdict::Waits);
    world.settle();
    requests.into_iter().for_each(|request| world.end(request));
    world.pass_time(60 * S);
    let other = estimate(&world, "b", 256, 1);
    assert_eq!(other.verdict, Verdict::Evicts);
    assert!(other.message.contains("once a is unloaded"), "{}", other.message);
    let never = estimate(&world, "b", 8192, 8);
    assert_eq!(never.verdict, Verdict::Never);
    assert!(never.message.contains("can never fit"), "{}", never.message);
    // Measured, it is what was measured.
    let pid = world.workers[&id("a")];
    world.look_at(pid, 300, 300);
    world.look_at(pid, 300, 300);
    assert_eq!(estimate(&world, "a", 256, 1).measured_loaded_bytes, Some(300 * MIB));
}

#[test]
fn what_other_programs_take_is_no_reason_for_never() {
    let mut limits = MemoryLimits { reserve: Some(100 * MIB), ..MemoryLimits::default() };
    limits.waiting_max = 4;
    let mut world = World::with(&["a"], |given| *given = limits.clone());
    world.books = Books::new(limits, Some(memory(200)));
    world.books.register(&id("a"), needs(200), Lifetime::default(), world.now);
    assert_eq!(world.books.ledger.budget(), 7900 * MIB);
    let waits = world.ask("a", 256);
    assert!(!world.runs(waits));
    let residence = world.books.residence(&id("a"), world.now);
    let why = residence.waits_for.unwrap();
    assert!(why.contains("105 MB of 8.28 GB are free"), "{why}");
    assert!(why.contains("other programs take 8.18 GB"), "{why}");
    world.look(Look { memory: Some(memory(4000)), ..Look::default() });
    assert!(world.runs(waits));
}

#[test]
fn a_measured_load_decides_from_then_on() {
    let mut world = World::new(4000, &["a"]);
    let request = world.ask("a", 2048);
    world.settle();
    let pid = world.workers[&id("a")];
    world.look_at(pid, 900, 1000);
    world.end(request);
    let before = world.books.ledger.free();
    let account = &world.books.accounts[&id("a")];
    // The journal's one token is what ran: the smallest bucket.
    let load = mlxd_memory::Load { context: 1, batch: 1 };
    assert_eq!(account.measured.peak_bytes(&account.needs, load), 1000 * MIB);
    let small = world.ask("a", 256);
    assert!(world.runs(small) && before >= world.books.ledger.free());
}

#[test]
fn what_one_was_promised_for_all_stays_with_those_who_go_on() {
    let mut world = World::new(4000, &["a"]);
    let first = world.ask("a", 256);
    world.settle();
    let load = mlxd_memory::Load { context: 256, batch: 1 };
    let sample =
        mlxd_memory::Sample { context: load.context, batch: load.batch, peak_bytes: 1000 * MIB };
    world.books.accounts.get_mut(&id("a")).unwrap().measured.record(sample);
    world.end(first);
    let total = |world: &World| world.books.ledger.held("a").unwrap().total();
    let idle = total(&world);
    let [first, second] = [256, 256].map(|tokens| world.ask("a", tokens));
    assert!(world.runs(first) && world.runs(second) && total(&world) > 1000 * MIB);
    world.end(first);
    assert!(total(&world) >= 1000 * MIB, "{}", total(&world));
    world.end(second);
    assert_eq!(total(&world), idle);
}

#[test]
fn once_it_was_seen_at_rest_no_buffers_are_promised_beforehand() {
    let mut world = World::new(4000, &["a"]);
    let request = world.ask("a", 256);
    world.settle();
    world.end(request);
    let pid = world.workers[&id("a")];
    world.look_at(pid, 230, 235);
    let base = |world: &World| world.books.accounts[&id("a")].promise().base_bytes() / MIB;
    // The run before this look is not known to be over until the next.
    assert!(base(&world) > 260, "{}", base(&world));
    world.look_at(pid, 231, 235);
    assert_eq!(base(&world), 231);
    assert_eq!(world.books.ledger.held("a").unwrap().total(), 231 * MIB);
    let request = world.ask("a", 256 * 20);
    world.look_at(pid, 290, 300);
    world.end(request);
    world.look_at(pid, 290, 300);
    world.look_at(pid, 250, 300);
    assert_eq!(base(&world), 250, "what it keeps then is promised");
}

#[test]
fn what_prompts_keep_is_promised_apart_and_cuda_is_measured_by_the_engine() {
    let mut world = World::new(9000, &["a"]);
    let request = world.ask("a", 256);
    world.settle();
    let pid = world.workers[&id("a")];
    let look = |engine, bytes, peak| {
        let footprint = Footprint { bytes: bytes * MIB, peak_bytes: Some(peak * MIB) };
        let workers = HashMap::from([(pid, WorkerMemory { footprint, engine })]);
        Look { workers, ..Look::default() }
    };
    let kept = EngineMemory { prefixes: 50 * MIB, ..EngineMemory::default() };
    world.look(look(kept, 400, 420));
    let load = mlxd_memory::Load { context: 1, batch: 1 };
    let peak = |world: &World| {
        let account = &world.books.accounts[&id("a")];
        account.measured.peak_bytes(&account.needs, load) / MIB
    };
    assert_eq!(peak(&world), 370);
    let account = world.books.accounts.get_mut(&id("a")).unwrap();
    account.key.as_mut().unwrap().backend = "cuda".into();
    let overhead = account.needs.overhead_bytes();
    let engine = EngineMemory { active: 600 * MIB, peak: 900 * MIB, cache: 100 * MIB, prefixes: 0 };
    world.look(look(engine, 3000, 3000));
    assert_eq!(peak(&world), 900 + overhead / MIB);
    let said = &world.books.accounts[&id("a")].measured.mlx["256 x 1"];
    assert_eq!(
        (said.active, said.peak, said.cache),
        (engine.active, engine.peak, engine.cache),
        "what of it is MLX's is written down too"
    );
    world.end(request);
}

#[test]
fn pressure_trims_then_unloads_then_refuses() {
    let mut world = World::new(4000, &["a", "b", "c"]);
    let idle = world.ask("a", 256);
    let running = world.ask("b", 256);
    world.settle();
    world.end(idle);
    let press = |world: &mut World, level, time| {
        world.now += time;
        world.look(Look { level, ..Look::default() });
    };
    press(&mut world, Level::Warning, S);
    assert_eq!(world.trimmed, [id("a"), id("b")]);
    assert!(world.unloading.is_empty());
    press(&mut world, Level::Critical, S);
    world.settle();
    assert_eq!(world.loaded(), ["b"]);
    // Still taken for a loaded model; a cold one waits.
    let more = world.ask("b", 256);
    let cold = world.ask("c", 256);
    assert!(world.runs(more) && !world.runs(cold));
    press(&mut world, Level::Critical, 6 * S);
    let failure = world.ask_with("b", 256, None).unwrap_err();
    assert_eq!((failure.code, failure.retry), ("memory_pressure", true));
    assert!(world.runs(running), "what runs goes on");
    // Nor does anybody wait for it to end.
    let failed: Vec<_> = world.failed.iter().map(|(request, why)| (*request, why.code)).collect();
    assert_eq!(failed, [(cold, "memory_pressure")]);
    let (reply, _) = tokio::sync::oneshot::channel();
    let failure = world.books.ask(&id("c"), Turn::Start(reply), world.now).unwrap_err();
    assert_eq!(failure.code, "memory_pressure");
    press(&mut world, Level::Normal, S);
    let cold = world.ask("c", 256);
    assert!(world.runs(cold));
    world.ask("b", 256);
}

#[test]
fn who_is_gone_no_longer_waits() {
    let mut world = World::new(room_for_one(), &["a", "b"]);
    let busy = world.ask("a", 256);
    world.settle();
    let waiting = world.ask("b", 256);
    let acts = world.books.cancel(&id("b"), RequestId(waiting));
    assert!(matches!(&acts[..], [Act::Forget(_)]));
    assert_eq!(world.waiting("b"), 0);
    let acts = world.books.cancel(&id("a"), RequestId(busy));
    assert!(matches!(&acts[..], [Act::Cancel(..)]), "it was handed over meanwhile");
    assert!(world.books.cancel(&id("a"), RequestId(99)).is_empty());
}

#[test]
fn a_model_that_gave_up_lets_its_pump_say_so() {
    let mut world = World::new(2000, &["a"]);
    let request = world.ask("a", 256);
    world.seen(&id("a"), WorkerState::Fatal);
    assert!(world.books.ledger.held("a").is_none());
    world.end(request);
    let next = world.ask("a", 256);
    assert!(world.runs(next) && world.books.ledger.held("a").is_none());
    world.end(next);
    let acts = {
        let (reply, _answer) = tokio::sync::oneshot::channel();
        world.books.ask(&id("a"), Turn::Start(reply), world.now).unwrap()
    };
    assert!(matches!(&acts[..], [Act::Start(_)]), "an admin's start tries again");
    assert_eq!(world.books.accounts[&id("a")].stage, Stage::Granted);
}
