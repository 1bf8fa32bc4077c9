//! Virtual models and aliases, from configuration to what dispatch knows.

use mlxd_config::{Config, Modality, RouteRule, RoutesConfig, RulePriority};
use mlxd_dispatch::route::{self, Route, Rule};
use mlxd_dispatch::{ListedModel, StandsFor};
use mlxd_protocol::Priority;
use std::collections::HashMap;
use std::sync::Arc;

/// Every virtual model, by its name and its aliases.
pub fn routes(config: &RoutesConfig) -> HashMap<String, Arc<Route>> {
    let mut routes = HashMap::new();
    for (name, given) in &config.tables {
        let route = Arc::new(Route {
            name: name.clone(),
            rules: given.rules.iter().map(rule).collect(),
            fallback: given.table.fallback.clone(),
        });
        for name in given.table.aliases.iter().chain([name]) {
            routes.insert(name.clone(), route.clone());
        }
    }
    routes
}

fn rule(given: &RouteRule) -> Rule {
    Rule {
        model: given.model.clone(),
        modality: given.modality.map(|modality| match modality {
            Modality::Text => route::Modality::Text,
            Modality::Image => route::Modality::Image,
            Modality::Video => route::Modality::Video,
            Modality::Audio => route::Modality::Audio,
        }),
        prompt_tokens_min: given.prompt_tokens_min,
        prompt_tokens_max: given.prompt_tokens_max,
        tools: given.tools,
        json: given.json,
        priority: given.priority.map(|priority| match priority {
            RulePriority::High => Priority::High,
            RulePriority::Normal => Priority::Normal,
            RulePriority::Low => Priority::Low,
        }),
        loaded: given.loaded,
    }
}

/// The names of `/v1/models` that are no model's own: aliases of models that are here, and virtual
/// models with their aliases.
pub fn listed(config: &Config, models: &[ListedModel]) -> Vec<ListedModel> {
    let mut listed = Vec::new();
    for (name, table) in &config.models.tables {
        let Some(model) = models.iter().find(|model| model.id == *name) else { continue };
        listed.extend(table.aliases.iter().map(|alias| ListedModel {
            id: alias.clone(),
            stands_for: Some(StandsFor::Model(name.clone())),
            ..model.clone()
        }));
    }
    for (name, route) in &config.routes.tables {
        let mut targets: Vec<String> = Vec::new();
        for target in route.targets() {
            let target = config.models.canonical(target);
            if !targets.iter().any(|known| known == target) {
                targets.push(target.to_owned());
            }
        }
        listed.extend(route.table.aliases.iter().chain([name]).map(|name| ListedModel {
            id: name.clone(),
            created_unix_s: 0,
            owned_by: "mlxd".to_owned(),
            stands_for: Some(StandsFor::OneOf(targets.clone())),
        }));
    }
    listed
}

/// What a virtual model leads to, in a line.
pub fn summary(config: &RoutesConfig, name: &str) -> Option<String> {
    let route = config.tables.get(name)?;
    let rules = route.rules.iter().map(|rule| rule.model.as_str()).collect::<Vec<_>>();
    Some(match (rules.is_empty(), route.table.fallback.is_empty()) {
        (true, _) => route.table.fallback.join(", "),
        (false, true) => rules.join(", "),
        (false, false) => format!("{}, else {}", rules.join(", "), route.table.fallback.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlxd_config::Sources;
    use std::path::Path;

    fn config(text: &str) -> Config {
        let file = Some((Path::new("m.toml"), text));
        Config::from_sources(Sources { file, ..Sources::default() }).unwrap().config
    }

    #[test]
    fn names_that_are_no_models_are_listed_with_what_they_stand_for() {
        let config = config(
            "[models.\"org/small\"]\naliases = [\"small\"]\n[models.gone]\naliases = [\"old\"]\n\
             [routes.auto]\naliases = [\"any\"]\nfallback = [\"org/large\", \"small\"]\n\
             rules = [{ model = \"small\", loaded = true }]",
        );
        let small = ListedModel {
            id: "org/small".into(),
            created_unix_s: 7,
            owned_by: "org".into(),
            stands_for: None,
        };
        let found = listed(&config, &[small]);
        let names: Vec<&str> = found.iter().map(|model| model.id.as_str()).collect();
        assert_eq!(names, ["small", "any", "auto"]);
        assert_eq!(found[0].stands_for, Some(StandsFor::Model("org/small".into())));
        let targets = vec!["org/small".to_owned(), "org/large".to_owned()];
        assert_eq!(found[2].stands_for, Some(StandsFor::OneOf(targets)));
        let routes = routes(&config.routes);
        assert_eq!(routes["any"], routes["auto"]);
        assert_eq!(routes["auto"].rules[0].loaded, Some(true));
        let summary = summary(&config.routes, "auto").unwrap();
        assert_eq!(summary, "small, else org/large, small");
    }
}
