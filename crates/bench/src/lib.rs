//! `mlxd bench`: the tables that the field publishes, as commands.
//!
//! | part | does |
//! |---|---|
//! | `session` | what a benchmark is, its flags, its server, its output: start here to add one |
//! | `client`, `target`, `server` | requests timed as a client sees them, and the server asked |
//! | `report`, `table`, `plot`, `stats` | figures, and their way to terminal, JSON and SVG |
//! | the others | one benchmark each |
//!
//! Every figure is taken in one run against one server. The server is started for the run, with
//! folders of its own, unless `--url` names one. What needs MLX itself runs in a worker: this
//! program links none.

mod all;
mod batch;
mod client;
mod compare;
mod detok;
mod llm;
mod machine;
mod overhead;
mod plot;
mod prompts;
mod report;
mod serve;
mod server;
mod session;
mod single;
mod stats;
mod stream;
mod table;
mod target;
mod volley;

use clap::{Args, Subcommand};
use session::show;
use std::path::{Path, PathBuf};

/// What only the front can tell: it knows the configuration.
pub trait Front {
    /// The folder of a model, as a request for it would find it.
    ///
    /// # Errors
    /// When there is no such model, or the configuration is wrong.
    fn model_folder(&self, config: Option<&Path>, model: &str) -> anyhow::Result<PathBuf>;

    /// Where a running mlxd of this user says how to reach it, `mlxd.json`.
    fn card(&self) -> Option<PathBuf>;
}

/// `mlxd bench`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    table: Table,
}

#[derive(Debug, Subcommand)]
enum Table {
    /// Many prompts at once: tokens/s, tokens/s with prompts, prompts/s.
    Llm(llm::Arguments),
    /// One prompt after another: time to first token, time per token, speed, memory.
    Single(single::Arguments),
    /// One request against five at once, and the speed-up.
    Batch(batch::Arguments),
    /// Time to first token and speed as a streaming client sees them.
    Stream(stream::Arguments),
    /// Any OpenAI server under load: latencies, throughput and goodput by concurrency.
    Serve(serve::Arguments),
    /// The engine alone against the full HTTP path, at 50, 100 and 200 tokens.
    Overhead(overhead::Arguments),
    /// Decoding tokens to text: token by token against streaming, and making a decoder.
    Detok(detok::Arguments),
    /// Everything of this list but `compare`, on one page with pictures.
    All(all::Arguments),
    /// Two reports of one benchmark side by side.
    Compare(compare::Arguments),
}

/// Runs a table and prints it.
///
/// # Errors
/// When the server cannot be started or a request fails.
pub fn run(arguments: &Arguments, front: &dyn Front) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match &arguments.table {
            Table::Llm(arguments) => show(arguments, front).await,
            Table::Single(arguments) => show(arguments, front).await,
            Table::Batch(arguments) => show(arguments, front).await,
            Table::Stream(arguments) => show(arguments, front).await,
            Table::Serve(arguments) => show(arguments, front).await,
            Table::Overhead(arguments) => show(arguments, front).await,
            Table::Detok(arguments) => show(arguments, front).await,
            Table::All(arguments) => all::run(arguments, front).await,
            Table::Compare(arguments) => compare::run(arguments),
        }
    })
}
