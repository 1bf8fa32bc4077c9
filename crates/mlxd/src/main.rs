//! `mlxd`: serves language models from worker processes of their own.
//!
//! This crate only wires the others together: configuration, folders, sockets, signals and the
//! subcommands. It links no MLX.

mod administration;
mod arguments;
mod bench;
mod check;
mod demo;
mod exit;
mod instance;
mod logging;
mod managed;
mod memory;
mod pulls;
mod reload;
mod serve;
mod shelf;
mod source;
mod virtual_models;
mod welcome;

use arguments::{Arguments, ConfigCommand, Subcommand};
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut by_launchd = false;
    let outcome = match arguments.command {
        Subcommand::Serve(serve) => {
            by_launchd = serve.launchd;
            serve::run(&serve)
        }
        Subcommand::Demo(demo) => demo::run(&demo),
        Subcommand::Bench(bench) => {
            mlxd_bench::run(&bench, &bench::Configured).map_err(exit::Failed::run)
        }
        Subcommand::Config { command: ConfigCommand::Check(flags) } => check::check(&flags),
        Subcommand::Config { command: ConfigCommand::Show(flags) } => check::show(&flags),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            eprintln!("mlxd: {failed}");
            if by_launchd && failed.would_come_again() {
                eprintln!("mlxd: once that is mended: mlxctl service start");
                return ExitCode::SUCCESS;
            }
            failed.code()
        }
    }
}
