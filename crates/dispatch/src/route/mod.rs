//! Which model answers a request that names a virtual one. Pure.
//!
//! [`decide`] looks at facts and says which model, and of every place that it looked at why or why
//! not. A fact that it needs and does not have it asks for: reading a model's texts and counting
//! a prompt's tokens cost time, and most decisions need neither for most models. Whoever calls it
//! finds out and calls it again. A model that did not take the request is one more fact.

mod decide;
mod facts;

pub use decide::{Ask, Decision, Place, Step, Verdict, decide, priority_name};
pub use facts::{Facts, Modality, ModelFacts, RequestFacts};

use mlxd_protocol::Priority;

/// A virtual model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Route {
    /// Its own name.
    pub name: String,
    /// In order.
    pub rules: Vec<Rule>,
    /// Names, in order, for when no rule's model takes the request.
    pub fallback: Vec<String>,
}

/// A model for requests that fit all that is set here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// A model's name or alias, or another virtual model's.
    pub model: String,
    /// What the request holds; [`Modality::Text`] is nothing else.
    pub modality: Option<Modality>,
    /// Tokens of its prompt at the least.
    pub prompt_tokens_min: Option<u32>,
    /// Tokens of its prompt at the most.
    pub prompt_tokens_max: Option<u32>,
    /// Whether it brings tools.
    pub tools: Option<bool>,
    /// Whether it wants JSON.
    pub json: Option<bool>,
    /// Its priority.
    pub priority: Option<Priority>,
    /// Whether the model is loaded.
    pub loaded: Option<bool>,
}

impl Route {
    /// Every name that it may lead to, rules before fallbacks.
    pub fn targets(&self) -> impl Iterator<Item = &str> {
        let rules = self.rules.iter().map(|rule| rule.model.as_str());
        rules.chain(self.fallback.iter().map(String::as_str))
    }
}
