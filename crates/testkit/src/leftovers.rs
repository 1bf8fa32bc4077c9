//! What an instance of mlxd may have left behind: processes, shared memory, sockets.
//!
//! Everything is found by what is the instance's alone: its home folder, which every process of
//! it has in its environment, and the segment names that it recorded there. Nothing of another
//! instance, in a test beside this one, is ever seen.

use nix::fcntl::OFlag;
use nix::sys::mman::shm_open;
use nix::sys::stat::Mode;
use std::ffi::OsString;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};

/// What is there of an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Processes that have the instance's home in their environment, zombies left out: id and
    /// name.
    pub processes: Vec<(u32, String)>,
    /// Recorded segments that still have a name.
    pub segments: Vec<String>,
    /// Sockets under the home.
    pub sockets: Vec<PathBuf>,
}

impl Leftovers {
    /// Looks for what is there of the instance that lives in `home`.
    pub fn of(home: &Path) -> Self {
        let mut leftovers = Self { processes: processes(home), ..Self::default() };
        leftovers.walk(home);
        leftovers
    }

    /// Nothing is there.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn walk(&mut self, folder: &Path) {
        let Ok(entries) = std::fs::read_dir(folder) else {
            return;
        };
        for entry in entries.flatten() {
            let (Ok(kind), path) = (entry.file_type(), entry.path()) else {
                continue;
            };
            if kind.is_dir() {
                self.walk(&path);
            } else if kind.is_socket() {
                self.sockets.push(path);
            } else if path.extension().is_some_and(|kind| kind == "segment") {
                let record = std::fs::read_to_string(&path).unwrap_or_default();
                let names = record.split_whitespace().filter(|word| word.starts_with('/'));
                self.segments.extend(names.filter(|name| is_linked(name)).map(str::to_owned));
            }
        }
    }
}

fn is_linked(segment: &str) -> bool {
    shm_open(segment, OFlag::O_RDONLY, Mode::empty()).is_ok()
}

fn processes(home: &Path) -> Vec<(u32, String)> {
    let mut system = System::new().expect("the system tells of its processes");
    let with_environment =
        ProcessRefreshKind::nothing().with_environ(UpdateKind::Always).without_tasks();
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, with_environment);
    let mut variable = OsString::from("XDG_RUNTIME_DIR=");
    variable.push(home);
    let own = std::process::id();
    let of_instance = system.processes().iter().filter(|(id, process)| {
        let begins =
            |text: &OsString| text.as_encoded_bytes().starts_with(variable.as_encoded_bytes());
        let is_thread = process.thread_kind().is_some();
        id.as_u32() != own && !is_thread && process.environ().iter().any(begins)
    });
    of_instance
        .map(|(id, process)| (id.as_u32(), process.name().to_string_lossy().into_owned()))
        .collect()
}
