//! `mlxctl`: the admin's command line, in the manner of `supervisorctl`.
//!
//! One command, one call to the front over its Unix socket, one exit code. What was asked for
//! goes to standard output, what went wrong to standard error, as sentences. It links no MLX and
//! holds no state.

mod arguments;
mod ask;
mod call;
mod client;
mod commands;
mod exit;
mod output;
mod socket;
mod status;
mod tail;
mod units;

use crate::arguments::Arguments;
use crate::exit::Exit;
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    // clap's own errors end with 2, as ours for wrong arguments.
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("mlxctl: cannot start: {error}");
            return Exit::Generic.into();
        }
    };
    match runtime.block_on(commands::run(arguments)) {
        Ok(exit) => exit.into(),
        // Whoever read the output has seen enough.
        Err(failure) if failure.is_closed_pipe() => Exit::Success.into(),
        Err(failure) => {
            eprintln!("mlxctl: {failure}");
            failure.exit().into()
        }
    }
}
