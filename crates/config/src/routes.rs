//! `[routes."name"]`: virtual models, whose rules choose the model of each request.

use crate::section::section;
use crate::value::{ListOf, OneOf, Optional, Truth, Word, words};
use std::collections::BTreeMap;

/// Rules of one virtual model at the most.
pub(crate) const RULES_MAX: usize = 64;

/// What a `[routes."name"]` table may hold.
pub(crate) const ROUTE_KEYS: [&str; 3] = ["aliases", "fallback", "rules"];

words! {
    /// What a request holds besides text.
    pub enum Modality {
        /// Nothing.
        Text = "text",
        /// At least one image.
        Image = "image",
        /// At least one video.
        Video = "video",
        /// At least one recording.
        Audio = "audio",
    }
}

words! {
    /// A request's priority.
    pub enum RulePriority {
        /// `X-Priority: high`
        High = "high",
        /// Neither of the others.
        Normal = "normal",
        /// `X-Priority: low`
        Low = "low",
    }
}

section! {
    /// One `[[routes."name".rules]]` table: the model for requests that fit all that it says.
    pub struct RouteRule in "[routes.\"name\".rules]" {
        /// The model, by name or alias, or another virtual model.
        model: String = String::new(), Word("a model's name");
        /// For requests that hold this.
        modality: Option<Modality> = None, Optional(OneOf);
        /// For prompts of at least so many tokens, as the rule's model counts them.
        prompt_tokens_min: Option<u32> = None, Optional(0..=16_777_216);
        /// For prompts of at most so many tokens.
        prompt_tokens_max: Option<u32> = None, Optional(0..=16_777_216);
        /// For requests that bring tools, or bring none.
        tools: Option<bool> = None, Optional(Truth);
        /// For requests that want JSON, or do not.
        json: Option<bool> = None, Optional(Truth);
        /// For requests of this priority.
        priority: Option<RulePriority> = None, Optional(OneOf);
        /// Only while the model is loaded, or while it is not.
        loaded: Option<bool> = None, Optional(Truth);
    }
}

section! {
    /// One `[routes."name"]` table, without its rules.
    pub struct RouteTable in "routes.\"name\"" {
        /// Other names for it in requests.
        aliases: Vec<String> = Vec::new(), ListOf { each: Word("a name"), max: 64 };
        /// Models for requests that no rule fits, or whose rules' models are refused: the first
        /// that takes it.
        fallback: Vec<String> = Vec::new(), ListOf { each: Word("a model's name"), max: 64 };
    }
}

/// A virtual model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RouteConfig {
    /// Its plain keys.
    pub table: RouteTable,
    /// In order: the first that fits is followed.
    pub rules: Vec<RouteRule>,
}

impl RouteConfig {
    /// Every name that it may lead to, rules before fallbacks.
    pub fn targets(&self) -> impl Iterator<Item = &str> {
        let rules = self.rules.iter().map(|rule| rule.model.as_str());
        rules.chain(self.table.fallback.iter().map(String::as_str))
    }
}

/// All virtual models, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoutesConfig {
    /// The `[routes."name"]` tables.
    pub tables: BTreeMap<String, RouteConfig>,
}

impl RoutesConfig {
    /// The virtual model of this name or alias, with its own name.
    pub fn find(&self, name: &str) -> Option<(&str, &RouteConfig)> {
        let own = self.tables.get_key_value(name);
        let by_alias =
            || self.tables.iter().find(|(_, route)| route.table.aliases.iter().any(|a| a == name));
        own.or_else(by_alias).map(|(name, route)| (name.as_str(), route))
    }

    /// A way round through virtual models that leads back to where it began, if there is one.
    pub(crate) fn cycle(&self) -> Option<Vec<&str>> {
        let mut done = Vec::new();
        self.tables.keys().find_map(|name| self.cycle_from(name, &mut Vec::new(), &mut done))
    }

    fn cycle_from<'a>(
        &'a self,
        name: &'a str,
        way: &mut Vec<&'a str>,
        done: &mut Vec<&'a str>,
    ) -> Option<Vec<&'a str>> {
        let (name, route) = self.find(name)?;
        if let Some(at) = way.iter().position(|passed| *passed == name) {
            let round = way[at..].iter().copied();
            return Some(round.chain([name]).collect());
        }
        if done.contains(&name) {
            return None;
        }
        way.push(name);
        let found = route.targets().find_map(|target| self.cycle_from(target, way, done));
        way.pop();
        done.push(name);
        found
    }
}
