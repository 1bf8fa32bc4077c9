//! `mlxctl service`: mlxd under launchd or systemd, with this machine's paths.

use crate::arguments::{Service as Arguments, ServiceDeed, ServiceTarget};
use crate::client::Failure;
use crate::exit::Exit;
use crate::output;
use mlxd_config::{Config, Environment, Folders, load};
use mlxd_service::{Keeper, Manager, Places, Scope, Service, State, System};
use nix::unistd::{Gid, Uid, User, chown};
use serde_json::json;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

/// Descriptors beside those of connections: models' files, workers' channels.
const OTHER_FILES: u64 = 4096;
/// What mlxd needs to end beyond the waits of its configuration.
const STOP_MARGIN_S: u64 = 15;

/// Does it.
pub(crate) fn service(arguments: &Arguments, as_json: bool) -> Result<Exit, Failure> {
    let target = &arguments.target;
    let scope = if target.system { Scope::System } else { Scope::User };
    let manager = match &arguments.deed {
        ServiceDeed::Print { manager: Some(manager), .. } => (*manager).into(),
        _ => Manager::native(),
    };
    let owner = match &arguments.deed {
        ServiceDeed::Print { .. } | ServiceDeed::Install(_) => Owner::of(target)?,
        // Whom it runs as stands in its files.
        _ => Owner::of(&ServiceTarget { system: false, user: target.user.clone() })?,
    };
    let config_folder = owner.environment.xdg_config.clone();
    let config_folder = config_folder.unwrap_or_else(|| owner.home.join(".config"));
    let places = Places::standard(manager, scope, &owner.home, &config_folder, owner.uid.as_raw());
    let mut keeper = Keeper::new(manager, scope, places, System);
    match &arguments.deed {
        ServiceDeed::Print { install, .. } => {
            let service = owner.service(manager, scope, install)?;
            print(&keeper.files(&service), as_json)?;
            return Ok(Exit::Success);
        }
        ServiceDeed::Install(install) => {
            let service = owner.service(manager, scope, install)?;
            for folder in [&service.state, &service.logs] {
                owner.make_folder(folder)?;
            }
            let files = keeper.install(&service).map_err(broken)?;
            if !as_json {
                for file in files {
                    output::line(&format!("wrote {}", file.display()))?;
                }
            }
        }
        ServiceDeed::Uninstall => {
            keeper.uninstall().map_err(broken)?;
            said("uninstalled", as_json)?;
            return Ok(Exit::Success);
        }
        ServiceDeed::Start => keeper.start().map_err(broken)?,
        ServiceDeed::Stop => {
            keeper.stop().map_err(broken)?;
            said("stopped", as_json)?;
            return Ok(Exit::Success);
        }
        ServiceDeed::Status => {}
    }
    let state = keeper.state().map_err(broken)?;
    show(state, as_json)?;
    Ok(match (state, &arguments.deed) {
        (State::Running { .. }, _) => Exit::Success,
        (State::Stopped, ServiceDeed::Status) => Exit::StatusNotRunning,
        (State::NotInstalled, ServiceDeed::Status) => Exit::StatusUnknown,
        // It was started and is not there: its log says why.
        _ => Exit::NotRunning,
    })
}

fn broken(error: impl ToString) -> Failure {
    Failure::Broken(error.to_string())
}

fn said(word: &str, as_json: bool) -> Result<(), Failure> {
    match as_json {
        true => output::json(&json!({"state": word})),
        false => output::line(word),
    }
}

fn show(state: State, as_json: bool) -> Result<(), Failure> {
    let (word, pid) = match state {
        State::NotInstalled => ("not installed", None),
        State::Stopped => ("stopped", None),
        State::Running { pid } => ("running", pid),
    };
    if as_json {
        return output::json(&json!({"state": word, "pid": pid}));
    }
    let pid = pid.map(|pid| format!(", pid {pid}")).unwrap_or_default();
    let more = match state {
        State::NotInstalled => "; `mlxctl service install` writes its files and starts it",
        State::Stopped => "; `mlxctl service start` starts it, `mlxctl maintail` may say why",
        State::Running { .. } => "",
    };
    output::line(&format!("{word}{pid}{more}"))
}

fn print(files: &[(PathBuf, String)], as_json: bool) -> Result<(), Failure> {
    if as_json {
        let files: Vec<_> =
            files.iter().map(|(path, text)| json!({"path": path, "text": text})).collect();
        return output::json(&files);
    }
    for (path, text) in files {
        // A property list has no comments of this kind, and is the only file there.
        if files.len() > 1 {
            output::line(&format!("# {}", path.display()))?;
        }
        output::piece(text)?;
        if files.len() > 1 {
            output::line("")?;
        }
    }
    Ok(())
}

/// The user that the service runs as, and what mlxd would find in that user's environment.
struct Owner {
    name: String,
    uid: Uid,
    gid: Gid,
    home: PathBuf,
    environment: Environment,
    is_caller: bool,
}

impl Owner {
    fn of(target: &ServiceTarget) -> Result<Self, Failure> {
        let caller = Uid::effective();
        let sudo = std::env::var("SUDO_USER").ok().filter(|_| caller.is_root());
        let wanted = match (&target.user, target.system) {
            (Some(name), _) => Some(name.clone()),
            (None, true) if sudo.is_some() => sudo,
            (None, true) if caller.is_root() => {
                return Err(Failure::Broken(
                    "say which user mlxd runs as: --user NAME; it needs no root".to_owned(),
                ));
            }
            (None, _) => None,
        };
        let found = match &wanted {
            Some(name) => User::from_name(name),
            None => User::from_uid(caller),
        };
        let user = found.map_err(broken)?.ok_or_else(|| {
            broken(format!("there is no user {}", wanted.unwrap_or_else(|| caller.to_string())))
        })?;
        let mut environment = Environment::of_process();
        let is_caller = user.uid == caller;
        let home = environment.home.clone().filter(|_| is_caller).unwrap_or(user.dir);
        if !is_caller {
            environment = Environment {
                home: Some(home.clone()),
                temporary: environment.temporary,
                uid: user.uid.as_raw(),
                mlxd: environment.mlxd,
                ..Environment::default()
            };
        }
        Ok(Self { name: user.name, uid: user.uid, gid: user.gid, home, environment, is_caller })
    }

    fn service(
        &self,
        manager: Manager,
        scope: Scope,
        install: &crate::arguments::ServiceInstall,
    ) -> Result<Service, Failure> {
        let named = install.config.clone().or_else(|| self.environment.mlxd_config.clone());
        let named = named.map(std::path::absolute).transpose()?;
        // A service with a wrong configuration would not run.
        let config = load(named.as_deref(), &self.environment, &[]).map_err(broken)?.config;
        let folders = Folders::new(&config, &self.environment).map_err(broken)?;
        let runtime = match scope {
            _ if config.paths.runtime.is_some() => None,
            Scope::User => Some(folders.runtime.clone()),
            // A session's own folder is not there when the machine starts.
            Scope::System => Some(folders.state.join("run")),
        };
        Ok(Service {
            scope,
            program: program(install.program.as_deref())?,
            config: named,
            address: address(&config)?,
            user: self.name.clone(),
            environment: self.variables(runtime, &install.env)?,
            open_files_max: 2 * config.http.connections_max as u64 + OTHER_FILES,
            stop_timeout_s: stop_timeout_s(&config),
            // launchd holds every start back by this, systemd counts them too.
            restart_s: if manager == Manager::Launchd { 30 } else { 5 },
            state: folders.state,
            logs: folders.logs,
        })
    }

    /// What mlxd needs to find the same folders as this mlxctl does, and what was asked for.
    fn variables(
        &self,
        runtime: Option<PathBuf>,
        given: &[String],
    ) -> Result<Vec<(String, String)>, Failure> {
        let mut variables = vec![("HOME".to_owned(), self.home.to_string_lossy().into_owned())];
        let carried =
            ["XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE"];
        for name in carried.into_iter().filter(|_| self.is_caller) {
            variables.extend(std::env::var(name).ok().map(|value| (name.to_owned(), value)));
        }
        // Folders alone: other variables may hold keys, and everybody can read these files.
        let folders = |(name, _): &&(String, String)| name.starts_with("MLXD_PATHS_");
        variables.extend(self.environment.mlxd.iter().filter(folders).cloned());
        if let Some(runtime) = runtime {
            let runtime = runtime.to_string_lossy().into_owned();
            variables.push(("MLXD_PATHS_RUNTIME".to_owned(), runtime));
        }
        for pair in given {
            let (name, value) =
                pair.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(|| {
                    Failure::Broken(format!("--env takes NAME=VALUE, and {pair} is not that"))
                })?;
            variables.retain(|(known, _)| known != name);
            variables.push((name.to_owned(), value.to_owned()));
        }
        Ok(variables)
    }

    /// Creates a folder that belongs to the user, whoever calls.
    fn make_folder(&self, folder: &Path) -> Result<(), Failure> {
        let missing: Vec<&Path> = folder.ancestors().take_while(|above| !above.exists()).collect();
        for folder in missing.into_iter().rev() {
            std::fs::create_dir(folder)?;
            if !self.is_caller {
                chown(folder, Some(self.uid), Some(self.gid)).map_err(std::io::Error::from)?;
            }
        }
        Ok(())
    }
}

/// mlxd beside this mlxctl, or where it was said to be.
fn program(named: Option<&Path>) -> Result<PathBuf, Failure> {
    let program = match named {
        Some(named) => std::path::absolute(named)?,
        None => std::env::current_exe()?.with_file_name("mlxd"),
    };
    match program.is_file() {
        true => Ok(program),
        false => Err(Failure::Broken(format!(
            "there is no program {}; say where mlxd is with --program",
            program.display()
        ))),
    }
}

/// The address that the manager is to hold; none for a port that mlxd is to choose.
fn address(config: &Config) -> Result<Option<SocketAddr>, Failure> {
    if config.http.port == 0 {
        return Ok(None);
    }
    let wanted = (config.http.host.as_str(), config.http.port);
    let mut found = wanted.to_socket_addrs().map_err(|error| {
        Failure::Broken(format!("http.host = {:?} cannot be resolved: {error}", config.http.host))
    })?;
    Ok(found.next())
}

/// Longer than mlxd takes at the most, so that its own order of ending is kept.
fn stop_timeout_s(config: &Config) -> u64 {
    let workers = config.workers.drain_ms + 2 * config.workers.term_ms;
    (config.http.shutdown_grace_ms + workers).div_ceil(1000) + STOP_MARGIN_S
}
