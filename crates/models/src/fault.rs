//! Short ways to say why a model cannot be loaded, and why the device failed.

use mlxd_engine::EngineFault;
use mlxd_protocol::{LoadFault, LoadFaultKind};

/// What loading returns.
pub type Loaded<T> = Result<T, LoadFault>;

fn fault(kind: LoadFaultKind, message: impl Into<String>) -> LoadFault {
    LoadFault { kind, message: message.into() }
}

/// A file or folder that is not there or cannot be read.
pub fn missing(message: impl Into<String>) -> LoadFault {
    fault(LoadFaultKind::Missing, message)
}

/// A file that contradicts itself or another.
pub fn corrupt(message: impl Into<String>) -> LoadFault {
    fault(LoadFaultKind::Corrupt, message)
}

/// Something this build does not know.
pub fn unsupported(message: impl Into<String>) -> LoadFault {
    fault(LoadFaultKind::Unsupported, message)
}

/// A failure of MLX while `doing` something for the load.
pub fn in_load(doing: &str) -> impl Fn(mlx_rs::error::Exception) -> LoadFault + '_ {
    move |error| fault(LoadFaultKind::Engine, format!("{doing}: MLX says: {}", error.what()))
}

/// A failure of MLX while `doing` something for a request.
pub fn in_engine(doing: &'static str) -> impl Fn(mlx_rs::error::Exception) -> EngineFault {
    move |error| EngineFault { doing, reason: error.what().to_owned() }
}
