//! What a new configuration changes, for `mlxctl reread` and `mlxctl update`.

use super::{Deserialize, Serialize};

/// The difference between the configuration in effect and the one in the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reread {
    /// The file that was read; `None` when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Whether it has been put to work: `false` from `reread`, `true` from `update`.
    pub applied: bool,
    /// Models that come, go or change, in name order.
    pub models: Vec<ModelChange>,
    /// Other keys that differ, in the order of the file.
    pub settings: Vec<SettingChange>,
    /// What is odd about the file without being wrong.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// One model that comes, goes or changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelChange {
    /// Its name.
    pub model: String,
    /// What becomes of it.
    pub change: ModelChangeKind,
    /// The keys that differ.
    #[serde(default)]
    pub keys: Vec<String>,
    /// What `update` did with a running worker, or would do, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What becomes of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelChangeKind {
    /// Its table is new.
    Added,
    /// Its table differs.
    Changed,
    /// Its table is gone.
    Removed,
}

/// One key outside the models' tables that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingChange {
    /// As `http.port`.
    pub key: String,
    /// The value in effect, as TOML; `None` is unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The value in the file, as TOML; `None` is unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Whether only a new start of mlxd puts it to work.
    pub needs_restart: bool,
}
