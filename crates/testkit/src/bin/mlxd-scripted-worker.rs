//! The real worker's loop around a [`ScriptedEngine`](mlxd_testkit::ScriptedEngine). For tests:
//! `workers.program` in a front's configuration points here.

use mlxd_protocol::PROTOCOL_VERSION;
use mlxd_testkit::{PROTOCOL_VARIABLE, ScriptedLoader};
use mlxd_worker::{Program, run};

fn main() {
    let claimed = std::env::var(PROTOCOL_VARIABLE).ok();
    let program = Program {
        name: env!("CARGO_BIN_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        protocol: claimed.and_then(|version| version.parse().ok()).unwrap_or(PROTOCOL_VERSION),
    };
    run(program, ScriptedLoader)
}
