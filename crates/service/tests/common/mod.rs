//! Services that the tests write about.

use mlxd_service::{Scope, Service};

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

/// The one that is shown in `launchd/`.
#[allow(dead_code, reason = "each test program uses what it needs")]
pub fn example(scope: Scope) -> Service {
    let state = "/Users/ada/Library/Application Support/mlxd";
    let runtime = match scope {
        Scope::User => "/Users/ada/.mlxd-run".to_owned(),
        Scope::System => format!("{state}/run"),
    };
    Service {
        program: "/usr/local/bin/mlxd".into(),
        config: None,
        state: state.into(),
        logs: "/Users/ada/Library/Logs/mlxd".into(),
        environment: vec![
            ("HOME".into(), "/Users/ada".into()),
            ("MLXD_PATHS_STATE".into(), state.into()),
            ("MLXD_PATHS_LOGS".into(), "/Users/ada/Library/Logs/mlxd".into()),
            ("MLXD_PATHS_CACHE".into(), "/Users/ada/Library/Caches/mlxd".into()),
            ("MLXD_PATHS_RUNTIME".into(), runtime),
        ],
        ..service(scope)
    }
}
