//! Chaos: an instance under load whose workers are killed, stopped, hung, unloaded and loaded at
//! random, and every answer compared with that of a twin which nothing disturbs.
//!
//! A seed fixes what is asked and what is done to the workers, not the moments at which threads
//! get to it.

mod clients;
mod faults;
mod report;
mod requests;
mod verdict;

pub use faults::{FaultKind, leave_no_memory};
pub use report::ChaosReport;

use crate::{FrontConfig, FrontProcess, ModelFolder, Script, until};
use clients::Record;
use faults::{Deaths, Disturbance};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The scripted models, by name.
const SCRIPTED: [&str; 2] = ["chaos/one", "chaos/two"];

/// The built-in model, by name.
const BUILT_IN: &str = "mlxd-demo";

/// Between two looks at `/health`.
const HEALTH_EVERY: Duration = Duration::from_millis(100);

/// What computes the answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Two models of the scripted engine, which can be told to fail in every way.
    Scripted,
    /// The built-in model on MLX, in deterministic mode.
    Mlx,
}

/// What to do, and for how long: until the first of both limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChaosPlan {
    /// What is disturbed.
    pub engine: Engine,
    /// Fixes the requests and the faults.
    pub seed: u64,
    /// Ends after so many faults.
    pub faults_max: u64,
    /// Ends after so long.
    pub time_max: Duration,
    /// Clients of each model at once.
    pub clients: usize,
    /// `requests.deaths_max`: so many deaths in the middle of a request quarantine it.
    pub request_deaths_max: u32,
}

/// Everything that the threads share.
struct World {
    plan: ChaosPlan,
    front: FrontProcess,
    twin: FrontProcess,
    /// The models disturbed.
    names: Vec<&'static str>,
    /// Theirs, where they are scripted; then their twins'.
    folders: Vec<ModelFolder>,
    began: Instant,
    over: AtomicBool,
    faults: AtomicU64,
    records: Mutex<Vec<Record>>,
    disturbances: Mutex<Vec<Disturbance>>,
    /// What went wrong with the instance itself, in words.
    troubles: Mutex<Vec<String>>,
}

/// How `/health` was all the time.
#[derive(Debug, Default)]
struct Health {
    asked: u64,
    failed: u64,
    slowest: Duration,
}

/// Runs a plan to its end.
pub fn run(plan: &ChaosPlan) -> ChaosReport {
    let world = World::start(plan);
    let (deaths, health) = std::thread::scope(|scope| {
        for model in 0..world.names.len() {
            for number in 0..plan.clients {
                let world = &world;
                scope.spawn(move || clients::ask_on_and_on(world, model, number));
            }
        }
        let health = scope.spawn(|| world.watch_health());
        let deaths = scope.spawn(|| faults::listen(&world));
        let injectors: Vec<_> = (0..world.names.len())
            .map(|model| {
                let world = &world;
                scope.spawn(move || faults::inject_on_and_on(world, model))
            })
            .collect();
        let ends: Vec<_> = injectors.into_iter().map(|injector| injector.join()).collect();
        // Said before a failure is passed on: the others wait for it.
        world.over.store(true, Ordering::Relaxed);
        ends.into_iter().for_each(|end| end.expect("the faults"));
        (deaths.join().expect("the deaths"), health.join().expect("the health"))
    });
    world.finish(&deaths, &health)
}

/// Notices hangs soon, and takes no number of deaths for the last.
fn disturbed(plan: &ChaosPlan) -> FrontConfig {
    let config = FrontConfig::default()
        .with("log.level", "info,mlxd_http=warn")
        .with("requests.deaths_max", plan.request_deaths_max)
        .with("workers.deaths_max", 1000)
        .with("workers.deaths_window_s", 1)
        .with("workers.backoff_initial_ms", 20)
        .with("workers.backoff_max_ms", 200)
        .with("workers.watch_interval_ms", 50)
        .with("workers.condemned_term_ms", 300)
        .with("workers.drain_ms", 300)
        .with("workers.term_ms", 500)
        .with("models.running_max", 12)
        .with("models.queued_max", 200);
    ["prefill", "decode", "idle"].iter().fold(config, |config, phase| {
        config.with(&format!("workers.{phase}_hang_ms"), plan.engine.hang_ms())
    })
}

fn still() -> FrontConfig {
    FrontConfig::default()
        .with("log.level", "warn")
        .with("models.running_max", 64)
        .with("models.queued_max", 500)
}

impl Engine {
    /// A step takes less than this on a busy machine.
    fn hang_ms(self) -> i64 {
        match self {
            Self::Scripted => 1000,
            Self::Mlx => 3000,
        }
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64)
}

impl World {
    fn start(plan: &ChaosPlan) -> Self {
        let (mut config, mut undisturbed) = (disturbed(plan), still());
        let mut folders = Vec::new();
        let names = match plan.engine {
            Engine::Scripted => {
                let script = faults::script();
                // The twin's workers read folders that nobody plays with.
                let still =
                    Script { faults: vec![], step_us: 0, prefill_token_us: 0, ..script.clone() };
                folders.extend(SCRIPTED.map(|_| ModelFolder::new(&script)));
                folders.extend(SCRIPTED.map(|_| ModelFolder::new(&still)));
                for (place, name) in SCRIPTED.iter().enumerate() {
                    config = config.with_model(name, folders[place].path());
                    let twin = folders[SCRIPTED.len() + place].path();
                    undisturbed = undisturbed.with_model(name, twin);
                }
                SCRIPTED.to_vec()
            }
            Engine::Mlx => {
                config = config.with_real_worker().with("models.deterministic", true);
                undisturbed = undisturbed.with_real_worker().with("models.deterministic", true);
                vec![BUILT_IN]
            }
        };
        Self {
            plan: plan.clone(),
            front: FrontProcess::start(&config),
            twin: FrontProcess::start(&undisturbed),
            names,
            folders,
            began: Instant::now(),
            over: AtomicBool::new(false),
            faults: AtomicU64::new(0),
            records: Mutex::default(),
            disturbances: Mutex::default(),
            troubles: Mutex::default(),
        }
    }

    fn trouble(&self, what: String) {
        self.troubles.lock().expect("no thread panicked").push(what);
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Counts a fault, unless there were enough.
    fn one_more_fault(&self) -> bool {
        self.began.elapsed() < self.plan.time_max
            && self.faults.fetch_add(1, Ordering::Relaxed) < self.plan.faults_max
    }

    /// A model's line of the admin's status.
    fn status_of(&self, model: usize) -> Value {
        let status = self.front.admin().get("/admin/v1/status").json();
        let models = status["models"].as_array().expect("a list of models");
        models.iter().find(|line| line["name"] == self.names[model]).cloned().unwrap_or_default()
    }

    fn watch_health(&self) -> Health {
        let mut health = Health::default();
        while !self.is_over() {
            let asked = Instant::now();
            let response = self.front.client().try_request("GET", "/health", &[], b"");
            health.asked += 1;
            health.failed += u64::from(!response.is_ok_and(|response| response.status == 200));
            health.slowest = health.slowest.max(asked.elapsed());
            std::thread::sleep(HEALTH_EVERY);
        }
        health
    }

    /// Everything is asked: waits for rest, ends the front, looks for what it leaves.
    fn finish(mut self, deaths: &Deaths, health: &Health) -> ChaosReport {
        for model in 0..self.names.len() {
            until("every sequence to be over", || {
                let status = self.status_of(model);
                (status["running"] == 0 && status["queued"] == 0).then_some(())
            });
        }
        let took = self.began.elapsed();
        self.front.signal(Signal::SIGTERM);
        let exit = self.front.wait_exit();
        let mut left = self.troubles.into_inner().expect("no thread panicked");
        if exit.code() != Some(0) {
            left.push(format!("the front ended with {exit}"));
        }
        let leftovers = self.front.leftovers();
        if !leftovers.is_empty() {
            left.push(format!("{leftovers:?}"));
        }
        let records = self.records.into_inner().expect("no thread panicked");
        let disturbances = self.disturbances.into_inner().expect("no thread panicked");
        drop(self.folders);
        report::sum_up(&self.plan, &records, &disturbances, deaths, health, left, took)
    }
}
