//! Which device MLX computes on, chosen once for the process.

use mlx_rs::Device;
use mlxd_protocol::{DeviceChoice, LoadFault};

use crate::fault::{in_load, unsupported};
use crate::sys;

/// What MLX runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Apple's GPU.
    Metal,
    /// NVIDIA's GPU.
    Cuda,
    /// The processor.
    Cpu,
}

impl Backend {
    /// As shown to people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Metal => "metal",
            Self::Cuda => "cuda",
            Self::Cpu => "cpu",
        }
    }

    /// Whether the device works while this thread does something else.
    pub fn is_gpu(self) -> bool {
        self != Self::Cpu
    }
}

/// Primes MLX's error handler and makes `choice` the default device of the process.
pub fn choose(choice: DeviceChoice) -> Result<Backend, LoadFault> {
    // The first fallible mlx-rs call installs a handler; before it mlx-c exits on an error.
    Device::try_default().map_err(in_load("starting MLX"))?;
    let gpu = match choice {
        DeviceChoice::Cpu => false,
        DeviceChoice::Auto => sys::gpu_available(),
        DeviceChoice::Gpu if sys::gpu_available() => true,
        DeviceChoice::Gpu => {
            return Err(unsupported(
                "device = gpu, but MLX finds no GPU here; use auto or cpu, or set up MLX's GPU build",
            ));
        }
    };
    let device = if gpu { Device::gpu() } else { Device::cpu() };
    Device::set_default(&device);
    Ok(match (gpu, cfg!(target_os = "macos")) {
        (false, _) => Backend::Cpu,
        (true, true) => Backend::Metal,
        (true, false) => Backend::Cuda,
    })
}
