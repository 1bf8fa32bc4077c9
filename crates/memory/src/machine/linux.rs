//! Linux: `/proc`, pressure stall information, control groups of both versions, `prlimit`.

#![allow(unsafe_code)] // One system call that no safe wrapper has here.

use super::proc_files::{self, Group};
use super::{Footprint, Machine, MachineMemory, reserve};
use crate::Reading;
use nix::libc;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

const MOUNT: &str = "/sys/fs/cgroup";

/// The group that mlxd runs in where its unit asks systemd for one of its own
/// (`DelegateSubgroup=front`): workers' groups then go beside it.
const FRONT_GROUP: &str = "front";

/// This machine.
#[derive(Debug)]
pub struct ThisMachine {
    group: Option<Group>,
    /// Groups made for workers, by process.
    contained: Mutex<HashMap<u32, PathBuf>>,
}

impl Default for ThisMachine {
    fn default() -> Self {
        Self::new()
    }
}

impl ThisMachine {
    /// Looks where we are. Groups that a killed front left empty are taken away.
    pub fn new() -> Self {
        let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let group = Group::find(&membership, Path::new(MOUNT));
        if let Some(parent) = group.as_ref().and_then(workers_parent) {
            sweep(&parent);
        }
        Self { group, contained: Mutex::default() }
    }

    /// Puts the process into a group of its own with this limit.
    fn contain_by_group(&self, pid: u32, bytes: u64) -> io::Result<()> {
        let group = self.group.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        let file = match group {
            Group::V1(_) => "memory.limit_in_bytes",
            Group::V2(_) => "memory.max",
        };
        let mut contained = self.contained.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(folder) = contained.get(&pid) {
            return fs::write(folder.join(file), bytes.to_string());
        }
        let parent = workers_parent(group).ok_or(io::ErrorKind::Unsupported)?;
        if matches!(group, Group::V2(_)) {
            fs::write(parent.join("cgroup.subtree_control"), "+memory")?;
        }
        let folder = parent.join(format!("mlxd-{}-worker-{pid}", std::process::id()));
        fs::create_dir(&folder)?;
        let joined = fs::write(folder.join(file), bytes.to_string())
            .and_then(|()| fs::write(folder.join("cgroup.procs"), pid.to_string()));
        match joined {
            Ok(()) => drop(contained.insert(pid, folder)),
            Err(_) => drop(fs::remove_dir(&folder)),
        }
        joined
    }
}

/// Where groups for workers may be made. Version 2 takes no group beside processes, so there it
/// needs a place that was given to us.
fn workers_parent(group: &Group) -> Option<PathBuf> {
    match group {
        Group::V1(folder) => Some(folder.clone()),
        Group::V2(folder) if folder.file_name()? == FRONT_GROUP => {
            folder.parent().map(Path::to_owned)
        }
        Group::V2(_) => None,
    }
}

/// Takes away the groups of fronts that are no more. A group with a process in it stays.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let front = name.to_str().and_then(|name| {
            name.strip_prefix("mlxd-")?.split_once("-worker-")?.0.parse::<u32>().ok()
        });
        if front.is_some_and(|front| !Path::new(&format!("/proc/{front}")).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Limits the process's private writable memory.
fn limit_data(pid: u32, bytes: Option<u64>) -> bool {
    let Ok(pid) = libc::pid_t::try_from(pid) else { return false };
    let limit = libc::rlimit64 {
        rlim_cur: bytes.unwrap_or(libc::RLIM64_INFINITY),
        rlim_max: libc::RLIM64_INFINITY,
    };
    // SAFETY: the new limit is a live value of the right type, and no old one is asked for.
    unsafe { libc::prlimit64(pid, libc::RLIMIT_DATA, &limit, std::ptr::null_mut()) == 0 }
}

impl Machine for ThisMachine {
    fn memory(&self) -> io::Result<MachineMemory> {
        let text = fs::read_to_string("/proc/meminfo")?;
        let (mut total, mut available) = proc_files::meminfo(&text)
            .ok_or_else(|| io::Error::other("/proc/meminfo does not say how much there is"))?;
        if let Some(room) = self.group.as_ref().and_then(|group| group.room(Path::new(MOUNT))) {
            total = total.min(room.limit);
            available = available.min(room.available);
        }
        let working_set = total.saturating_sub(reserve(total)).max(1);
        Ok(MachineMemory { total, available, working_set })
    }

    fn footprint(&self, pid: u32) -> Option<Footprint> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        // A process that has ended and was not waited for has no memory lines.
        let resident = proc_files::kib_field(&status, "VmRSS:")?;
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok();
        let proportional = rollup.as_deref().and_then(proc_files::proportional);
        let bytes = proportional.unwrap_or(resident);
        // The peak is of the resident set; what others share of it is as now.
        let shared = resident.saturating_sub(bytes);
        let peak = proc_files::kib_field(&status, "VmHWM:");
        let peak_bytes = peak.map(|peak| peak.saturating_sub(shared).max(bytes));
        Some(Footprint { bytes, peak_bytes })
    }

    fn pressure(&self) -> io::Result<Reading> {
        // A kernel without it says nothing of stalls, and that is no error.
        let own = self.group.as_ref().map(|group| group.folder().join("memory.pressure"));
        let text = own.and_then(|own| fs::read_to_string(own).ok());
        let text = text.or_else(|| fs::read_to_string("/proc/pressure/memory").ok());
        let (stalled_some, stalled_full) = proc_files::stalls(&text.unwrap_or_default());
        let limit_hits = self.group.as_ref().and_then(Group::limit_hits);
        Ok(Reading { stalled_some, stalled_full, limit_hits, ..Reading::default() })
    }

    fn contain(&self, pid: u32, bytes: Option<u64>) -> bool {
        match bytes {
            Some(limit) => {
                self.contain_by_group(pid, limit).is_ok() || limit_data(pid, Some(limit))
            }
            None => {
                let grouped = self.contain_by_group(pid, i64::MAX as u64).is_ok();
                limit_data(pid, None) || grouped
            }
        }
    }

    fn release(&self, pid: u32) {
        let mut contained = self.contained.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(folder) = contained.remove(&pid) {
            // Refused while the process is still in it; the next front's sweep finds it then.
            let _ = fs::remove_dir(folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    /// A process that takes 200 MB once it is told to go.
    fn glutton() -> std::process::Child {
        let program = "read go; exec head -c 200000000 /dev/zero | tail -c 200000000 >/dev/null; exit ${PIPESTATUS[1]}";
        Command::new("bash")
            .args(["-c", program])
            .stdin(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap()
    }

    fn go(child: &mut std::process::Child) -> std::process::ExitStatus {
        use std::io::Write;
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        child.wait().unwrap()
    }

    #[test]
    fn who_outgrows_its_limit_dies_alone() {
        let machine = ThisMachine::new();
        let mut child = glutton();
        assert!(machine.contain(child.id(), Some(64 << 20)));
        let status = go(&mut child);
        machine.release(child.id());
        assert!(!status.success(), "{status}");
        assert!(machine.contained.lock().unwrap().is_empty());

        let mut child = glutton();
        assert!(machine.contain(child.id(), Some(64 << 20)));
        assert!(machine.contain(child.id(), None));
        let status = go(&mut child);
        machine.release(child.id());
        assert!(status.success(), "{status}, signal {:?}", status.signal());
    }

    #[test]
    fn a_limit_on_data_holds_where_no_group_can_be_made() {
        let machine = ThisMachine { group: None, contained: Mutex::default() };
        let mut child = glutton();
        assert!(machine.contain(child.id(), Some(64 << 20)));
        assert!(!go(&mut child).success());
        assert!(!machine.contain(u32::MAX, Some(1)));
    }
}
