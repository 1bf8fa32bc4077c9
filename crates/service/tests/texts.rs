//! What is written for launchd and systemd, key by key.

mod common;

use common::service;
use mlxd_service::{Manager, Scope, launchd, systemd};
use plist::{Dictionary, Value};

/// Apple's types, from `launchd.plist(5)`, of every key that is written, by its path.
const APPLE: [(&str, &str); 28] = [
    ("Label", "string"),
    ("ProgramArguments", "array of strings"),
    ("RunAtLoad", "boolean"),
    ("KeepAlive", "dictionary"),
    ("KeepAlive.SuccessfulExit", "boolean"),
    ("ThrottleInterval", "integer"),
    ("ExitTimeOut", "integer"),
    ("ProcessType", "string"),
    ("Sockets", "dictionary"),
    ("Sockets.api", "dictionary"),
    ("Sockets.api.SockNodeName", "string"),
    ("Sockets.api.SockServiceName", "string"),
    ("Sockets.api.SockFamily", "string"),
    ("Sockets.api.SockType", "string"),
    ("EnvironmentVariables", "dictionary"),
    ("EnvironmentVariables.HOME", "string"),
    ("EnvironmentVariables.MLXD_PATHS_RUNTIME", "string"),
    ("SoftResourceLimits", "dictionary"),
    ("SoftResourceLimits.NumberOfFiles", "integer"),
    ("HardResourceLimits", "dictionary"),
    ("HardResourceLimits.NumberOfFiles", "integer"),
    ("StandardOutPath", "string"),
    ("StandardErrorPath", "string"),
    ("WorkingDirectory", "string"),
    ("Umask", "integer"),
    ("UserName", "string"),
    // Allowed, and not written: mlxd must not be started by these.
    ("StartInterval", "integer"),
    ("Program", "string"),
];

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "string",
        Value::Boolean(_) => "boolean",
        Value::Integer(_) => "integer",
        Value::Dictionary(_) => "dictionary",
        Value::Array(items) if items.iter().all(|item| item.as_string().is_some()) => {
            "array of strings"
        }
        _ => "something that no key here takes",
    }
}

fn check(list: &Dictionary, above: &str, seen: &mut Vec<String>) {
    for (key, value) in list {
        let path = format!("{above}{key}");
        let known = APPLE.iter().find(|(known, _)| *known == path);
        let (_, wanted) = known.unwrap_or_else(|| panic!("{path} is no key of launchd's here"));
        assert_eq!(type_of(value), *wanted, "{path}");
        seen.push(path.clone());
        if let Value::Dictionary(inner) = value {
            check(inner, &format!("{path}."), seen);
        }
    }
}

fn parsed(scope: Scope) -> Dictionary {
    let xml = launchd::xml(&service(scope));
    Value::from_reader_xml(xml.as_bytes()).unwrap().into_dictionary().unwrap()
}

#[test]
fn every_key_has_apples_type() {
    let mut seen = Vec::new();
    check(&parsed(Scope::System), "", &mut seen);
    assert_eq!(seen.len(), 26, "{seen:?}");
    let user = parsed(Scope::User);
    assert!(user.get("UserName").is_none(), "an agent runs as its user anyway");
    assert_eq!(user.len() + 1, parsed(Scope::System).len());
}

#[test]
fn values_say_what_is_meant() {
    let list = parsed(Scope::System);
    let string = |key: &str| list.get(key).and_then(Value::as_string).unwrap();
    let integer = |key: &str| list.get(key).and_then(Value::as_unsigned_integer).unwrap();
    let words: Vec<&str> =
        list["ProgramArguments"].as_array().unwrap().iter().filter_map(Value::as_string).collect();
    assert_eq!(
        words,
        ["/opt/mlxd & co/mlxd", "serve", "--launchd", "--config", "/Users/ada/my \"mlxd\".toml"]
    );
    assert_eq!(string("Label"), launchd::LABEL);
    assert_eq!(string("UserName"), "ada");
    assert_eq!(string("ProcessType"), "Interactive");
    assert_eq!(string("StandardErrorPath"), "/Users/ada/logs/launchd.log");
    assert!(integer("ThrottleInterval") >= 10, "launchd's own default is 10 s");
    assert_eq!((integer("ExitTimeOut"), integer("Umask")), (75, 63));
    // Only after a failure.
    let keep_alive = list["KeepAlive"].as_dictionary().unwrap();
    assert_eq!(keep_alive["SuccessfulExit"].as_boolean(), Some(false));
    let api = list["Sockets"].as_dictionary().unwrap()[launchd::SOCKET].as_dictionary().unwrap();
    assert_eq!(api["SockNodeName"].as_string(), Some("127.0.0.1"));
    assert_eq!(api["SockServiceName"].as_string(), Some("11440"));
}

#[test]
fn without_an_address_nobody_listens_for_mlxd() {
    let mut service = service(Scope::User);
    service.address = None;
    assert!(launchd::property_list(&service).get("Sockets").is_none());
    assert_eq!(systemd::socket_unit(&service), None);
    assert!(!systemd::service_unit(&service).contains("mlxd.socket"));
}

#[test]
fn the_committed_examples_are_what_is_generated() {
    use common::example;
    let agent = launchd::xml(&example(Manager::Launchd, Scope::User));
    let daemon = launchd::xml(&example(Manager::Launchd, Scope::System));
    assert_eq!(include_str!("../../../launchd/LaunchAgents/local.mlxd.plist"), agent);
    assert_eq!(include_str!("../../../launchd/LaunchDaemons/local.mlxd.plist"), daemon);
    let unit = |scope| systemd::service_unit(&example(Manager::Systemd, scope));
    assert_eq!(include_str!("../../../launchd/systemd/user/mlxd.service"), unit(Scope::User));
    assert_eq!(include_str!("../../../launchd/systemd/system/mlxd.service"), unit(Scope::System));
    let socket = systemd::socket_unit(&example(Manager::Systemd, Scope::User));
    assert_eq!(Some(include_str!("../../../launchd/systemd/user/mlxd.socket")), socket.as_deref());
    assert_eq!(
        Some(include_str!("../../../launchd/systemd/system/mlxd.socket")),
        systemd::socket_unit(&example(Manager::Systemd, Scope::System)).as_deref()
    );
}

/// systemd's own reading of the units.
#[cfg(target_os = "linux")]
#[test]
fn systemd_finds_no_fault() {
    for (scope, flag) in [(Scope::System, "--system"), (Scope::User, "--user")] {
        let folder = tempfile::tempdir().unwrap();
        let mut service = service(scope);
        // It looks whether they are there.
        service.program = "/bin/true".into();
        service.user = "root".into();
        service.state = folder.path().into();
        let unit = folder.path().join("mlxd.service");
        std::fs::write(&unit, systemd::service_unit(&service)).unwrap();
        let socket = folder.path().join("mlxd.socket");
        std::fs::write(&socket, systemd::socket_unit(&service).unwrap()).unwrap();
        let run = |unit: &std::path::Path, socket: &std::path::Path| {
            std::process::Command::new("systemd-analyze")
                .args(["verify", "--man=no", flag])
                .args([unit, socket])
                .env("XDG_RUNTIME_DIR", folder.path())
                .output()
                .expect("systemd-analyze, from the package systemd, which scripts/setup installs")
        };
        let output = run(&unit, &socket);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let about_mlxd: Vec<&str> = said.lines().filter(|line| line.contains("mlxd")).collect();
        assert!(output.status.success() && about_mlxd.is_empty(), "{flag}: {said}");
        // It would have found one.
        let text = systemd::service_unit(&service).replace("KillMode=mixed", "KillMode=odd");
        std::fs::write(&unit, text).unwrap();
        let said = String::from_utf8_lossy(&run(&unit, &socket).stderr).into_owned();
        assert!(said.contains("kill mode"), "{said}");
    }
}
