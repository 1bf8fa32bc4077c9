//! Processor time and memory of a process, as its system counts them.

use std::time::Duration;
use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

/// Processor time that each of some processes has used so far. Linux counts it in hundredths of a
/// second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuTimes(Vec<Duration>);

impl CpuTimes {
    /// Looks at these processes now. One that is gone has used nothing.
    pub fn of(pids: &[u32]) -> Self {
        let system = look(pids, ProcessRefreshKind::nothing().with_cpu());
        let used =
            |pid: &u32| system.process(Pid::from_u32(*pid)).map(|p| p.accumulated_cpu_time());
        Self(pids.iter().map(|pid| Duration::from_millis(used(pid).unwrap_or(0))).collect())
    }

    /// What was used since `earlier`, which looked at the same processes.
    pub fn since(&self, earlier: &Self) -> Vec<Duration> {
        self.0.iter().zip(&earlier.0).map(|(now, then)| now.saturating_sub(*then)).collect()
    }
}

/// Memory of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Resident bytes: its own and those that it shares with others, such as programs' pages.
    pub resident: u64,
    /// Resident bytes with shared ones divided among those who share them, where the system
    /// tells (Linux).
    pub proportional: Option<u64>,
}

impl Memory {
    /// Looks at a process now. `None`: there is no such process.
    pub fn of(pid: u32) -> Option<Self> {
        let system = look(&[pid], ProcessRefreshKind::nothing().with_memory());
        let resident = system.process(Pid::from_u32(pid))?.memory();
        Some(Self { resident, proportional: proportional(pid) })
    }
}

fn look(pids: &[u32], what: ProcessRefreshKind) -> System {
    let pids: Vec<Pid> = pids.iter().map(|&pid| Pid::from_u32(pid)).collect();
    let mut system = System::new().expect("the system tells of its processes");
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&pids), true, what.without_tasks());
    system
}

/// The `Pss:` line of Linux's `smaps_rollup`.
fn proportional(pid: u32) -> Option<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_there_and_another_is_not() {
        let own = Memory::of(std::process::id()).expect("we run");
        assert!(own.resident > 100 << 10);
        assert!(own.proportional.is_none_or(|bytes| bytes > 0 && bytes <= own.resident * 2));
        // Above the largest process number of Linux and macOS.
        assert_eq!(Memory::of(1 << 30), None);
    }
}
