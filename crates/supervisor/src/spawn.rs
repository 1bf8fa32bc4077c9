//! Making a worker process: segment, one-shot server, command line, descriptors, log.

use crate::crash::Tail;
use crate::{WorkerSpec, log};
use command_fds::{CommandFdExt, FdMapping};
use ipc_channel::ipc::{IpcOneShotServer, IpcSender, channel};
use mlxd_protocol::{Bootstrap, arguments};
use mlxd_protocol::{FromWorker, Incarnation, ToWorker};
use mlxd_ring::{FrontLink, Segment};
use std::process::Stdio;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

/// Descriptor numbers in the child. Any will do that std does not use itself.
const COMMANDS_FD: i32 = 3;
const TOKENS_FD: i32 = 4;

/// Messages of a life kept for the task at the most; the control thread waits beyond.
const CONTROL_QUEUE: usize = 64;

/// What comes from the control thread.
pub(crate) enum Control {
    /// The worker has connected.
    Connected(IpcSender<ToWorker>),
    /// The worker says something.
    Said(FromWorker),
}

/// A process just made.
pub(crate) struct Spawned {
    pub child: Child,
    pub link: FrontLink,
    pub control: mpsc::Receiver<Control>,
    pub server_name: String,
    pub tail: Tail,
}

/// Why there is no process.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    #[error("no shared memory for the worker: {0}")]
    Segment(#[from] mlxd_ring::SegmentError),
    #[error("no control channel for the worker: {0}")]
    Channel(#[source] std::io::Error),
    #[error("no pipe for the worker's log: {0}")]
    Pipe(#[source] std::io::Error),
    #[error(
        "cannot start {program}: {source}; is mlxd-worker beside mlxd, or workers.program set?"
    )]
    Program { program: String, source: std::io::Error },
}

/// Makes the process. Must be called on a thread that lives as long as the front: on Linux a
/// worker dies with the thread that made it.
pub(crate) fn spawn(spec: &WorkerSpec, incarnation: Incarnation) -> Result<Spawned, SpawnError> {
    let mut segment = Segment::create_recorded(&spec.segment, &spec.leftovers_folder)?;
    let fds = segment.worker_fds().expect("a new segment has its descriptors");
    let (server, server_name) = IpcOneShotServer::<Bootstrap>::new()
        .map_err(|error| SpawnError::Channel(std::io::Error::other(error.to_string())))?;
    let (log_reader, log_writer) = std::io::pipe().map_err(SpawnError::Pipe)?;
    let log_writer_too = log_writer.try_clone().map_err(SpawnError::Pipe)?;

    let mut command = Command::new(&spec.program);
    command
        .args([arguments::BOOTSTRAP, &server_name])
        .args([arguments::SEGMENT, segment.name()])
        .args([arguments::COMMANDS_FD, &COMMANDS_FD.to_string()])
        .args([arguments::TOKENS_FD, &TOKENS_FD.to_string()])
        .args([arguments::INCARNATION, &incarnation.0.to_string()])
        .env_remove("MLX_METAL_FAST_SYNCH") // Can deadlock the GPU until a reboot.
        .envs(cuda_caches())
        .envs(spec.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::from(log_writer_too))
        .stderr(Stdio::from(log_writer))
        .process_group(0) // The terminal's Ctrl-C is the front's to handle.
        .kill_on_drop(true);
    let mappings = vec![
        FdMapping { parent_fd: fds.commands, child_fd: COMMANDS_FD },
        FdMapping { parent_fd: fds.tokens, child_fd: TOKENS_FD },
    ];
    command.fd_mappings(mappings).expect("two descriptors with two numbers");
    let child = command.spawn().map_err(|source| SpawnError::Program {
        program: spec.program.display().to_string(),
        source,
    })?;
    // Dropping the command closes our copies of the worker's ends.
    drop(command);

    let name = format!("log-{incarnation}");
    let worker_log = spec.log.clone();
    let tail = Tail::default();
    let tail_of_log = tail.clone();
    thread(name, move || log::keep(log_reader, &worker_log, &tail_of_log));
    let (to_task, control) = mpsc::channel(CONTROL_QUEUE);
    thread(format!("control-{incarnation}"), move || listen(server, &to_task));
    Ok(Spawned { child, link: segment.into_front(), control, server_name, tail })
}

/// Larger caches for MLX's CUDA backend, unless the front's own environment says how large:
/// the defaults end the process ("Cache thrashing") on deep models. Other backends ignore them.
fn cuda_caches() -> impl Iterator<Item = (&'static str, &'static str)> {
    let names = ["MLX_CUDA_GRAPH_CACHE_SIZE", "MLX_CUDA_SDPA_CACHE_SIZE"];
    names.into_iter().filter(|name| std::env::var_os(name).is_none()).map(|name| (name, "4000"))
}

fn thread(name: String, body: impl FnOnce() + Send + 'static) {
    let spawned = std::thread::Builder::new().name(name).stack_size(128 << 10).spawn(body);
    spawned.expect("the system has threads left");
}

/// Waits for the worker to connect, then passes on what it says until it is gone.
fn listen(server: IpcOneShotServer<Bootstrap>, to_task: &mpsc::Sender<Control>) {
    let Ok((from_worker, bootstrap)) = server.accept() else {
        return;
    };
    drop(from_worker);
    if to_task.blocking_send(Control::Connected(bootstrap.to_worker)).is_err() {
        return;
    }
    while let Ok(message) = bootstrap.from_worker.recv() {
        if to_task.blocking_send(Control::Said(message)).is_err() {
            return;
        }
    }
}

/// Frees a control thread whose worker died before it connected.
pub(crate) fn release_listener(server_name: String) {
    let connect = move || {
        let (Ok(sender), Ok((to_worker, _)), Ok((_, from_worker))) = (
            IpcSender::<Bootstrap>::connect(server_name),
            channel::<ToWorker>(),
            channel::<FromWorker>(),
        ) else {
            return;
        };
        // Refused when the worker did connect after all.
        let _ = sender.send(Bootstrap { to_worker, from_worker });
    };
    thread("control-release".into(), connect);
}
