//! One instance's folders, lock and sockets, so that several run side by side.

use crate::exit::Failed;
use crate::managed;
use anyhow::{Context, anyhow};
use mlxd_config::{Config, Folders, own_folder};
use nix::fcntl::{Flock, FlockArg};
use serde_json::json;
use std::fs::File;
use std::net::{TcpListener, ToSocketAddrs};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Connections waiting for `accept` at the most.
const BACKLOG: i32 = 1024;

/// Everything of the outside world that an instance holds while it runs.
pub struct Instance {
    pub folders: Folders,
    pub tcp: TcpListener,
    pub admin: UnixListener,
    pub base_url: String,
    admin_path: PathBuf,
    card_path: PathBuf,
    _lock: Flock<File>,
}

impl Instance {
    /// Takes the folders, the lock and both sockets; the TCP socket from launchd or systemd where
    /// they hold one, whatever address the configuration names.
    pub fn take(config: &Config, folders: Folders, by_launchd: bool) -> Result<Self, Failed> {
        // First of all: until then the inherited descriptors belong to nobody.
        let held = managed::listener(by_launchd)
            .context("cannot take the socket that launchd or systemd holds")
            .map_err(Failed::address)?;
        // Crash reports are in the state, and may hold prompts.
        for folder in [&folders.runtime, &folders.state] {
            own_folder(folder).map_err(Failed::address)?;
        }
        for folder in [&folders.logs, &folders.cache] {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot create the folder {}", folder.display()))
                .map_err(Failed::address)?;
        }
        let lock = lock(&folders.runtime)?;
        clear_ipc(&folders.runtime).map_err(Failed::address)?;
        sweep_segments(&folders.state);
        let tcp = match held {
            Some(held) => held,
            None => listen(config)?,
        };
        let address = tcp.local_addr().map_err(Failed::address)?;
        let admin_path = folders.admin_socket().map_err(Failed::config)?;
        let admin = listen_admin(&admin_path).map_err(Failed::address)?;
        Ok(Self {
            base_url: format!("http://{address}/v1"),
            card_path: folders.runtime.join("mlxd.json"),
            folders,
            tcp,
            admin,
            admin_path,
            _lock: lock,
        })
    }

    /// Writes `mlxd.json`: who serves here, for scripts.
    pub fn announce(&self) -> std::io::Result<()> {
        let card = json!({
            "pid": std::process::id(),
            "base_url": self.base_url,
            "admin_socket": self.admin_path,
        });
        let draft = self.card_path.with_extension("json.new");
        std::fs::write(&draft, card.to_string())?;
        std::fs::rename(draft, &self.card_path)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.card_path);
        let _ = std::fs::remove_file(&self.admin_path);
    }
}

fn lock(runtime: &Path) -> Result<Flock<File>, Failed> {
    let path = runtime.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file =
        file.with_context(|| format!("cannot open {}", path.display())).map_err(Failed::address)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
        Failed::address(anyhow!(
            "another mlxd runs here already: `mlxctl status` shows it, `mlxctl shutdown` ends it; \
             to run a second one give it folders of its own ([paths] runtime and state, or XDG_RUNTIME_DIR and XDG_STATE_HOME)"
        ))
    })
}

/// Handshake sockets live in a folder of ours alone; what a killed front left there goes.
fn clear_ipc(runtime: &Path) -> anyhow::Result<()> {
    let folder = runtime.join("ipc");
    match std::fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    own_folder(&folder)?;
    // Where ipc-channel puts its one-shot servers.
    tempfile::env::override_temp_dir(&folder)
        .map_err(|was| anyhow!("temporary files already go to {}", was.display()))?;
    Ok(())
}

/// Where segments in use are recorded.
pub fn segments_folder(state: &Path) -> PathBuf {
    state.join("segments")
}

fn sweep_segments(state: &Path) {
    let folder = segments_folder(state);
    let swept =
        std::fs::create_dir_all(&folder).and_then(|()| mlxd_supervisor::leftovers::sweep(&folder));
    match swept {
        Ok(names) if names.is_empty() => {}
        Ok(names) => tracing::info!(segments = names.len(), "removed what a killed front left"),
        Err(error) => tracing::warn!(%error, "leftover segments were not looked for"),
    }
}

fn listen(config: &Config) -> Result<TcpListener, Failed> {
    let wanted = (config.http.host.as_str(), config.http.port);
    let say = || format!("cannot listen on {}:{}", wanted.0, wanted.1);
    let address = wanted
        .to_socket_addrs()
        .with_context(say)
        .map_err(Failed::address)?
        .next()
        .ok_or_else(|| Failed::address(anyhow!("{} names no address", wanted.0)))?;
    let bind = || -> std::io::Result<TcpListener> {
        // A restart must not wait for the last connections' TIME_WAIT: std sets SO_REUSEADDR.
        let listener = TcpListener::bind(address)?;
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(BACKLOG)?)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    bind()
        .with_context(|| {
            format!("{}; if the port is taken, choose another with --port or [http] port", say())
        })
        .map_err(Failed::address)
}

fn listen_admin(path: &Path) -> anyhow::Result<UnixListener> {
    // We hold the lock: whoever made a socket here is gone.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error)
                .with_context(|| format!("cannot remove the old socket {}", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path)
        .with_context(|| format!("cannot listen on the socket {}", path.display()))?;
    // The folder is 0700, so nobody else came in between.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
