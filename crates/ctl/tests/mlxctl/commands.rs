//! The commands beyond the everyday ones, from outside.

use crate::front::{Done, Front, Reply, mlxctl, model, protocol, refusal, status, version};
use serde_json::Value;
use std::io::Write;
use std::process::Stdio;

fn grouped(name: &str, state: &str, groups: &[&str]) -> String {
    let mut model: Value = serde_json::from_str(&model(name, state)).unwrap();
    model["groups"] = groups.iter().copied().collect();
    model.to_string()
}

fn table() -> Reply {
    status(&[
        grouped("a", "RUNNING", &["g"]),
        grouped("b", "STOPPED", &["g", "h"]),
        grouped("c", "RUNNING", &[]),
    ])
}

fn bodies(front: &Front) -> Vec<String> {
    front.seen().into_iter().filter(|(call, _)| call.starts_with("POST")).map(|(_, b)| b).collect()
}

#[test]
fn groups_are_expanded() {
    let front = Front::new([
        ("GET /admin/v1/status", table()),
        ("POST /admin/v1/start", Reply::Json(200, model("x", "RUNNING"))),
        ("POST /admin/v1/restart", Reply::Json(200, model("x", "RUNNING"))),
    ]);
    assert_eq!(front.ctl(&["start", "g:*"]).code, 0);
    assert_eq!(bodies(&front), [r#"{"model":"a"}"#, r#"{"model":"b"}"#]);
    // Only what is in use is restarted.
    front.ctl(&["restart", "g:*"]);
    assert_eq!(bodies(&front).len(), 3);
    let none = front.ctl(&["start", "z:*"]);
    assert_eq!(none.code, 1);
    assert!(none.err.contains("z:*: ERROR"), "{}", none.err);
    let shown = front.ctl(&["status", "h:*"]);
    assert_eq!(shown.code, 3);
    assert!(shown.out.contains("b      STOPPED"), "{}", shown.out);
    assert!(!shown.out.contains("RUNNING"), "{}", shown.out);
    assert_eq!(front.ctl(&["status", "z:*"]).code, 4);
}

#[test]
fn all_and_groups_without_anything_to_do_say_so() {
    let stopped = [grouped("a", "STOPPED", &["g"]), grouped("b", "STOPPED", &[])];
    let front = Front::new([("GET /admin/v1/status", status(&stopped))]);
    for (arguments, said) in [
        (&["restart", "all"][..], "no model is running\n"),
        (&["stop", "all"], "no model is running\n"),
        (&["restart", "g:*"], "no model of g:* is running\n"),
        (&["signal", "HUP", "g:*"], "no model of g:* is running\n"),
        (&["unpin", "all"], "no model is pinned\n"),
        (&["stop", "all", "--json"], "[]\n"),
    ] {
        let done = front.ctl(arguments);
        assert_eq!((done.code, done.out.as_str(), done.err.as_str()), (0, said, ""));
    }
    // A group that is none is told as such, and once.
    let done = front.ctl(&["stop", "z:*"]);
    assert_eq!((done.code, done.out.as_str()), (1, ""));
    let empty = Front::new([("GET /admin/v1/status", status(&[]))]).ctl(&["start", "all"]);
    assert!(empty.out.starts_with("no model is in the table"), "{}", empty.out);
}

#[test]
fn json_has_one_list_for_all_models_failures_too() {
    let front = Front::new([
        ("GET /admin/v1/status", table()),
        ("POST /admin/v1/start", refusal(409, "already_started", "it runs")),
        ("POST /admin/v1/restart", refusal(500, "load_failed", "no weights")),
    ]);
    let done = front.ctl(&["start", "all", "--json"]);
    let list: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!((done.code, list.as_array().unwrap().len()), (0, 3));
    assert_eq!((&list[1]["model"], &list[1]["done"]), (&"b".into(), &true.into()));
    assert_eq!(list[1]["error"]["code"], "already_started");
    let done = front.ctl(&["restart", "a", "--json"]);
    let list: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!((done.code, &list[0]["done"]), (7, &false.into()));
}

#[test]
fn with_json_failures_are_json_too() {
    let unknown = || refusal(404, "unknown_model", "no model nope");
    let front = Front::new([
        ("GET /admin/v1/status", table()),
        ("GET /admin/v1/why", unknown()),
        ("GET /admin/v1/log", unknown()),
        ("POST /admin/v1/remove", unknown()),
        ("POST /admin/v1/start", Reply::Json(200, "no model status".to_owned())),
    ]);
    let json = |arguments: &[&str]| -> (Done, Value) {
        let done = front.ctl(&[arguments, &["--json"]].concat());
        let value = serde_json::from_str(&done.out).unwrap();
        (done, value)
    };
    for command in ["why", "tail"] {
        let (done, value) = json(&[command, "nope"]);
        let error = serde_json::json!({"code": "unknown_model", "message": "no model nope"});
        assert_eq!(value, serde_json::json!({ "error": error }), "{command}");
        assert_eq!((done.code, done.err.as_str()), (1, "mlxctl: no model nope\n"));
    }
    // Where there are many, each has a row.
    let (done, rows) = json(&["pid", "c", "nope", "z:*"]);
    assert_eq!((done.code, &rows[0]["pid"]), (1, &4711.into()));
    let errors: Vec<_> = rows.as_array().unwrap()[1..].iter().collect();
    let codes: Vec<_> = errors.iter().map(|row| (&row["model"], &row["error"]["code"])).collect();
    assert_eq!(
        codes,
        [(&"z:*".into(), &"unknown_group".into()), (&"nope".into(), &"unknown_model".into())]
    );
    let (done, status) = json(&["status", "c", "nope"]);
    assert_eq!((done.code, &status["errors"][0]["model"]), (4, &"nope".into()));
    assert_eq!(json(&["rm", "-y", "nope"]).1[0]["error"]["code"], "unknown_model");
    let (done, rows) = json(&["start", "z:*", "a"]);
    assert_eq!((done.code, rows.as_array().unwrap().len()), (1, 2));
    assert_eq!((&rows[0]["done"], &rows[1]["error"]["code"]), (&false.into(), &"failed".into()));

    let socket = front.socket().with_file_name("none");
    for (command, code) in [("list", 7), ("status", 4), ("version", 7)] {
        let mut alone = mlxctl(&[command, "--json"]);
        let done = Done::of(alone.env("MLXD_SOCKET", &socket).output().unwrap());
        let value: Value = serde_json::from_str(&done.out).unwrap();
        assert_eq!((done.code, &value["error"]["code"]), (code, &"mlxd_not_running".into()));
        assert!(done.err.starts_with("mlxctl: mlxd is not running"), "{}", done.err);
    }
}

#[test]
fn pid_prints_numbers_for_scripts() {
    let front = Front::new([("GET /admin/v1/status", table())]);
    let own = front.ctl(&["pid"]);
    assert_eq!((own.code, own.out.as_str()), (0, "99\n"));
    let all = front.ctl(&["pid", "all"]);
    assert_eq!((all.code, all.out.as_str()), (7, "4711\n0\n4711\n"));
    assert_eq!(front.ctl(&["pid", "c"]).code, 0);
    let unknown = front.ctl(&["pid", "zz"]);
    assert_eq!((unknown.code, unknown.out.as_str()), (1, ""));
    let json: Value = serde_json::from_str(&front.ctl(&["pid", "b", "--json"]).out).unwrap();
    assert_eq!(json[0]["pid"], Value::Null);
}

#[test]
fn signals_are_sent_by_name() {
    let front = Front::new([
        ("GET /admin/v1/status", table()),
        ("POST /admin/v1/signal", Reply::Json(200, model("a", "RUNNING"))),
    ]);
    let done = front.ctl(&["signal", "sigusr1", "a"]);
    assert_eq!((done.code, done.out.as_str()), (0, "a: sent SIGUSR1\n"));
    assert_eq!(bodies(&front), [r#"{"model":"a","signal":"USR1"}"#]);
    front.ctl(&["signal", "9", "all"]);
    assert_eq!(bodies(&front).len(), 3, "b has no process");
    let none =
        Front::new([("POST /admin/v1/signal", refusal(409, "not_running", "it has no process"))]);
    let done = none.ctl(&["signal", "HUP", "b"]);
    assert_eq!((done.code, done.out.as_str()), (7, "b: ERROR (it has no process)\n"));
}

#[test]
fn maintail_is_the_log_without_a_model() {
    let front = Front::new([("GET /admin/v1/log", Reply::Pieces(vec![b"line\n".to_vec()]))]);
    assert_eq!(front.ctl(&["maintail", "-c", "7"]).out, "line\n");
    let json: Value = serde_json::from_str(&front.ctl(&["maintail", "--json"]).out).unwrap();
    assert_eq!(json["text"], "line\n");
    let calls: Vec<String> = front.seen().into_iter().map(|(call, _)| call).collect();
    assert_eq!(calls, ["GET /admin/v1/log?bytes=7", "GET /admin/v1/log?bytes=1600"]);
}

#[test]
fn events_are_told_one_a_line_however_they_come() {
    let lines = concat!(
        r#"{"sequence":3,"unix_ms":0,"model":"a","event":"worker_spawned","pid":12}"#,
        "\n",
        r#"{"sequence":6,"unix_ms":0,"model":"a","event":"worker_gone","pid":12,"how":"killed"}"#,
        "\n",
    );
    let pieces = lines.as_bytes().chunks(9).map(<[u8]>::to_vec).collect();
    let front = Front::new([("GET /admin/v1/events", Reply::Pieces(pieces))]);
    let done = front.ctl(&["events", "-f", "-n", "5"]);
    let told: Vec<&str> = done.out.lines().collect();
    assert!(told[0].ends_with("a: worker started, pid 12"), "{}", done.out);
    assert_eq!(told[1], "(2 events were missed: they came faster than they were read)");
    assert!(told[2].ends_with("a: worker ended, pid 12: killed"), "{}", done.out);
    assert_eq!(front.seen()[0].0, "GET /admin/v1/events?last=5&follow=true");
    assert_eq!(front.ctl(&["events", "--json"]).out, lines);
}

#[test]
fn why_reread_and_update_tell_what_the_front_says() {
    let why = format!(r#"{{"status": {}, "reports": 0}}"#, model("a", "RUNNING"));
    let changes =
        r#"{"applied": false, "models": [{"model": "n", "change": "added"}], "settings": []}"#;
    let front = Front::new([
        ("GET /admin/v1/why", Reply::Json(200, why)),
        ("POST /admin/v1/reread", Reply::Json(200, changes.to_owned())),
        ("POST /admin/v1/update", refusal(400, "bad_config", "line 3: no such key")),
    ]);
    let done = front.ctl(&["why", "a"]);
    assert!(done.out.starts_with("a: no death of its worker is on record."), "{}", done.out);
    assert_eq!(front.seen()[0].0, "GET /admin/v1/why?model=a");
    let done = front.ctl(&["reread"]);
    assert_eq!((done.code, done.out.lines().next()), (0, Some("n: available")));
    let done = front.ctl(&["update"]);
    assert_eq!((done.code, done.err.as_str()), (1, "mlxctl: line 3: no such key\n"));
}

#[test]
fn completions_and_manual_pages_are_made_of_the_commands() {
    let front = Front::new([]);
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let done = front.ctl(&["completions", shell]);
        assert_eq!(done.code, 0);
        assert!(done.out.contains("maintail"), "{shell}");
    }
    let page = front.ctl(&["man"]).out;
    assert!(page.contains(".TH mlxctl 1") && page.contains("Exit codes"), "{page}");
    let status = page.split_once(".SH \"EXIT STATUS\"\n").unwrap().1;
    assert!(status.contains("\\&  5  mlxctl and mlxd are of versions"), "{status}");
    assert!(!page.contains("EXTRA"), "{page}");
    let page = front.ctl(&["man", "signal"]).out;
    assert!(page.contains("mlxctl\\-signal") || page.contains("mlxctl-signal"), "{page}");
    assert_eq!(front.ctl(&["man", "zz"]).code, 1);
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(front.ctl(&["man", "--out", folder.path().to_str().unwrap()]).code, 0);
    assert!(folder.path().join("mlxctl.1").is_file());
    let pages: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap()).collect();
    assert!(pages.iter().any(|page| page.file_name() == "mlxctl-service-install.1"));
    for page in pages {
        let text = std::fs::read_to_string(page.path()).unwrap();
        let title = text.lines().find(|line| line.starts_with(".TH")).unwrap();
        let footer = concat!("mlxctl ", env!("CARGO_PKG_VERSION"));
        assert!(title.contains(footer), "{:?}: {title}", page.file_name());
    }
}

#[test]
fn bare_it_takes_commands_from_a_pipe() {
    let front = Front::new([
        ("GET /admin/v1/status", table()),
        ("POST /admin/v1/stop", refusal(500, "internal", "stuck")),
        ("POST /admin/v1/shutdown", Reply::Json(200, version(protocol()))),
    ]);
    let run = |script: &str| {
        let mut command = mlxctl(&[]);
        command.env("MLXD_SOCKET", front.socket()).stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        Done::of(child.wait_with_output().unwrap())
    };
    let done = run("# a script\npid\n\npid c\nexit\npid\n");
    assert_eq!((done.code, done.out.as_str(), done.err.as_str()), (0, "99\n4711\n", ""));
    // It goes on after a failure, and tells of it in the end.
    let done = run("stop c\npid");
    assert_eq!((done.code, done.out.as_str()), (1, "c: ERROR (stuck)\n99\n"));
    // Nobody sits there to be asked whether that is meant.
    let done = run("shutdown\npid\n");
    assert_eq!(done.out, "mlxd, pid 99: finishes what runs, then ends\n99\n");
    let done = run("frobnicate\n");
    assert_eq!(done.code, 2);
    assert!(done.err.contains("unrecognized subcommand"), "{}", done.err);
    let done = run("help\nhelp start\nstart 'x\n");
    assert_eq!(done.code, 2);
    assert!(done.out.contains("maintail") && done.out.contains("Usage: "), "{}", done.out);
    assert!(done.err.contains("quotation mark"), "{}", done.err);
}
