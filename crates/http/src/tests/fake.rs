//! A backend whose sequences the test writes, and a server over it.

use crate::admin::{AdminAnswer, FrontAdmin};
use crate::backend::{Backend, Tokens};
use crate::limits::HttpLimits;
use crate::server::{Running, bind_to};
use mlxd_dispatch::route::{Route, Rule};
use mlxd_dispatch::{
    CatalogEntry, End, Entry, EventLog, Failure, GenerationDefaults, Job, ListedModel, ModelFault,
    ModelText, OpenModel, Readiness, Standing,
};
use mlxd_protocol::ModelId;
use mlxd_protocol::admin::{
    AdminErrorBody, CacheReport, CacheStatus, Estimate, EstimateCall, MemoryStatus, ModelCache,
    ModelStatus, Reread, SignalName, Status, Verdict, Version, Why, WorkerState,
};
use mlxd_text::{ChatTemplate, SpecialTokens, TemplateLimits, Tokenizer, TokenizerLimits};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::sync::CancellationToken;

/// The one model of the fake. Its tokens are bytes, 256 ends an answer.
pub(super) const MODEL: &str = "org/fake";

/// The same, but its work is vectors of four numbers.
pub(super) const VECTORS: &str = "org/vectors";
/// A second one, with the same texts.
pub(super) const SMALL: &str = "org/small";

/// A virtual model: the small one up to 30 tokens, else the other.
pub(super) const ROUTE: &str = "auto";

/// Tokens of context of the fake model.
pub(super) const CONTEXT_TOKENS: u32 = 200;

/// What a sequence publishes at once.
pub(super) type Step = (Vec<Entry>, Option<End>);

/// A sequence as its worker sees it.
pub(super) struct Sequence {
    pub(super) job: Job,
    /// Entries that its reader had when it was started again.
    pub(super) resumed_after: usize,
    steps: UnboundedSender<Step>,
}

impl Sequence {
    /// Publishes the bytes of `text` as one token each.
    pub(super) fn say(&self, text: &str) {
        // A sequence nobody reads any more is what some tests are about.
        let _ = self.steps.send((entries(text), None));
    }

    /// Publishes with an end.
    pub(super) fn end(&self, text: &str, end: End) {
        let _ = self.steps.send((entries(text), Some(end)));
    }

    /// Publishes these entries.
    pub(super) fn publish(&self, entries: Vec<Entry>, end: Option<End>) {
        let _ = self.steps.send((entries, end));
    }

    /// Waits until it has been cancelled.
    pub(super) async fn cancelled(&self) {
        let closed = tokio::time::timeout(Duration::from_secs(10), self.steps.closed());
        closed.await.expect("cancelled within ten seconds");
    }
}

fn entries(text: &str) -> Vec<Entry> {
    let entry = |byte: u8| Entry { token: byte.into(), logprob: f32::NAN, top: Vec::new() };
    text.bytes().map(entry).collect()
}

pub(super) struct FakeTokens {
    steps: Option<UnboundedReceiver<Step>>,
    job: Job,
    read: usize,
}

impl Tokens for FakeTokens {
    fn poll_next(&mut self, cx: &mut Context<'_>, out: &mut Vec<Entry>) -> Poll<Option<End>> {
        let Some(steps) = &mut self.steps else {
            return Poll::Pending;
        };
        match steps.poll_recv(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => Poll::Ready(Some(died())),
            Poll::Ready(Some((entries, end))) => {
                self.read += entries.len();
                out.extend(entries);
                Poll::Ready(end)
            }
        }
    }

    fn cancel(&mut self) {
        self.steps = None;
    }

    fn cached_tokens(&self) -> u32 {
        3
    }

    fn queue_wait(&self) -> Option<Duration> {
        (self.read > 0).then_some(Duration::from_micros(12_700))
    }

    fn waits_for(&self) -> Option<String> {
        (self.read == 0).then(|| "org/fake is being loaded,\n42 %".to_owned())
    }
}

/// How a sequence ends whose worker dies.
pub(super) fn died() -> End {
    End::Failed(Failure {
        code: "worker_died",
        message: "the worker of org/fake died; send the request again".into(),
        retry: true,
    })
}

#[derive(Clone)]
pub(super) struct FakeBackend {
    sequences: UnboundedSender<Sequence>,
    model: OpenModel,
    log_file: PathBuf,
    events: EventLog,
    /// Whether it takes nothing.
    full: Arc<AtomicBool>,
}

impl FakeBackend {
    fn new(log_file: PathBuf) -> (Self, UnboundedReceiver<Sequence>) {
        let (sequences, receiver) = unbounded_channel();
        let this = Self {
            sequences,
            model: model(),
            log_file,
            events: EventLog::new(10),
            full: Arc::default(),
        };
        (this, receiver)
    }

    fn start_sequence(&self, job: Job, resumed_after: usize) -> Result<FakeTokens, Failure> {
        if self.full.load(Ordering::Relaxed) {
            return Err(Failure {
                code: "overloaded",
                message: "the fake is full".into(),
                retry: true,
            });
        }
        let (steps, receiver) = unbounded_channel();
        let sequence = Sequence { job: job.clone(), resumed_after, steps };
        self.sequences.send(sequence).map_err(|_| Failure {
            code: "shutting_down",
            message: "the test is over".into(),
            retry: true,
        })?;
        Ok(FakeTokens { steps: Some(receiver), job, read: resumed_after })
    }

    fn model_status(&self, name: &str, state: WorkerState) -> Result<ModelStatus, AdminErrorBody> {
        let wire = serde_json::json!({
            "name": name, "state": state.name(), "requests_total": 0, "tokens_total": 0,
            "running": 0, "queued": 0, "tokens_per_s": 0.0, "deaths": 0,
        });
        match name == MODEL {
            true => Ok(serde_json::from_value(wire).unwrap()),
            false => Err(AdminErrorBody {
                code: "unknown_model".into(),
                message: format!("no model is called {name}"),
            }),
        }
    }
}

impl Backend for FakeBackend {
    type Tokens = FakeTokens;

    async fn open_model(&self, name: &str) -> Result<OpenModel, ModelFault> {
        match name {
            MODEL | "alias" => Ok(self.model.clone()),
            VECTORS => Ok(OpenModel { vector_width: Some(4), ..self.model.clone() }),
            SMALL => Ok(OpenModel { id: ModelId::new(SMALL).unwrap(), ..self.model.clone() }),
            "bare" => Ok(OpenModel {
                text: Arc::new(ModelText {
                    tokenizer: self.model.text.tokenizer.clone(),
                    template: None,
                    defaults: GenerationDefaults::default(),
                }),
                ..self.model.clone()
            }),
            _ => Err(ModelFault::Unknown {
                name: name.into(),
                known: vec![MODEL.into()],
                nearest: Some(MODEL.into()),
            }),
        }
    }

    fn route(&self, name: &str) -> Option<Arc<Route>> {
        let rule = Rule { model: SMALL.into(), prompt_tokens_max: Some(30), ..Rule::default() };
        let fallback = vec![MODEL.to_owned(), "missing".to_owned()];
        (name == ROUTE).then(|| Arc::new(Route { name: name.into(), rules: vec![rule], fallback }))
    }

    fn standing(&self, _model: &ModelId) -> Standing {
        Standing::default()
    }

    fn generate(&self, job: Job) -> Result<FakeTokens, Failure> {
        self.start_sequence(job, 0)
    }

    fn resume(&self, tokens: &FakeTokens) -> Result<FakeTokens, Failure> {
        self.start_sequence(tokens.job.clone(), tokens.read)
    }

    fn retry_after(&self, _model: &ModelId) -> Option<Duration> {
        Some(Duration::from_millis(2500))
    }

    async fn catalog(&self) -> Vec<CatalogEntry> {
        let listed = ListedModel {
            id: MODEL.into(),
            created_unix_s: 1_700_000_000,
            owned_by: "org".into(),
            stands_for: None,
        };
        vec![CatalogEntry { listed, loaded: true, context_tokens: Some(CONTEXT_TOKENS) }]
    }

    async fn status(&self) -> Status {
        Status {
            server: self.version(),
            uptime_s: 1,
            memory_bytes: 2,
            base_url: "http://127.0.0.1:1/v1".into(),
            shutting_down: false,
            memory: MemoryStatus::default(),
            models: Vec::new(),
        }
    }

    async fn start(&self, model: &str) -> Result<ModelStatus, AdminErrorBody> {
        self.model_status(model, WorkerState::Running)
    }

    async fn stop(&self, model: &str) -> Result<ModelStatus, AdminErrorBody> {
        self.model_status(model, WorkerState::Stopped)
    }

    async fn restart(&self, model: &str) -> Result<ModelStatus, AdminErrorBody> {
        self.model_status(model, WorkerState::Running)
    }

    async fn signal(&self, model: &str, signal: SignalName) -> Result<ModelStatus, AdminErrorBody> {
        let mut status = self.model_status(model, WorkerState::Running)?;
        status.reason = Some(signal.to_string());
        Ok(status)
    }

    async fn pin(&self, model: &str, pinned: bool) -> Result<ModelStatus, AdminErrorBody> {
        let mut status = self.model_status(model, WorkerState::Running)?;
        status.residence.pinned = pinned;
        Ok(status)
    }

    async fn estimate(&self, call: EstimateCall) -> Result<Estimate, AdminErrorBody> {
        self.model_status(&call.model, WorkerState::Running)?;
        Ok(Estimate {
            model: call.model,
            context: call.context.unwrap_or(1),
            batch: call.batch.unwrap_or(1),
            parts: Vec::new(),
            measured_loaded_bytes: None,
            measured_peak_bytes: None,
            needs_bytes: 5,
            promised_bytes: 0,
            memory: MemoryStatus::default(),
            verdict: Verdict::Fits,
            message: "it fits".into(),
        })
    }

    fn events(&self) -> &EventLog {
        &self.events
    }

    async fn bench(
        &self,
        _model: &str,
        _spec: mlxd_protocol::BenchSpec,
    ) -> Result<mlxd_protocol::BenchLeg, AdminErrorBody> {
        Err(AdminErrorBody { code: "internal".into(), message: "no engine here".into() })
    }

    async fn cache(&self, model: Option<&str>) -> Result<CacheReport, AdminErrorBody> {
        let status = self.model_status(model.unwrap_or(MODEL), WorkerState::Running)?;
        let cache = CacheStatus { bytes: 640, hits: 3, ..CacheStatus::default() };
        let (cleared_bytes, cleared_disk_bytes) = (None, None);
        let cache = Some(cache);
        let kept = ModelCache { name: status.name, cache, cleared_bytes, cleared_disk_bytes };
        Ok(CacheReport { models: vec![kept] })
    }

    async fn clear_cache(&self, model: Option<&str>) -> Result<CacheReport, AdminErrorBody> {
        let mut report = self.cache(model).await?;
        report.models[0].cleared_bytes = Some(640);
        Ok(report)
    }

    fn log_file(&self, model: &str) -> Result<PathBuf, AdminErrorBody> {
        self.model_status(model, WorkerState::Running).map(|_| self.log_file.clone())
    }

    fn readiness(&self) -> Readiness {
        Readiness { ready: false, reason: "a test".into() }
    }

    async fn encode_metrics(&self) -> String {
        "# TYPE mlxd_fake gauge\nmlxd_fake 1\n".into()
    }

    fn version(&self) -> Version {
        Version { version: "0".into(), protocol: 1, pid: 7 }
    }
}

/// A front whose own log is `mlxd.log` beside the worker's.
pub(super) struct FakeFront(PathBuf);

impl FrontAdmin for FakeFront {
    fn main_log(&self) -> Option<PathBuf> {
        let path = self.0.with_file_name("mlxd.log");
        path.is_file().then_some(path)
    }

    fn reread(&self) -> AdminAnswer<Reread> {
        Box::pin(async {
            Err(AdminErrorBody { code: "bad_config".into(), message: "line 3: no such key".into() })
        })
    }

    fn update(&self) -> AdminAnswer<Reread> {
        Box::pin(async { Ok(Reread { applied: true, ..Reread::default() }) })
    }

    fn why(&self, model: String) -> AdminAnswer<Why> {
        Box::pin(async move {
            Err(AdminErrorBody { code: "unknown_model".into(), message: format!("no {model}") })
        })
    }
}

fn model() -> OpenModel {
    let mut defaults = GenerationDefaults::default();
    defaults.temperature = Some(0.5);
    defaults.stop_tokens = Arc::from([256]);
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if \
                    enable_thinking %}think{% endif %}";
    let template = ChatTemplate::from_sources(
        vec![("default".into(), template.into())],
        SpecialTokens::default(),
        TemplateLimits::default(),
    );
    OpenModel {
        id: ModelId::new(MODEL).unwrap(),
        text: Arc::new(ModelText {
            tokenizer: tokenizer(),
            template: Some(template.unwrap()),
            defaults,
        }),
        context_tokens: CONTEXT_TOKENS,
        vector_width: None,
        takes: Arc::from([]),
    }
}

/// A byte-level tokenizer without merges: token `i` is byte `i`.
pub(super) fn tokenizer() -> Tokenizer {
    let plain = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut vocab = serde_json::Map::new();
    let mut beyond = 256;
    for byte in 0..=255u8 {
        let code = match plain(byte) {
            true => u32::from(byte),
            false => {
                beyond += 1;
                beyond - 1
            }
        };
        vocab.insert(char::from_u32(code).unwrap().to_string(), byte.into());
    }
    vocab.insert("<|end|>".into(), 256.into());
    let json = serde_json::json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [{
            "id": 256, "content": "<|end|>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true,
        }],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": false, "vocab": vocab, "merges": [],
        },
    });
    let config = serde_json::json!({"eos_token": "<|end|>"});
    Tokenizer::from_json(&json.to_string(), &config, &[], TokenizerLimits::default()).unwrap()
}

/// A running server over the fake.
pub(super) struct Front {
    pub(super) address: SocketAddr,
    pub(super) socket: PathBuf,
    pub(super) log_file: PathBuf,
    pub(super) events: EventLog,
    /// Makes the backend refuse sequences.
    pub(super) full: Arc<AtomicBool>,
    pub(super) shutdown: CancellationToken,
    sequences: UnboundedReceiver<Sequence>,
    running: Option<Running>,
    _folder: TempDir,
}

impl Front {
    pub(super) fn start(limits: HttpLimits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let socket = folder.path().join("admin.sock");
        let unix = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let log_file = folder.path().join("worker.log");
        let (backend, sequences) = FakeBackend::new(log_file.clone());
        let (events, full) = (backend.events.clone(), backend.full.clone());
        let front = Arc::new(FakeFront(log_file.clone()));
        let shutdown = CancellationToken::new();
        let running = bind_to(limits, backend, tcp, unix, shutdown.clone(), front).unwrap();
        Self {
            address,
            socket,
            log_file,
            events,
            full,
            shutdown,
            sequences,
            running: Some(running),
            _folder: folder,
        }
    }

    /// The next sequence that a request starts.
    pub(super) async fn sequence(&mut self) -> Sequence {
        let next = tokio::time::timeout(Duration::from_secs(10), self.sequences.recv());
        next.await.expect("a request within ten seconds").expect("the server lives")
    }

    pub(super) async fn stop(mut self) {
        if let Some(running) = self.running.take() {
            running.stop(false).await.unwrap();
        }
    }
}
