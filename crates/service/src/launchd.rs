//! The property list of a LaunchAgent or LaunchDaemon. Keys and types are those of
//! `launchd.plist(5)`.

use crate::service::{Scope, Service};
use plist::{Dictionary, Value};
use std::path::Path;

/// What launchd calls the service.
pub const LABEL: &str = "local.mlxd";

/// The socket's name in the property list, which mlxd asks launchd for.
pub const SOCKET: &str = "api";

/// The flag that tells mlxd who started it.
pub const FLAG: &str = "--launchd";

/// The property list.
pub fn property_list(service: &Service) -> Dictionary {
    let mut list = Dictionary::new();
    let mut put = |key: &str, value: Value| {
        list.insert(key.to_owned(), value);
    };
    put("Label", LABEL.into());
    put("ProgramArguments", arguments(service));
    // mlxd restarts its workers itself. launchd starts mlxd again only after a failure, and not at
    // once: after an end that was asked for it stays ended.
    put("RunAtLoad", true.into());
    put("KeepAlive", dictionary([("SuccessfulExit", false.into())]));
    put("ThrottleInterval", service.restart_s.into());
    put("ExitTimeOut", service.stop_timeout_s.into());
    // As an application: background jobs get little processor and disk.
    put("ProcessType", "Interactive".into());
    if let Some(address) = service.address {
        let socket = dictionary([
            ("SockNodeName", address.ip().to_string().into()),
            ("SockServiceName", address.port().to_string().into()),
            ("SockFamily", if address.is_ipv4() { "IPv4" } else { "IPv6" }.into()),
            ("SockType", "stream".into()),
        ]);
        put("Sockets", dictionary([(SOCKET, socket)]));
    }
    let variables =
        service.environment.iter().map(|(name, value)| (name.as_str(), value.as_str().into()));
    put("EnvironmentVariables", dictionary(variables));
    let files = || dictionary([("NumberOfFiles", service.open_files_max.into())]);
    put("SoftResourceLimits", files());
    put("HardResourceLimits", files());
    let log = text(&service.logs.join("launchd.log"));
    put("StandardOutPath", log.clone());
    put("StandardErrorPath", log);
    put("WorkingDirectory", text(&service.state));
    // 077: only the user may read what mlxd writes.
    put("Umask", 0o077_u64.into());
    if service.scope == Scope::System {
        put("UserName", service.user.as_str().into());
    }
    list
}

/// The property list as the XML that launchd reads.
pub fn xml(service: &Service) -> String {
    let mut bytes = Vec::new();
    let list = Value::Dictionary(property_list(service));
    list.to_writer_xml(&mut bytes).expect("a list of strings, numbers and truths can be written");
    bytes.push(b'\n');
    String::from_utf8(bytes).expect("XML is UTF-8")
}

fn arguments(service: &Service) -> Value {
    let mut words = vec![text(&service.program), "serve".into(), FLAG.into()];
    if let Some(config) = &service.config {
        words.extend(["--config".into(), text(config)]);
    }
    Value::Array(words)
}

fn text(path: &Path) -> Value {
    path.to_string_lossy().into_owned().into()
}

fn dictionary<'a>(entries: impl IntoIterator<Item = (&'a str, Value)>) -> Value {
    Value::Dictionary(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}
