//! What an admin asks of the front as a whole: its log, its configuration, its deaths.

use crate::pulls::Pulls;
use crate::source::{LiveModels, Models};
use crate::{memory, reload};
use mlxd_config::{Config, Environment, Folders, LoadedConfig, Override};
use mlxd_dispatch::Dispatch;
use mlxd_http::{AdminAnswer, FrontAdmin};
use mlxd_protocol::admin::{AdminErrorBody, Happening, ModelChangeKind, Reread, Why};
use mlxd_supervisor::LogFolder;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// The front's own log in its folder.
pub const MAIN_LOG: &str = "mlxd.log";

/// What the command line gave, to read the configuration again with.
#[derive(Debug, Clone, Default)]
pub struct Given {
    pub config: Option<PathBuf>,
    pub overrides: Vec<Override>,
    /// Whether launchd started it.
    pub launchd: bool,
}

struct Inner {
    folders: Folders,
    environment: Environment,
    given: Given,
    /// As it was at the start, which some keys go by until the end.
    started: Config,
    config: Mutex<Config>,
    logs: LogFolder,
    models: Arc<LiveModels>,
    dispatch: Dispatch,
    pulls: Pulls,
}

/// Answers for one instance. Clones share it.
#[derive(Clone)]
pub struct Administration(Arc<Inner>);

impl Administration {
    pub fn new(
        folders: Folders,
        environment: Environment,
        given: Given,
        config: Config,
        logs: LogFolder,
        models: Arc<LiveModels>,
        dispatch: Dispatch,
    ) -> Self {
        let (started, config) = (config.clone(), Mutex::new(config));
        let pulls = Pulls::default();
        Self(Arc::new(Inner {
            folders,
            environment,
            given,
            started,
            config,
            logs,
            models,
            dispatch,
            pulls,
        }))
    }

    /// The configuration at work.
    pub fn config(&self) -> Config {
        self.0.config.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    pub fn folders(&self) -> &Folders {
        &self.0.folders
    }

    pub fn environment(&self) -> &Environment {
        &self.0.environment
    }

    /// Models as the configuration at work names them.
    pub fn models(&self) -> Arc<Models> {
        self.0.models.now()
    }

    pub fn dispatch(&self) -> &Dispatch {
        &self.0.dispatch
    }

    pub fn pulls(&self) -> &Pulls {
        &self.0.pulls
    }

    fn models_of(&self, config: &Config) -> Models {
        let (inner, home) = (&self.0, self.0.environment.home.clone());
        Models::new(config, &inner.folders, inner.logs.clone(), home)
    }

    /// Reads the configuration again and says what differs.
    fn read(&self) -> Result<(LoadedConfig, Reread), AdminErrorBody> {
        let inner = &self.0;
        let loaded = mlxd_config::load(
            inner.given.config.as_deref(),
            &inner.environment,
            &inner.given.overrides,
        );
        let loaded = loaded.map_err(|error| AdminErrorBody {
            code: "bad_request".into(),
            message: format!("the configuration was not taken: {error}"),
        })?;
        let now = inner.config.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut reread = reload::difference(&now, &loaded.config);
        // What an earlier update could not put to work either is still to be done.
        let pending = reload::difference(&inner.started, &loaded.config).settings;
        reread.settings.retain(|change| !change.needs_restart);
        reread.settings.extend(pending.into_iter().filter(|change| change.needs_restart));
        reread.file = loaded.file.as_ref().map(|file| file.display().to_string());
        reread.warnings = loaded.warnings.iter().map(ToString::to_string).collect();
        reread.warnings.extend(self.models_of(&loaded.config).unknown_targets());
        Ok((loaded, reread))
    }

    /// Checks the configuration on disk and puts to work what changed. Workers that run go on as
    /// they are; their next life follows the new configuration.
    pub async fn apply(&self) -> Result<Reread, AdminErrorBody> {
        let (loaded, mut reread) = self.read()?;
        let inner = &self.0;
        inner.models.replace(self.models_of(&loaded.config));
        inner.dispatch.forget_all_files();
        // [requests] goes by what it was at the start.
        let limits = memory::limits(&loaded.config, &inner.started.requests);
        inner.dispatch.set_memory_limits(limits);
        let running = inner.dispatch.running();
        for change in &mut reread.models {
            let runs = running.contains(&change.model);
            let preload = change.change == ModelChangeKind::Added
                && loaded.config.models.preloaded().any(|name| name == change.model);
            change.note = if runs && change.change == ModelChangeKind::Removed {
                Some(format!("its worker goes on; `mlxctl stop {}` ends it", change.model))
            } else if runs
                && !change.keys.iter().all(|key| reload::FRONTS_ALONE.contains(&key.as_str()))
            {
                Some("its worker goes on as it is; `mlxctl restart` puts the change to work".into())
            } else if preload {
                let (dispatch, name) = (inner.dispatch.clone(), change.model.clone());
                tokio::spawn(async move {
                    if let Err(error) = dispatch.start(&name).await {
                        tracing::error!(model = name, error = error.message, "preload failed");
                    }
                });
                Some("being started".into())
            } else {
                None
            };
        }
        *inner.config.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = loaded.config;
        reread.applied = true;
        let models = reread.models.iter().map(|change| change.model.clone()).collect();
        inner.dispatch.events().push(None, Happening::Reloaded { models });
        tracing::info!(
            models = reread.models.len(),
            settings = reread.settings.len(),
            "configuration read again"
        );
        Ok(reread)
    }
}

impl FrontAdmin for Administration {
    fn main_log(&self) -> Option<PathBuf> {
        let path = self.0.logs.path(MAIN_LOG);
        path.is_file().then_some(path)
    }

    fn reread(&self) -> AdminAnswer<Reread> {
        let this = self.clone();
        Box::pin(async move { this.read().map(|(_, reread)| reread) })
    }

    fn update(&self) -> AdminAnswer<Reread> {
        let this = self.clone();
        Box::pin(async move { this.apply().await })
    }

    fn why(&self, model: String) -> AdminAnswer<Why> {
        let dispatch = self.0.dispatch.clone();
        Box::pin(async move { dispatch.why(&model).await })
    }
}
