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

mod admission;
mod all;
mod attention;
mod bandwidth;
mod batch;
mod cache_memory;
mod client;
mod compare;
mod detok;
mod fit;
mod forward;
mod kv_quant;
mod llm;
mod load;
mod machine;
mod memory;
mod overhead;
mod paged_cache;
mod pages;
mod plot;
mod prefix_cache;
mod prefixes;
mod prompts;
mod report;
mod serve;
mod server;
mod session;
mod single;
mod stats;
mod stream;
mod swap;
mod table;
mod target;
mod volley;
mod worker;

use clap::{Args, Subcommand};
use mlxd_memory::Needs;
use mlxd_protocol::LoadSpec;
use session::show;
use std::path::{Path, PathBuf};

/// A model's files and how a worker would load them.
#[derive(Debug, Clone)]
pub struct LocalModel {
    /// With `config.json` and `tokenizer.json`.
    pub folder: PathBuf,
    /// What a worker would be told.
    pub load: LoadSpec,
    /// What of memory it is expected to need.
    pub needs: Needs,
}

/// What only the front can tell: it knows the configuration.
pub trait Front {
    /// A model, as a request for it would find it.
    ///
    /// # Errors
    /// When there is no such model, or the configuration is wrong.
    fn model(&self, config: Option<&Path>, name: &str) -> anyhow::Result<LocalModel>;

    /// The program that workers run.
    ///
    /// # Errors
    /// When the configuration is wrong.
    fn worker_program(&self, config: Option<&Path>) -> anyhow::Result<PathBuf>;

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
    /// How fast memory is, at 100 MB to 4 GB, and which share of what the chip could.
    Bandwidth(bandwidth::Arguments),
    /// Attention written out against MLX's fused one, at 128 to 8192 tokens.
    Attention(attention::Arguments),
    /// What a sequence takes in memory, by its length.
    Memory(memory::Arguments),
    /// Whole forward passes a second, by length.
    Forward(forward::Arguments),
    /// What the server keeps of prompts: hits, misses, tokens saved.
    PrefixCache(prefix_cache::Arguments),
    /// Two rounds of requests at once that share a system prompt, against ones that do not.
    PagedCache(paged_cache::Arguments),
    /// Memory that shared beginnings save: system prompts, concurrent requests, branches.
    CacheMemory(cache_memory::Arguments),
    /// Keys and values in 8 and 4 bits: bytes, speed by length, and quality lost.
    KvQuant(kv_quant::Arguments),
    /// Load time and memory by model and by length, with fits over the parameters.
    Load(load::Arguments),
    /// From a request for a model that is not loaded to its first token, and a start in parts.
    Swap(swap::Arguments),
    /// What admission predicts against what is taken: errors, false admits, false rejects.
    Admission(admission::Arguments),
    /// The tables above on one page with pictures.
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
            Table::Bandwidth(arguments) => show(arguments, front).await,
            Table::Attention(arguments) => show(arguments, front).await,
            Table::Memory(arguments) => show(arguments, front).await,
            Table::Forward(arguments) => show(arguments, front).await,
            Table::PrefixCache(arguments) => show(arguments, front).await,
            Table::PagedCache(arguments) => show(arguments, front).await,
            Table::CacheMemory(arguments) => show(arguments, front).await,
            Table::KvQuant(arguments) => show(arguments, front).await,
            Table::Load(arguments) => show(arguments, front).await,
            Table::Swap(arguments) => show(arguments, front).await,
            Table::Admission(arguments) => show(arguments, front).await,
            Table::All(arguments) => all::run(arguments, front).await,
            Table::Compare(arguments) => compare::run(arguments),
        }
    })
}
