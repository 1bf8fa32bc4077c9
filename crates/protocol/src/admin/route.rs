//! Where a request would go, without sending it.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What `POST /admin/v1/route` answers to a request's body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteReport {
    /// The model that the request names.
    pub asked: String,
    /// The virtual model of that name or alias.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// The model that would answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What rules can go by.
    pub request: RouteRequest,
    /// Tokens of the prompt, by the models that it was counted for.
    #[serde(default)]
    pub prompt_tokens: BTreeMap<String, u32>,
    /// Every place that was looked at, in order; none for a plain model.
    #[serde(default)]
    pub steps: Vec<RouteStep>,
    /// Why nobody would answer, or why the request would be refused before a model is chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A request as rules see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteRequest {
    /// `image`, `video`, `audio`: what it holds besides text.
    pub holds: Vec<String>,
    /// Whether it brings tools.
    pub tools: bool,
    /// Whether it wants JSON.
    pub json: bool,
    /// `high`, `normal` or `low`.
    pub priority: String,
}

/// One place of a virtual model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteStep {
    /// The virtual model.
    pub route: String,
    /// How many virtual models lead to it.
    pub depth: usize,
    /// `rule 1`, `fallback 2`, ….
    pub place: String,
    /// The name there.
    pub target: String,
    /// What became of it.
    pub outcome: RouteOutcome,
    /// Why.
    pub reason: String,
}

/// What became of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteOutcome {
    /// Its model would answer.
    Taken,
    /// It would not.
    Passed,
    /// It is a virtual model, whose places come next.
    LeadsOn,
}
