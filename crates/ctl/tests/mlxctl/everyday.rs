//! mlxctl from outside: what it asks, what it prints, how it ends.

use crate::front::{Done, Front, Reply, mlxctl, model, protocol, refusal, status, version};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::process::Stdio;

fn status_of(models: &[String]) -> Front {
    Front::new([("GET /admin/v1/status", status(models))])
}

#[test]
fn status_shows_a_table() {
    let front = status_of(&[model("a/b", "RUNNING"), model("c", "RUNNING")]);
    let done = front.ctl(&["status"]);
    assert_eq!(
        done.out,
        "\
MODEL  STATE     PID   UPTIME   MEMORY  REQUESTS  TOK/S
a/b    RUNNING  4711  1:02:05  2.35 GB        12    242
c      RUNNING  4711  1:02:05  2.35 GB        12    242
mlxd 9.9.9, pid 99, up 0:01:01, 14.2 MB, serves http://127.0.0.1:11440/v1
"
    );
    assert_eq!((done.code, done.err.as_str()), (0, ""));
}

#[test]
fn status_ends_as_supervisorctls_does() {
    let front = status_of(&[model("a", "RUNNING"), model("b", "FATAL"), model("c", "BACKOFF")]);
    assert_eq!(front.ctl(&["status"]).code, 3);
    assert_eq!(front.ctl(&["status", "all"]).code, 3);
    assert_eq!(front.ctl(&["status", "b", "a"]).code, 3);
    let one = front.ctl(&["status", "a"]);
    assert_eq!(one.code, 0);
    assert!(!one.out.contains("FATAL"), "{}", one.out);
    assert_eq!(front.ctl(&["status", "c"]).code, 0);
    let unknown = front.ctl(&["status", "a", "zz"]);
    assert_eq!(unknown.code, 4);
    assert!(unknown.err.contains("zz: ERROR"), "{}", unknown.err);
}

#[test]
fn status_with_nothing_loaded_helps() {
    let done = status_of(&[]).ctl(&["status"]);
    assert_eq!(done.code, 0);
    assert!(
        done.out.starts_with("Nothing is loaded. A model loads at its first request"),
        "{}",
        done.out
    );
}

#[test]
fn json_is_what_the_front_says() {
    let front = status_of(&[model("a", "RUNNING"), model("b", "STOPPED")]);
    let done = front.ctl(&["--json", "status", "b"]);
    let json: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(json["models"].as_array().unwrap().len(), 1);
    assert_eq!(json["models"][0]["state"], "STOPPED");
    assert_eq!((done.code, json["uptime_s"].as_u64()), (3, Some(61)));
}

#[test]
fn start_stop_and_restart_name_the_model() {
    let running = Reply::Json(200, model("a/b", "RUNNING"));
    let front = Front::new([
        ("POST /admin/v1/start", running.clone()),
        ("POST /admin/v1/stop", Reply::Json(200, model("a/b", "STOPPED"))),
        ("POST /admin/v1/restart", running),
    ]);
    for (command, said) in [("start", "started"), ("stop", "stopped"), ("restart", "restarted")] {
        let done = front.ctl(&[command, "a/b"]);
        assert_eq!((done.code, done.out), (0, format!("a/b: {said}\n")));
    }
    let seen = front.seen();
    assert_eq!(seen[0], ("POST /admin/v1/start".into(), r#"{"model":"a/b"}"#.into()));
    assert_eq!(seen.len(), 3);
}

#[test]
fn a_relative_path_is_sent_whole() {
    let front = Front::new([("POST /admin/v1/start", Reply::Json(200, model("m", "RUNNING")))]);
    let folder = tempfile::tempdir().unwrap();
    let mut command = mlxctl(&["start", "./m/"]);
    command.current_dir(folder.path()).env("MLXD_SOCKET", front.socket());
    assert_eq!(Done::of(command.output().unwrap()).code, 0);
    let body: Value = serde_json::from_str(&front.seen()[0].1).unwrap();
    let expected = folder.path().canonicalize().unwrap().join("m");
    assert_eq!(body["model"], expected.to_str().unwrap());
}

#[test]
fn refusals_have_supervisorctls_codes() {
    for (command, code, exit) in [
        ("start", "already_started", 0),
        ("stop", "not_running", 0),
        ("restart", "not_running", 7),
        ("start", "load_failed", 7),
        ("start", "spawn_failed", 7),
        ("start", "unknown_model", 1),
        ("stop", "shutting_down", 1),
    ] {
        let reply = || refusal(409, code, "because");
        let front = Front::new([
            ("POST /admin/v1/start", reply()),
            ("POST /admin/v1/stop", reply()),
            ("POST /admin/v1/restart", reply()),
        ]);
        let done = front.ctl(&[command, "m"]);
        assert_eq!(
            (done.code, done.out.as_str()),
            (exit, "m: ERROR (because)\n"),
            "{command} {code}"
        );
    }
}

#[test]
fn all_means_the_models_of_the_table() {
    let front = Front::new([
        ("GET /admin/v1/status", status(&[model("a", "RUNNING"), model("b", "STOPPED")])),
        ("POST /admin/v1/stop", Reply::Json(200, model("a", "STOPPED"))),
        ("POST /admin/v1/start", Reply::Json(200, model("x", "RUNNING"))),
    ]);
    front.ctl(&["stop", "all"]);
    front.ctl(&["start", "all"]);
    let posts: Vec<_> =
        front.seen().into_iter().filter(|(call, _)| call.starts_with("POST")).collect();
    let bodies: Vec<&str> = posts.iter().map(|(_, body)| body.as_str()).collect();
    assert_eq!(bodies, [r#"{"model":"a"}"#, r#"{"model":"a"}"#, r#"{"model":"b"}"#]);
}

#[test]
fn without_a_front_one_sentence_says_what_to_run() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let run = |arguments: &[&str]| {
        let mut command = mlxctl(arguments);
        Done::of(command.arg("--socket").arg(&socket).output().unwrap())
    };
    let done = run(&["start", "m"]);
    assert_eq!(done.code, 7);
    assert_eq!(
        done.err,
        format!(
            "mlxctl: mlxd is not running: there is no socket {}. Start it with `mlxd serve`\n",
            socket.display()
        )
    );
    assert_eq!(run(&["status"]).code, 4);
    assert_eq!(run(&["shutdown"]).code, 7);
    let version = run(&["version"]);
    assert_eq!(version.code, 7);
    assert!(version.out.starts_with("mlxctl "), "{}", version.out);

    drop(UnixListener::bind(&socket).unwrap());
    let done = run(&["stop", "m"]);
    assert_eq!(done.code, 4);
    assert!(done.err.contains("nobody answers on the socket"), "{}", done.err);
    assert_eq!(run(&["status"]).code, 4);
}

#[test]
fn the_socket_is_where_the_configuration_puts_it() {
    let front = status_of(&[]);
    let folder = tempfile::tempdir().unwrap();
    let runtime = folder.path().join("r");
    std::fs::create_dir(&runtime).unwrap();
    std::os::unix::fs::symlink(front.socket(), runtime.join("mlxd.sock")).unwrap();
    let status = |name: &str, value: &std::path::Path| {
        Done::of(mlxctl(&["status"]).env(name, value).output().unwrap())
    };
    assert_eq!(status("MLXD_PATHS_RUNTIME", &runtime).code, 0);

    let file = folder.path().join("mlxd.toml");
    std::fs::write(&file, format!("[paths]\nruntime = {:?}\n", runtime.to_str().unwrap())).unwrap();
    assert_eq!(status("MLXD_CONFIG", &file).code, 0);

    std::fs::rename(&runtime, folder.path().join("mlxd")).unwrap();
    assert_eq!(status("XDG_RUNTIME_DIR", folder.path()).code, 0);

    // A slip elsewhere in the file must not keep anybody from the front.
    std::fs::write(&file, "[http]\nprot = 1\n").unwrap();
    let mut command = mlxctl(&["status"]);
    command.env("MLXD_CONFIG", &file).env("XDG_RUNTIME_DIR", folder.path());
    let done = Done::of(command.output().unwrap());
    assert_eq!(done.code, 0);
    assert!(done.err.contains("did you mean http.port?"), "{}", done.err);
    let mut command = mlxctl(&["status"]);
    let runtime = folder.path().join("mlxd");
    command.env("MLXD_CONFIG", &file).env("MLXD_PATHS_RUNTIME", runtime);
    assert_eq!(Done::of(command.output().unwrap()).code, 0, "variables still count");
}

#[test]
fn another_protocol_is_told_and_only_shutdown_does_not_mind() {
    let other = || Reply::Json(200, version(protocol() + 1));
    let front = Front::new([
        ("GET /admin/v1/version", other()),
        ("POST /admin/v1/shutdown", other()),
        ("POST /admin/v1/start", Reply::Json(200, model("m", "RUNNING"))),
    ]);
    let done = front.ctl(&["start", "m"]);
    assert_eq!(done.code, 5);
    assert!(done.err.contains("mlxd 9.9.9 speaks protocol"), "{}", done.err);
    assert_eq!(front.ctl(&["version"]).code, 5);
    let done = front.ctl(&["shutdown"]);
    assert_eq!(
        (done.code, done.out.as_str()),
        (0, "mlxd, pid 99: finishes what runs, then ends\n")
    );
}

#[test]
fn version_shows_both() {
    let front = Front::new([]);
    let done = front.ctl(&["version"]);
    let own = env!("CARGO_PKG_VERSION");
    let protocol = protocol();
    assert_eq!(
        (done.code, done.out),
        (
            0,
            format!(
                "mlxctl {own}, protocol {protocol}\nmlxd   9.9.9, protocol {protocol}, pid 99\n"
            )
        )
    );
    let json: Value = serde_json::from_str(&front.ctl(&["version", "--json"]).out).unwrap();
    assert_eq!(json["mlxd"]["pid"], 99);
}

#[test]
fn wrong_arguments_end_with_2() {
    for arguments in [
        &["start"][..],
        &["frobnicate"],
        &["ask"],
        &["tail", "-c", "many", "m"],
        &["signal", "SEGV", "m"],
        &["signal", "TERM"],
        &["events", "-n", "-1"],
    ] {
        let done = Done::of(mlxctl(arguments).output().unwrap());
        assert_eq!(done.code, 2, "{arguments:?}: {}", done.err);
    }
    let help = Done::of(mlxctl(&["--help"]).output().unwrap());
    assert!(help.out.contains("Exit codes, as supervisorctl's:"), "{}", help.out);
}

fn delta(content: &str) -> Vec<u8> {
    let content = serde_json::to_string(content).unwrap();
    format!("data: {{\"choices\": [{{\"index\": 0, \"delta\": {{\"content\": {content}}}, \"finish_reason\": null}}]}}\n\n")
        .into_bytes()
}

fn finish(reason: &str) -> Vec<u8> {
    format!("data: {{\"choices\": [{{\"index\": 0, \"delta\": {{}}, \"finish_reason\": \"{reason}\"}}]}}\n\n").into_bytes()
}

fn done_event() -> Vec<u8> {
    b"data: [DONE]\n\n".to_vec()
}

fn chat(reply: Reply) -> Front {
    Front::new([("POST /v1/chat/completions", reply)])
}

#[test]
fn ask_shows_the_answer() {
    let role =
        b"data: {\"choices\": [{\"delta\": {\"role\": \"assistant\", \"content\": \"\"}}]}\n\n"
            .to_vec();
    let usage = b": ping\n\ndata: {\"choices\": [], \"usage\": {}}\n\n".to_vec();
    let pieces =
        [role, delta("Grü"), delta("ße\n"), delta("Welt"), finish("stop"), usage, done_event()];
    // Cut the stream elsewhere than its events, in the middle of a character too.
    let bytes: Vec<u8> = pieces.concat();
    let front = chat(Reply::Pieces(bytes.chunks(7).map(<[u8]>::to_vec).collect()));
    let done = front.ctl(&[
        "ask",
        "a/b",
        "Hi?",
        "--system",
        "be brief",
        "--max-tokens",
        "9",
        "--temperature",
        "0.5",
    ]);
    assert_eq!((done.code, done.out.as_str(), done.err.as_str()), (0, "Grüße\nWelt\n", ""));
    let request: Value = serde_json::from_str(&front.seen()[0].1).unwrap();
    assert_eq!(
        request,
        serde_json::json!({
            "model": "a/b",
            "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "Hi?"}],
            "max_tokens": 9, "temperature": 0.5, "stream": true
        })
    );
}

#[test]
fn ask_reads_standard_input() {
    let front = chat(Reply::Pieces(vec![delta("x"), finish("stop"), done_event()]));
    let mut command = mlxctl(&["ask", "m"]);
    command.env("MLXD_SOCKET", front.socket()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"from a pipe").unwrap();
    assert_eq!(Done::of(child.wait_with_output().unwrap()).out, "x\n");
    let request: Value = serde_json::from_str(&front.seen()[0].1).unwrap();
    assert_eq!(request["messages"][0]["content"], "from a pipe");
}

#[test]
fn an_answer_that_is_not_whole_is_no_success() {
    let cut = chat(Reply::Pieces(vec![delta("half")])).ctl(&["ask", "m", "q"]);
    assert_eq!((cut.code, cut.out.as_str()), (1, "half\n"));
    assert!(cut.err.contains("the answer broke off"), "{}", cut.err);

    let broken = chat(Reply::Broken(vec![delta("half")])).ctl(&["ask", "m", "q"]);
    assert_eq!((broken.code, broken.out.as_str()), (1, "half"));
    assert!(broken.err.contains("the connection to mlxd broke"), "{}", broken.err);

    let error = b"data: {\"error\": {\"message\": \"the worker died\", \"type\": \"server_error\", \"code\": null}}\n\n";
    let died = chat(Reply::Pieces(vec![delta("half"), error.to_vec(), done_event()]))
        .ctl(&["ask", "m", "q"]);
    assert_eq!(
        (died.code, died.out.as_str(), died.err.as_str()),
        (1, "half\n", "mlxctl: the worker died\n")
    );

    let long = chat(Reply::Pieces(vec![delta("long"), finish("length"), done_event()]))
        .ctl(&["ask", "m", "q"]);
    assert_eq!((long.code, long.out.as_str()), (0, "long\n"));
    assert!(long.err.contains("--max-tokens"), "{}", long.err);
}

#[test]
fn ask_tells_a_refusal_as_a_sentence() {
    let front =
        chat(refusal(404, "model_not_found", "there is no model \\\"zz\\\". Models here: a"));
    let done = front.ctl(&["ask", "zz", "q"]);
    assert_eq!(
        (done.code, done.err.as_str()),
        (1, "mlxctl: there is no model \"zz\". Models here: a\n")
    );
    let odd = chat(Reply::Json(502, "<html>".into())).ctl(&["ask", "m", "q"]);
    assert_eq!(odd.code, 1);
    assert!(odd.err.contains("mlxd answered 502"), "{}", odd.err);
}

#[test]
fn tail_asks_for_the_end_and_passes_bytes_as_they_are() {
    let log = vec![b"one\n\x1b[1mtw".to_vec(), b"o\xff\n".to_vec()];
    let front = Front::new([("GET /admin/v1/log", Reply::Pieces(log.clone()))]);
    let mut command = mlxctl(&["tail", "-c", "20", "a b/ü"]);
    let output = command.env("MLXD_SOCKET", front.socket()).output().unwrap();
    assert_eq!((output.status.code(), output.stdout), (Some(0), log.concat()));
    let mut follow = mlxctl(&["tail", "-f", "m"]);
    assert!(follow.env("MLXD_SOCKET", front.socket()).output().unwrap().status.success());
    let calls: Vec<String> = front.seen().into_iter().map(|(call, _)| call).collect();
    assert_eq!(
        calls,
        [
            "GET /admin/v1/log?bytes=20&model=a+b%2F%C3%BC",
            "GET /admin/v1/log?bytes=1600&model=m&follow=true"
        ]
    );
    let none = Front::new([("GET /admin/v1/log", refusal(404, "unknown_model", "no model zz"))]);
    let done = none.ctl(&["tail", "zz"]);
    assert_eq!((done.code, done.err.as_str()), (1, "mlxctl: no model zz\n"));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let front = Front::new([("GET /admin/v1/log", Reply::Pieces(vec![vec![b'x'; 60_000]; 20]))]);
    let mut command = mlxctl(&["tail", "m"]);
    command.env("MLXD_SOCKET", front.socket()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let done = Done::of(child.wait_with_output().unwrap());
    assert_eq!((done.code, done.err.as_str()), (0, ""));
}

#[test]
fn ctrl_c_is_the_ordinary_end_of_following() {
    let front = Front::new([("GET /admin/v1/log", Reply::Open(vec![b"line".to_vec()]))]);
    let mut command = mlxctl(&["tail", "-f", "m"]);
    command.env("MLXD_SOCKET", front.socket()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut shown = [0; 4];
    child.stdout.as_mut().unwrap().read_exact(&mut shown).unwrap();
    assert_eq!(&shown, b"line");
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    kill(pid, Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
