//! `mlxd bench`: the tables that the field publishes, as commands.
//!
//! Every figure is a ratio or a rate taken in one run against one server. The server is started
//! for the run, with folders of its own, unless `--url` names one. Direct legs run inside a
//! worker: this program links no MLX.

mod client;
mod machine;
mod overhead;
mod server;
mod table;

use clap::{Args, Subcommand};

/// `mlxd bench`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    table: Table,
}

#[derive(Debug, Subcommand)]
enum Table {
    /// The engine alone against the full HTTP path, at 50, 100 and 200 tokens.
    Overhead(overhead::Arguments),
}

/// Runs a table and prints it.
///
/// # Errors
/// When the server cannot be started or a request fails.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match &arguments.table {
            Table::Overhead(arguments) => overhead::run(arguments).await,
        }
    })
}
