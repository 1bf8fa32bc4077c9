//! What is known of a model before its worker runs: its folder, its texts, its defaults.

use crate::admission::Lifetime;
use crate::route::{Modality, Route};
use mlxd_memory::Needs;
use mlxd_protocol::ModelId;
use mlxd_supervisor::WorkerSpec;
use mlxd_text::{ChatTemplate, TemplateLimits, TextError, Tokenizer};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Where models come from. Calls may read files: they are made on a blocking thread.
pub trait ModelSource: Send + Sync + 'static {
    /// Finds the model that a request names.
    ///
    /// # Errors
    /// [`ModelFault::Unknown`], or [`ModelFault::Broken`] for a model that is there but unusable.
    fn find(&self, name: &str) -> Result<FoundModel, ModelFault>;

    /// Every model that a request could name.
    fn list(&self) -> Vec<ListedModel>;

    /// The models that `mlxctl status` shows even when nobody asked for them yet. Does not block.
    fn configured(&self) -> Vec<String>;

    /// The groups that a model belongs to. Does not block.
    fn groups(&self, model: &str) -> Vec<String>;

    /// The virtual model of this name or alias. Does not block.
    fn route(&self, name: &str) -> Option<Arc<Route>>;
}

/// Limits over all models.
#[derive(Debug, Clone)]
pub struct DispatchLimits {
    /// How long a sequence may wait for its first token.
    pub queue_timeout: Duration,
    /// How long a sequence may take from being taken in to its end.
    pub total_timeout: Duration,
    /// How long a sequence may wait for its next token after its worker died.
    pub recovery_timeout: Duration,
    /// A sequence that was in a worker at so many deaths is not tried again.
    pub request_deaths_max: u32,
    /// A worker that takes no request for so long is hung.
    pub idle_hang: Duration,
    /// Events kept, for whoever asks and for a listener that lags.
    pub events_kept_max: usize,
}

impl Default for DispatchLimits {
    fn default() -> Self {
        Self {
            queue_timeout: Duration::from_secs(600),
            total_timeout: Duration::from_secs(3600),
            recovery_timeout: Duration::from_secs(120),
            request_deaths_max: 2,
            idle_hang: Duration::from_secs(5),
            events_kept_max: 1000,
        }
    }
}

/// A model on disk.
#[derive(Debug, Clone)]
pub struct FoundModel {
    /// Its own name, whatever alias was asked for.
    pub id: ModelId,
    /// Its folder.
    pub folder: PathBuf,
    /// How its worker is run.
    pub worker: WorkerSpec,
    /// Sequences open at once at the most, computed and waiting together.
    pub open_max: usize,
    /// Tokens of context that configuration allows.
    pub context_tokens_max: Option<u32>,
    /// What its chat template may do.
    pub template_limits: TemplateLimits,
    /// What it needs of memory.
    pub needs: Needs,
    /// How long it stays loaded.
    pub lifetime: Lifetime,
}

/// A line of `/v1/models`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedModel {
    /// Its name.
    pub id: String,
    /// When its files were written, seconds since 1970.
    pub created_unix_s: u64,
    /// Whose it is: the organisation in its name, or `mlxd`.
    pub owned_by: String,
    /// What it stands for, when it is no model itself.
    pub stands_for: Option<StandsFor>,
}

/// What a name that is no model's own stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StandsFor {
    /// The model of this name.
    Model(String),
    /// One of these, as its rules choose.
    OneOf(Vec<String>),
}

impl StandsFor {
    /// The models behind it.
    pub(crate) fn models(&self) -> &[String] {
        match self {
            Self::Model(name) => std::slice::from_ref(name),
            Self::OneOf(names) => names,
        }
    }
}

/// Why a name gives no model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelFault {
    /// No such model.
    #[error("no model is called {name}{}", nearest.as_ref().map(|n| format!("; did you mean {n}?")).unwrap_or_default())]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
        /// The nearest of those.
        nearest: Option<String>,
    },
    /// Its files cannot be used.
    #[error("{message}")]
    Broken {
        /// Which file and why.
        message: String,
    },
}

impl ModelFault {
    pub(crate) fn broken(message: impl Into<String>) -> Self {
        Self::Broken { message: message.into() }
    }
}

/// How a model's authors want it sampled, from `generation_config.json`. `None` is not said there.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct GenerationDefaults {
    /// 0 where `do_sample` is false.
    pub temperature: Option<f32>,
    /// See [`Sampling`](mlxd_protocol::Sampling).
    pub top_p: Option<f32>,
    /// See [`Sampling`](mlxd_protocol::Sampling).
    pub top_k: Option<u32>,
    /// See [`Sampling`](mlxd_protocol::Sampling).
    pub min_p: Option<f32>,
    /// See [`Sampling`](mlxd_protocol::Sampling).
    pub repetition_penalty: Option<f32>,
    do_sample: Option<bool>,
    /// Tokens that end an answer.
    #[serde(skip)]
    pub stop_tokens: Arc<[u32]>,
}

/// What a response needs to turn text into tokens and back.
#[derive(Debug)]
pub struct ModelText {
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    /// Messages to text; a base model has none.
    pub template: Option<ChatTemplate>,
    /// How its authors want it sampled.
    pub defaults: GenerationDefaults,
}

/// A model that requests can be made of.
#[derive(Debug, Clone)]
pub struct OpenModel {
    /// Its own name.
    pub id: ModelId,
    /// Its texts.
    pub text: Arc<ModelText>,
    /// Tokens of a sequence, prompt and answer together.
    pub context_tokens: u32,
    /// Numbers of its vectors, of a model that turns texts into vectors and writes none.
    pub vector_width: Option<u32>,
    /// What it takes besides text.
    pub takes: Arc<[Modality]>,
}

/// Used when a model's config does not say how long its context is.
const CONTEXT_TOKENS_UNSAID: u32 = 4096;

impl OpenModel {
    /// Reads what is needed from the model's folder. Blocks.
    pub(crate) fn read(found: &FoundModel) -> Result<Self, ModelFault> {
        let text_fault = |error: TextError| ModelFault::broken(format!("{}: {error}", found.id));
        let tokenizer = Tokenizer::load(&found.folder).map_err(text_fault)?;
        if let Some(draft) = &found.worker.load.draft {
            check_draft(&tokenizer, &draft.folder)
                .map_err(|why| ModelFault::broken(format!("{}: {why}", found.id)))?;
        }
        let template =
            ChatTemplate::load_within(&found.folder, found.template_limits).map_err(text_fault)?;
        let mut defaults = read_defaults(&found.folder)?;
        defaults.stop_tokens = tokenizer.eos_ids().into();
        let Said { context, vector_width, takes } = read_config(&found.folder)?;
        let context_tokens = found.context_tokens_max.map_or(context, |max| max.min(context));
        let text = Arc::new(ModelText { tokenizer, template, defaults });
        Ok(Self { id: found.id.clone(), text, context_tokens, vector_width, takes })
    }
}

/// A draft model guesses token ids: they must stand for the same texts in both.
fn check_draft(tokenizer: &Tokenizer, folder: &Path) -> Result<(), String> {
    let draft = Tokenizer::load(folder).map_err(|error| format!("its draft model: {error}"))?;
    match tokenizer.first_difference(&draft) {
        None => Ok(()),
        Some(id) => {
            let text = |tokenizer: &Tokenizer| tokenizer.token_text(id).unwrap_or_default();
            Err(format!(
                "the draft model in {} has other tokens: {id} is {:?} there and {:?} here; choose a \
                 small model of the same family, or leave draft_model out",
                folder.display(),
                text(&draft),
                text(tokenizer)
            ))
        }
    }
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, ModelFault> {
    let fault = |why: String| ModelFault::broken(format!("{}: {why}", path.display()));
    match std::fs::read(path) {
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(value) => Ok(Some(value)),
            Err(error) => Err(fault(error.to_string())),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(fault(error.to_string())),
    }
}

fn read_defaults(folder: &Path) -> Result<GenerationDefaults, ModelFault> {
    let read = read_json::<GenerationDefaults>(&folder.join("generation_config.json"))?;
    let mut defaults = read.unwrap_or_default();
    if defaults.do_sample == Some(false) {
        defaults.temperature = Some(0.0);
    }
    Ok(defaults)
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    model_type: String,
    max_position_embeddings: Option<u32>,
    hidden_size: Option<u32>,
    pad_token_id: Option<u32>,
    text_config: Option<Box<Config>>,
    #[serde(flatten)]
    others: serde_json::Map<String, serde_json::Value>,
}

/// What a model's config says of it.
#[derive(Debug, PartialEq)]
struct Said {
    /// Tokens of a sequence.
    context: u32,
    /// Numbers of its vectors, of a model that makes vectors: an encoder, or one whose authors say
    /// how its hidden states are pooled.
    vector_width: Option<u32>,
    /// What it takes besides text.
    takes: Arc<[Modality]>,
}

/// A module of sentence-transformers.
#[derive(Deserialize)]
struct Module {
    #[serde(default, rename = "type")]
    kind: String,
}

fn read_config(folder: &Path) -> Result<Said, ModelFault> {
    let config = read_json::<Config>(&folder.join("config.json"))?
        .ok_or_else(|| ModelFault::broken(format!("{}: no config.json", folder.display())))?;
    let inner = config.text_config.as_deref();
    let said = config.max_position_embeddings;
    let mut context = said
        .or_else(|| inner.and_then(|text| text.max_position_embeddings))
        .unwrap_or(CONTEXT_TOKENS_UNSAID);
    let encodes = matches!(config.model_type.as_str(), "bert" | "roberta" | "xlm-roberta");
    if encodes && config.model_type != "bert" {
        // RoBERTa counts positions from behind the padding's id.
        context = context.saturating_sub(config.pad_token_id.unwrap_or(1).saturating_add(1));
    }
    let modules = read_json::<Vec<Module>>(&folder.join("modules.json"))?.unwrap_or_default();
    let pools = modules.iter().any(|module| module.kind.ends_with(".Pooling"));
    let width = config.hidden_size.or_else(|| inner.and_then(|text| text.hidden_size));
    let has = |keys: &[&str]| keys.iter().any(|key| config.others.contains_key(*key));
    let takes = [
        (Modality::Image, has(&["vision_config", "image_token_id", "image_token_index"])),
        (Modality::Video, has(&["video_token_id", "video_token_index"])),
        (Modality::Audio, has(&["audio_config", "audio_token_id"])),
    ];
    let takes = takes.into_iter().filter_map(|(kind, has)| has.then_some(kind)).collect();
    Ok(Said { context, vector_width: width.filter(|_| encodes || pools), takes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_come_from_the_models_own_files() {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        assert_eq!(read_defaults(folder.path()).unwrap(), GenerationDefaults::default());
        write(
            "generation_config.json",
            r#"{"temperature": 0.6, "top_k": 20, "eos_token_id": [1, 2]}"#,
        );
        let defaults = read_defaults(folder.path()).unwrap();
        assert_eq!((defaults.temperature, defaults.top_k), (Some(0.6), Some(20)));
        write("generation_config.json", r#"{"temperature": 0.6, "do_sample": false}"#);
        assert_eq!(read_defaults(folder.path()).unwrap().temperature, Some(0.0));

        assert!(read_config(folder.path()).unwrap_err().to_string().contains("config.json"));
        let sizes = || {
            let said = read_config(folder.path()).unwrap();
            (said.context, said.vector_width)
        };
        let takes = || read_config(folder.path()).unwrap().takes;
        write("config.json", r#"{"text_config": {"max_position_embeddings": 77}}"#);
        assert_eq!(sizes(), (77, None));
        write("modules.json", r#"[{"type": "sentence_transformers.models.Transformer"}]"#);
        write("config.json", r#"{"max_position_embeddings": 9, "hidden_size": 4}"#);
        assert_eq!(sizes(), (9, None));
        write("modules.json", r#"[{"type": "sentence_transformers.models.Pooling"}]"#);
        assert_eq!(sizes(), (9, Some(4)));
        write(
            "config.json",
            r#"{"model_type": "xlm-roberta", "max_position_embeddings": 9, "hidden_size": 4}"#,
        );
        assert_eq!(sizes(), (7, Some(4)));
        assert_eq!(takes(), Arc::from([]));
        write("config.json", r#"{"max_position_embeddings": 7, "vision_config": {}}"#);
        assert_eq!(takes(), Arc::from([Modality::Image]));
        write("config.json", "{");
        assert!(read_config(folder.path()).unwrap_err().to_string().contains("EOF"));
    }
}
