//! `mlxctl`: the admin's command line, in the manner of `supervisorctl`.
//!
//! One command, one call to the front over its Unix socket, one exit code. What was asked for
//! goes to standard output, what went wrong to standard error, as sentences. It links no MLX and
//! holds no state but the history of its prompt.

mod arguments;
mod ask;
mod cache;
mod call;
mod client;
mod commands;
mod estimate;
mod events;
mod exit;
mod generate;
mod lines;
mod output;
mod pid;
mod prompt;
mod pull;
mod reload;
mod route;
mod selection;
mod service;
mod shelf;
mod socket;
mod status;
mod tail;
mod top;
mod units;
mod why;

use crate::arguments::Arguments;
use crate::exit::Exit;
use crate::prompt::Prompt;
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    // clap's own errors end with 2, as ours for wrong arguments.
    let Arguments { command, socket, json } = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("mlxctl: cannot start: {error}");
            return Exit::Generic.into();
        }
    };
    let done = match command {
        Some(command) => runtime.block_on(commands::run(command, socket, json)),
        None => Prompt::new(runtime, socket, json).run(),
    };
    match done {
        Ok(exit) => exit.into(),
        // Whoever read the output has seen enough.
        Err(failure) if failure.is_closed_pipe() => Exit::Success.into(),
        Err(failure) => {
            failure.tell(json);
            failure.exit().into()
        }
    }
}
