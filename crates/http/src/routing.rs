//! From a request's `model` to models that could answer it, one after the other.
//!
//! A plain name is one model. A virtual one goes by its rules: what they turn on is found out as
//! they ask for it, and a model that does not take the request is passed over for the next.

use crate::app::App;
use crate::backend::Backend;
use crate::error::ApiError;
use crate::openai::answer::Shape;
use crate::openai::chat::ValidChat;
use crate::openai::common::Common;
use crate::openai::completion::ValidCompletion;
use crate::prepare::{self, Prepared};
use actix_web::web::Data;
use mlxd_dispatch::route::{Ask, Decision, Facts, ModelFacts, RequestFacts, Route, decide};
use mlxd_dispatch::{Failure, OpenModel};
use mlxd_protocol::{ModelId, Priority};
use mlxd_text::SegmentCache;
use std::collections::HashMap;
use std::sync::Arc;

/// Failures of one model that say nothing of another.
const OTHERS_MAY: [&str; 6] = [
    "load_failed",
    "insufficient_memory",
    "memory_full",
    "memory_pressure",
    "overloaded",
    "model_stopped",
];

/// A checked request.
#[derive(Debug, Clone)]
pub(crate) enum Wanted {
    Chat(Arc<ValidChat>),
    Completion(Arc<ValidCompletion>),
}

impl Wanted {
    pub(crate) fn common(&self) -> &Common {
        match self {
            Self::Chat(chat) => &chat.common,
            Self::Completion(completion) => &completion.common,
        }
    }

    pub(crate) fn shape(&self) -> Shape {
        match self {
            Self::Chat(_) => Shape::Chat,
            Self::Completion(_) => Shape::Text,
        }
    }

    /// Its prompts for this model. Blocks.
    fn prepare(
        &self,
        model: &OpenModel,
        segments: &SegmentCache,
        tokens_max: usize,
    ) -> Result<Vec<Prepared>, ApiError> {
        match self {
            Self::Chat(chat) => Ok(vec![prepare::chat(model, chat, segments, tokens_max)?]),
            Self::Completion(wanted) => {
                let one = |prompt: &_| {
                    prepare::completion(model, prompt, wanted.echo, segments, tokens_max)
                };
                wanted.prompts.iter().map(one).collect()
            }
        }
    }
}

/// Looks for models for one request.
pub(crate) struct Routing<B> {
    app: Data<App<B>>,
    wanted: Wanted,
    /// Bytes of the request's body.
    size: usize,
    route: Option<Arc<Route>>,
    facts: Facts,
    models: HashMap<ModelId, OpenModel>,
    prepared: HashMap<ModelId, Vec<Prepared>>,
    /// Why models did not take it, in order.
    refusals: Vec<(String, ApiError)>,
    /// What was decided last.
    decision: Option<Decision>,
}

/// A model that could answer, and the request's prompts for it.
pub(crate) type Candidate = (OpenModel, Vec<Prepared>);

impl<B: Backend> Routing<B> {
    pub(crate) fn new(app: &Data<App<B>>, wanted: Wanted, size: usize, priority: Priority) -> Self {
        let mut request = wanted.common().facts.clone();
        request.priority = priority;
        Self {
            app: app.clone(),
            route: app.backend.route(&wanted.common().model),
            wanted,
            size,
            facts: Facts { request, ..Facts::default() },
            models: HashMap::new(),
            prepared: HashMap::new(),
            refusals: Vec::new(),
            decision: None,
        }
    }

    /// With other facts than the checked request has.
    pub(crate) fn with_facts(mut self, facts: RequestFacts) -> Self {
        self.facts.request = RequestFacts { priority: self.facts.request.priority, ..facts };
        self
    }

    /// The virtual model that was named.
    pub(crate) fn route(&self) -> Option<&Arc<Route>> {
        self.route.as_ref()
    }

    /// What was decided last, and by what.
    pub(crate) fn decided(&self) -> (Option<&Decision>, &Facts) {
        (self.decision.as_ref(), &self.facts)
    }

    /// The next model that could answer.
    ///
    /// # Errors
    /// Why there is none, or none any more.
    pub(crate) async fn next(&mut self) -> Result<Candidate, ApiError> {
        let Some(route) = self.route.clone() else {
            return self.plain().await;
        };
        loop {
            let decided = {
                let backend = &self.app.backend;
                decide(&route, &|name| backend.route(name), &self.facts)
            };
            match decided {
                Err(Ask::Model(name)) => self.look_up(name).await,
                Err(Ask::PromptTokens(name, id)) => self.prepare(&name, &id).await?,
                Ok(decision) => {
                    let chosen = decision.chosen.clone();
                    self.decision = Some(decision);
                    let Some((name, id)) = chosen else {
                        return Err(self.nobody(&route));
                    };
                    self.prepare(&name, &id).await?;
                    if let Some(prompts) = self.prepared.get(&id) {
                        return Ok((self.models[&id].clone(), prompts.clone()));
                    }
                }
            }
        }
    }

    /// The one model of a plain name.
    async fn plain(&mut self) -> Result<Candidate, ApiError> {
        if let Some((_, error)) = self.refusals.pop() {
            return Err(error);
        }
        let model = self.app.backend.open_model(&self.wanted.common().model).await?;
        let prompts = self.prompts_for(&model).await?;
        Ok((model, prompts))
    }

    async fn prompts_for(&self, model: &OpenModel) -> Result<Vec<Prepared>, ApiError> {
        let (wanted, asked) = (self.wanted.clone(), model.clone());
        let tokens_max = self.app.limits.request.prompt_tokens_max;
        let segments = self.app.preparer.segments();
        let prepare = move || wanted.prepare(&asked, &segments, tokens_max);
        self.app.preparer.prepare(self.size, prepare).await
    }

    async fn look_up(&mut self, name: String) {
        let known = match self.app.backend.open_model(&name).await {
            Err(fault) => {
                let why = fault.to_string();
                self.refusals.push((name.clone(), fault.into()));
                Err(why)
            }
            Ok(model) => {
                let standing = self.app.backend.standing(&model.id);
                if let Some(why) = &standing.fatal {
                    let message = format!("its worker is FATAL: {why}");
                    let failure = Failure { code: "load_failed", message, retry: false };
                    self.refusals.push((name.clone(), failure.into()));
                }
                let facts = ModelFacts {
                    id: model.id.clone(),
                    loaded: standing.loaded,
                    fatal: standing.fatal,
                    takes: model.takes.to_vec(),
                    chat: model.text.template.is_some(),
                };
                self.models.insert(model.id.clone(), model);
                Ok(facts)
            }
        };
        self.facts.models.insert(name, known);
    }

    /// Prepares the prompts for a model, which also counts them. One that they do not fit is
    /// refused.
    async fn prepare(&mut self, name: &str, id: &ModelId) -> Result<(), ApiError> {
        if self.prepared.contains_key(id) {
            return Ok(());
        }
        match self.prompts_for(&self.models[id]).await {
            Ok(prompts) => {
                let tokens = prompts.iter().map(|prepared| prepared.prompt.len()).max();
                self.facts.prompt_tokens.insert(id.clone(), tokens.unwrap_or(0) as u32);
                self.prepared.insert(id.clone(), prompts);
                Ok(())
            }
            Err(error @ ApiError::ContextLength { .. }) => {
                self.refused(name, id, error);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn refused(&mut self, name: &str, id: &ModelId, error: ApiError) {
        tracing::info!(
            asked = self.wanted.common().model, model = %id, %error,
            "a model does not take the request; the next one is tried"
        );
        self.facts.refused.insert(id.clone(), error.to_string());
        self.refusals.push((name.to_owned(), error));
    }

    /// Passes over the model that was given last. Only while the client has seen nothing of it.
    ///
    /// # Errors
    /// The error itself, when no other model is to be tried because of it.
    pub(crate) fn refuse(&mut self, model: &ModelId, error: ApiError) -> Result<(), ApiError> {
        if self.route.is_none() || !another_may(&error) {
            return Err(error);
        }
        self.refused(model.as_str(), model, error);
        Ok(())
    }

    /// What the client is told when no model is left.
    fn nobody(&mut self, route: &Route) -> ApiError {
        let name = &route.name;
        let why: Vec<String> =
            self.refusals.iter().map(|(model, error)| format!("{model}: {error}")).collect();
        let come_back = |(_, error): &&(String, ApiError)| error.asks_to_come_back();
        let telling = self.refusals.iter().find(come_back).or(self.refusals.last());
        let Some((_, error)) = telling else {
            return ApiError::Invalid {
                param: Some("model".to_owned()),
                code: Some("no_route"),
                message: format!(
                    "no rule of the virtual model {name:?} fits this request, and it has no \
                     fallback that takes it; `mlxctl route` says why"
                ),
            };
        };
        if matches!(error, ApiError::ContextLength { .. }) {
            return error.clone();
        }
        ApiError::Failed {
            failure: Failure {
                code: error.code().unwrap_or("load_failed"),
                message: format!("{name}: no model takes the request. {}", why.join("; ")),
                retry: error.asks_to_come_back(),
            },
            retry_after_s: 1,
        }
    }
}

/// Whether another model may do what this error says of one.
fn another_may(error: &ApiError) -> bool {
    match error {
        ApiError::ContextLength { .. }
        | ApiError::BrokenModel { .. }
        | ApiError::UnknownModel { .. }
        | ApiError::Overloaded { .. } => true,
        ApiError::Failed { failure, .. } => OTHERS_MAY.contains(&failure.code),
        _ => false,
    }
}
