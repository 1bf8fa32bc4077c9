//! `mlxd serve`: start, serve, drain.

use crate::administration::{Administration, Given};
use crate::arguments::Serve;
use crate::exit::Failed;
use crate::instance::Instance;
use crate::memory;
use crate::source::{LiveModels, Models};
use crate::{check, logging, managed, welcome};
use actix_web::rt::System;
use anyhow::Context;
use mlxd_config::{Config, Environment, Folders, LoadedConfig, LogConfig};
use mlxd_dispatch::{CrashFolder, Dispatch, DispatchLimits, Failure};
use mlxd_http::{HttpLimits, RequestLimits, Running, StreamLimits};
use mlxd_protocol::admin::Happening;
use mlxd_supervisor::LogFolder;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Blocking threads of the front's own loop: model files, memory figures.
const BLOCKING_THREADS_MAX: usize = 4;
/// How often a drain looks whether it is done.
const DRAIN_LOOK: Duration = Duration::from_millis(20);
/// So long the clients' error events have to get out after a second signal.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// Exit code after a second signal.
const HURRIED: i32 = 130;

/// What the server does besides serving.
pub enum Purpose {
    /// Nothing.
    Serve,
    /// Asks a first question and prints how to use it.
    Welcome,
    /// Asks this, then stops.
    Ask(String),
}

pub fn run(flags: &Serve) -> Result<(), Failed> {
    let environment = Environment::of_process();
    let mut loaded = check::load(&flags.config, &environment)?;
    if flags.welcome && loaded.config.log == LogConfig::default() {
        // Nobody asked for log lines between the question and the answer.
        loaded.config.log.level = "warn".into();
    }
    let purpose = if flags.welcome { Purpose::Welcome } else { Purpose::Serve };
    let given = Given {
        config: flags.config.config.clone(),
        overrides: flags.config.overrides(),
        launchd: flags.launchd,
    };
    run_with(&loaded, &environment, given, purpose)
}

/// Serves with a loaded configuration until a signal, an admin's `shutdown` or the purpose ends it.
pub fn run_with(
    loaded: &LoadedConfig,
    environment: &Environment,
    given: Given,
    purpose: Purpose,
) -> Result<(), Failed> {
    let folders = Folders::new(&loaded.config, environment).map_err(Failed::config)?;
    let logs = LogFolder::new(&folders.logs, loaded.config.log.total_bytes_max);
    let _log = logging::start(&loaded.config, &logs, given.launchd);
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let instance = Instance::take(&loaded.config, folders, given.launchd)?;
    // Workers' tasks run on this thread: a worker on Linux dies with the thread that made it.
    let system = System::with_tokio_rt(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .build()
            .expect("the system has a thread and descriptors for an event loop")
    });
    system.block_on(serve(loaded, environment, given, instance, logs, purpose))
}

async fn serve(
    loaded: &LoadedConfig,
    environment: &Environment,
    given: Given,
    instance: Instance,
    logs: LogFolder,
    purpose: Purpose,
) -> Result<(), Failed> {
    let config = &loaded.config;
    let mut signals = Signals::new().map_err(Failed::run)?;
    let models = Models::new(config, &instance.folders, logs.clone(), environment.home.clone());
    models.unknown_targets().iter().for_each(|warning| tracing::warn!("{warning}"));
    let models = Arc::new(LiveModels::new(models));
    let dispatch = Dispatch::new(
        models.clone(),
        instance.base_url.clone(),
        dispatch_limits(config),
        crash_folder(config, &instance.folders),
        memory::keeping(config, &instance.folders),
    );
    let shutdown = CancellationToken::new();
    let by_launchd = given.launchd;
    let tcp = instance.tcp.try_clone().map_err(Failed::run)?;
    let admin = instance.admin.try_clone().map_err(Failed::run)?;
    let front = Administration::new(
        instance.folders.clone(),
        environment.clone(),
        given,
        config.clone(),
        logs,
        models,
        dispatch.clone(),
    );
    let listed = Arc::new(front.clone());
    let server =
        mlxd_http::bind(limits(config), dispatch.clone(), tcp, admin, shutdown.clone(), listed)
            .context("cannot start serving")
            .map_err(Failed::run)?;
    instance.announce().context("cannot write mlxd.json").map_err(Failed::address)?;
    tracing::info!(base_url = %instance.base_url, config = ?loaded.file, "serving");
    managed::start_watchdog();
    managed::ready(&instance.base_url);
    let base_url = instance.base_url.clone();
    dispatch.events().push(None, Happening::Serving { base_url });
    preload(config, &dispatch);
    let asked = purpose_task(purpose, instance.base_url.clone(), shutdown.clone());

    loop {
        tokio::select! {
            heard = signals.next() => match heard {
                Heard::Reload => {
                    managed::reloading();
                    if let Err(error) = front.apply().await {
                        tracing::error!("{}; the old one stays in effect", error.message);
                    }
                    managed::ready(&instance.base_url);
                }
                Heard::End(signal) => {
                    tracing::info!(signal, "draining; a second signal ends at once");
                    break;
                }
            },
            () = shutdown.cancelled() => {
                tracing::info!("draining, as asked");
                break;
            }
        }
    }
    managed::stopping();
    dispatch.events().push(None, Happening::ShuttingDown);
    shutdown.cancel();
    tokio::select! {
        () = drain(config, &dispatch, server) => {}
        signal = signals.end() => {
            tracing::warn!(signal, "ending at once");
            dispatch.fail_all(&Failure {
                code: "shutting_down",
                message: "mlxd was told to end at once, before the answer was complete".into(),
                retry: true,
            });
            tokio::time::sleep(LAST_WORDS).await;
            drop(instance); // Removes the sockets; the workers see that the front is gone.
            // launchd would start it again.
            std::process::exit(if by_launchd { 0 } else { HURRIED });
        }
    }
    tracing::info!("stopped");
    match asked.await {
        Ok(Err(error)) => Err(Failed::run(error)),
        Ok(Ok(())) | Err(_) => Ok(()),
    }
}

/// Finishes what runs within the grace, tells the rest so, then takes the workers down.
async fn drain(config: &Config, dispatch: &Dispatch, server: Running) {
    dispatch.refuse_new();
    let grace = Duration::from_millis(config.http.shutdown_grace_ms);
    let finished = async {
        while dispatch.open_sequences() > 0 {
            tokio::time::sleep(DRAIN_LOOK).await;
        }
    };
    if tokio::time::timeout(grace, finished).await.is_err() {
        let left = dispatch.open_sequences();
        tracing::warn!(left, "the grace is over; what still runs gets an error");
        dispatch.fail_all(&Failure {
            code: "shutting_down",
            message: format!(
                "mlxd shut down before the answer was complete (shutdown_grace_ms = {})",
                grace.as_millis()
            ),
            retry: true,
        });
    }
    if let Err(error) = server.stop(true).await {
        tracing::warn!(%error, "the server did not end cleanly");
    }
    dispatch.stop_all().await;
}

fn preload(config: &Config, dispatch: &Dispatch) {
    for name in config.models.preloaded().map(str::to_owned) {
        let dispatch = dispatch.clone();
        tokio::spawn(async move {
            if let Err(error) = dispatch.start(&name).await {
                tracing::error!(model = name, error = error.message, "preload failed");
            }
        });
    }
}

/// Runs the purpose beside the server. A welcome that fails only says so; a demo that is over
/// ends the server.
fn purpose_task(
    purpose: Purpose,
    base_url: String,
    shutdown: CancellationToken,
) -> tokio::task::JoinHandle<anyhow::Result<()>> {
    tokio::spawn(async move {
        match purpose {
            Purpose::Serve => Ok(()),
            Purpose::Welcome => {
                tokio::select! {
                    said = welcome::welcome(&base_url) => if let Err(error) = said {
                        tracing::error!("the first question failed: {error:#}");
                    },
                    () = shutdown.cancelled() => {}
                }
                Ok(())
            }
            Purpose::Ask(question) => {
                let answered = welcome::ask(&base_url, &question).await;
                shutdown.cancel();
                answered
            }
        }
    })
}

fn crash_folder(config: &Config, folders: &Folders) -> CrashFolder {
    CrashFolder {
        folder: folders.state.join("crashes"),
        reports_max: config.workers.crash_reports_max,
        report_bytes_max: config.workers.crash_report_bytes_max,
        prompts: config.workers.crash_prompts,
    }
}

fn dispatch_limits(config: &Config) -> DispatchLimits {
    DispatchLimits {
        queue_timeout: Duration::from_millis(config.requests.queue_timeout_ms),
        total_timeout: Duration::from_millis(config.requests.total_timeout_ms),
        recovery_timeout: Duration::from_millis(config.requests.recovery_timeout_ms),
        request_deaths_max: config.requests.deaths_max,
        idle_hang: Duration::from_millis(config.workers.idle_hang_ms),
        events_kept_max: config.log.events_kept_max,
    }
}

fn limits(config: &Config) -> HttpLimits {
    let (http, requests) = (&config.http, &config.requests);
    let ms = Duration::from_millis;
    HttpLimits {
        threads: http.threads,
        blocking_threads_max: http.blocking_threads_max,
        connections_max: http.connections_max,
        streams_max: http.streams_max,
        body_bytes_max: http.body_bytes_max,
        header_timeout: ms(http.header_timeout_ms),
        body_timeout: ms(http.body_timeout_ms),
        keep_alive: Duration::from_secs(http.keep_alive_s),
        stream_ping: ms(http.stream_ping_ms),
        stream_progress: http.stream_progress_ms.map(ms),
        shutdown_grace: ms(http.shutdown_grace_ms),
        retry_after_s: http.retry_after_s,
        retry_after_max_s: http.retry_after_max_s,
        key_weights: requests.key_weights.clone().into_iter().collect(),
        log_bytes_max: config.log.tail_bytes_max,
        request: RequestLimits {
            model_default: config.models.all.default.clone(),
            max_tokens_default: requests.max_tokens_default,
            n_max: requests.n_max,
            messages_max: requests.messages_max,
            tools_max: requests.tools_max,
            stop_strings_max: requests.stop_strings_max,
            stop_bytes_max: requests.stop_bytes_max,
            logit_bias_max: requests.logit_bias_max,
            top_logprobs_max: requests.top_logprobs_max as u8,
            prompt_tokens_max: requests.prompt_tokens_max,
            embedding_inputs_max: requests.embedding_inputs_max,
            embedding_inputs_open_max: requests.embedding_inputs_open_max,
            prepare_queued_max: requests.tokenize_queued_max,
            prepare_cache_bytes_max: requests.tokenize_cache_bytes_max,
            prepare_timeout: ms(requests.tokenize_timeout_ms),
        },
        streams: StreamLimits {
            kept_max: config.streams.kept_max,
            retention: Duration::from_secs(config.streams.retention_s),
            bytes_max: config.streams.bytes_max,
            stream_bytes_max: config.streams.stream_bytes_max,
        },
    }
}

/// SIGINT and SIGTERM end, SIGHUP reads the configuration again.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// SIGHUP.
    reload: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            reload: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Heard {
        tokio::select! {
            _ = self.interrupt.recv() => Heard::End("SIGINT"),
            _ = self.terminate.recv() => Heard::End("SIGTERM"),
            _ = self.reload.recv() => Heard::Reload,
        }
    }

    /// The next signal to end.
    async fn end(&mut self) -> &'static str {
        loop {
            if let Heard::End(name) = self.next().await {
                return name;
            }
        }
    }
}

/// A signal that came.
enum Heard {
    End(&'static str),
    Reload,
}
