//! `mlxctl service`, with a systemctl that only writes down what it is told.

use crate::front::{Done, mlxctl};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use tempfile::TempDir;

struct Machine {
    folder: TempDir,
}

impl Machine {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let this = Self { folder };
        for name in ["bin", "home"] {
            std::fs::create_dir(this.at(name)).unwrap();
        }
        let script = "#!/bin/sh\necho \"$*\" >> \"$0.calls\"\ncase \"$*\" in *show*) cat \"$0.show\" ;; esac\n";
        for program in ["systemctl", "mlxd"] {
            let path = this.at("bin").join(program);
            std::fs::write(&path, script).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        this.says("ActiveState=active\nMainPID=4711\n");
        this
    }

    fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn says(&self, state: &str) {
        std::fs::write(self.at("bin/systemctl.show"), state).unwrap();
    }

    fn calls(&self) -> Vec<String> {
        let calls = std::fs::read_to_string(self.at("bin/systemctl.calls")).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }

    fn ctl(&self, arguments: &[&str]) -> Done {
        let mut command = mlxctl(arguments);
        command
            .env("HOME", self.at("home"))
            .env("XDG_RUNTIME_DIR", self.at("run"))
            .env("PATH", format!("{}:/usr/bin:/bin", self.at("bin").display()));
        Done::of(command.output().unwrap())
    }

    fn program(&self) -> String {
        self.at("bin/mlxd").to_string_lossy().into_owned()
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_service_comes_and_goes() {
    let machine = Machine::new();
    let units = machine.at("home/.config/systemd/user");
    let none = machine.ctl(&["service", "status"]);
    assert_eq!(none.code, 4);
    assert!(none.out.starts_with("not installed; `mlxctl service install`"), "{}", none.out);
    assert_eq!(machine.ctl(&["service", "start"]).code, 1);

    let done = machine.ctl(&["service", "install", "--program", &machine.program()]);
    assert_eq!((done.code, done.err.as_str()), (0, ""), "{}", done.out);
    assert!(done.out.ends_with("running, pid 4711\n"), "{}", done.out);
    assert_eq!(
        machine.calls()[..2],
        ["--user daemon-reload", "--user enable --now mlxd.socket mlxd.service"]
    );
    let unit = std::fs::read_to_string(units.join("mlxd.service")).unwrap();
    for line in [
        format!("ExecStart=\"{}\" serve", machine.program()),
        format!("Environment=\"MLXD_PATHS_RUNTIME={}\"", machine.at("run/mlxd").display()),
        format!("WorkingDirectory={}", machine.at("home/.local/state/mlxd").display()),
    ] {
        assert!(unit.lines().any(|found| found == line), "{line} is not in\n{unit}");
    }
    assert!(machine.at("home/.local/state/mlxd/logs").is_dir());

    machine.says("ActiveState=failed\nMainPID=0\n");
    assert_eq!(machine.ctl(&["service", "status"]).code, 3);
    assert_eq!(machine.ctl(&["service", "start"]).code, 7);
    assert_eq!(machine.ctl(&["service", "stop"]).out, "stopped\n");
    let gone = machine.ctl(&["service", "uninstall", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&gone.out).unwrap()["state"], "uninstalled");
    assert!(!units.join("mlxd.service").exists() && !units.join("mlxd.socket").exists());
    assert_eq!(machine.ctl(&["service", "uninstall"]).code, 1);
}

#[test]
fn print_shows_either_managers_files_with_this_machines_paths() {
    let machine = Machine::new();
    let program = machine.program();
    let config = machine.at("my.toml");
    std::fs::write(&config, "[http]\nport = 4321\nhost = \"127.0.0.2\"\n").unwrap();
    let config = config.to_string_lossy().into_owned();
    let done = machine.ctl(&[
        "service",
        "print",
        "--for",
        "launchd",
        "--program",
        &program,
        "--config",
        &config,
        "--env",
        "HF_TOKEN=a=b",
    ]);
    assert_eq!((done.code, done.err.as_str()), (0, ""));
    for part in
        ["<string>--launchd</string>", "<string>4321</string>", &config, "<string>a=b</string>"]
    {
        assert!(done.out.contains(part), "{part} is not in\n{}", done.out);
    }
    assert!(done.out.starts_with("<?xml"));
    let done =
        machine.ctl(&["service", "print", "--json", "--for", "systemd", "--program", &program]);
    let files: Value = serde_json::from_str(&done.out).unwrap();
    assert!(files[1]["path"].as_str().unwrap().ends_with("mlxd.socket"));
    assert!(files[1]["text"].as_str().unwrap().contains("ListenStream=127.0.0.1:11440"));
    assert!(machine.calls().is_empty(), "nothing is done");
}

#[test]
fn what_could_not_run_is_not_installed() {
    let machine = Machine::new();
    let none = machine.ctl(&["service", "print", "--program", "/nonexistent/mlxd"]);
    assert_eq!(none.code, 1);
    assert!(none.err.contains("--program"), "{}", none.err);
    let config = machine.at("my.toml");
    std::fs::write(&config, "[http]\nprot = 1\n").unwrap();
    let program = machine.program();
    let config = config.to_string_lossy().into_owned();
    let wrong = machine.ctl(&["service", "install", "--program", &program, "--config", &config]);
    assert_eq!(wrong.code, 1);
    assert!(wrong.err.contains("did you mean http.port?"), "{}", wrong.err);
    let env = machine.ctl(&["service", "print", "--program", &program, "--env", "=x"]);
    assert!(env.err.contains("NAME=VALUE"), "{}", env.err);
    assert_eq!(machine.ctl(&["service", "status", "--user", "root"]).code, 2);
    assert!(machine.calls().is_empty());
}
