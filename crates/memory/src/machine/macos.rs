//! macOS: `sysctl`, and the resource usage that the system itself kills by.

#![allow(unsafe_code)] // Two calls that no safe wrapper has.

use super::{Footprint, Machine, MachineMemory, reserve};
use crate::{Level, Reading};
use nix::libc;
use std::ffi::CStr;
use std::io;
use sysinfo::{MemoryRefreshKind, System};

/// This machine.
#[derive(Debug, Default)]
pub struct ThisMachine(());

impl ThisMachine {
    /// The machine that this runs on.
    pub fn new() -> Self {
        Self(())
    }
}

/// A number that the kernel knows by name.
fn kernel_number(name: &CStr) -> io::Result<u32> {
    let mut value: u32 = 0;
    let mut length = size_of::<u32>();
    let out = (&raw mut value).cast();
    // SAFETY: the name ends in a zero byte, `out` has room for `length` bytes, nothing is set.
    let done =
        unsafe { libc::sysctlbyname(name.as_ptr(), out, &mut length, std::ptr::null_mut(), 0) };
    if done == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

fn usage(pid: u32) -> Option<libc::rusage_info_v4> {
    let pid = libc::c_int::try_from(pid).ok()?;
    let mut usage = std::mem::MaybeUninit::<libc::rusage_info_v4>::zeroed();
    // SAFETY: the buffer is what flavour RUSAGE_INFO_V4 fills, and zeroes are a value of it.
    unsafe {
        let filled = libc::proc_pid_rusage(pid, libc::RUSAGE_INFO_V4, usage.as_mut_ptr().cast());
        (filled == 0).then(|| usage.assume_init())
    }
}

impl Machine for ThisMachine {
    fn memory(&self) -> io::Result<MachineMemory> {
        let mut system = System::new().map_err(io::Error::other)?;
        system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        let total = system.total_memory();
        let available = system.available_memory().min(total);
        // What Metal recommends for its working set: two thirds of a small machine, three quarters
        // of a larger one, unless an administrator has set the limit.
        let share = if total > 36 << 30 { total / 4 * 3 } else { total / 3 * 2 };
        let wired_mib = kernel_number(c"iogpu.wired_limit_mb").unwrap_or(0);
        let metal = if wired_mib > 0 { u64::from(wired_mib) << 20 } else { share };
        let working_set = metal.min(total.saturating_sub(reserve(total))).max(1);
        Ok(MachineMemory { total, available, working_set })
    }

    fn footprint(&self, pid: u32) -> Option<Footprint> {
        let usage = usage(pid)?;
        let (bytes, peak) = (usage.ri_phys_footprint, usage.ri_lifetime_max_phys_footprint);
        (bytes > 0).then_some(Footprint { bytes, peak_bytes: Some(peak.max(bytes)) })
    }

    fn pressure(&self) -> io::Result<Reading> {
        let level = match kernel_number(c"kern.memorystatus_vm_pressure_level")? {
            0 | 1 => Level::Normal,
            2 => Level::Warning,
            _ => Level::Critical,
        };
        Ok(Reading { level: Some(level), ..Reading::default() })
    }

    /// macOS has no limit for one process that holds; MLX's own limit in the worker is all.
    fn contain(&self, _pid: u32, _bytes: Option<u64>) -> bool {
        false
    }

    fn release(&self, _pid: u32) {}
}
