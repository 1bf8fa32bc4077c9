//! Where a request would go, and why: the very decision that the API makes, without an answer. Of
//! what becomes known once a model is asked it knows the memory that can never be there.

use super::Refused;
use crate::app::App;
use crate::backend::Backend;
use crate::body;
use crate::error::{ApiError, INSUFFICIENT_MEMORY};
use crate::limits::RequestLimits;
use crate::openai::chat::ValidChat;
use crate::openai::completion::ValidCompletion;
use crate::openai::facts;
use crate::routes::priority_of;
use crate::routing::{Candidate, Routing, Wanted};
use actix_web::HttpRequest;
use actix_web::web::{Data, Json, Payload};
use mlxd_dispatch::Failure;
use mlxd_dispatch::route::{Facts, Place, Step, Verdict, priority_name};
use mlxd_protocol::admin::{
    AdminErrorBody, EstimateCall, RouteOutcome, RouteReport, RouteRequest, RouteStep,
    Verdict as Fit,
};
use serde_json::Value;
use std::sync::Arc;

/// Takes the body of a chat or text completion, and `X-Priority` as the API does.
pub(super) async fn route<B: Backend>(
    request: HttpRequest,
    payload: Payload,
    app: Data<App<B>>,
) -> Result<Json<RouteReport>, Refused> {
    let bytes = body::read(&request, payload, &app.limits, &app.metrics).await?;
    let limits = &app.limits.request;
    let Ok(Value::Object(body)) = serde_json::from_slice(&bytes) else {
        return Err(Refused::bad_request("the request must be a JSON object".into()));
    };
    let refusal = checked(&bytes, limits).err();
    let text_alone = Value::Object(facts::text_alone(&body)).to_string();
    let wanted = checked(text_alone.as_bytes(), limits)?;
    let asked = wanted.common().model.clone();
    let new_max = wanted.common().max_tokens.unwrap_or(limits.max_tokens_default);
    let routing = Routing::new(&app, wanted, bytes.len(), priority_of(&request));
    let mut routing = routing.with_facts(facts::of_body(&body));
    let next = first_that_fits(&app, &mut routing, new_max).await;
    let route = routing.route().map(|route| route.name.clone());
    let (decision, facts) = routing.decided();
    let mut report = report(asked, route, facts);
    report.steps = decision.into_iter().flat_map(|decision| &decision.steps).map(step).collect();
    match next {
        Ok((model, prompts)) => {
            let tokens = prompts.iter().map(|prepared| prepared.prompt.len()).max();
            report.prompt_tokens.insert(model.id.to_string(), tokens.unwrap_or(0) as u32);
            report.model = Some(model.id.to_string());
            report.problem = refusal.map(|error| error.to_string());
        }
        Err(error) if report.route.is_none() && error.code() != Some(INSUFFICIENT_MEMORY) => {
            return Err(error.into());
        }
        Err(error) => report.problem = Some(error.to_string()),
    }
    Ok(Json(report))
}

/// The first model that a sequence of the request, with so many new tokens at the most, could ever
/// have the memory on. The API passes over the others too, when admission refuses them.
async fn first_that_fits<B: Backend>(
    app: &App<B>,
    routing: &mut Routing<B>,
    new_max: u32,
) -> Result<Candidate, ApiError> {
    loop {
        let (model, prompts) = routing.next().await?;
        let longest = prompts.iter().map(|prepared| prepared.prompt.len() as u32).max();
        let context = longest.unwrap_or(0).saturating_add(new_max).min(model.context_tokens);
        let id = model.id.to_string();
        let call = EstimateCall { model: id, context: Some(context), batch: Some(1) };
        match app.backend.estimate(call).await {
            Ok(estimate) if estimate.verdict == Fit::Never => {
                let message = estimate.message;
                let failure = Failure { code: INSUFFICIENT_MEMORY, message, retry: false };
                routing.refuse(&model.id, failure.into())?;
            }
            _ => return Ok((model, prompts)),
        }
    }
}

fn checked(bytes: &[u8], limits: &RequestLimits) -> Result<Wanted, ApiError> {
    let has_messages =
        serde_json::from_slice::<Value>(bytes).is_ok_and(|body| body.get("messages").is_some());
    Ok(match has_messages {
        true => Wanted::Chat(Arc::new(ValidChat::parse(bytes, limits)?)),
        false => Wanted::Completion(Arc::new(ValidCompletion::parse(bytes, limits)?)),
    })
}

fn report(asked: String, route: Option<String>, facts: &Facts) -> RouteReport {
    let request = &facts.request;
    let tokens = facts.prompt_tokens.iter();
    RouteReport {
        asked,
        route,
        model: None,
        request: RouteRequest {
            holds: request.holds.iter().map(|kind| kind.name().to_owned()).collect(),
            tools: request.tools,
            json: request.json,
            priority: priority_name(request.priority).to_owned(),
        },
        prompt_tokens: tokens.map(|(model, tokens)| (model.to_string(), *tokens)).collect(),
        steps: Vec::new(),
        problem: None,
    }
}

fn step(step: &Step) -> RouteStep {
    let (outcome, reason) = match &step.verdict {
        Verdict::Taken(why) => (RouteOutcome::Taken, why.clone()),
        Verdict::Passed(why) => (RouteOutcome::Passed, why.clone()),
        Verdict::Into => (RouteOutcome::LeadsOn, "a virtual model".to_owned()),
    };
    RouteStep {
        route: step.route.clone(),
        depth: step.depth,
        place: match step.place {
            Place::Rule(number) => format!("rule {number}"),
            Place::Fallback(number) => format!("fallback {number}"),
        },
        target: step.target.clone(),
        outcome,
        reason,
    }
}

impl From<ApiError> for Refused {
    fn from(error: ApiError) -> Self {
        let code = match &error {
            ApiError::UnknownModel { .. } => "unknown_model",
            _ if error.status().is_client_error() => "bad_request",
            _ => "internal",
        };
        Self(AdminErrorBody { code: code.into(), message: error.to_string() })
    }
}
