//! What the routes need of the rest of the front, so that they can be tested without workers.

use mlxd_dispatch::route::Route;
use mlxd_dispatch::{
    CatalogEntry, Dispatch, End, Entry, EventLog, Failure, Generation, Job, ModelFault, OpenModel,
    Readiness, Standing,
};
use mlxd_protocol::admin::{
    AdminErrorBody, CacheReport, Estimate, EstimateCall, ModelStatus, SignalName, Status, Version,
};
use mlxd_protocol::{BenchLeg, BenchSpec, ModelId};
use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// Models, their workers and the sequences they generate.
pub(crate) trait Backend: Clone + Send + Sync + 'static {
    /// A sequence being generated.
    type Tokens: Tokens;

    /// Finds a model and what its text side needs, without starting its worker.
    fn open_model(&self, name: &str) -> impl Future<Output = Result<OpenModel, ModelFault>>;
    /// The virtual model of this name.
    fn route(&self, name: &str) -> Option<Arc<Route>>;
    /// How a model stands that was opened before.
    fn standing(&self, model: &ModelId) -> Standing;
    /// Starts a sequence, and the model's worker if need be.
    fn generate(&self, job: Job) -> Result<Self::Tokens, Failure>;
    /// Starts a cancelled sequence again, where its reader is.
    fn resume(&self, tokens: &Self::Tokens) -> Result<Self::Tokens, Failure>;
    /// After how long a client that was just refused a place should come back, where that is
    /// known.
    fn retry_after(&self, model: &ModelId) -> Option<Duration>;
    /// Every model that a request may name.
    fn catalog(&self) -> impl Future<Output = Vec<CatalogEntry>>;
    /// The front and its models.
    fn status(&self) -> impl Future<Output = Status>;
    /// Loads a model.
    fn start(&self, model: &str) -> impl Future<Output = Result<ModelStatus, AdminErrorBody>>;
    /// Unloads a model.
    fn stop(&self, model: &str) -> impl Future<Output = Result<ModelStatus, AdminErrorBody>>;
    /// Gives a model a new worker.
    fn restart(&self, model: &str) -> impl Future<Output = Result<ModelStatus, AdminErrorBody>>;
    /// Sends a model's worker a signal.
    fn signal(
        &self,
        model: &str,
        signal: SignalName,
    ) -> impl Future<Output = Result<ModelStatus, AdminErrorBody>>;
    /// Keeps a model loaded, or does so no longer.
    fn pin(
        &self,
        model: &str,
        pinned: bool,
    ) -> impl Future<Output = Result<ModelStatus, AdminErrorBody>>;
    /// What a model would need.
    fn estimate(
        &self,
        call: EstimateCall,
    ) -> impl Future<Output = Result<Estimate, AdminErrorBody>>;
    /// What happened lately, and what happens.
    fn events(&self) -> &EventLog;
    /// Runs a model's engine alone, inside its worker.
    fn bench(
        &self,
        model: &str,
        spec: BenchSpec,
    ) -> impl Future<Output = Result<BenchLeg, AdminErrorBody>>;
    /// What is kept for prompts that begin alike: one model's, or every one's.
    fn cache(
        &self,
        model: Option<&str>,
    ) -> impl Future<Output = Result<CacheReport, AdminErrorBody>>;
    /// Drops it.
    fn clear_cache(
        &self,
        model: Option<&str>,
    ) -> impl Future<Output = Result<CacheReport, AdminErrorBody>>;
    /// Where a model's worker logs.
    fn log_file(&self, model: &str) -> Result<PathBuf, AdminErrorBody>;
    /// Whether requests are taken.
    fn readiness(&self) -> Readiness;
    /// The metrics of everything below HTTP, in Prometheus's text format.
    fn encode_metrics(&self) -> impl Future<Output = String>;
    /// Who answers.
    fn version(&self) -> Version;
}

/// The tokens of one sequence. Dropping it before its end cancels it.
pub(crate) trait Tokens: Unpin + 'static {
    /// Appends every token since the last call. Ready when there is at least one or the end,
    /// which comes with the last of them.
    fn poll_next(&mut self, cx: &mut Context<'_>, out: &mut Vec<Entry>) -> Poll<Option<End>>;
    /// Stops generating and keeps what there is, for [`Backend::resume`].
    fn cancel(&mut self);
    /// Prompt tokens that needed no computing, once that is known.
    fn cached_tokens(&self) -> u32;
    /// How long it waited for its turn, once that is over.
    fn queue_wait(&self) -> Option<Duration>;
    /// What it waits for before it can begin, in words.
    fn waits_for(&self) -> Option<String>;
}

impl Tokens for Generation {
    fn poll_next(&mut self, cx: &mut Context<'_>, out: &mut Vec<Entry>) -> Poll<Option<End>> {
        // `next` keeps nothing between polls: its waker is the journal's, its cursor ours.
        pin!(self.next(out)).poll(cx)
    }

    fn cancel(&mut self) {
        Generation::cancel(self);
    }

    fn cached_tokens(&self) -> u32 {
        self.started().map_or(0, |started| started.cached_tokens)
    }

    fn queue_wait(&self) -> Option<Duration> {
        Generation::queue_wait(self)
    }

    fn waits_for(&self) -> Option<String> {
        Generation::waits_for(self)
    }
}

impl Backend for Dispatch {
    type Tokens = Generation;

    async fn open_model(&self, name: &str) -> Result<OpenModel, ModelFault> {
        Dispatch::open_model(self, name).await
    }

    fn route(&self, name: &str) -> Option<Arc<Route>> {
        Dispatch::route(self, name)
    }

    fn standing(&self, model: &ModelId) -> Standing {
        Dispatch::standing(self, model)
    }

    fn generate(&self, job: Job) -> Result<Generation, Failure> {
        Dispatch::generate(self, job)
    }

    fn resume(&self, tokens: &Generation) -> Result<Generation, Failure> {
        Dispatch::resume(self, tokens)
    }

    fn retry_after(&self, model: &ModelId) -> Option<Duration> {
        Dispatch::retry_after(self, model)
    }

    async fn catalog(&self) -> Vec<CatalogEntry> {
        Dispatch::catalog(self).await
    }

    async fn status(&self) -> Status {
        Dispatch::status(self).await
    }

    async fn start(&self, model: &str) -> Result<ModelStatus, AdminErrorBody> {
        Dispatch::start(self, model).await
    }

    async fn stop(&self, model: &str) -> Result<ModelStatus, AdminErrorBody> {
        Dispatch::stop(self, model).await
    }

    async fn restart(&self, model: &str) -> Result<ModelStatus, AdminErrorBody> {
        Dispatch::restart(self, model).await
    }

    async fn signal(&self, model: &str, signal: SignalName) -> Result<ModelStatus, AdminErrorBody> {
        Dispatch::signal(self, model, signal).await
    }

    async fn pin(&self, model: &str, pinned: bool) -> Result<ModelStatus, AdminErrorBody> {
        Dispatch::pin(self, model, pinned).await
    }

    async fn estimate(&self, call: EstimateCall) -> Result<Estimate, AdminErrorBody> {
        Dispatch::estimate(self, call).await
    }

    fn events(&self) -> &EventLog {
        Dispatch::events(self)
    }

    async fn bench(&self, model: &str, spec: BenchSpec) -> Result<BenchLeg, AdminErrorBody> {
        Dispatch::bench(self, model, spec).await
    }

    async fn cache(&self, model: Option<&str>) -> Result<CacheReport, AdminErrorBody> {
        Dispatch::cache(self, model).await
    }

    async fn clear_cache(&self, model: Option<&str>) -> Result<CacheReport, AdminErrorBody> {
        Dispatch::clear_cache(self, model).await
    }

    fn log_file(&self, model: &str) -> Result<PathBuf, AdminErrorBody> {
        Dispatch::log_file(self, model)
    }

    fn readiness(&self) -> Readiness {
        Dispatch::readiness(self)
    }

    async fn encode_metrics(&self) -> String {
        Dispatch::encode_metrics(self).await
    }

    fn version(&self) -> Version {
        Dispatch::version(self)
    }
}
