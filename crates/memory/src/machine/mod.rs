//! The operating system's figures: memory there is, what a process takes, how hard it is pressed.
//!
//! [`Machine`] is one trait with a twin per system, one whose figures a file can change, and a
//! simulated one for tests; one conformance
//! test runs against each that is compiled.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;
pub mod proc_files;
mod rehearsed;
mod simulated;

#[cfg(target_os = "linux")]
pub use linux::ThisMachine;
#[cfg(target_os = "macos")]
pub use macos::ThisMachine;
pub use rehearsed::Rehearsed;
pub use simulated::Simulated;

use crate::Reading;
use std::io;

/// Memory that there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineMemory {
    /// All of it, or what a control group leaves us.
    pub total: u64,
    /// What could be taken now without pressing anybody.
    pub available: u64,
    /// The largest part of `total` that models should take: on a Mac, what its GPU should hold.
    pub working_set: u64,
}

/// What one process takes, as the system counts it when it decides whom to kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Now.
    pub bytes: u64,
    /// The most since it began, where the system keeps that.
    pub peak_bytes: Option<u64>,
}

/// One operating system's figures. Calls read system files or make system calls: some
/// milliseconds for a large process, so they are made off the event loop.
pub trait Machine: Send + Sync + std::fmt::Debug {
    /// Memory that there is.
    ///
    /// # Errors
    /// When the system does not say.
    fn memory(&self) -> io::Result<MachineMemory>;

    /// What the process takes; `None` when it is gone.
    fn footprint(&self, pid: u32) -> Option<Footprint>;

    /// How hard memory is pressed, but for [`Reading::available`].
    ///
    /// # Errors
    /// When the system does not say.
    fn pressure(&self) -> io::Result<Reading>;

    /// Memory that there is, and how hard it is pressed. What the system does not say is missing.
    fn look(&self) -> (Option<MachineMemory>, Reading) {
        let memory = self.memory().ok();
        let share =
            |memory: MachineMemory| 100.0 * memory.available as f64 / memory.total.max(1) as f64;
        let reading = self.pressure().unwrap_or_default();
        (memory, Reading { available: memory.map(share), ..reading })
    }

    /// Lets the process have so many bytes, by whatever limit the system has for one process.
    /// `None` takes the limit away. False: there is none that would hold.
    fn contain(&self, pid: u32, bytes: Option<u64>) -> bool;

    /// The process is gone: what [`Machine::contain`] made for it can go too.
    fn release(&self, pid: u32);
}

/// What is left to the system and to other programs, by the size of the machine: 20 GiB from
/// 64 GiB on, 8 GiB from 24 GiB on, else 4 GiB, and never more than a quarter.
pub fn reserve(total: u64) -> u64 {
    const GIB: u64 = 1 << 30;
    let by_size = match total / GIB {
        64.. => 20 * GIB,
        // What is sold as 24 GB is a little less once firmware has taken its part.
        23..=63 => 8 * GIB,
        _ => 4 * GIB,
    };
    by_size.min(total / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_follows_the_machines_size() {
        const GIB: u64 = 1 << 30;
        let reserves = [8, 16, 24, 36, 64, 128].map(|size| reserve(size * GIB) / GIB);
        assert_eq!(reserves, [2, 4, 6, 8, 16, 20]);
    }

    /// What every [`Machine`] keeps to. `own` is a process that lives and holds some megabytes.
    fn conforms(machine: &dyn Machine, own: u32, gone: u32) {
        let memory = machine.memory().unwrap();
        assert!(memory.total > 0 && memory.available <= memory.total, "{memory:?}");
        assert!(memory.working_set > 0 && memory.working_set <= memory.total, "{memory:?}");
        let footprint = machine.footprint(own).unwrap();
        assert!(footprint.bytes > 0 && footprint.bytes < memory.total, "{footprint:?}");
        if let Some(peak) = footprint.peak_bytes {
            // Read one after the other, and a process may grow meanwhile.
            assert!(peak + (8 << 20) >= footprint.bytes, "{footprint:?}");
        }
        assert_eq!(machine.footprint(gone), None);
        let reading = machine.pressure().unwrap();
        for percent in [reading.stalled_some, reading.stalled_full].into_iter().flatten() {
            assert!((0.0..=100.0).contains(&percent), "{reading:?}");
        }
        machine.release(gone);
    }

    #[test]
    fn this_machine_conforms() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let gone = child.id();
        child.wait().unwrap();
        let machine = ThisMachine::new();
        conforms(&machine, std::process::id(), gone);
        // Memory that is taken shows, and goes when it is given back.
        let before = machine.footprint(std::process::id()).unwrap().bytes;
        let ballast = vec![1_u8; 64 << 20];
        let with = machine.footprint(std::process::id()).unwrap().bytes;
        assert!(with >= before + (60 << 20), "{before} then {with}");
        drop(ballast);
        let after = machine.footprint(std::process::id()).unwrap().bytes;
        assert!(after + (48 << 20) < with, "{with} then {after}");
    }

    #[test]
    fn the_rehearsed_machine_conforms_and_does_as_its_file_says() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("figures.json");
        let machine = Rehearsed::new(file.clone());
        conforms(&machine, std::process::id(), u32::MAX >> 1);
        std::fs::write(&file, r#"{"available_bytes": 5000, "pressure": "critical"}"#).unwrap();
        conforms(&machine, std::process::id(), u32::MAX >> 1);
        assert_eq!(machine.memory().unwrap().available, 5000);
        assert_eq!(machine.pressure().unwrap().level, Some(crate::Level::Critical));
        std::fs::write(&file, r#"{"avail": 5000}"#).unwrap();
        assert!(machine.memory().unwrap_err().to_string().contains("avail"));
    }

    #[test]
    fn the_simulated_machine_conforms() {
        let machine = Simulated::new(16 << 30);
        machine.set_footprint(7, Some(3 << 20));
        conforms(&machine, 7, 8);
    }
}
