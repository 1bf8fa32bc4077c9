//! `[paths]`, and the folders that follow from it and the environment.
//!
//! Each folder comes from the first of: `[paths]`, the XDG variable, the system's own place. The
//! XDG variables count on macOS too when they are set, so that several instances run side by
//! side.

use crate::platform;
use crate::secret::Secret;
use crate::section::section;
use crate::value::{FullPath, Optional};
use nix::unistd::Uid;
use std::ffi::OsString;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

section! {
    /// Folders that differ from the standard ones.
    pub struct PathsConfig in "paths" {
        /// What outlives a restart: measured memory, records of workers.
        state: Option<PathBuf> = None, Optional(FullPath);
        /// Workers' logs.
        logs: Option<PathBuf> = None, Optional(FullPath);
        /// What can be made again, such as the unpacked built-in model.
        cache: Option<PathBuf> = None, Optional(FullPath);
        /// Sockets. Its path must be short: a socket's path has at most 103 bytes on macOS.
        runtime: Option<PathBuf> = None, Optional(FullPath);
    }
}

/// The part of the process environment that decides about folders. [`Environment::of_process`]
/// reads it; tests fill it in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// `HOME`
    pub home: Option<PathBuf>,
    /// `XDG_CONFIG_HOME`
    pub xdg_config: Option<PathBuf>,
    /// `XDG_STATE_HOME`
    pub xdg_state: Option<PathBuf>,
    /// `XDG_CACHE_HOME`
    pub xdg_cache: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`
    pub xdg_runtime: Option<PathBuf>,
    /// `HF_HUB_CACHE`
    pub hf_hub_cache: Option<PathBuf>,
    /// `HF_HOME`
    pub hf_home: Option<PathBuf>,
    /// `HF_ENDPOINT`
    pub hf_endpoint: Option<String>,
    /// `HF_TOKEN`, or its older name.
    pub hf_token: Option<Secret>,
    /// `HF_TOKEN_PATH`
    pub hf_token_path: Option<PathBuf>,
    /// Whether `HF_HUB_OFFLINE` forbids the network.
    pub hf_offline: bool,
    /// Where temporary files go.
    pub temporary: PathBuf,
    /// The user's number.
    pub uid: u32,
    /// `MLXD_CONFIG`
    pub mlxd_config: Option<PathBuf>,
    /// Every `MLXD_*` variable that is UTF-8.
    pub mlxd: Vec<(String, String)>,
}

impl Environment {
    /// The environment of this process.
    pub fn of_process() -> Self {
        Self::of(|name| std::env::var_os(name), std::env::vars_os())
    }

    fn of(
        get: impl Fn(&str) -> Option<OsString>,
        all: impl Iterator<Item = (OsString, OsString)>,
    ) -> Self {
        // The XDG specification: a path that is not absolute is to be ignored.
        let absolute = |name| get(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let text = |name| get(name)?.into_string().ok().filter(|value| !value.trim().is_empty());
        Self {
            home: absolute("HOME"),
            xdg_config: absolute("XDG_CONFIG_HOME"),
            xdg_state: absolute("XDG_STATE_HOME"),
            xdg_cache: absolute("XDG_CACHE_HOME"),
            xdg_runtime: absolute("XDG_RUNTIME_DIR"),
            hf_hub_cache: get("HF_HUB_CACHE").filter(|value| !value.is_empty()).map(PathBuf::from),
            hf_home: get("HF_HOME").filter(|value| !value.is_empty()).map(PathBuf::from),
            hf_endpoint: text("HF_ENDPOINT"),
            hf_token: text("HF_TOKEN")
                .or_else(|| text("HUGGING_FACE_HUB_TOKEN"))
                .map(|token| Secret::new(token.trim().to_owned())),
            hf_token_path: text("HF_TOKEN_PATH").map(PathBuf::from),
            // What huggingface_hub takes for true.
            hf_offline: text("HF_HUB_OFFLINE").is_some_and(|value| {
                ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str())
            }),
            temporary: std::env::temp_dir(),
            uid: Uid::effective().as_raw(),
            mlxd_config: get("MLXD_CONFIG").filter(|value| !value.is_empty()).map(PathBuf::from),
            mlxd: all
                .filter_map(|(name, value)| {
                    Some((name.into_string().ok()?, value.into_string().ok()?))
                })
                .filter(|(name, _)| name.starts_with("MLXD_"))
                .collect(),
        }
    }
}

impl Environment {
    /// The file that `hf auth login` writes its token into.
    pub fn hf_token_file(&self) -> Option<PathBuf> {
        self.hf_token_path.clone().or_else(|| Some(hf_home(self)?.join("token")))
    }
}

/// Where everything is. Nothing is created by asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folders {
    /// `mlxd.toml`, whether or not it exists.
    pub config_file: PathBuf,
    /// What outlives a restart.
    pub state: PathBuf,
    /// Workers' logs.
    pub logs: PathBuf,
    /// What can be made again.
    pub cache: PathBuf,
    /// Sockets.
    pub runtime: PathBuf,
    /// The Hugging Face cache.
    pub hf_cache: PathBuf,
}

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PathsError {
    /// Nothing says where the user's files are.
    #[error("HOME is not set to an absolute path; set it, or give [paths] and --config")]
    NoHome,
    /// A socket would have too long a path for the system.
    #[error("the socket's path {path} has {got} bytes, the system takes {max}; set [paths] runtime to a shorter folder", path = path.display())]
    SocketPathTooLong {
        /// Which.
        path: PathBuf,
        /// Its length.
        got: usize,
        /// The most there can be.
        max: usize,
    },
    /// It could not be created.
    #[error("cannot create the folder {path}: {error}", path = path.display())]
    Create {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It is there, but others could meddle with it.
    #[error("the folder {path} {fault}; remove it, or set [paths] to another", path = path.display())]
    NotOwn {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        fault: &'static str,
    },
}

impl Folders {
    /// The folders for this configuration and environment.
    pub fn new(config: &crate::Config, environment: &Environment) -> Result<Self, PathsError> {
        let own = &config.paths;
        let home = environment.home.as_deref();
        let pick =
            |own: Option<&PathBuf>, xdg: Option<&PathBuf>, standard: fn(&Path) -> PathBuf| {
                own.cloned()
                    .or_else(|| xdg.map(|folder| folder.join("mlxd")))
                    .or_else(|| home.map(standard))
                    .ok_or(PathsError::NoHome)
            };
        let state =
            pick(own.state.as_ref(), environment.xdg_state.as_ref(), platform::state_folder)?;
        // On macOS logs have a folder of their own, unless the state was put elsewhere.
        let state_is_moved = own.state.is_some() || environment.xdg_state.is_some();
        let logs = match (&own.logs, home) {
            (Some(logs), _) => logs.clone(),
            (None, Some(home)) if !state_is_moved => platform::log_folder(home, &state),
            (None, _) => state.join("logs"),
        };
        Ok(Self {
            config_file: config_file(environment)?,
            logs,
            cache: pick(
                own.cache.as_ref(),
                environment.xdg_cache.as_ref(),
                platform::cache_folder,
            )?,
            runtime: own.runtime.clone().unwrap_or_else(|| runtime_folder(environment)),
            hf_cache: match &config.models.all.hf_cache {
                Some(folder) => folder.clone(),
                None => hf_cache(environment)?,
            },
            state,
        })
    }

    /// The admin socket.
    pub fn admin_socket(&self) -> Result<PathBuf, PathsError> {
        let path = self.runtime.join("mlxd.sock");
        let got = path.as_os_str().len();
        if got > platform::SOCKET_PATH_BYTES_MAX {
            return Err(PathsError::SocketPathTooLong {
                path,
                got,
                max: platform::SOCKET_PATH_BYTES_MAX,
            });
        }
        Ok(path)
    }
}

/// The standard place of `mlxd.toml`.
pub(crate) fn config_file(environment: &Environment) -> Result<PathBuf, PathsError> {
    let folder = match (&environment.xdg_config, &environment.home) {
        (Some(xdg), _) => xdg.join("mlxd"),
        (None, Some(home)) => platform::config_folder(home),
        (None, None) => return Err(PathsError::NoHome),
    };
    Ok(folder.join("mlxd.toml"))
}

/// `$XDG_RUNTIME_DIR/mlxd`, else a folder of the user's own beside the temporary files.
fn runtime_folder(environment: &Environment) -> PathBuf {
    match &environment.xdg_runtime {
        Some(folder) => folder.join("mlxd"),
        None => environment.temporary.join(format!("mlxd-{}", environment.uid)),
    }
}

fn hf_cache(environment: &Environment) -> Result<PathBuf, PathsError> {
    if let Some(cache) = &environment.hf_hub_cache {
        return Ok(cache.clone());
    }
    Ok(hf_home(environment).ok_or(PathsError::NoHome)?.join("hub"))
}

fn hf_home(environment: &Environment) -> Option<PathBuf> {
    if let Some(home) = &environment.hf_home {
        return Some(home.clone());
    }
    let cache = environment.xdg_cache.clone();
    let cache = cache.or_else(|| environment.home.as_ref().map(|home| home.join(".cache")));
    Some(cache?.join("huggingface"))
}

/// Creates `folder` with mode 0700, or makes sure that it is a real folder of this user which
/// nobody else can write to or look into. For sockets and everything else that others must
/// not reach.
pub fn own_folder(folder: &Path) -> Result<(), PathsError> {
    let create = |error| PathsError::Create { path: folder.to_owned(), error };
    if let Some(parent) = folder.parent() {
        std::fs::create_dir_all(parent).map_err(create)?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(create(error)),
    }
    let not_own = |fault| Err(PathsError::NotOwn { path: folder.to_owned(), fault });
    let found = std::fs::symlink_metadata(folder).map_err(create)?;
    if !found.is_dir() {
        return not_own("is not a folder");
    }
    if found.uid() != Uid::effective().as_raw() {
        return not_own("belongs to another user");
    }
    if found.permissions().mode() & 0o077 != 0 {
        let private = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(folder, private).map_err(create)?;
    }
    Ok(())
}
