//! A real `mlxd serve` in folders of its own, on a port of its own, with an end.

use crate::http::Client;
use crate::leftovers::Leftovers;
use crate::program::program;
use crate::wait::until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use tempfile::TempDir;

/// What a front is started with. Starts out with port 0, models from nowhere and the scripted
/// worker.
#[derive(Debug, Clone)]
pub struct FrontConfig {
    sections: toml::Table,
    variables: Vec<(String, String)>,
}

impl Default for FrontConfig {
    fn default() -> Self {
        let worker = program("mlxd-scripted-worker");
        Self { sections: toml::Table::new(), variables: Vec::new() }
            .with("http.port", 0)
            .with("workers.program", worker.to_string_lossy().as_ref())
    }
}

impl FrontConfig {
    /// With `section.key` set.
    pub fn with(mut self, key: &str, value: impl Into<toml::Value>) -> Self {
        let (section, key) = key.split_once('.').expect("section.key");
        self.section(section).insert(key.into(), value.into());
        self
    }

    /// With a model of this name in this folder.
    pub fn with_model(self, name: &str, folder: &Path) -> Self {
        self.with_model_key(name, "path", folder.to_string_lossy().as_ref())
    }

    /// With a key of a model's own table set.
    pub fn with_model_key(mut self, name: &str, key: &str, value: impl Into<toml::Value>) -> Self {
        let model = self.section("models").entry(name).or_insert_with(|| toml::Table::new().into());
        let model = model.as_table_mut().expect("a model's table");
        model.insert(key.into(), value.into());
        self
    }

    /// With an environment variable, which its workers inherit.
    pub fn with_variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// With the real worker, on MLX.
    pub fn with_real_worker(self) -> Self {
        let worker = program("mlxd-worker");
        self.with("workers.program", worker.to_string_lossy().as_ref())
    }

    fn section(&mut self, name: &str) -> &mut toml::Table {
        let section = self.sections.entry(name).or_insert_with(|| toml::Table::new().into());
        section.as_table_mut().expect("a section")
    }
}

/// A running front. Dropping it kills it, and shows its log if the test is failing.
#[derive(Debug)]
pub struct FrontProcess {
    // Before the home: killed first, removed then.
    process: Guarded,
    home: Home,
    card: Value,
}

/// A process that does not outlive this.
#[derive(Debug)]
struct Guarded {
    child: Child,
    log: PathBuf,
}

/// The folders of an instance. They outlive the front, so that another may start in them.
#[derive(Debug)]
pub struct Home {
    folder: TempDir,
}

impl Home {
    /// Where everything of the instance is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    fn card(&self) -> PathBuf {
        self.path().join("run/mlxd/mlxd.json")
    }

    fn log(&self) -> PathBuf {
        self.path().join("front.log")
    }

    /// A program of this workspace that sees these folders as the user's.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(program(name));
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("MLXD_") {
                command.env_remove(variable);
            }
        }
        command
            .env("HOME", self.path().join("home"))
            .env("XDG_CONFIG_HOME", self.path().join("config"))
            .env("XDG_STATE_HOME", self.path().join("state"))
            .env("XDG_CACHE_HOME", self.path().join("cache"))
            .env("XDG_RUNTIME_DIR", self.path().join("run"))
            .env("HF_HOME", self.path().join("huggingface"))
            .env_remove("HF_HUB_CACHE");
        command
    }
}

impl FrontProcess {
    /// Starts a front in new folders and waits until it accepts connections.
    pub fn start(config: &FrontConfig) -> Self {
        // Short: sockets have their paths in here.
        let folder = tempfile::Builder::new().prefix("mlxd-").tempdir_in("/tmp");
        let folder = folder.expect("a folder under /tmp");
        Self::start_in(Home { folder }, config)
    }

    /// Starts a front in an earlier one's folders.
    pub fn start_in(home: Home, config: &FrontConfig) -> Self {
        let folders = ["home", "config/mlxd", "state", "cache", "run"];
        for folder in folders {
            std::fs::create_dir_all(home.path().join(folder)).expect("folders for a front");
        }
        let file = home.path().join("config/mlxd/mlxd.toml");
        let text = toml::to_string(&config.sections).expect("a table");
        std::fs::write(&file, text).expect("a configuration file");
        // A killed front's card must not be taken for the new one's.
        let _ = std::fs::remove_file(home.card());
        let log = std::fs::File::options().create(true).append(true).open(home.log());
        let log = log.expect("a log file");
        let child = home
            .command("mlxd")
            .args(["serve", "--config"])
            .arg(&file)
            .envs(config.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("mlxd starts");
        let mut this =
            Self { process: Guarded { child, log: home.log() }, home, card: Value::Null };
        this.card = until("the front to accept connections", || this.look_for_card());
        this
    }

    /// The card, once it is there. Panics when the front ends instead.
    fn look_for_card(&mut self) -> Option<Value> {
        if let Some(status) = self.process.child.try_wait().expect("our child") {
            panic!("mlxd serve ended with {status}:\n{}", self.log());
        }
        let card = std::fs::read_to_string(self.home.card()).ok()?;
        Some(serde_json::from_str(&card).expect("a whole card: it is renamed into place"))
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.process.child.id()
    }

    /// What an OpenAI client takes as its base URL.
    pub fn base_url(&self) -> &str {
        self.card["base_url"].as_str().expect("a base URL on the card")
    }

    /// A client of its HTTP port.
    pub fn client(&self) -> Client {
        let authority = self.base_url().strip_prefix("http://").expect("plain HTTP");
        let authority = authority.split('/').next().unwrap_or(authority);
        let address: SocketAddr = authority.parse().expect("an address");
        Client::Tcp(address)
    }

    /// A client of its admin socket.
    pub fn admin(&self) -> Client {
        let path = self.card["admin_socket"].as_str().expect("an admin socket on the card");
        Client::Unix(path.into())
    }

    /// Its folders.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// What it has written so far, its own log and not its workers'.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.home.log()).unwrap_or_default()
    }

    /// Everything of this instance that is there now, the front itself included.
    pub fn leftovers(&self) -> Leftovers {
        Leftovers::of(self.home.path())
    }

    /// The instance's other processes.
    pub fn workers(&self) -> Vec<u32> {
        let processes = self.leftovers().processes.into_iter();
        processes.map(|(id, _)| id).filter(|&id| id != self.id()).collect()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.id() as i32), signal).expect("the front is there");
    }

    /// Waits for its end.
    pub fn wait_exit(&mut self) -> ExitStatus {
        until("the front's end", || self.process.child.try_wait().expect("our child"))
    }

    /// Kills it and gives its folders, for looking around in and for another front.
    pub fn kill(self) -> Home {
        drop(self.process);
        self.home
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // Fails when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            eprintln!("--- the front's log ---\n{log}");
        }
    }
}
