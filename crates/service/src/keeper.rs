//! Installing, removing, starting and stopping, through `launchctl` or `systemctl`.

use crate::commands::{Commands, Ran};
use crate::service::{Manager, Scope, Service};
use crate::{launchd, systemd};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Where the manager looks for its files, and who the user is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// `~/Library/LaunchAgents`, `/etc/systemd/system`, …
    pub folder: PathBuf,
    /// The user's number, for launchd's domains.
    pub uid: u32,
}

impl Places {
    /// The standard folder of a manager.
    pub fn standard(manager: Manager, scope: Scope, home: &Path, config: &Path, uid: u32) -> Self {
        let folder = match (manager, scope) {
            (Manager::Launchd, Scope::User) => home.join("Library/LaunchAgents"),
            (Manager::Launchd, Scope::System) => "/Library/LaunchDaemons".into(),
            (Manager::Systemd, Scope::User) => config.join("systemd/user"),
            (Manager::Systemd, Scope::System) => "/etc/systemd/system".into(),
        };
        Self { folder, uid }
    }
}

/// What the manager says of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its files are not there.
    NotInstalled,
    /// The files are there; it does not run.
    Stopped,
    /// It runs.
    Running {
        /// Its process, where the manager says so.
        pid: Option<u32>,
    },
}

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// A file cannot be written or removed.
    #[error("{path}: {error}{hint}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
        /// What to do about it.
        hint: &'static str,
    },
    /// The manager's program cannot be started.
    #[error("cannot run {program}: {error}")]
    Missing {
        /// Which.
        program: &'static str,
        /// Why.
        error: io::Error,
    },
    /// The manager said no.
    #[error("`{command}` ended with {code}: {message}")]
    Refused {
        /// What it was asked.
        command: String,
        /// Its exit code.
        code: i32,
        /// What it said.
        message: String,
    },
    /// There is nothing to start or stop.
    #[error("mlxd is not installed as a service; `mlxctl service install` does that")]
    NotInstalled,
}

type Done<T = ()> = Result<T, KeeperError>;

/// Drives one manager for one scope.
pub struct Keeper<C> {
    manager: Manager,
    scope: Scope,
    places: Places,
    commands: C,
}

impl<C: Commands> Keeper<C> {
    /// A keeper of the service in these places.
    pub fn new(manager: Manager, scope: Scope, places: Places, commands: C) -> Self {
        Self { manager, scope, places, commands }
    }

    /// The files of a service, with their texts.
    pub fn files(&self, service: &Service) -> Vec<(PathBuf, String)> {
        let at = |name: &str| self.places.folder.join(name);
        match self.manager {
            Manager::Launchd => vec![(self.launchd_file(), launchd::xml(service))],
            Manager::Systemd => {
                let socket = systemd::socket_unit(service);
                let socket = socket.map(|text| (at(systemd::SOCKET_UNIT), text));
                let unit = (at(systemd::UNIT), systemd::service_unit(service));
                std::iter::once(unit).chain(socket).collect()
            }
        }
    }

    /// Writes the files, in place of older ones, and starts the service.
    ///
    /// # Errors
    /// What could not be written, or what the manager said.
    pub fn install(&mut self, service: &Service) -> Done<Vec<PathBuf>> {
        if self.is_installed() {
            self.remove()?;
        }
        // The service starts in the one and logs into the other before mlxd could make them.
        for folder in [&service.state, &service.logs, &self.places.folder] {
            std::fs::create_dir_all(folder).map_err(|error| file_error(folder, error))?;
        }
        let files = self.files(service);
        for (path, text) in &files {
            write(path, text).map_err(|error| file_error(path, error))?;
        }
        match self.manager {
            Manager::Launchd => self.bootstrap()?,
            Manager::Systemd => {
                self.systemctl(&["daemon-reload"])?;
                let mut enable = vec!["enable", "--now"];
                if files.len() > 1 {
                    enable.push(systemd::SOCKET_UNIT);
                }
                enable.push(systemd::UNIT);
                self.systemctl(&enable)?;
            }
        }
        Ok(files.into_iter().map(|(path, _)| path).collect())
    }

    /// Stops the service and removes its files.
    ///
    /// # Errors
    /// [`KeeperError::NotInstalled`], what could not be removed, or what the manager said.
    pub fn uninstall(&mut self) -> Done {
        if !self.is_installed() {
            return Err(KeeperError::NotInstalled);
        }
        self.remove()
    }

    /// Starts the service.
    ///
    /// # Errors
    /// [`KeeperError::NotInstalled`], or what the manager said.
    pub fn start(&mut self) -> Done {
        self.need_installed()?;
        if self.manager == Manager::Systemd {
            return self.systemctl(&["start", systemd::UNIT]);
        }
        if !self.is_loaded()? {
            return self.bootstrap();
        }
        let service = self.launchd_service()?;
        self.launchctl(&["kickstart", &service])
    }

    /// Stops the service, and keeps it from being started by a connection, until a start or the
    /// next login.
    ///
    /// # Errors
    /// [`KeeperError::NotInstalled`], or what the manager said.
    pub fn stop(&mut self) -> Done {
        self.need_installed()?;
        match self.manager {
            Manager::Systemd => {
                let units = self.systemd_units();
                let mut stop = vec!["stop"];
                stop.extend(units);
                self.systemctl(&stop)
            }
            Manager::Launchd => self.bootout(),
        }
    }

    /// What the manager says of the service.
    ///
    /// # Errors
    /// When the manager's program cannot be started.
    pub fn state(&mut self) -> Done<State> {
        if !self.is_installed() {
            return Ok(State::NotInstalled);
        }
        let pid = match self.manager {
            Manager::Launchd => {
                let service = self.launchd_service()?;
                let ran = self.run("launchctl", &["print", &service])?;
                if !ran.is_success() || !says(&ran.out, "state", "running") {
                    return Ok(State::Stopped);
                }
                value(&ran.out, "pid")
            }
            Manager::Systemd => {
                let show = self.scoped(&["show", "--property=ActiveState,MainPID", systemd::UNIT]);
                let ran = self.run("systemctl", &show)?;
                let is_active = ["active", "activating", "reloading", "deactivating"]
                    .iter()
                    .any(|state| says(&ran.out, "ActiveState", state));
                if !ran.is_success() || !is_active {
                    return Ok(State::Stopped);
                }
                value(&ran.out, "MainPID")
            }
        };
        let pid = pid.and_then(|pid| pid.parse().ok()).filter(|pid| *pid != 0);
        Ok(State::Running { pid })
    }

    fn need_installed(&self) -> Done {
        if self.is_installed() { Ok(()) } else { Err(KeeperError::NotInstalled) }
    }

    fn is_installed(&self) -> bool {
        self.main_file().is_file()
    }

    fn main_file(&self) -> PathBuf {
        match self.manager {
            Manager::Launchd => self.launchd_file(),
            Manager::Systemd => self.places.folder.join(systemd::UNIT),
        }
    }

    fn launchd_file(&self) -> PathBuf {
        self.places.folder.join(format!("{}.plist", launchd::LABEL))
    }

    fn remove(&mut self) -> Done {
        let mut files = vec![self.main_file()];
        match self.manager {
            Manager::Launchd => self.bootout()?,
            Manager::Systemd => {
                let units = self.systemd_units();
                let mut disable = vec!["disable", "--now"];
                disable.extend(units);
                self.systemctl(&disable)?;
                files.push(self.places.folder.join(systemd::SOCKET_UNIT));
            }
        }
        for path in files {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(file_error(&path, error));
                }
                _ => {}
            }
        }
        match self.manager {
            Manager::Launchd => Ok(()),
            Manager::Systemd => self.systemctl(&["daemon-reload"]),
        }
    }

    /// The socket first: else a connection would start the service again.
    fn systemd_units(&self) -> Vec<&'static str> {
        let socket = self.places.folder.join(systemd::SOCKET_UNIT).is_file();
        socket.then_some(systemd::SOCKET_UNIT).into_iter().chain([systemd::UNIT]).collect()
    }

    /// Makes the service known to launchd, which starts it because of RunAtLoad.
    fn bootstrap(&mut self) -> Done {
        let domain = self.domain()?;
        let file = self.launchd_file();
        let file = file.to_string_lossy();
        // `launchctl disable` outlives everything else.
        let service = format!("{domain}/{}", launchd::LABEL);
        self.launchctl(&["enable", &service])?;
        self.launchctl(&["bootstrap", &domain, &file])
    }

    /// Ends the service and makes launchd forget it. It waits until the process is gone.
    fn bootout(&mut self) -> Done {
        if !self.is_loaded()? {
            return Ok(());
        }
        let service = self.launchd_service()?;
        self.launchctl(&["bootout", &service])
    }

    fn is_loaded(&mut self) -> Done<bool> {
        let service = self.launchd_service()?;
        Ok(self.run("launchctl", &["print", &service])?.is_success())
    }

    fn launchd_service(&mut self) -> Done<String> {
        Ok(format!("{}/{}", self.domain()?, launchd::LABEL))
    }

    /// The user's graphical session; without one (over ssh, say) the user's background session.
    fn domain(&mut self) -> Done<String> {
        if self.scope == Scope::System {
            return Ok("system".to_owned());
        }
        let graphical = format!("gui/{}", self.places.uid);
        let is_there = self.run("launchctl", &["print", &graphical])?.is_success();
        Ok(if is_there { graphical } else { format!("user/{}", self.places.uid) })
    }

    fn launchctl(&mut self, arguments: &[&str]) -> Done {
        self.must("launchctl", arguments)
    }

    fn systemctl(&mut self, arguments: &[&str]) -> Done {
        let arguments = self.scoped(arguments);
        self.must("systemctl", &arguments)
    }

    fn scoped<'a>(&self, arguments: &[&'a str]) -> Vec<&'a str> {
        let scope = (self.scope == Scope::User).then_some("--user");
        scope.into_iter().chain(arguments.iter().copied()).collect()
    }

    fn must(&mut self, program: &'static str, arguments: &[&str]) -> Done {
        let ran = self.run(program, arguments)?;
        if ran.is_success() {
            return Ok(());
        }
        let said = if ran.err.trim().is_empty() { &ran.out } else { &ran.err };
        Err(KeeperError::Refused {
            command: format!("{program} {}", arguments.join(" ")),
            code: ran.code,
            message: said.trim().to_owned(),
        })
    }

    fn run(&mut self, program: &'static str, arguments: &[&str]) -> Done<Ran> {
        self.commands
            .run(program, arguments)
            .map_err(|error| KeeperError::Missing { program, error })
    }
}

/// Whether a line of `text` sets `key` to `wanted`.
fn says(text: &str, key: &str, wanted: &str) -> bool {
    value(text, key).as_deref() == Some(wanted)
}

/// The first value of `key`, from `key=value` or `key = value`.
fn value(text: &str, key: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (found, value) = line.split_once('=')?;
        (found.trim() == key).then(|| value.trim().to_owned())
    })
}

/// A file that others may read and only its owner write, whole or not at all: launchd refuses
/// property lists that others could change.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let draft = path.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.create(true).truncate(true).write(true).mode(0o644).open(&draft)?;
    io::Write::write_all(&mut file, text.as_bytes())?;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
    file.sync_all()?;
    std::fs::rename(draft, path)
}

fn file_error(path: &Path, error: io::Error) -> KeeperError {
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied => "; a service of the machine needs sudo",
        _ => "",
    };
    KeeperError::File { path: path.to_owned(), error, hint }
}
