//! Log lines of the front: on standard error, and in a file of bounded size for `mlxctl maintail`.

use crate::administration::MAIN_LOG;
use mlxd_config::{Config, LogFormat};
use mlxd_supervisor::LogFolder;
use std::io::IsTerminal;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

/// Lines waiting for the log file at the most; further ones are left out of it. Their queue is
/// made whole at the start: the library's own 128,000 would be 4 MB of an idle front.
const LINES_WAITING_MAX: usize = 4096;

/// Writes the last lines when it is dropped.
pub struct Logging(#[expect(dead_code, reason = "held for its drop")] Option<WorkerGuard>);

/// Starts logging. `MLXD_LOG` goes before the configured level. The file is written by a thread of
/// its own; when it cannot be, standard error has to do. `quietly` leaves standard error alone
/// while there is a file: launchd would keep it for ever.
pub fn start(config: &Config, logs: &LogFolder, quietly: bool) -> Logging {
    let level = std::env::var("MLXD_LOG").unwrap_or_else(|_| config.log.level.clone());
    // actix tells of its own threads at every start; what it has to say beyond that is heard.
    // An answer that breaks off on purpose is told by http, with its reason, and not twice.
    let quiet = "actix_server=warn,actix_http::h1::dispatcher=off";
    let filter = EnvFilter::try_new(format!("{quiet},{level}"));
    let filter = filter.unwrap_or_else(|_| EnvFilter::new("info"));
    let file = logs.open(MAIN_LOG, config.workers.log_bytes_max);
    let (file, guard) = match file {
        Ok(file) => {
            let queue = NonBlockingBuilder::default().buffered_lines_limit(LINES_WAITING_MAX);
            let (writer, guard) = queue.finish(file);
            (Some(writer), Some(guard))
        }
        Err(error) => {
            eprintln!("mlxd: no log file {}: {error}", logs.path(MAIN_LOG).display());
            (None, None)
        }
    };
    let format = config.log.format;
    let to_file = file.map(|file| lines(format, false, file));
    let to_terminal = (!quietly || to_file.is_none())
        .then(|| lines(format, std::io::stderr().is_terminal(), std::io::stderr));
    // Fails only when logging was started before; then it goes on as it was.
    let layers: Vec<_> = to_file.into_iter().chain(to_terminal).collect();
    let _ = tracing_subscriber::registry().with(layers).with(filter).try_init();
    Logging(guard)
}

fn lines<W>(format: LogFormat, ansi: bool, writer: W) -> Box<dyn Layer<Registry> + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = fmt::layer().with_ansi(ansi).with_writer(writer).with_target(false);
    match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().boxed(),
    }
}
