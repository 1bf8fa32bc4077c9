//! Where a request would go, and why: the very decision that the API makes, without an answer.

use super::Refused;
use crate::app::App;
use crate::backend::Backend;
use crate::body;
use crate::error::ApiError;
use crate::limits::RequestLimits;
use crate::openai::chat::ValidChat;
use crate::openai::completion::ValidCompletion;
use crate::openai::facts;
use crate::routes::priority_of;
use crate::routing::{Routing, Wanted};
use actix_web::HttpRequest;
use actix_web::web::{Data, Json, Payload};
use mlxd_dispatch::route::{Facts, Place, Step, Verdict, priority_name};
use mlxd_protocol::admin::{AdminErrorBody, RouteOutcome, RouteReport, RouteRequest, RouteStep};
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
    let routing = Routing::new(&app, wanted, bytes.len(), priority_of(&request));
    let mut routing = routing.with_facts(facts::of_body(&body));
    let next = routing.next().await;
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
        Err(error) if report.route.is_none() => return Err(error.into()),
        Err(error) => report.problem = Some(error.to_string()),
    }
    Ok(Json(report))
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
