//! Which models the words of a command mean: names, `GROUP:*`, `all`.

use crate::arguments::model_from_here;
use crate::client::{Failure, Front};
use mlxd_protocol::admin::{AdminErrorBody, ModelStatus, Status};
use serde_json::{Value, json};

/// The models that are meant, in the order of the words, each once.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Selection {
    /// Their names; one that was named need not be in the status table.
    pub(crate) names: Vec<String>,
    /// Groups that no model belongs to.
    pub(crate) empty_groups: Vec<String>,
}

/// Whether a word needs the status table to be understood.
fn is_many(word: &str) -> bool {
    word == "all" || group(word).is_some()
}

fn group(word: &str) -> Option<&str> {
    word.strip_suffix(":*")
}

impl Selection {
    /// Reads `words`. `concerns` says which models `all` and a group mean for this command; the
    /// table is asked for only if a word needs it.
    pub(crate) async fn read(
        front: &Front,
        words: &[String],
        concerns: impl Fn(&ModelStatus) -> bool,
    ) -> Result<Self, Failure> {
        if !words.iter().any(|word| is_many(word)) {
            return Self::of(words, &[], concerns);
        }
        let status: Status = front.get("/admin/v1/status").await?;
        Self::of(words, &status.models, concerns)
    }

    /// As [`Selection::read`], with the table at hand.
    pub(crate) fn of(
        words: &[String],
        table: &[ModelStatus],
        concerns: impl Fn(&ModelStatus) -> bool,
    ) -> Result<Self, Failure> {
        let mut selection = Self::default();
        for word in words {
            match group(word) {
                None if word == "all" => {
                    table
                        .iter()
                        .filter(|model| concerns(model))
                        .for_each(|m| selection.add(&m.name));
                }
                None => selection.add(&model_from_here(word)?),
                Some(group) => {
                    let belongs = |model: &&ModelStatus| model.groups.iter().any(|g| g == group);
                    if !table.iter().any(|model| belongs(&model)) {
                        selection.empty_groups.push(group.to_owned());
                    }
                    let members = table.iter().filter(belongs).filter(|model| concerns(model));
                    members.for_each(|model| selection.add(&model.name));
                }
            }
        }
        Ok(selection)
    }

    fn add(&mut self, name: &str) {
        if !self.names.iter().any(|known| known == name) {
            self.names.push(name.to_owned());
        }
    }
}

/// A word that means no model, with why.
pub(crate) struct Unknown {
    word: String,
    error: AdminErrorBody,
}

impl Unknown {
    /// A group without models.
    pub(crate) fn group(group: &str) -> Self {
        let message = "no model belongs to this group; `groups` in mlxd.toml says which do";
        Self::new(format!("{group}:*"), "unknown_group", message)
    }

    /// A name that the status table does not have.
    pub(crate) fn model(name: &str) -> Self {
        let message = "no such model in the table; `mlxctl status` shows it";
        Self::new(name.to_owned(), "unknown_model", message)
    }

    fn new(word: String, code: &str, message: &str) -> Self {
        Self { word, error: AdminErrorBody { code: code.to_owned(), message: message.to_owned() } }
    }

    /// Says it on standard error.
    pub(crate) fn tell(&self) {
        eprintln!("mlxctl: {}: ERROR ({})", self.word, self.error.message);
    }

    /// As a row among those of the models.
    pub(crate) fn row(&self) -> Value {
        json!({"model": self.word, "error": self.error})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlxd_protocol::admin::WorkerState;

    fn table() -> Vec<ModelStatus> {
        [("a", "RUNNING", vec!["g"]), ("b", "STOPPED", vec!["g", "h"]), ("c", "FATAL", vec![])]
            .into_iter()
            .map(|(name, state, groups)| {
                serde_json::from_value(serde_json::json!({
                    "name": name, "state": state, "groups": groups, "requests_total": 0,
                    "tokens_total": 0, "running": 0, "queued": 0, "tokens_per_s": 0.0, "deaths": 0,
                }))
                .unwrap()
            })
            .collect()
    }

    fn names(words: &[&str], concerns: fn(&ModelStatus) -> bool) -> Vec<String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        Selection::of(&words, &table(), concerns).unwrap().names
    }

    #[test]
    fn words_become_models_once_each() {
        assert_eq!(names(&["all"], |_| true), ["a", "b", "c"]);
        assert_eq!(names(&["h:*", "g:*", "x", "a"], |_| true), ["b", "a", "x"]);
        let in_use = |model: &ModelStatus| model.state != WorkerState::Stopped;
        assert_eq!(names(&["g:*"], in_use), ["a"]);
        assert_eq!(names(&["all"], in_use), ["a", "c"]);
        // Who names a stopped model means it.
        assert_eq!(names(&["b"], in_use), ["b"]);
    }

    #[test]
    fn a_group_without_models_is_told() {
        let words = ["z:*".to_owned(), "g:*".to_owned()];
        let selection = Selection::of(&words, &table(), |_| true).unwrap();
        assert_eq!(selection.empty_groups, ["z"]);
        assert_eq!(selection.names, ["a", "b"]);
        // A model may have a colon in its name.
        assert_eq!(names(&["qwen:7b"], |_| true), ["qwen:7b"]);
    }
}
