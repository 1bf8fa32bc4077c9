//! The units of systemd, for a user or for the machine. Directives are those of
//! `systemd.service(5)`, `systemd.socket(5)`, `systemd.exec(5)` and `systemd.kill(5)`.

use crate::service::{Scope, Service};

/// The service's unit.
pub const UNIT: &str = "mlxd.service";

/// The unit of its socket.
pub const SOCKET_UNIT: &str = "mlxd.socket";

/// Without a sign of life for so long, mlxd's event loop hangs and mlxd is started anew.
const WATCHDOG_S: u64 = 30;

/// The text of `mlxd.service`.
pub fn service_unit(service: &Service) -> String {
    let mut unit = Unit::default();
    unit.section("Unit");
    unit.line("Description", "mlxd, a server for language models");
    if service.address.is_some() {
        unit.line("Requires", SOCKET_UNIT);
    }
    let after = match (service.scope, service.address) {
        (Scope::System, Some(_)) => format!("network.target {SOCKET_UNIT}"),
        (Scope::System, None) => "network.target".to_owned(),
        (Scope::User, Some(_)) => SOCKET_UNIT.to_owned(),
        (Scope::User, None) => String::new(),
    };
    if !after.is_empty() {
        unit.line("After", &after);
    }
    unit.line("StartLimitIntervalSec", "300");
    unit.line("StartLimitBurst", "5");

    unit.section("Service");
    unit.line("Type", "notify");
    unit.line("NotifyAccess", "main");
    unit.line("ExecStart", &command_line(service));
    unit.line("ExecReload", "/bin/kill -HUP $MAINPID");
    // mlxd restarts its workers itself. It is started again only after a failure, and not after
    // one that would come again (2 is a wrong configuration, 3 an address that is taken) or a
    // second signal, which is 130.
    unit.line("Restart", "on-failure");
    unit.line("RestartSec", &service.restart_s.to_string());
    unit.line("RestartPreventExitStatus", "2 3 130");
    unit.line("WatchdogSec", &WATCHDOG_S.to_string());
    unit.line("TimeoutStartSec", "60");
    unit.line("TimeoutStopSec", &service.stop_timeout_s.to_string());
    // mlxd takes its workers down itself; what is left after the time-out is killed.
    unit.line("KillMode", "mixed");
    unit.line("LimitNOFILE", &service.open_files_max.to_string());
    unit.line("UMask", "0077");
    unit.line("NoNewPrivileges", "yes");
    unit.line("WorkingDirectory", &path(&service.state.to_string_lossy()));
    if service.scope == Scope::System {
        unit.line("User", &service.user);
    }
    for (name, value) in &service.environment {
        unit.line("Environment", &quoted(&format!("{name}={value}")));
    }

    unit.section("Install");
    unit.line("WantedBy", wanted_by(service.scope));
    unit.text
}

/// The text of `mlxd.socket`, if there is one.
pub fn socket_unit(service: &Service) -> Option<String> {
    let address = service.address?;
    let mut unit = Unit::default();
    unit.section("Unit");
    unit.line("Description", "mlxd's HTTP address");
    unit.section("Socket");
    unit.line("ListenStream", &address.to_string());
    unit.line("NoDelay", "yes");
    unit.section("Install");
    unit.line("WantedBy", "sockets.target");
    Some(unit.text)
}

fn wanted_by(scope: Scope) -> &'static str {
    match scope {
        Scope::User => "default.target",
        Scope::System => "multi-user.target",
    }
}

fn command_line(service: &Service) -> String {
    let mut words = vec![quoted(&service.program.to_string_lossy()), "serve".to_owned()];
    if let Some(config) = &service.config {
        words.extend(["--config".to_owned(), quoted(&config.to_string_lossy())]);
    }
    words.join(" ")
}

/// A word in double quotes, with everything that systemd would read as something else escaped:
/// quotes and backslashes, `%` specifiers, `$` variables.
fn quoted(word: &str) -> String {
    let mut text = String::from("\"");
    for c in word.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            '%' => text.push_str("%%"),
            '$' => text.push_str("$$"),
            c if c.is_control() => text.push_str(&format!("\\x{:02x}", c as u32)),
            c => text.push(c),
        }
    }
    text.push('"');
    text
}

/// A path of a directive that takes one path and no quotes.
fn path(path: &str) -> String {
    path.replace('%', "%%")
}

#[derive(Default)]
struct Unit {
    text: String,
}

impl Unit {
    fn section(&mut self, name: &str) {
        let gap = if self.text.is_empty() { "" } else { "\n" };
        self.text += &format!("{gap}[{name}]\n");
    }

    fn line(&mut self, directive: &str, value: &str) {
        self.text += &format!("{directive}={value}\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_kept_from_systemds_own_reading() {
        assert_eq!(quoted("/a b/%h/$HOME\\\"x\n"), r#""/a b/%%h/$$HOME\\\"x\x0a""#);
    }
}
