//! What `--launchd` changes that can be seen without launchd.

use crate::fixture::config;
use mlxd_testkit::program;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

/// A folder whose path leaves room for sockets.
pub fn short_folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("mlxd-").tempdir_in("/tmp").unwrap()
}

/// The folders of an instance, as variables.
pub fn variables(home: &Path) -> Vec<(&'static str, String)> {
    let at = |name: &str| home.join(name).to_string_lossy().into_owned();
    vec![
        ("HOME", at("home")),
        ("XDG_CONFIG_HOME", at("config")),
        ("XDG_STATE_HOME", at("state")),
        ("XDG_CACHE_HOME", at("cache")),
        ("XDG_RUNTIME_DIR", at("run")),
    ]
}

/// Runs mlxd with these arguments to its end: code and standard error.
fn run(home: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    drop(config());
    let mut command = Command::new(program("mlxd"));
    command.arg("serve").args(arguments).env_clear().envs(variables(home));
    let output = command.stdin(Stdio::null()).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn under_launchd_what_would_come_again_ends_with_0() {
    let folder = short_folder();
    let wrong = folder.path().join("wrong.toml");
    std::fs::write(&wrong, "[http]\nprot = 1\n").unwrap();
    let wrong = wrong.to_string_lossy();
    assert_eq!(run(folder.path(), &["--config", &wrong]).0, Some(2));
    let (code, said) = run(folder.path(), &["--launchd", "--config", &wrong]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("http.port") && said.contains("mlxctl service start"), "{said}");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    assert_eq!(run(folder.path(), &["--port", &port]).0, Some(3));
    assert_eq!(run(folder.path(), &["--launchd", "--port", &port]).0, Some(0));
}
