//! What a new configuration changes.

use crate::virtual_models;
use mlxd_config::Config;
use mlxd_protocol::admin::{ModelChange, ModelChangeKind, Reread, SettingChange};
use std::collections::BTreeSet;
use toml::{Table, Value};

/// Sections that are read once, at the start.
const AT_START_ONLY: [&str; 5] = ["http", "requests", "streams", "log", "paths"];

/// The one key of `[memory]` that is.
const REHEARSAL: &str = "memory.rehearsal";

/// Keys of a model that no worker is told: they are at work at once.
pub const FRONTS_ALONE: [&str; 3] = ["aliases", "groups", "preload"];

/// The difference between two configurations, key by key.
pub fn difference(now: &Config, then: &Config) -> Reread {
    let mut reread = Reread { settings: route_changes(now, then), ..Reread::default() };
    let (now, then) = (table(now), table(then));
    for section in Config::section_names() {
        let (from, to) = (section_of(&now, section), section_of(&then, section));
        for key in Config::keys(section) {
            let (from, to) = (from.and_then(|t| t.get(*key)), to.and_then(|t| t.get(*key)));
            if from != to {
                let key = format!("{section}.{key}");
                reread.settings.push(SettingChange {
                    needs_restart: AT_START_ONLY.contains(section) || key == REHEARSAL,
                    key,
                    from: from.map(Value::to_string),
                    to: to.map(Value::to_string),
                });
            }
        }
    }
    reread.models = model_changes(section_of(&now, "models"), section_of(&then, "models"));
    reread
}

fn route_changes(now: &Config, then: &Config) -> Vec<SettingChange> {
    let (from, to) = (&now.routes.tables, &then.routes.tables);
    let names: BTreeSet<&String> = from.keys().chain(to.keys()).collect();
    let changed = names.into_iter().filter(|name| from.get(*name) != to.get(*name));
    let change = |name: &String| SettingChange {
        key: format!("routes.{name:?}"),
        from: virtual_models::summary(&now.routes, name),
        to: virtual_models::summary(&then.routes, name),
        needs_restart: false,
    };
    changed.map(change).collect()
}

fn model_changes(from: Option<&Table>, to: Option<&Table>) -> Vec<ModelChange> {
    let (from, to) = (model_tables(from), model_tables(to));
    let mut changes = Vec::new();
    for (name, table) in &to {
        let Some((_, old)) = from.iter().find(|(other, _)| other == name) else {
            changes.push(change(name, ModelChangeKind::Added, Vec::new()));
            continue;
        };
        let differs = |key: &&&str| old.get(**key) != table.get(**key);
        let keys: Vec<_> =
            Config::model_keys().iter().filter(differs).map(|k| k.to_string()).collect();
        if !keys.is_empty() {
            changes.push(change(name, ModelChangeKind::Changed, keys));
        }
    }
    for (name, _) in &from {
        if !to.iter().any(|(other, _)| other == name) {
            changes.push(change(name, ModelChangeKind::Removed, Vec::new()));
        }
    }
    changes.sort_by(|a, b| a.model.cmp(&b.model));
    changes
}

fn change(model: &str, change: ModelChangeKind, keys: Vec<String>) -> ModelChange {
    ModelChange { model: model.to_owned(), change, keys, note: None }
}

fn table(config: &Config) -> Table {
    config.to_toml().parse().expect("what the configuration writes is TOML")
}

fn section_of<'a>(table: &'a Table, section: &str) -> Option<&'a Table> {
    table.get(section).and_then(Value::as_table)
}

fn model_tables(models: Option<&Table>) -> Vec<(&str, &Table)> {
    models
        .into_iter()
        .flatten()
        .filter_map(|(name, value)| Some((name.as_str(), value.as_table()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlxd_config::Sources;
    use std::path::Path;

    fn config(text: &str) -> Config {
        let file = Some((Path::new("mlxd.toml"), text));
        Config::from_sources(Sources { file, ..Sources::default() }).unwrap().config
    }

    #[test]
    fn every_difference_is_named_once() {
        let now = config("[http]\nport = 1\n[models.a]\npreload = true\n[models.b]\n[models.c]\n");
        let then = config(
            "[workers]\nterm_ms = 500\n[models.a]\nrunning_max = 2\n[models.c]\n[models.d]\n",
        );
        let reread = difference(&now, &then);
        let settings: Vec<_> =
            reread.settings.iter().map(|s| (s.key.as_str(), s.needs_restart)).collect();
        assert_eq!(settings, [("http.port", true), ("workers.term_ms", false)]);
        assert_eq!(reread.settings[0].to.as_deref(), Some("11440"));
        let models: Vec<_> = reread.models.iter().map(|m| (m.model.as_str(), m.change)).collect();
        use ModelChangeKind::{Added, Changed, Removed};
        assert_eq!(models, [("a", Changed), ("b", Removed), ("d", Added)]);
        assert_eq!(reread.models[0].keys, ["preload", "running_max"]);
        assert_eq!(difference(&now, &now), Reread::default());
        let memory = config("[memory]\nbudget_bytes = 67108864\nrehearsal = \"/tmp/figures\"\n");
        let reread = difference(&Config::default(), &memory);
        let settings: Vec<_> =
            reread.settings.iter().map(|s| (s.key.as_str(), s.needs_restart)).collect();
        assert_eq!(settings, [("memory.budget_bytes", false), ("memory.rehearsal", true)]);
        assert!(FRONTS_ALONE.iter().all(|key| Config::model_keys().contains(key)));
        let routed = config("[routes.auto]\nfallback = [\"a\", \"b\"]");
        let reread = difference(&Config::default(), &routed);
        assert_eq!(reread.settings.len(), 1);
        assert_eq!(reread.settings[0].key, "routes.\"auto\"");
        assert_eq!(reread.settings[0].to.as_deref(), Some("a, b"));
        assert!(!reread.settings[0].needs_restart);
    }
}
