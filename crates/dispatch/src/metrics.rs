//! What dispatch counts, as Prometheus families, and per model for `mlxctl status`.

use crate::admission::is_about_memory;
use crate::admission::metrics::AdmissionMetrics;
use crate::job::Job;
use crate::journal::{End, Failure, Journal};
use crate::pace::Pace;
use mlxd_protocol::admin::{CacheStatus, GuessStatus, Status, WorkerState};
use mlxd_protocol::{ModelId, Started};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByModel {
    pub(crate) model: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByReason {
    pub(crate) model: String,
    pub(crate) reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BySource {
    model: String,
    source: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByState {
    model: String,
    state: &'static str,
}

/// Counts of one model, read by `mlxctl status`.
#[derive(Debug, Default)]
pub(crate) struct ModelStats {
    requests: AtomicU64,
    tokens: AtomicU64,
    open: AtomicUsize,
    /// Of open sequences.
    pace: Pace,
}

impl ModelStats {
    pub(crate) fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_token(&self) {
        self.tokens.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one more open sequence, unless `max` are open: then says how many.
    pub(crate) fn try_open(&self, max: usize) -> Result<(), usize> {
        let more = |open| (open < max).then_some(open + 1);
        let before = self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)?;
        if before == 0 {
            self.pace.begin(Instant::now());
        }
        Ok(())
    }

    pub(crate) fn closed(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        self.pace.end(Instant::now());
    }

    /// The pace at which open sequences end.
    pub(crate) fn pace(&self) -> &Pace {
        &self.pace
    }

    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub(crate) fn tokens(&self) -> u64 {
        self.tokens.load(Ordering::Relaxed)
    }

    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

type Seconds = Family<ByModel, Histogram, fn() -> Histogram>;

/// What workers keep for prompts that begin as earlier ones did. Gauges, since a new worker
/// counts anew; what it saved over the front's life is `cached_tokens`.
#[derive(Debug, Default)]
struct KeptFamilies {
    bytes: Family<ByModel, Gauge>,
    blocks: Family<ByModel, Gauge>,
    lookups: Family<ByModel, Gauge>,
    hits: Family<ByModel, Gauge>,
    evictions: Family<ByModel, Gauge>,
    disk_bytes: Family<ByModel, Gauge>,
    disk_reads: Family<ByModel, Gauge>,
    disk_damaged: Family<ByModel, Gauge>,
}

impl KeptFamilies {
    fn register(&self, r: &mut Registry) {
        let mut gauge = |name: &str, help: &str, family: &Family<ByModel, Gauge>| {
            r.register(format!("prefix_cache_{name}"), help, family.clone());
        };
        gauge("bytes", "Bytes of state kept for later prompts", &self.bytes);
        gauge("blocks", "Blocks of state kept for later prompts", &self.blocks);
        gauge("lookups", "Prompts looked up since the worker was loaded", &self.lookups);
        gauge("hits", "Prompts of which a part was there", &self.hits);
        gauge("evictions", "Blocks dropped to make room", &self.evictions);
        gauge("disk_bytes", "Bytes of kept state on the disk", &self.disk_bytes);
        gauge("disk_reads", "Blocks read from the disk", &self.disk_reads);
        gauge("disk_damaged", "Files thrown away as damaged or foreign", &self.disk_damaged);
    }

    fn observe(&self, label: &ByModel, cache: Option<&CacheStatus>) {
        let none = CacheStatus::default();
        let cache = cache.unwrap_or(&none);
        let disk = cache.disk.clone().unwrap_or_default();
        for (family, value) in [
            (&self.bytes, cache.bytes),
            (&self.blocks, cache.blocks),
            (&self.lookups, cache.lookups),
            (&self.hits, cache.hits),
            (&self.evictions, cache.evictions),
            (&self.disk_bytes, disk.bytes),
            (&self.disk_reads, disk.reads),
            (&self.disk_damaged, disk.damaged),
        ] {
            family.get_or_create(label).set(value as i64);
        }
    }
}

/// How workers' guessing ahead goes. Gauges, since a new worker counts anew.
#[derive(Debug, Default)]
struct GuessFamilies {
    made: Family<BySource, Gauge>,
    right: Family<BySource, Gauge>,
}

impl GuessFamilies {
    fn register(&self, r: &mut Registry) {
        let help = "Tokens guessed ahead since the worker was loaded";
        r.register("guessed_tokens", help, self.made.clone());
        r.register("guessed_right_tokens", "Those that were right", self.right.clone());
    }

    fn observe(&self, model: &str, guesses: Option<GuessStatus>) {
        let GuessStatus { text, text_right, draft, draft_right } = guesses.unwrap_or_default();
        for (source, made, right) in [("text", text, text_right), ("draft", draft, draft_right)] {
            let label = BySource { model: model.to_owned(), source };
            self.made.get_or_create(&label).set(made as i64);
            self.right.get_or_create(&label).set(right as i64);
        }
    }
}

/// Dispatch's Prometheus families.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    prompt_tokens: Family<ByModel, Counter>,
    cached_tokens: Family<ByModel, Counter>,
    generated_tokens: Family<ByModel, Counter>,
    sequences: Family<ByReason, Counter>,
    queue: Seconds,
    prefill: Seconds,
    first_token: Seconds,
    per_token: Seconds,
    recovery: Seconds,
    state: Family<ByState, Gauge>,
    memory: Family<ByModel, Gauge>,
    running: Family<ByModel, Gauge>,
    queued: Family<ByModel, Gauge>,
    preemptions: Family<ByModel, Gauge>,
    deaths: Family<ByModel, Gauge>,
    admission: AdmissionMetrics,
    kept: KeptFamilies,
    guesses: GuessFamilies,
}

/// 1 ms to about 131 s.
fn wait_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 18))
}

/// 0.1 ms to about 1.6 s.
fn token_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 2.0, 15))
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let metrics = Self {
            registry: Mutex::new(Registry::with_prefix("mlxd")),
            prompt_tokens: Family::default(),
            cached_tokens: Family::default(),
            generated_tokens: Family::default(),
            sequences: Family::default(),
            queue: Family::new_with_constructor(wait_buckets as fn() -> Histogram),
            prefill: Family::new_with_constructor(wait_buckets as fn() -> Histogram),
            first_token: Family::new_with_constructor(wait_buckets as fn() -> Histogram),
            per_token: Family::new_with_constructor(token_buckets as fn() -> Histogram),
            recovery: Family::new_with_constructor(wait_buckets as fn() -> Histogram),
            state: Family::default(),
            memory: Family::default(),
            running: Family::default(),
            queued: Family::default(),
            preemptions: Family::default(),
            deaths: Family::default(),
            admission: AdmissionMetrics::default(),
            kept: KeptFamilies::default(),
            guesses: GuessFamilies::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&self) {
        let mut registry = self.registry.lock().expect("nobody panics while registering");
        let r = &mut *registry;
        r.register("prompt_tokens", "Prompt tokens taken in", self.prompt_tokens.clone());
        r.register("cached_tokens", "Prompt tokens whose KV was there", self.cached_tokens.clone());
        r.register("generated_tokens", "Tokens generated", self.generated_tokens.clone());
        r.register("sequences", "Sequences ended, by how they ended", self.sequences.clone());
        let seconds = Unit::Seconds;
        r.register_with_unit(
            "recovery",
            "From a worker's death to a sequence's next token",
            seconds.clone(),
            self.recovery.clone(),
        );
        r.register_with_unit(
            "queue",
            "Wait in the worker before the prefill",
            seconds.clone(),
            self.queue.clone(),
        );
        r.register_with_unit(
            "prefill",
            "Time of the prefill",
            seconds.clone(),
            self.prefill.clone(),
        );
        r.register_with_unit(
            "time_to_first_token",
            "From taking a sequence in to its first token",
            seconds.clone(),
            self.first_token.clone(),
        );
        r.register_with_unit(
            "time_per_output_token",
            "Mean over a sequence, the first token left out",
            seconds,
            self.per_token.clone(),
        );
        r.register(
            "worker_state",
            "1 for the state that a model's worker is in",
            self.state.clone(),
        );
        r.register_with_unit(
            "worker_memory",
            "What the operating system counts for the worker",
            Unit::Bytes,
            self.memory.clone(),
        );
        r.register("running", "Sequences in the worker", self.running.clone());
        r.register("queued", "Sequences waiting", self.queued.clone());
        let help = "Places given up for other sequences since the worker was loaded";
        r.register("preemptions", help, self.preemptions.clone());
        r.register("worker_deaths", "Deaths since the front started", self.deaths.clone());
        self.admission.register(r);
        self.kept.register(r);
        self.guesses.register(r);
    }

    fn model(model: &ModelId) -> ByModel {
        ByModel { model: model.to_string() }
    }

    pub(crate) fn started(&self, model: &ModelId, job: &Job, started: &Started) {
        let label = Self::model(model);
        self.prompt_tokens.get_or_create(&label).inc_by(job.prompt.len() as u64);
        self.cached_tokens.get_or_create(&label).inc_by(started.cached_tokens.into());
        self.queue.get_or_create(&label).observe(started.queued_us as f64 / 1e6);
        self.prefill.get_or_create(&label).observe(started.prefill_us as f64 / 1e6);
    }

    pub(crate) fn first_token(&self, model: &ModelId, after: Duration) {
        self.first_token.get_or_create(&Self::model(model)).observe(after.as_secs_f64());
    }

    pub(crate) fn recovered(&self, model: &ModelId, after: Duration) {
        self.recovery.get_or_create(&Self::model(model)).observe(after.as_secs_f64());
    }

    pub(crate) fn finished(&self, model: &ModelId, journal: &Journal, end: &End, now: Instant) {
        let reason = match end {
            End::Stop => "stop",
            End::Length => "length",
            End::Embedded(_) => "embedded",
            End::Refused(_) => "refused",
            End::Failed(_) => "failed",
        };
        self.ended(model, reason);
        if let End::Embedded(_) = end {
            let tokens = journal.job.prompt.len() as u64;
            self.prompt_tokens.get_or_create(&Self::model(model)).inc_by(tokens);
        }
        let tokens = journal.generated();
        self.generated_tokens.get_or_create(&Self::model(model)).inc_by(tokens as u64);
        if let Some(first) = journal.first_token_at().filter(|_| tokens > 1) {
            let each = (now - first).as_secs_f64() / (tokens - 1) as f64;
            self.per_token.get_or_create(&Self::model(model)).observe(each);
        }
    }

    pub(crate) fn ended(&self, model: &ModelId, reason: &'static str) {
        self.sequences.get_or_create(&ByReason { model: model.to_string(), reason }).inc();
    }

    /// A sequence or an admin's start was refused.
    pub(crate) fn refused_memory(&self, model: &ModelId, failure: &Failure) {
        if is_about_memory(failure.code) {
            let label = ByReason { model: model.to_string(), reason: failure.code };
            self.admission.refusals.get_or_create(&label).inc();
        }
    }

    /// A model is unloaded that nobody stopped.
    pub(crate) fn unloaded(&self, model: &ModelId, reason: &'static str) {
        let label = ByReason { model: model.to_string(), reason };
        self.admission.evictions.get_or_create(&label).inc();
    }

    /// Sets the gauges from `status`.
    pub(crate) fn observe(&self, status: &Status) {
        self.admission.observe(status);
        use WorkerState::{Backoff, Exited, Fatal, Running, Starting, Stopped, Stopping};
        for status in &status.models {
            for state in [Stopped, Starting, Running, Backoff, Stopping, Exited, Fatal] {
                let label = ByState { model: status.name.clone(), state: state.name() };
                self.state.get_or_create(&label).set((state == status.state).into());
            }
            let label = ByModel { model: status.name.clone() };
            self.memory.get_or_create(&label).set(status.memory_bytes.unwrap_or(0) as i64);
            self.running.get_or_create(&label).set(status.running.into());
            self.queued.get_or_create(&label).set(status.queued.into());
            self.preemptions.get_or_create(&label).set(status.preemptions as i64);
            self.deaths.get_or_create(&label).set(status.deaths.into());
            self.kept.observe(&label, status.cache.as_ref());
            self.guesses.observe(&status.name, status.guesses);
        }
    }

    /// All families in the text format, without the closing `# EOF`, so that others can follow.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        prometheus_client::encoding::text::encode_registry(&mut text, &registry)
            .expect("writing to a String cannot fail");
        text
    }
}
