//! Nothing lives on of an instance that was killed: no process, no segment. What nobody is left to
//! remove, the name of its socket among it, does no harm and goes at the next start.

use crate::fixture::{MODEL, Scripted, chat, config, delta, said, status_of};
use mlxd_testkit::{FrontProcess, Leftovers, ModelFolder, Script, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

const CHAT: &str = "/v1/chat/completions";

/// How long a worker may outlive its front, and how much longer a busy test machine may take to
/// let this test see it.
const OUTLIVE_MAX: Duration = Duration::from_secs(1);

/// A front whose worker is in the middle of an endless answer.
fn busy() -> (Scripted, mlxd_testkit::Events<impl std::io::Read>) {
    let script = Script { step_us: 2000, context_tokens: 100_000, ..Script::default() };
    let scripted = Scripted::start(&script);
    let body = chat(MODEL, "talk", json!({"stream": true, "max_tokens": 90_000}));
    let mut events = scripted.front.client().post(CHAT, &body).events();
    while delta(&events.expect_event().json()).is_empty() {}
    (scripted, events)
}

fn kill_process(id: u32) {
    kill(Pid::from_raw(id as i32), Signal::SIGKILL).expect("the process is there");
}

/// Processes and segments have to be gone by themselves; sockets at the next start.
fn until_nothing_lives(home: &Path) {
    until("every process and segment to be gone", || {
        let left = Leftovers::of(home);
        (left.processes.is_empty() && left.segments.is_empty()).then_some(())
    });
}

#[test]
fn a_killed_front_takes_its_worker_along() {
    let (scripted, _events) = busy();
    assert_eq!(scripted.front.workers().len(), 1);
    let killed_at = Instant::now();
    let home = scripted.front.kill();
    until("the worker's end", || Leftovers::of(home.path()).processes.is_empty().then_some(()));
    let outlived = killed_at.elapsed();
    assert!(outlived < OUTLIVE_MAX, "the worker outlived its front by {outlived:?}");
    until_nothing_lives(home.path());

    // Another front starts in the same folders as if nothing had been, and cleans up after itself.
    let config = config().with_model(MODEL, scripted.folder.path());
    let mut front = FrontProcess::start_in(home, &config);
    let body = chat(MODEL, "hi", json!({"max_tokens": 4}));
    assert_eq!(said(&front.client().post(CHAT, &body).json()).len(), 4);
    front.signal(Signal::SIGTERM);
    assert_eq!(front.wait_exit().code(), Some(0));
    let left = Leftovers::of(front.home().path());
    assert!(left.is_empty(), "{left:?}");
}

/// What is in the folder of sockets and locks.
fn runtime_files(home: &Path) -> Vec<String> {
    fn walk(folder: &Path, top: &Path, into: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
            let path = entry.path();
            match path.is_dir() {
                true => walk(&path, top, into),
                false => into.push(path.strip_prefix(top).expect("below").display().to_string()),
            }
        }
    }
    let (top, mut files) = (home.join("run/mlxd"), Vec::new());
    walk(&top, &top, &mut files);
    files.sort();
    files
}

#[test]
fn names_that_a_killed_front_leaves_lead_nowhere_and_go_at_the_next_start() {
    let (scripted, _events) = busy();
    let home = scripted.front.kill();
    until_nothing_lives(home.path());
    // The kernel unlocks and closes for the dead; names stay.
    assert_eq!(runtime_files(home.path()), ["lock", "mlxd.json", "mlxd.sock"]);
    let socket = home.path().join("run/mlxd/mlxd.sock");
    let refused = UnixStream::connect(&socket).expect_err("nobody listens");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    let status = home.command("mlxctl").arg("status").output().expect("mlxctl starts");
    let told = String::from_utf8_lossy(&status.stderr).into_owned();
    assert!(!status.status.success() && told.contains("not running"), "{told}");

    let mut front = FrontProcess::start_in(home, &config());
    assert_eq!(front.admin().get("/admin/v1/status").status, 200, "the name is the new one's");
    front.signal(Signal::SIGTERM);
    assert_eq!(front.wait_exit().code(), Some(0));
    let home = front.kill();
    assert_eq!(runtime_files(home.path()), ["lock"], "held by nobody, taken by the next");
    let segments = std::fs::read_dir(home.path().join("state/mlxd/segments")).expect("a folder");
    assert_eq!(segments.count(), 0, "records of segments");
}

#[test]
fn a_killed_worker_leaves_nothing_and_is_replaced() {
    let (scripted, mut events) = busy();
    let [worker] = scripted.front.workers()[..] else { panic!("one worker") };
    kill_process(worker);
    until("another worker", || {
        let workers = scripted.front.workers();
        (workers.len() == 1 && workers != [worker]).then_some(())
    });
    while delta(&events.expect_event().json()).is_empty() {}
    drop(events);
    let body = chat(MODEL, "hi", json!({"max_tokens": 4}));
    assert_eq!(said(&scripted.front.client().post(CHAT, &body).json()).len(), 4);
    assert_eq!(scripted.front.leftovers().segments, Vec::<String>::new());
    let home = scripted.front.kill();
    until_nothing_lives(home.path());
}

#[test]
fn front_and_worker_killed_together_leave_nothing() {
    let (scripted, _events) = busy();
    for process in scripted.front.workers() {
        kill_process(process);
    }
    let home = scripted.front.kill();
    until_nothing_lives(home.path());
}

/// A front that was asked for a model whose loading takes a minute.
fn loading() -> (FrontProcess, ModelFolder, mlxd_testkit::Connection) {
    let script = Script { load_ms: 60_000, load_steps: 600, ..Script::default() };
    let folder = ModelFolder::new(&script);
    let front = FrontProcess::start(&config().with_model(MODEL, folder.path()));
    let mut connection = front.client().connect().unwrap();
    let body = chat(MODEL, "hi", json!({})).to_string();
    let length = body.len();
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
    let request = format!("{head}{body}");
    connection.write_all(request.as_bytes()).unwrap();
    (front, folder, connection)
}

#[test]
fn a_front_killed_while_its_worker_loads_leaves_nothing() {
    let (front, _folder, _connection) = loading();
    until("a worker that loads", || {
        let progress = status_of(&front, MODEL)["load_progress"].as_f64();
        progress.filter(|&done| done > 0.0)
    });
    let home = front.kill();
    until_nothing_lives(home.path());
}

#[test]
fn a_front_killed_as_its_worker_is_born_is_cleaned_up_by_the_next() {
    let (front, _folder, _connection) = loading();
    until("a worker", || (!front.workers().is_empty()).then_some(()));
    let home = front.kill();
    until("every process to be gone", || {
        Leftovers::of(home.path()).processes.is_empty().then_some(())
    });
    // A segment that its worker had not yet attached keeps its name until the next start.
    let mut front = FrontProcess::start_in(home, &config());
    assert_eq!(front.leftovers().segments, Vec::<String>::new());
    front.signal(Signal::SIGTERM);
    assert_eq!(front.wait_exit().code(), Some(0));
    let left = front.leftovers();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_front_that_is_told_to_stop_leaves_nothing() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut scripted = Scripted::start(&Script::default());
        let body = chat(MODEL, "hi", json!({"max_tokens": 4}));
        assert_eq!(said(&scripted.front.client().post(CHAT, &body).json()).len(), 4);
        scripted.front.signal(signal);
        assert_eq!(scripted.front.wait_exit().code(), Some(0));
        let left = scripted.front.leftovers();
        assert!(left.is_empty(), "{left:?}");
    }
}
