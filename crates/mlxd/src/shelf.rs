//! Models on disk, for an admin: pulled, listed, shown, removed.

use crate::administration::Administration;
use mlxd_dispatch::{ModelFault, ModelSource};
use mlxd_http::{AdminAnswer, ModelShelf, PullFeed};
use mlxd_protocol::admin::{
    AdminErrorBody, Incomplete, ModelOnDisk, ModelShow, PullCall, PullCancelCall, PullStatus,
    RemoveCall, Removed, Shelf, WorkerState,
};
use mlxd_store::{
    Description, HubAccess, IncompleteModel, Pull, PullCancel, PullLimits, PullProgress,
    STANDARD_ENDPOINT, Source, StoreError, describe,
};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// A longer token is none.
const TOKEN_BYTES_MAX: u64 = 4096;

type States = HashMap<String, WorkerState>;

impl ModelShelf for Administration {
    fn pull(&self, call: PullCall) -> Result<PullFeed, AdminErrorBody> {
        let hub = self.config().hub;
        let ms = Duration::from_millis;
        let pull = Pull {
            cache: self.folders().hf_cache.clone(),
            access: self.hub_access(&call),
            limits: PullLimits {
                files_at_once: hub.files_at_once,
                connect_timeout: ms(hub.connect_timeout_ms),
                stall_timeout: ms(hub.stall_timeout_ms),
                attempts_max: hub.attempts_max,
                reserve_bytes: hub.disk_reserve_bytes,
                ..PullLimits::default()
            },
            progress: PullProgress::default(),
            cancel: PullCancel::default(),
            name: call.model,
        };
        let dispatch = self.dispatch().clone();
        // A worker that runs keeps the files it began with.
        let done = move |_: &_| dispatch.forget_all_files();
        Ok(self.pulls().begin(pull, hub.pulls_max, done)?.feed())
    }

    fn cancel_pull(&self, call: PullCancelCall) -> AdminAnswer<PullStatus> {
        let pulls = self.pulls().clone();
        Box::pin(async move { pulls.cancel(&call.model, call.force) })
    }

    fn shelf(&self) -> AdminAnswer<Shelf> {
        let this = self.clone();
        Box::pin(async move {
            let states = this.states().await;
            let pulls = this.pulls().statuses();
            let comes = pulls.iter().map(|pull| repository(&pull.model).to_owned()).collect();
            let models = blocking(move || Ok(this.models_on_disk(&states, &comes))).await?;
            Ok(Shelf { models, pulls })
        })
    }

    fn show(&self, model: String) -> AdminAnswer<ModelShow> {
        let this = self.clone();
        Box::pin(async move {
            let states = this.states().await;
            blocking(move || this.show_model(&model, &states)).await
        })
    }

    fn remove(&self, call: RemoveCall) -> AdminAnswer<Removed> {
        let this = self.clone();
        Box::pin(async move { this.remove_model(call).await })
    }
}

impl Administration {
    /// The call's own hub and token, else the configuration's, else the environment's.
    fn hub_access(&self, call: &PullCall) -> HubAccess {
        let (config, environment) = (self.config().hub, self.environment());
        let endpoint = call.endpoint.clone().or(config.endpoint);
        let endpoint = endpoint.or_else(|| environment.hf_endpoint.clone());
        let own_token = || {
            let given = environment.hf_token.as_ref().map(|token| token.reveal().to_owned());
            given.or_else(|| read_token(&environment.hf_token_file()?))
        };
        HubAccess {
            endpoint: endpoint.unwrap_or_else(|| STANDARD_ENDPOINT.to_owned()),
            token: call.token.clone().or_else(own_token),
            offline: call.offline || config.offline || environment.hf_offline,
            proxies: true,
        }
    }

    async fn states(&self) -> States {
        let models = self.dispatch().status().await.models;
        models.into_iter().map(|model| (model.name, model.state)).collect()
    }

    /// Every model on disk; of incomplete ones those that are not being pulled.
    fn models_on_disk(&self, states: &States, comes: &HashSet<String>) -> Vec<ModelOnDisk> {
        let mut models: Vec<ModelOnDisk> = Vec::new();
        for entry in self.models().store().list() {
            if let Ok(description) = describe(&entry.folder) {
                let source = source_name(entry.source);
                models.push(on_disk(&entry.name, &entry.folder, source, &description, states));
            }
        }
        let incomplete = self.models().store().incomplete().into_iter();
        let incomplete = incomplete.filter(|model| !comes.contains(&model.name));
        models.extend(incomplete.map(|model| partly_on_disk(model, states)));
        if let Ok((folder, description)) = self.built_in() {
            models.push(on_disk(mlxd_demo::NAME, &folder, BUILT_IN, &description, states));
        }
        models.sort_by(|a, b| a.name.cmp(&b.name));
        models
    }

    fn built_in(&self) -> Result<(PathBuf, Description), AdminErrorBody> {
        let found = self.models().find(mlxd_demo::NAME).map_err(AdminErrorBody::from)?;
        if self.models().store().resolve(mlxd_demo::NAME).is_ok() {
            // Configuration gave its name to another folder, and the store listed that.
            return Err(unknown(mlxd_demo::NAME));
        }
        let description = describe(&found.folder).map_err(|error| broken(&error))?;
        Ok((found.folder, description))
    }

    fn show_model(&self, name: &str, states: &States) -> Result<ModelShow, AdminErrorBody> {
        let models = self.models();
        let found = models.find(name).map_err(AdminErrorBody::from)?;
        let name = found.id.as_str();
        let source = models.store().resolve(name).map_or(BUILT_IN, |m| source_name(m.source));
        let description = describe(&found.folder).map_err(|error| broken(&error))?;
        let config = self.config();
        let table = config.models.tables.get(name);
        // As it would be loaded here: on a CPU every number is a float32.
        let needs = &found.needs;
        Ok(ModelShow {
            model: on_disk(name, &found.folder, source, &description, states),
            folder: found.folder.display().to_string(),
            commit: description.commit,
            context_tokens: description.context_tokens,
            weight_bytes: needs.weight_bytes(),
            kv_bytes_per_token: needs.shape.as_ref().map(|_| needs.bytes_per_token()),
            licence: description.licence,
            modalities: description.modalities.into_iter().map(str::to_owned).collect(),
            chat: description.chat,
            aliases: table.map(|table| table.aliases.clone()).unwrap_or_default(),
        })
    }

    async fn remove_model(&self, call: RemoveCall) -> Result<Removed, AdminErrorBody> {
        let this = self.clone();
        let name = call.model.clone();
        let (target, users) = blocking(move || {
            let target = this.removal_target(&name)?;
            let users = this.users_of(&target);
            Ok((target, users))
        })
        .await?;
        if !users.is_empty() && !call.force {
            let message = format!(
                "{} is loaded; stop it first with `mlxctl stop`, or remove it with --force",
                users.join(", ")
            );
            return Err(AdminErrorBody { code: "in_use".into(), message });
        }
        for user in &users {
            match self.dispatch().stop(user).await {
                Ok(_) => {}
                Err(error) if error.code == "not_running" => {}
                Err(error) => return Err(error),
            }
        }
        let cache = self.folders().hf_cache.clone();
        let name = call.model.clone();
        let removal =
            blocking(move || mlxd_store::remove(&cache, &name).map_err(|error| broken(&error)))
                .await?;
        self.dispatch().forget_all_files();
        let removal = removal.ok_or_else(|| unknown(&call.model))?;
        tracing::info!(model = call.model, folder = %target.display(), "removed");
        Ok(Removed {
            model: call.model,
            freed_bytes: removal.freed_bytes,
            shared_bytes: removal.shared_bytes,
            stopped: users,
        })
    }

    /// The folder that would go. Only what lies in the Hugging Face cache is ours to delete.
    fn removal_target(&self, name: &str) -> Result<PathBuf, AdminErrorBody> {
        let is_pulled = |pull: &PullStatus| repository(&pull.model) == repository(name);
        if self.pulls().statuses().iter().any(is_pulled) {
            let message =
                format!("{name} is being pulled; call that off with `mlxctl pull --cancel {name}`");
            return Err(AdminErrorBody { code: "in_use".into(), message });
        }
        let cached = mlxd_store::cached_folder(&self.folders().hf_cache, name)
            .map_err(|error| bad_request(error.to_string()))?;
        match (cached, self.models().find(name)) {
            (Some(_), Ok(found)) if name.contains('@') => Ok(found.folder),
            (Some(folder), _) => Ok(folder),
            (None, Ok(found)) => Err(bad_request(format!(
                "{name} lies in {}, which no pull filled; delete it there",
                found.folder.display()
            ))),
            (None, Err(fault)) => Err(fault.into()),
        }
    }

    /// Models whose workers have files below `target` open.
    fn users_of(&self, target: &Path) -> Vec<String> {
        let mut running = self.dispatch().running();
        running.retain(|name| {
            self.models().find(name).is_ok_and(|found| found.folder.starts_with(target))
        });
        running
    }
}

const BUILT_IN: &str = "built-in";

fn source_name(source: Source) -> &'static str {
    match source {
        Source::Named => "named",
        Source::Path => "path",
        Source::Hub => "hub",
        Source::Folder => "folder",
    }
}

fn on_disk(
    name: &str,
    folder: &Path,
    source: &str,
    description: &Description,
    states: &States,
) -> ModelOnDisk {
    ModelOnDisk {
        name: name.to_owned(),
        bytes: description.weights.bytes,
        architecture: description.architecture.clone(),
        quantization: description.quantization.clone(),
        parameters: Some(description.weights.parameters),
        created_unix_s: created_unix_s(folder),
        state: states.get(name).copied().unwrap_or(WorkerState::Stopped),
        source: source.to_owned(),
        incomplete: None,
    }
}

fn partly_on_disk(model: IncompleteModel, states: &States) -> ModelOnDisk {
    let unknown = || "unknown".to_owned();
    ModelOnDisk {
        bytes: model.bytes,
        architecture: model.architecture.unwrap_or_else(unknown),
        quantization: unknown(),
        parameters: None,
        created_unix_s: created_unix_s(&model.folder),
        state: states.get(&model.name).copied().unwrap_or(WorkerState::Stopped),
        source: source_name(model.source).to_owned(),
        incomplete: Some(Incomplete { missing: model.missing, cure: model.cure }),
        name: model.name,
    }
}

/// When its `config.json` was written; 0 without one.
fn created_unix_s(folder: &Path) -> u64 {
    let written = std::fs::metadata(folder.join("config.json")).and_then(|file| file.modified());
    let written = written.ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    written.map_or(0, |since| since.as_secs())
}

/// A hub's name without its revision.
fn repository(name: &str) -> &str {
    name.split_once('@').map_or(name, |(repository, _)| repository)
}

fn read_token(path: &Path) -> Option<String> {
    if std::fs::metadata(path).ok()?.len() > TOKEN_BYTES_MAX {
        return None;
    }
    let token = std::fs::read_to_string(path).ok()?.trim().to_owned();
    (!token.is_empty()).then_some(token)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AdminErrorBody> + Send + 'static,
) -> Result<T, AdminErrorBody> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| {
        Err(AdminErrorBody { code: "internal".into(), message: error.to_string() })
    })
}

fn broken(error: &StoreError) -> AdminErrorBody {
    AdminErrorBody { code: "internal".into(), message: error.to_string() }
}

fn bad_request(message: String) -> AdminErrorBody {
    AdminErrorBody { code: "bad_request".into(), message }
}

fn unknown(name: &str) -> AdminErrorBody {
    let fault = ModelFault::Unknown { name: name.to_owned(), known: Vec::new(), nearest: None };
    fault.into()
}
