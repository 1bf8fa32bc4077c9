//! Services that the tests write about.

use mlxd_service::{Manager, Scope, Service};

/// One with names that need care.
pub fn service(scope: Scope) -> Service {
    Service {
        scope,
        program: "/opt/mlxd & co/mlxd".into(),
        config: Some("/Users/ada/my \"mlxd\".toml".into()),
        address: Some("127.0.0.1:11440".parse().unwrap()),
        user: "ada".into(),
        state: "/Users/ada/state".into(),
        logs: "/Users/ada/logs".into(),
        environment: vec![
            ("HOME".into(), "/Users/ada".into()),
            ("MLXD_PATHS_RUNTIME".into(), "/Users/ada/run".into()),
        ],
        open_files_max: 8192,
        stop_timeout_s: 75,
        restart_s: 30,
    }
}

/// The one that is shown in `launchd/`, on a Mac or on Linux.
#[allow(dead_code, reason = "each test program uses what it needs")]
pub fn example(manager: Manager, scope: Scope) -> Service {
    let (home, state, logs, run) = match manager {
        Manager::Launchd => (
            "/Users/ada",
            "/Users/ada/Library/Application Support/mlxd",
            "/Users/ada/Library/Logs/mlxd",
            "/var/folders/xy/abcd/T/mlxd-501",
        ),
        Manager::Systemd => (
            "/home/ada",
            "/home/ada/.local/state/mlxd",
            "/home/ada/.local/state/mlxd/logs",
            "/run/user/1000/mlxd",
        ),
    };
    let runtime = match scope {
        Scope::User => run.to_owned(),
        Scope::System => format!("{state}/run"),
    };
    Service {
        program: "/usr/local/bin/mlxd".into(),
        config: None,
        state: state.into(),
        logs: logs.into(),
        environment: vec![("HOME".into(), home.into()), ("MLXD_PATHS_RUNTIME".into(), runtime)],
        restart_s: if manager == Manager::Launchd { 30 } else { 5 },
        ..service(scope)
    }
}
