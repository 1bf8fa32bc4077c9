//! Models on disk: pulled, listed, shown, removed.

use super::{AdminErrorBody, WorkerState};
use serde::{Deserialize, Serialize};

/// A model to fetch from a hub.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullCall {
    /// `NAME` or `NAME@REVISION`.
    pub model: String,
    /// Another hub than the front's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Another token than the front's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Whether the caller forbids the network.
    #[serde(default)]
    pub offline: bool,
}

impl std::fmt::Debug for PullCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PullCall")
            .field("model", &self.model)
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("offline", &self.offline)
            .finish()
    }
}

/// What a pull is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PullStage {
    /// Asks the hub which files there are.
    Asking,
    /// Fetches them.
    Fetching,
    /// Writes links and references.
    Finishing,
    /// The model is there.
    Done,
    /// It is not: `error` says why.
    Failed,
}

impl PullStage {
    /// Whether nothing comes after it.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Done | Self::Failed)
    }
}

/// One file of a pull.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullFileStatus {
    /// Its name.
    pub name: String,
    /// Bytes it has.
    pub bytes_total: u64,
    /// Bytes that are here.
    pub bytes_done: u64,
    /// Trouble that it is being tried again after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// A request to a hub that failed and is made again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullRetry {
    /// What is asked for.
    pub what: String,
    /// Which file's bytes these are, once the files are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The hub's address.
    pub endpoint: String,
    /// Why the last attempt gave nothing.
    pub fault: String,
    /// Which attempt comes next; they count anew once one gains anything.
    pub attempt: u32,
    /// Which one is the last.
    pub attempts_max: u32,
    /// Until the next one; 0 while it is made.
    pub wait_ms: u64,
    /// Which retry of the pull this is, from 1 on.
    pub number: u64,
}

/// Where a pull stands. `POST /admin/v1/pull` answers with one a line until its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullStatus {
    /// As asked for.
    pub model: String,
    /// What it is doing.
    pub stage: PullStage,
    /// The commit, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// The files, once they are known.
    #[serde(default)]
    pub files: Vec<PullFileStatus>,
    /// Bytes that came over the network in this pull.
    pub bytes_fetched: u64,
    /// Requests that failed and did not succeed since, the latest failure last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retries: Vec<PullRetry>,
    /// Since its beginning.
    pub elapsed_ms: u64,
    /// Calls that watch it.
    pub watchers: usize,
    /// Where the model is, once it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<AdminErrorBody>,
}

impl PullStatus {
    /// Bytes of all files, and how many of them are here.
    pub fn bytes(&self) -> (u64, u64) {
        let total = self.files.iter().map(|file| file.bytes_total).sum();
        (total, self.files.iter().map(|file| file.bytes_done).sum())
    }
}

/// Calls a pull off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullCancelCall {
    /// As it was pulled.
    pub model: String,
    /// Even when other calls watch it.
    #[serde(default)]
    pub force: bool,
}

/// A model on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelOnDisk {
    /// Its name in requests.
    pub name: String,
    /// Bytes of its weights, as far as they are here.
    pub bytes: u64,
    /// `qwen3`, …, or `unknown`.
    pub architecture: String,
    /// `4-bit g64`, `bf16`, …, or `unknown`.
    pub quantization: String,
    /// Parameters, counted before quantisation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<u64>,
    /// When its `config.json` came here, in seconds since 1970.
    pub created_unix_s: u64,
    /// What its worker is doing.
    pub state: WorkerState,
    /// `hub`, `folder`, `named` or `built-in`.
    pub source: String,
    /// What it lacks, when it cannot be loaded for that. Its form and parameters are not known then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incomplete: Option<Incomplete>,
}

/// What a model on disk lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incomplete {
    /// Names of files.
    pub missing: Vec<String>,
    /// What to do about it, in words.
    pub cure: String,
}

/// Every model on disk, and what is being pulled.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Shelf {
    /// In name order.
    pub models: Vec<ModelOnDisk>,
    /// Under way.
    #[serde(default)]
    pub pulls: Vec<PullStatus>,
}

/// What is known of one model without loading it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelShow {
    /// What the list shows.
    #[serde(flatten)]
    pub model: ModelOnDisk,
    /// Where its files are.
    pub folder: String,
    /// The commit it was pulled at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Tokens of context that it was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_tokens: Option<u64>,
    /// Bytes that its weights take once loaded, about.
    pub weight_bytes: u64,
    /// Bytes of KV per token of context; `None` when its architecture is not known here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_bytes_per_token: Option<u64>,
    /// As its card says: `apache-2.0`, ….
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// `text`, `image`, ….
    pub modalities: Vec<String>,
    /// Whether it has a chat template.
    pub chat: bool,
    /// Other names that the configuration gives it.
    #[serde(default)]
    pub aliases: Vec<String>,
}

/// A model to delete from disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveCall {
    /// `NAME`, or `NAME@REVISION` for one revision.
    pub model: String,
    /// Stops it first when it is loaded.
    #[serde(default)]
    pub force: bool,
}

/// A model that was deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// As asked for.
    pub model: String,
    /// Bytes of disk that were given back.
    pub freed_bytes: u64,
    /// Bytes of its files that stay, because another revision has them too.
    pub shared_bytes: u64,
    /// Models that were stopped for it.
    #[serde(default)]
    pub stopped: Vec<String>,
}
