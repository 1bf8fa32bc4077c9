//! What a figure was measured on.

use serde::Serialize;
use sysinfo::System;

/// The machine and the build.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// As the operating system names it.
    pub cpu: String,
    /// Logical cores.
    pub cores: usize,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Name and version.
    pub os: String,
    /// Of mlxd.
    pub version: &'static str,
}

impl Machine {
    /// This machine.
    pub fn this() -> Self {
        let mut system = System::new().ok();
        if let Some(system) = system.as_mut() {
            system.refresh_memory();
            system.refresh_cpu_all();
        }
        let cpu = system
            .as_ref()
            .and_then(|system| system.cpus().first().map(|cpu| cpu.brand().trim().to_owned()));
        Self {
            cpu: cpu.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: system.as_ref().map_or(0, System::total_memory),
            os: System::long_os_version().unwrap_or_else(|_| std::env::consts::OS.to_owned()),
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}
