//! What a figure was measured on.

use serde::{Deserialize, Serialize};
use sysinfo::System;

/// The machine and the build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor, as the operating system names it.
    pub chip: String,
    /// The GPU, where a run saw one that has a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Logical cores.
    pub cores: usize,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Name and version.
    pub os: String,
    /// As `x86_64`.
    pub architecture: String,
}

impl Machine {
    /// This machine.
    pub fn this() -> Self {
        let mut system = System::new().ok();
        if let Some(system) = system.as_mut() {
            system.refresh_memory();
            system.refresh_cpu_all();
        }
        let chip = system
            .as_ref()
            .and_then(|system| system.cpus().first().map(|cpu| cpu.brand().trim().to_owned()))
            .filter(|brand| !brand.is_empty());
        Self {
            chip: chip.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            device: None,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: system.as_ref().map_or(0, System::total_memory),
            os: System::long_os_version().unwrap_or_else(|_| std::env::consts::OS.to_owned()),
            architecture: std::env::consts::ARCH.to_owned(),
        }
    }
}

/// Bytes of memory that the system would give out now.
pub fn available_memory_bytes() -> u64 {
    let mut system = System::new().ok();
    if let Some(system) = system.as_mut() {
        system.refresh_memory();
    }
    system.as_ref().map_or(0, System::available_memory)
}
