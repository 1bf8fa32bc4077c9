//! `mlxd-worker`: one model on MLX. Started by `mlxd`, never by hand.

mod measure;

use mlxd_models::MlxEngine;
use mlxd_protocol::{LoadFault, LoadSpec, PROTOCOL_VERSION};
use mlxd_worker::{Loader, Program, run};

/// Loads models with MLX.
struct Mlx;

impl Loader for Mlx {
    type Engine = MlxEngine;

    fn load(
        &mut self,
        spec: &LoadSpec,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<MlxEngine, LoadFault> {
        mlxd_models::load(spec, progress)
    }
}

fn main() {
    mlxd_worker::give_back_freed();
    let mut arguments = std::env::args().skip(1);
    if arguments.next().is_some_and(|first| first == mlxd_protocol::measure::MEASURE) {
        std::process::exit(measure::run(arguments.next().as_deref()));
    }
    let program = Program {
        name: env!("CARGO_BIN_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        protocol: PROTOCOL_VERSION,
    };
    run(program, Mlx)
}
