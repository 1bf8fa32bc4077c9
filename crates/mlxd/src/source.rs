//! Models by name, from configuration, the built-in model and the store.

use crate::instance::segments_folder;
use crate::{memory, virtual_models};
use mlxd_config::{Config, Device, Folders};
use mlxd_dispatch::route::Route;
use mlxd_dispatch::{FoundModel, ListedModel, ModelFault, ModelSource};
use mlxd_protocol::{DeviceChoice, DraftSpec, KvQuantization, LoadSpec, ModelId, PrefixDisk};
use mlxd_store::{ModelEntry, NamedFolder, Store, StoreError, StorePaths};
use mlxd_supervisor::{LifeLimits, LogFolder, SegmentSpec, WorkerLog, WorkerSpec};
use mlxd_text::TemplateLimits;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::Duration;

/// The front's [`ModelSource`]: replaced whole when a new configuration is put to work.
pub struct LiveModels(RwLock<Arc<Models>>);

impl LiveModels {
    pub fn new(models: Models) -> Self {
        Self(RwLock::new(Arc::new(models)))
    }

    pub fn replace(&self, models: Models) {
        *self.0.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Arc::new(models);
    }

    pub fn now(&self) -> Arc<Models> {
        self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}

impl ModelSource for LiveModels {
    fn find(&self, name: &str) -> Result<FoundModel, ModelFault> {
        self.now().find(name)
    }

    fn list(&self) -> Vec<ListedModel> {
        self.now().list()
    }

    fn configured(&self) -> Vec<String> {
        self.now().configured()
    }

    fn groups(&self, model: &str) -> Vec<String> {
        self.now().groups(model)
    }

    fn route(&self, name: &str) -> Option<Arc<Route>> {
        self.now().route(name)
    }
}

/// Models as one configuration names them.
pub struct Models {
    config: Config,
    folders: Folders,
    logs: LogFolder,
    store: Store,
    program: PathBuf,
    /// Virtual models, by names and aliases.
    routes: HashMap<String, Arc<Route>>,
}

impl Models {
    pub fn new(config: &Config, folders: &Folders, logs: LogFolder, home: Option<PathBuf>) -> Self {
        let named = config.models.named_folders();
        let named =
            named.map(|(name, folder)| NamedFolder { name: name.into(), folder: folder.clone() });
        let store = Store::new(StorePaths {
            hf_cache: Some(folders.hf_cache.clone()),
            folders: config.models.all.folders.clone(),
            named: named.collect(),
            paths_allowed: config.models.all.paths_allowed,
            home,
        });
        let program = config.workers.program.clone().unwrap_or_else(beside_mlxd);
        let routes = virtual_models::routes(&config.routes);
        Self { config: config.clone(), folders: folders.clone(), logs, store, program, routes }
    }

    /// Targets of virtual models, and models with aliases, that nothing here is called: a sentence
    /// for each.
    pub fn unknown_targets(&self) -> Vec<String> {
        let routes = &self.config.routes.tables;
        let targets = routes.iter().flat_map(|(route, config)| {
            config.targets().map(move |target| (format!("[routes.{route:?}]"), target))
        });
        let aliased =
            self.config.models.tables.iter().filter(|(_, table)| !table.aliases.is_empty());
        let aliased = aliased.map(|(name, _)| (format!("[models.{name:?}]"), name.as_str()));
        let unknown = targets.chain(aliased).filter_map(|(place, target)| {
            if self.routes.contains_key(target) {
                return None;
            }
            let name = self.config.models.canonical(target);
            if self.is_built_in(name) {
                return None;
            }
            let fault = self.fault(name, self.store.resolve(name).err()?);
            Some(format!("{place} leads to {target:?}: {fault}"))
        });
        let mut told: Vec<String> = unknown.collect();
        told.dedup();
        told
    }

    /// The models on disk.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The built-in model answers to its own name and to nothing else, unless configuration
    /// gives that name to another folder.
    fn is_built_in(&self, name: &str) -> bool {
        name == mlxd_demo::NAME
            && !self.config.models.named_folders().any(|(named, _)| named == name)
    }

    fn worker_spec(&self, id: &ModelId, folder: &Path) -> WorkerSpec {
        let settings = self.config.models.settings(id.as_str());
        let workers = &self.config.workers;
        let ms = Duration::from_millis;
        WorkerSpec {
            model: id.clone(),
            program: self.program.clone(),
            env: vec![
                ("MLXD_LOG_FORMAT".into(), self.config.log.format.word().into()),
                (
                    "MLXD_LOG".into(),
                    std::env::var("MLXD_LOG").unwrap_or(self.config.log.level.clone()),
                ),
            ],
            load: LoadSpec {
                folder: folder.to_owned(),
                device: match settings.device {
                    Device::Auto => DeviceChoice::Auto,
                    Device::Cpu => DeviceChoice::Cpu,
                    Device::Gpu => DeviceChoice::Gpu,
                },
                prefill_chunk_tokens: settings.prefill_chunk_tokens,
                prefill_chunk_tokens_busy: settings.prefill_chunk_tokens_busy,
                context_tokens_max: settings.context_tokens_max,
                running_max: settings.running_max,
                queued_max: settings.queued_max,
                parked_max: settings.parked_max,
                ageing_ms: settings.ageing_ms,
                // What suits the model is set when its needs are known.
                prefix_cache_bytes_max: settings.prefix_cache_bytes_max.unwrap_or(0),
                guesses_max: settings.guesses_max,
                draft: None,
                kv_quantization: settings
                    .kv_quantized()
                    .map(|(bits, from_tokens)| KvQuantization { bits, from_tokens }),
                kv_tokens_max: settings.kv_tokens_max(),
                prefix_disk: (settings.prefix_disk_bytes_max > 0).then(|| PrefixDisk {
                    folder: self.folders.cache.join("prefixes").join(file_name(id.as_str())),
                    bytes_max: settings.prefix_disk_bytes_max,
                    write_bytes_per_hour_max: settings.prefix_disk_write_bytes_per_hour_max,
                }),
                cache_bytes_max: settings.cache_bytes_max,
                deterministic: settings.deterministic,
            },
            limits: LifeLimits {
                start_timeout: ms(workers.start_timeout_ms),
                load_timeout: ms(workers.load_timeout_ms),
                drain_timeout: ms(workers.drain_ms),
                term_timeout: ms(workers.term_ms),
                backoff_initial: ms(workers.backoff_initial_ms),
                backoff_max: ms(workers.backoff_max_ms),
                deaths_max: workers.deaths_max,
                deaths_window: Duration::from_secs(workers.deaths_window_s),
                prefill_hang: ms(workers.prefill_hang_ms),
                decode_hang: ms(workers.decode_hang_ms),
                condemned_term_timeout: ms(workers.condemned_term_ms),
                watch_interval: ms(workers.watch_interval_ms),
            },
            segment: SegmentSpec {
                commands_bytes: workers.commands_ring_bytes,
                tokens_bytes: workers.tokens_ring_bytes,
            },
            log: WorkerLog {
                folder: self.logs.clone(),
                name: format!("{}.log", file_name(id.as_str())),
                bytes_max: workers.log_bytes_max,
            },
            leftovers_folder: segments_folder(&self.folders.state),
        }
    }
}

impl ModelSource for Models {
    fn find(&self, name: &str) -> Result<FoundModel, ModelFault> {
        let broken = |message: String| ModelFault::Broken { message };
        if self.routes.contains_key(name) {
            return Err(broken(format!(
                "{name} is a virtual model: each request's model is chosen by rules \
                 ([routes.{name:?}] in mlxd.toml), and it has no worker of its own; name a model"
            )));
        }
        let (name, folder) = self.resolve(self.config.models.canonical(name))?;
        let id = ModelId::new(name).map_err(|error| broken(error.to_string()))?;
        let settings = self.config.models.settings(id.as_str());
        let draft = match settings.drafted_by() {
            None => None,
            Some(draft) => {
                let found = self.resolve(self.config.models.canonical(draft));
                let (_, folder) = found.map_err(|fault| {
                    broken(format!("draft_model of [models.{:?}]: {fault}", id.as_str()))
                })?;
                Some(DraftSpec { folder, tokens_max: settings.draft_tokens_max })
            }
        };
        let needs = memory::needs(&folder, draft.as_ref().map(|draft| &*draft.folder), &settings);
        let mut worker = self.worker_spec(&id, &folder);
        worker.load.draft = draft;
        worker.load.cache_bytes_max = Some(needs.cache_bytes());
        worker.load.prefix_cache_bytes_max = needs.prefix_bytes_max;
        Ok(FoundModel {
            worker,
            lifetime: memory::lifetime(&settings),
            needs,
            folder,
            open_max: (settings.running_max + settings.queued_max) as usize,
            context_tokens_max: settings.context_tokens_max,
            template_limits: TemplateLimits {
                output_bytes_max: self.config.requests.template_output_bytes_max,
                instructions_max: self.config.requests.template_instructions_max,
                ..TemplateLimits::default()
            },
            id,
        })
    }

    fn list(&self) -> Vec<ListedModel> {
        let mut listed: Vec<_> = self.store.list().into_iter().map(listed).collect();
        if self.is_built_in(mlxd_demo::NAME) {
            listed.push(ListedModel {
                id: mlxd_demo::NAME.into(),
                created_unix_s: 0,
                owned_by: "mlxd".into(),
                stands_for: None,
            });
        }
        listed.extend(virtual_models::listed(&self.config, &listed));
        listed.sort_by(|a, b| a.id.cmp(&b.id));
        listed
    }

    fn configured(&self) -> Vec<String> {
        let tables = self.config.models.tables.keys().cloned();
        let built_in = self.is_built_in(mlxd_demo::NAME).then(|| mlxd_demo::NAME.to_owned());
        tables.chain(built_in).collect()
    }

    fn route(&self, name: &str) -> Option<Arc<Route>> {
        self.routes.get(name).cloned()
    }

    fn groups(&self, model: &str) -> Vec<String> {
        let table = self.config.models.tables.get(model);
        table.map(|table| table.groups.clone()).unwrap_or_default()
    }
}

impl Models {
    /// The own name and the folder of what is called `name`.
    fn resolve(&self, name: &str) -> Result<(String, PathBuf), ModelFault> {
        if self.is_built_in(name) {
            let folder = mlxd_demo::materialise(&self.folders.cache)
                .map_err(|error| ModelFault::Broken { message: error.to_string() })?;
            return Ok((name.to_owned(), folder));
        }
        let found = self.store.resolve(name).map_err(|error| self.fault(name, error))?;
        Ok((found.name, found.folder))
    }

    /// The store does not know of the built-in model: it is named here where names are listed.
    fn fault(&self, name: &str, error: StoreError) -> ModelFault {
        match error {
            StoreError::Unknown { name: asked, mut known, .. } => {
                if self.is_built_in(mlxd_demo::NAME) {
                    known.push(mlxd_demo::NAME.into());
                }
                let tables = self.config.models.tables.values();
                known.extend(tables.flat_map(|table| table.aliases.iter().cloned()));
                known.extend(self.routes.keys().cloned());
                known.sort();
                known.dedup();
                let nearest = mlxd_store::nearest_name(&asked, &known);
                ModelFault::Unknown { name: asked, known, nearest }
            }
            StoreError::BadName { .. } | StoreError::PathsNotAllowed { .. } => {
                ModelFault::Unknown {
                    name: format!("{name} ({error})"),
                    known: self.list().into_iter().map(|listed| listed.id).collect(),
                    nearest: None,
                }
            }
            other => ModelFault::Broken { message: other.to_string() },
        }
    }
}

fn listed(entry: ModelEntry) -> ListedModel {
    let owner = entry.name.split_once('/').filter(|(owner, _)| !owner.is_empty());
    ListedModel {
        owned_by: owner.map_or("local", |(owner, _)| owner).to_owned(),
        id: entry.name,
        created_unix_s: entry.created_unix_s,
        stands_for: None,
    }
}

fn beside_mlxd() -> PathBuf {
    let beside = |exe: PathBuf| exe.with_file_name("mlxd-worker");
    std::env::current_exe().map_or_else(|_| "mlxd-worker".into(), beside)
}

/// A file name for a model: what a file name may not hold is replaced, and a short hash
/// keeps apart what that makes equal.
fn file_name(model: &str) -> String {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' }
    };
    let name: String = model.chars().map(plain).collect();
    let name = &name[name.len().saturating_sub(100)..];
    match name == model {
        true => name.to_owned(),
        false => format!("{name}-{:08x}", fnv1a(model)),
    }
}

fn fnv1a(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_differ_as_models_do() {
        assert_eq!(file_name("mlxd-demo"), "mlxd-demo");
        let names = [file_name("a/b"), file_name("a_b"), file_name("a\\b")];
        assert!(names.iter().all(|name| !name.contains(['/', '\\'])));
        assert!(names[0] != names[1] && names[1] != names[2] && names[0] != names[2]);
        assert!(file_name(&"x".repeat(500)).len() < 120);
    }
}
