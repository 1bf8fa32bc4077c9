//! What every benchmark has in common: its flags, its server, its way to the terminal and a file.

use crate::Front;
use crate::report::Report;
use crate::target::{ServerFlags, Target};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;

/// How much is measured and where it goes.
#[derive(Debug, Clone, Default, Args)]
pub struct Output {
    /// Measure less: a look at the shape, not figures to publish.
    #[arg(long)]
    pub quick: bool,
    /// Write the report as JSON.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Flags of every benchmark that needs a model's files and no server.
#[derive(Debug, Clone, Args)]
pub struct LocalFlags {
    /// Model, by name or path.
    #[arg(long, value_name = "NAME", default_value = crate::target::DEFAULT_MODEL)]
    pub model: String,
    /// Configuration file that says where models are.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Flags of every benchmark that measures several models and needs no server.
#[derive(Debug, Clone, Args)]
pub struct ModelsFlags {
    /// Models, by name or path.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', default_value = crate::target::DEFAULT_MODEL)]
    pub models: Vec<String>,
    /// Configuration file that says where models are.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// A table as a subcommand. To add one: implement this for its arguments, in a file of its own,
/// and give it a line in `Table` (lib.rs), and one in `all.rs` if it belongs on the page.
pub trait Benchmark: Args {
    /// Its subcommand.
    const NAME: &'static str;

    /// Whether it needs the admin's socket of the server.
    const NEEDS_ADMIN: bool = false;

    /// Its flags for all benchmarks.
    fn output(&self) -> &Output;

    /// Which server it asks. One that needs none says nothing.
    fn server(&self) -> ServerFlags {
        ServerFlags::default()
    }

    /// Measures.
    async fn measure(&self, session: &mut Session<'_>) -> anyhow::Result<Report>;
}

/// A run of one benchmark, or of several against one server.
pub struct Session<'a> {
    /// What only the front can tell.
    pub front: &'a dyn Front,
    server: ServerFlags,
    target: Option<Target>,
}

impl<'a> Session<'a> {
    /// Starts nothing yet.
    pub fn new(front: &'a dyn Front, server: ServerFlags) -> Self {
        Self { front, server, target: None }
    }

    /// The server, started when first asked for.
    pub async fn target(&mut self) -> anyhow::Result<&Target> {
        let opened = match self.target.take() {
            Some(target) => target,
            None => Target::open(&self.server, self.front).await?,
        };
        Ok(self.target.insert(opened))
    }

    /// Ends the server if one was started.
    pub async fn close<T>(mut self, outcome: anyhow::Result<T>) -> anyhow::Result<T> {
        match self.target.take() {
            Some(target) => target.close(outcome).await,
            None => outcome,
        }
    }
}

/// Measures, prints, and writes what was asked for.
pub async fn show<B: Benchmark>(benchmark: &B, front: &dyn Front) -> anyhow::Result<()> {
    let mut session = Session::new(front, benchmark.server());
    let outcome = benchmark.measure(&mut session).await;
    let report = session.close(outcome).await?;
    print(&report);
    match &benchmark.output().output {
        Some(path) => report.write(path),
        None => Ok(()),
    }
}

/// Prints a report.
pub fn print(report: &Report) {
    println!("\n{}\n{}", report.heading(), report.markdown());
}

/// A bar for so many steps; not shown where standard error is no terminal.
pub fn bar(steps: usize, label: &str) -> ProgressBar {
    let style = "{prefix:>12} {bar:32} {pos}/{len} {elapsed} {msg}";
    let style = ProgressStyle::with_template(style).expect("a style of known words");
    ProgressBar::new(steps as u64).with_style(style).with_prefix(label.to_owned())
}
