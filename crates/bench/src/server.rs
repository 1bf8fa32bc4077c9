//! A server for one run: `mlxd serve` on a free port with folders of its own.

use anyhow::{Context, bail};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// How long a server may take to accept connections.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How often its card is looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// How long it may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// What `mlxd.json` says.
#[derive(Debug, Clone, Deserialize)]
pub struct Card {
    /// The API, as `http://127.0.0.1:11440/v1`.
    pub base_url: String,
    /// The admin's socket.
    pub admin_socket: PathBuf,
}

impl Card {
    /// Reads `mlxd.json`.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    }
}

/// A server started for this run. Dropping it kills it.
pub struct Server {
    child: Child,
    folder: TempDir,
    /// Where it listens.
    pub card: Card,
}

impl Server {
    /// Starts this very program's `serve`, with these variables in its environment.
    pub async fn start(
        config: Option<&Path>,
        variables: &[(&str, String)],
    ) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("mlxd-bench-").tempdir()?;
        let runtime = folder.path().join("run");
        let log = std::fs::File::create(folder.path().join("serve.log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["serve", "--port", "0"]);
        if let Some(config) = config {
            command.arg("--config").arg(config);
        }
        let child = command
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .env("MLXD_PATHS_RUNTIME", &runtime)
            .env("MLXD_PATHS_STATE", folder.path().join("state"))
            .env("MLXD_PATHS_LOGS", folder.path().join("logs"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::from(log))
            .kill_on_drop(true)
            .spawn()
            .context("cannot start mlxd serve")?;
        let mut server = Self {
            child,
            folder,
            card: Card { base_url: String::new(), admin_socket: PathBuf::new() },
        };
        let appeared = tokio::time::timeout(START_TIMEOUT, server.find_card(&runtime)).await;
        server.card = match appeared {
            Ok(card) => card?,
            Err(_) => bail!("mlxd serve did not start within {START_TIMEOUT:?}:\n{}", server.log()),
        };
        Ok(server)
    }

    async fn find_card(&mut self, runtime: &Path) -> anyhow::Result<Card> {
        loop {
            if let Ok(text) = std::fs::read(runtime.join("mlxd.json")) {
                return Ok(serde_json::from_slice(&text)?);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("mlxd serve ended with {status}:\n{}", self.log());
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("serve.log")).unwrap_or_default()
    }

    /// Ends it as Ctrl-C would.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let pid = self.child.id().context("mlxd serve has ended by itself")?;
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid as i32),
            nix::sys::signal::Signal::SIGINT,
        )?;
        let status = tokio::time::timeout(STOP_TIMEOUT, self.child.wait()).await??;
        if !status.success() {
            bail!("mlxd serve ended with {status}:\n{}", self.log());
        }
        Ok(())
    }
}
