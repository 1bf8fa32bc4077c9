//! The command line.

use clap::Args;
use mlxd_config::Override;
use std::path::PathBuf;

/// Serves language models on this machine over the OpenAI API, each in a process of its own.
#[derive(Debug, clap::Parser)]
#[command(name = "mlxd", version, after_help = crate::exit::HELP)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Subcommand,
}

#[derive(Debug, clap::Subcommand)]
pub enum Subcommand {
    /// Serve until Ctrl-C or SIGTERM.
    Serve(Serve),
    /// Start, ask the built-in model one question, show the streamed answer, stop.
    Demo(Demo),
    /// Measure, and print the tables of the field.
    Bench(mlxd_bench::Arguments),
    /// Look at the configuration.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

#[derive(Debug, clap::Subcommand)]
pub enum ConfigCommand {
    /// Check the file, the MLXD_* variables and the flags, and say everything that is wrong.
    Check(ConfigFlags),
    /// Print the configuration in effect.
    Show(ConfigFlags),
}

/// Flags that override the configuration.
#[derive(Debug, Clone, Args)]
pub struct ConfigFlags {
    /// Configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address to listen on (http.host).
    #[arg(long)]
    pub host: Option<String>,
    /// Port to listen on, 0 for a free one (http.port).
    #[arg(long)]
    pub port: Option<String>,
}

impl ConfigFlags {
    pub fn overrides(&self) -> Vec<Override> {
        let flag = |flag: &str, key: &str, value: &Option<String>| {
            value.clone().map(|value| Override { flag: flag.into(), key: key.into(), value })
        };
        let flags =
            [flag("--host", "http.host", &self.host), flag("--port", "http.port", &self.port)];
        flags.into_iter().flatten().collect()
    }
}

#[derive(Debug, Clone, Args)]
pub struct Serve {
    #[command(flatten)]
    pub config: ConfigFlags,
    /// Ask the built-in model a first question, and print how to use the server.
    #[arg(long)]
    pub welcome: bool,
    /// launchd started it: take the socket that launchd holds, write no log lines to standard
    /// error, and end with 0 where starting again would not help.
    #[arg(long, conflicts_with = "welcome")]
    pub launchd: bool,
}

#[derive(Debug, Clone, Args)]
pub struct Demo {
    /// Configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What to ask.
    #[arg(default_value = "What is mlxd?")]
    pub question: String,
}
