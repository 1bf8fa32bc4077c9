//! The command line.

use crate::exit::EXIT_CODES_HELP;
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use mlxd_protocol::admin::{SignalName, SignalNameError};
use std::path::{Path, PathBuf};

/// Asks a running mlxd what it does, and tells it what to do.
///
/// Without a command it asks for commands, one a line: at a terminal with completion and history,
/// else from standard input.
#[derive(Debug, Parser)]
#[command(name = "mlxctl", version, after_help = EXIT_CODES_HELP, max_term_width = 100)]
pub(crate) struct Arguments {
    /// mlxd's admin socket [default: mlxd.sock where mlxd's configuration puts it]
    #[arg(long, global = true, env = "MLXD_SOCKET", value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(crate) socket: Option<PathBuf>,
    /// Print what mlxd answered, as JSON; a failure as `{"error": {"code", "message"}}`
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the models and what their workers do
    Status {
        /// Only these: names, `GROUP:*`, or `all`, which is also what none stands for
        #[arg(value_name = "MODEL")]
        models: Vec<String>,
    },
    /// Load models, and wait until they are ready
    Start(Models),
    /// Finish what runs, then end the workers; the next request for one of them loads it again
    Stop(Models),
    /// Stop, then start
    Restart(Models),
    /// Keep models loaded: neither idleness nor another model's need unloads them
    Pin(Models),
    /// Let models be unloaded again
    Unpin(Models),
    /// Say what memory a model would need, part by part, and whether that is there
    Estimate(EstimateOf),
    /// Ask a model a question and show the answer as it comes
    Ask(Ask),
    /// Show the end of a worker's log
    Tail(Tail),
    /// Show the end of mlxd's own log
    Maintail(Maintail),
    /// Print process ids: mlxd's, or those of models' workers
    Pid {
        /// Names, `GROUP:*`, or `all`; without any, mlxd's own process
        #[arg(value_name = "MODEL")]
        models: Vec<String>,
    },
    /// Send workers a signal; one that it kills is started again, unlike after `stop`
    Signal(Signal),
    /// Say why a model's worker died last, and what mlxd did about it
    Why {
        /// The model's name
        model: String,
    },
    /// Show what happened: states, processes, recoveries
    Events(Events),
    /// Watch everything on one screen
    Top,
    /// Fetch a model from the hub, or go on with one that broke off
    Pull(Pull),
    /// Show the models on disk, incomplete ones too, and what is being pulled
    List,
    /// Show what is known of a model on disk: size, form, context, needs, licence
    Show {
        /// The model's name
        model: String,
    },
    /// Delete models from disk, never a loaded one; what another revision shares stays
    Rm(Rm),
    /// Show what is kept for prompts that begin as earlier ones did, or drop it
    Cache(Cache),
    /// Say which model would answer a request, and rule by rule why; nothing is generated
    Route(Route),
    /// Check the configuration file, and show what it would change
    Reread,
    /// Check the configuration file, and put to work what changed; other models run on
    Update,
    /// Finish what runs, then end mlxd
    Shutdown,
    /// Let launchd or systemd keep mlxd running
    Service(Service),
    /// Show the versions of mlxctl and mlxd
    Version,
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, of mlxctl or of one of its commands
    Man(Man),
}

#[derive(Debug, Args)]
pub(crate) struct Models {
    /// Names as in requests, `GROUP:*`, or `all` for every model in the status table
    #[arg(required = true, value_name = "MODEL")]
    pub(crate) models: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct EstimateOf {
    /// The model's name
    pub(crate) model: String,
    /// Tokens of each sequence, prompt and answer together [default: 4096, or the model's context]
    #[arg(long, value_name = "N")]
    pub(crate) context: Option<u32>,
    /// Sequences at once [default: 1]
    #[arg(long, value_name = "N")]
    pub(crate) batch: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct Ask {
    /// The model's name
    pub(crate) model: String,
    /// The question; without it, or with `-`, standard input is read
    pub(crate) question: Option<String>,
    /// What the model is told before the question
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Tokens of the answer at the most
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<u32>,
    /// 0 always takes the likeliest token
    #[arg(long, value_name = "T")]
    pub(crate) temperature: Option<f32>,
    /// Makes the answer repeatable
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Tail {
    #[command(flatten)]
    pub(crate) end: Maintail,
    /// The model's name
    pub(crate) model: String,
}

#[derive(Debug, Args)]
pub(crate) struct Maintail {
    /// Go on with what is written from now on, until Ctrl-C
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// How much of the end to show
    #[arg(short = 'c', long, default_value_t = 1600, value_name = "N")]
    pub(crate) bytes: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Signal {
    /// TERM, INT, HUP, QUIT, ABRT, KILL, STOP, CONT, USR1 or USR2, with or without SIG
    #[arg(value_parser = parse_signal, value_name = "SIGNAL")]
    pub(crate) signal: SignalName,
    #[command(flatten)]
    pub(crate) models: Models,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Go on with what happens from now on, until Ctrl-C
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// How many of the last events to show
    #[arg(short = 'n', long, default_value_t = 20, value_name = "N")]
    pub(crate) last: usize,
}

/// mlxd fetches; this shows how it goes. Ctrl-C calls it off unless others watch it too; a closed
/// terminal leaves it going on. What has come is kept either way.
#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// Its name on the hub, as mlx-community/Qwen3-0.6B-4bit; `NAME@REVISION` for another revision
    /// than main
    pub(crate) model: String,
    /// Return once it is under way
    #[arg(short, long)]
    pub(crate) background: bool,
    /// Call a pull off that is under way, whoever watches it
    #[arg(long, conflicts_with = "background")]
    pub(crate) cancel: bool,
    /// The hub's address [default: HF_ENDPOINT here, else as mlxd is configured]
    #[arg(long, value_name = "URL")]
    pub(crate) endpoint: Option<String>,
    /// Do not use the network: say whether it is here and whole [also: HF_HUB_OFFLINE=1]
    #[arg(long)]
    pub(crate) offline: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// Names; `NAME@REVISION` deletes that revision alone
    #[arg(required = true, value_name = "MODEL")]
    pub(crate) models: Vec<String>,
    /// Do not ask; needed where nobody can be asked
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// Stop what is loaded first
    #[arg(long)]
    pub(crate) force: bool,
}

/// Counts are since the model was loaded.
#[derive(Debug, Args)]
pub(crate) struct Cache {
    /// The model's name; without it, every model that was asked for
    pub(crate) model: Option<String>,
    /// Drop it, in memory and on the disk
    #[arg(long)]
    pub(crate) clear: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Route {
    /// A file with the request's JSON, as for /v1/chat/completions; without it, or with `-`,
    /// standard input is read
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) request: Option<PathBuf>,
    /// As if the request named this model
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// As if the request had this X-Priority
    #[arg(long, value_enum)]
    pub(crate) priority: Option<RequestPriority>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum RequestPriority {
    High,
    Normal,
    Low,
}

impl RequestPriority {
    /// As the header has it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Man {
    /// The command; without it, mlxctl itself
    pub(crate) command: Option<String>,
    /// Write the pages of mlxctl and of all its commands into this folder instead
    #[arg(long, value_name = "FOLDER", conflicts_with = "command", value_hint = ValueHint::DirPath)]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Service {
    #[command(flatten)]
    pub(crate) target: ServiceTarget,
    #[command(subcommand)]
    pub(crate) deed: ServiceDeed,
}

#[derive(Debug, Args)]
pub(crate) struct ServiceTarget {
    /// The machine's service, which needs no login; else the user's
    #[arg(long, global = true)]
    pub(crate) system: bool,
    /// Whom the machine's service runs as [default: who called sudo]
    #[arg(long, global = true, value_name = "NAME", requires = "system")]
    pub(crate) user: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ServiceDeed {
    /// Write the files for this machine, in place of older ones, and start the service
    Install(ServiceInstall),
    /// Stop the service and remove its files
    Uninstall,
    /// Start the service
    Start,
    /// Stop the service, and let go of its address, until `start` or the next login
    Stop,
    /// Say whether it is installed and runs: exit code 0 when it runs, 3 when not, 4 when it is
    /// not installed
    Status,
    /// Show the files that `install` would write
    Print {
        #[command(flatten)]
        install: ServiceInstall,
        /// For this one [default: the one of this system]
        #[arg(long = "for", value_enum, value_name = "MANAGER")]
        manager: Option<ServiceManager>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ServiceInstall {
    /// The configuration file [default: the standard one]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,
    /// The program mlxd [default: beside mlxctl]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) program: Option<PathBuf>,
    /// A variable for mlxd and its workers; may be given more than once
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum ServiceManager {
    Launchd,
    Systemd,
}

impl From<ServiceManager> for mlxd_service::Manager {
    fn from(manager: ServiceManager) -> Self {
        match manager {
            ServiceManager::Launchd => Self::Launchd,
            ServiceManager::Systemd => Self::Systemd,
        }
    }
}

fn parse_signal(given: &str) -> Result<SignalName, SignalNameError> {
    given.parse()
}

/// A model's name for mlxd, which was started elsewhere: `./folder` becomes a whole path.
pub(crate) fn model_from_here(name: &str) -> std::io::Result<String> {
    Ok(absolute_model(name, &std::env::current_dir()?))
}

fn absolute_model(name: &str, here: &Path) -> String {
    let relative = name == "." || name.starts_with("./");
    if !relative {
        return name.to_owned();
    }
    let joined: PathBuf = here.join(name).components().collect();
    joined.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_relative_path_is_seen_from_here() {
        let here = Path::new("/home/u");
        assert_eq!(absolute_model("./m/x/", here), "/home/u/m/x");
        assert_eq!(absolute_model(".", here), "/home/u");
        assert_eq!(absolute_model("org/name", here), "org/name");
        assert_eq!(absolute_model("/m", here), "/m");
    }
}
