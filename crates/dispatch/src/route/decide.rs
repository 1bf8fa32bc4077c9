//! The decision.

use super::{Facts, Modality, ModelFacts, Route, Rule};
use mlxd_protocol::{ModelId, Priority};
use std::sync::Arc;

/// Virtual models behind one another. Configuration has no circles; this is for two
/// configurations that are read at once.
const DEPTH_MAX: usize = 16;

/// A fact that is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// [`Facts::models`] of this name.
    Model(String),
    /// [`Facts::prompt_tokens`] by the model of this name and id.
    PromptTokens(String, ModelId),
}

/// Where in a virtual model a step is. Counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A rule.
    Rule(usize),
    /// A fallback.
    Fallback(usize),
}

/// What became of a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Its model is to answer, and why.
    Taken(String),
    /// It is not, and why.
    Passed(String),
    /// It leads on to another virtual model, whose steps come next.
    Into,
}

/// One place that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The virtual model.
    pub route: String,
    /// How many virtual models lead to it.
    pub depth: usize,
    /// Where in it.
    pub place: Place,
    /// The name there.
    pub target: String,
    /// What became of it.
    pub verdict: Verdict,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The model's name as it stands in the rule, and its id; `None` when nothing fits.
    pub chosen: Option<(String, ModelId)>,
    /// Every place that was looked at, in order.
    pub steps: Vec<Step>,
}

/// Decides where `route` leads. `others` finds virtual models by name.
///
/// # Errors
/// The fact that is needed next.
pub fn decide(
    route: &Route,
    others: &dyn Fn(&str) -> Option<Arc<Route>>,
    facts: &Facts,
) -> Result<Decision, Ask> {
    let mut walk = Walk { others, facts, steps: Vec::new() };
    let chosen = walk.route(route, &[])?;
    Ok(Decision { chosen, steps: walk.steps })
}

struct Walk<'a> {
    others: &'a dyn Fn(&str) -> Option<Arc<Route>>,
    facts: &'a Facts,
    steps: Vec<Step>,
}

type Chosen = Option<(String, ModelId)>;

impl Walk<'_> {
    /// Follows a virtual model that was reached over `outer` rules.
    fn route(&mut self, route: &Route, outer: &[&Rule]) -> Result<Chosen, Ask> {
        let fallbacks: Vec<Rule> = route
            .fallback
            .iter()
            .map(|name| Rule { model: name.clone(), ..Rule::default() })
            .collect();
        let rules = route.rules.iter().enumerate().map(|(at, rule)| (Place::Rule(at + 1), rule));
        let fallbacks = fallbacks.iter().enumerate();
        let fallbacks = fallbacks.map(|(at, rule)| (Place::Fallback(at + 1), rule));
        for (place, rule) in rules.chain(fallbacks) {
            let step = |verdict| Step {
                route: route.name.clone(),
                depth: outer.len(),
                place,
                target: rule.model.clone(),
                verdict,
            };
            let mut fits = Vec::new();
            if let Err(why) = self.request_fits(rule, &mut fits) {
                self.steps.push(step(Verdict::Passed(why)));
                continue;
            }
            let path: Vec<&Rule> = outer.iter().copied().chain([rule]).collect();
            if let Some(next) = (self.others)(&rule.model) {
                if path.len() > DEPTH_MAX {
                    let why = format!("more than {DEPTH_MAX} virtual models lead here");
                    self.steps.push(step(Verdict::Passed(why)));
                    continue;
                }
                self.steps.push(step(Verdict::Into));
                match self.route(&next, &path)? {
                    Some(chosen) => return Ok(Some(chosen)),
                    None => continue,
                }
            }
            match self.model_fits(&path, &mut fits)? {
                Ok(id) => {
                    let why = match (fits.is_empty(), place) {
                        (false, _) => fits.join(", "),
                        (true, Place::Rule(_)) => "it asks for nothing".to_owned(),
                        (true, Place::Fallback(_)) => "the first that is left".to_owned(),
                    };
                    self.steps.push(step(Verdict::Taken(why)));
                    return Ok(Some((rule.model.clone(), id)));
                }
                Err(why) => self.steps.push(step(Verdict::Passed(why))),
            }
        }
        Ok(None)
    }

    /// What the request alone decides. The error says what does not fit.
    fn request_fits(&self, rule: &Rule, fits: &mut Vec<String>) -> Result<(), String> {
        let request = &self.facts.request;
        match rule.modality {
            None => {}
            Some(Modality::Text) => match request.holds[..] {
                [] => fits.push("text only".to_owned()),
                _ => return Err(format!("the request holds {}", names(&request.holds))),
            },
            Some(kind) if request.holds.contains(&kind) => fits.push(format!("has {}", a(kind))),
            Some(kind) => return Err(format!("the request holds no {}", kind.name())),
        }
        for (asked, has, what) in [
            (rule.tools, request.tools, ("brings tools", "brings no tools")),
            (rule.json, request.json, ("wants JSON", "does not want JSON")),
        ] {
            let words = if has { what.0 } else { what.1 };
            match asked {
                None => {}
                Some(asked) if asked == has => fits.push(words.to_owned()),
                Some(_) => return Err(format!("the request {words}")),
            }
        }
        match rule.priority {
            None => {}
            Some(asked) if asked == request.priority => {
                fits.push(format!("priority {}", priority_name(asked)));
            }
            Some(_) => return Err(format!("its priority is {}", priority_name(request.priority))),
        }
        Ok(())
    }

    /// What depends on the model. The outer error is a fact that is missing, the inner one says
    /// what does not fit. The last rule of `path` names the model; all of them must fit.
    fn model_fits(
        &self,
        path: &[&Rule],
        fits: &mut Vec<String>,
    ) -> Result<Result<ModelId, String>, Ask> {
        let name = path.last().map_or("", |rule| &rule.model);
        let model = match self.facts.models.get(name) {
            None => return Err(Ask::Model(name.to_owned())),
            Some(Err(why)) => return Ok(Err(why.clone())),
            Some(Ok(model)) => model,
        };
        if let Err(why) = self.model_takes(model) {
            return Ok(Err(why));
        }
        for asked in path.iter().filter_map(|rule| rule.loaded) {
            let words = if model.loaded { "loaded" } else { "not loaded" };
            if asked != model.loaded {
                return Ok(Err(format!("it is {words}")));
            }
            fits.push(words.to_owned());
        }
        let bounded =
            |rule: &&&Rule| rule.prompt_tokens_min.is_some() || rule.prompt_tokens_max.is_some();
        for rule in path.iter().filter(bounded) {
            let Some(&tokens) = self.facts.prompt_tokens.get(&model.id) else {
                return Err(Ask::PromptTokens(name.to_owned(), model.id.clone()));
            };
            if let Some(max) = rule.prompt_tokens_max.filter(|max| tokens > *max) {
                return Ok(Err(format!("the prompt has {tokens} tokens, more than {max}")));
            }
            if let Some(min) = rule.prompt_tokens_min.filter(|min| tokens < *min) {
                return Ok(Err(format!("the prompt has {tokens} tokens, less than {min}")));
            }
            fits.push(format!("{tokens} tokens"));
        }
        Ok(Ok(model.id.clone()))
    }

    /// Whether the model could answer the request at all.
    fn model_takes(&self, model: &ModelFacts) -> Result<(), String> {
        let request = &self.facts.request;
        if let Some(why) = self.facts.refused.get(&model.id) {
            return Err(why.clone());
        }
        if let Some(why) = &model.fatal {
            return Err(format!("its worker is FATAL: {why}"));
        }
        if request.chat && !model.chat {
            return Err("it has no chat template".to_owned());
        }
        match request.holds.iter().find(|kind| !model.takes.contains(kind)) {
            Some(kind) => Err(format!("it takes no {}", kind.name())),
            None => Ok(()),
        }
    }
}

fn names(kinds: &[Modality]) -> String {
    kinds.iter().map(|kind| a(*kind)).collect::<Vec<_>>().join(" and ")
}

fn a(kind: Modality) -> String {
    match kind {
        Modality::Audio | Modality::Text => kind.name().to_owned(),
        Modality::Image => "an image".to_owned(),
        Modality::Video => "a video".to_owned(),
    }
}

/// A priority as in `mlxd.toml`.
pub fn priority_name(priority: Priority) -> &'static str {
    match priority {
        Priority::High => "high",
        Priority::Normal => "normal",
        Priority::Low => "low",
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
