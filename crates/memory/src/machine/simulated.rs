//! A machine made of numbers, for tests of everything above it.

use super::{Footprint, Machine, MachineMemory};
use crate::Reading;
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

#[derive(Debug)]
struct State {
    memory: MachineMemory,
    footprints: HashMap<u32, Footprint>,
    reading: Reading,
    limits: HashMap<u32, u64>,
}

/// A machine whose figures a test sets. Clones share them.
#[derive(Debug, Clone)]
pub struct Simulated(Arc<Mutex<State>>);

impl Simulated {
    /// A machine with all its memory free and no pressure.
    pub fn new(total: u64) -> Self {
        let memory = MachineMemory { total, available: total, working_set: total };
        Self(Arc::new(Mutex::new(State {
            memory,
            footprints: HashMap::new(),
            reading: Reading::default(),
            limits: HashMap::new(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// So much can be taken.
    pub fn set_available(&self, bytes: u64) {
        self.state().memory.available = bytes;
    }

    /// What a process takes; `None`: it is gone.
    pub fn set_footprint(&self, pid: u32, bytes: Option<u64>) {
        let mut state = self.state();
        match bytes {
            None => drop(state.footprints.remove(&pid)),
            Some(bytes) => {
                let footprint = Footprint { bytes, peak_bytes: Some(bytes) };
                let before = state.footprints.insert(pid, footprint);
                if let Some(peak) = before.and_then(|before| before.peak_bytes)
                    && let Some(now) = state.footprints.get_mut(&pid)
                {
                    now.peak_bytes = Some(peak.max(bytes));
                }
            }
        }
    }

    /// What the system says of pressure from now on.
    pub fn set_pressure(&self, reading: Reading) {
        self.state().reading = reading;
    }

    /// The limit of a process.
    pub fn limit(&self, pid: u32) -> Option<u64> {
        self.state().limits.get(&pid).copied()
    }
}

impl Machine for Simulated {
    fn memory(&self) -> io::Result<MachineMemory> {
        Ok(self.state().memory)
    }

    fn footprint(&self, pid: u32) -> Option<Footprint> {
        self.state().footprints.get(&pid).copied()
    }

    fn pressure(&self) -> io::Result<Reading> {
        Ok(self.state().reading)
    }

    fn contain(&self, pid: u32, bytes: Option<u64>) -> bool {
        match bytes {
            Some(bytes) => self.state().limits.insert(pid, bytes),
            None => self.state().limits.remove(&pid),
        };
        true
    }

    fn release(&self, pid: u32) {
        self.state().limits.remove(&pid);
    }
}
