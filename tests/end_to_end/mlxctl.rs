//! mlxctl on a real mlxd: a worker that dies, and what the admin is told of it.

use crate::fixture::{MODEL, Scripted, status_of};
use mlxd_testkit::{Script, until};
use serde_json::Value;

/// Runs mlxctl on this front: exit code, standard output, standard error.
fn mlxctl(scripted: &Scripted, arguments: &[&str]) -> (i32, String, String) {
    let output = scripted.front.home().command("mlxctl").args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_killed_worker_comes_back_and_everything_tells_of_it() {
    let scripted = Scripted::start_with(&Script::default(), |config| {
        config.with_model_key(MODEL, "groups", vec!["g".to_owned()])
    });
    let ctl = |arguments: &[&str]| mlxctl(&scripted, arguments);
    assert_eq!(ctl(&["pid", MODEL]).0, 7, "not started yet");
    assert_eq!(ctl(&["signal", "TERM", MODEL]).0, 7);
    let started = ctl(&["start", "g:*"]);
    assert_eq!((started.0, started.1), (0, format!("{MODEL}: started\n")));
    let pid: u32 = ctl(&["pid", MODEL]).1.trim().parse().unwrap();
    assert_eq!(ctl(&["pid"]).1.trim(), scripted.front.id().to_string());
    assert!(ctl(&["why", MODEL]).1.contains("no death of its worker is on record"));

    let sent = ctl(&["signal", "kill", MODEL]);
    assert_eq!((sent.0, sent.1), (0, format!("{MODEL}: sent SIGKILL\n")));
    until("a new worker", || {
        let status = status_of(&scripted.front, MODEL);
        let new = status["pid"].as_u64().filter(|new| *new != u64::from(pid));
        new.filter(|_| status["state"] == "RUNNING")
    });

    let events = ctl(&["events", "--json", "-n", "100"]).1;
    assert!(events.lines().next().unwrap().contains("\"event\":\"serving\""), "{events}");
    let states: Vec<String> = events
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|event| event["event"] == "worker_state")
        .map(|event| event["to"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(states, ["STARTING", "RUNNING", "BACKOFF", "STARTING", "RUNNING"]);
    let why = ctl(&["why", MODEL]);
    assert_eq!(why.0, 0, "{}", why.2);
    assert!(why.1.contains(&format!("(pid {pid}) died at")), "{}", why.1);
    assert!(why.1.contains("SIGKILL") && why.1.contains("starts another worker"), "{}", why.1);
    assert!(ctl(&["maintail", "-c", "100000"]).1.contains("BACKOFF"));
    assert!(ctl(&["tail", MODEL]).0 == 0);
}

#[test]
fn a_new_configuration_is_shown_then_put_to_work() {
    let scripted = Scripted::start(&Script::default());
    let ctl = |arguments: &[&str]| mlxctl(&scripted, arguments);
    let nothing = ctl(&["reread"]);
    assert_eq!(nothing.0, 0, "{}", nothing.2);
    assert!(nothing.1.starts_with("nothing changed"), "{}", nothing.1);
    let file = scripted.front.home().path().join("config/mlxd/mlxd.toml");
    let before = std::fs::read_to_string(&file).unwrap();
    let folder = scripted.folder.path().display();
    std::fs::write(&file, format!("{before}\n[models.\"org/new\"]\npath = \"{folder}\"\n"))
        .unwrap();
    let shown = ctl(&["reread"]);
    assert!(shown.1.contains("org/new: available"), "{}", shown.1);
    assert_eq!(status_of(&scripted.front, "org/new"), Value::Null);
    let done = ctl(&["update"]);
    assert!(done.1.contains("org/new: added"), "{}", done.1);
    assert_eq!(status_of(&scripted.front, "org/new")["state"], "STOPPED");
    assert!(ctl(&["events"]).1.contains("a new configuration is at work, for org/new"));
    std::fs::write(&file, "[http]\nprot = 1\n").unwrap();
    let wrong = ctl(&["update"]);
    assert_eq!(wrong.0, 1);
    assert!(wrong.2.contains("did you mean http.port?"), "{}", wrong.2);
}

#[test]
fn a_model_that_cannot_be_loaded_at_the_start_says_why_in_its_status() {
    let missing = "org/not-on-this-disk";
    let scripted = Scripted::start_with(&Script::default(), |config| {
        config.with_model_key(missing, "preload", true)
    });
    let reason = until("the reason", || {
        let status = status_of(&scripted.front, missing);
        assert_eq!(status["state"], "STOPPED");
        status["reason"].as_str().map(str::to_owned)
    });
    assert!(reason.contains(missing), "{reason}");
    let shown = mlxctl(&scripted, &["status", missing]).1;
    assert!(shown.contains(&format!("\n    {reason}\n")), "{shown}");
    // Names that only a caller knows leave nothing behind.
    assert_eq!(mlxctl(&scripted, &["start", "org/anything"]).0, 1);
    assert_eq!(status_of(&scripted.front, "org/anything"), Value::Null);
}
