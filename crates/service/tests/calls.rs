//! What launchctl and systemctl are told, through a recorded double.

mod common;

use common::service;
use mlxd_service::{Commands, Keeper, KeeperError, Manager, Places, Ran, Scope, Service, State};
use std::cell::RefCell;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::rc::Rc;
use tempfile::TempDir;

type Answers = Vec<(&'static str, Ran)>;

/// Answers by the beginning of the command line, else with success; writes down every call.
#[derive(Clone, Default)]
struct Double {
    answers: Rc<RefCell<Answers>>,
    calls: Rc<RefCell<Vec<String>>>,
}

impl Double {
    fn answer(&self, command: &'static str, code: i32, out: &str) {
        let ran = Ran { code, out: out.into(), err: String::new() };
        self.answers.borrow_mut().push((command, ran));
    }

    fn taken(&self) -> Vec<String> {
        self.calls.borrow_mut().drain(..).collect()
    }
}

impl Commands for Double {
    fn run(&mut self, program: &str, arguments: &[&str]) -> std::io::Result<Ran> {
        let call = format!("{program} {}", arguments.join(" "));
        let answers = self.answers.borrow();
        // The last answer given counts.
        let answer = answers.iter().rev().find(|(command, _)| call.starts_with(command));
        let ran = answer.map(|(_, ran)| ran.clone()).unwrap_or_default();
        self.calls.borrow_mut().push(call);
        Ok(ran)
    }
}

struct Bench {
    folder: TempDir,
    double: Double,
    keeper: Keeper<Double>,
    service: Service,
}

impl Bench {
    fn new(manager: Manager, scope: Scope) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let double = Double::default();
        let places = Places { folder: folder.path().join("files"), uid: 501 };
        let mut service = service(scope);
        service.state = folder.path().join("state");
        service.logs = folder.path().join("logs");
        let keeper = Keeper::new(manager, scope, places, double.clone());
        Self { folder, double, keeper, service }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join("files").join(name)
    }
}

#[test]
fn an_agent_is_bootstrapped_kickstarted_and_booted_out() {
    let mut bench = Bench::new(Manager::Launchd, Scope::User);
    let file = bench.file("local.mlxd.plist");
    assert_eq!(bench.keeper.state().unwrap(), State::NotInstalled);
    assert_eq!(bench.keeper.install(&bench.service).unwrap(), std::slice::from_ref(&file));
    let bootstrap = format!("launchctl bootstrap gui/501 {}", file.display());
    assert_eq!(
        bench.double.taken(),
        ["launchctl print gui/501", "launchctl enable gui/501/local.mlxd", &bootstrap]
    );
    // launchd refuses files that others may write to.
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o644);
    assert!(bench.folder.path().join("logs").is_dir());

    bench.keeper.start().unwrap();
    let start = bench.double.taken();
    assert_eq!(start.last().unwrap(), "launchctl kickstart gui/501/local.mlxd");
    bench.keeper.stop().unwrap();
    let stop = bench.double.taken();
    assert_eq!(stop.last().unwrap(), "launchctl bootout gui/501/local.mlxd");
    assert!(file.is_file(), "a stop is no uninstall");

    // Booted out: a start makes it known again, a second stop has nothing to do.
    bench.double.answer("launchctl print gui/501/local.mlxd", 113, "");
    bench.keeper.stop().unwrap();
    assert!(!bench.double.taken().iter().any(|call| call.contains("bootout")));
    bench.keeper.start().unwrap();
    assert_eq!(bench.double.taken().last().unwrap(), &bootstrap);

    bench.keeper.uninstall().unwrap();
    assert!(!file.exists());
    assert!(matches!(bench.keeper.start(), Err(KeeperError::NotInstalled)));
    assert!(matches!(bench.keeper.uninstall(), Err(KeeperError::NotInstalled)));
}

#[test]
fn without_a_graphical_session_the_background_session_is_taken() {
    let mut bench = Bench::new(Manager::Launchd, Scope::User);
    bench.double.answer("launchctl print gui/501", 125, "Domain does not support specified action");
    bench.keeper.install(&bench.service).unwrap();
    let calls = bench.double.taken();
    assert!(calls.last().unwrap().starts_with("launchctl bootstrap user/501 "), "{calls:?}");
}

#[test]
fn a_daemon_lives_in_the_system_domain() {
    let mut bench = Bench::new(Manager::Launchd, Scope::System);
    bench.keeper.install(&bench.service).unwrap();
    let file = bench.file("local.mlxd.plist");
    let bootstrap = format!("launchctl bootstrap system {}", file.display());
    assert_eq!(bench.double.taken(), ["launchctl enable system/local.mlxd", &bootstrap]);
    // Installing again boots the old one out first.
    bench.keeper.install(&bench.service).unwrap();
    let calls = bench.double.taken();
    assert_eq!(calls[0], "launchctl print system/local.mlxd");
    assert_eq!(calls[1], "launchctl bootout system/local.mlxd");
}

#[test]
fn launchds_words_become_states() {
    let mut bench = Bench::new(Manager::Launchd, Scope::System);
    bench.keeper.install(&bench.service).unwrap();
    let print = "launchctl print system/local.mlxd";
    let running = "system/local.mlxd = {\n\tactive count = 1\n\tstate = running\n\n\tpid = 4711\n\
                   \tlast exit code = (never exited)\n\tsockets = {\n\t\tpid = 1\n\t}\n}\n";
    bench.double.answer(print, 0, running);
    assert_eq!(bench.keeper.state().unwrap(), State::Running { pid: Some(4711) });
    bench.double.answer(print, 0, "system/local.mlxd = {\n\tstate = not running\n}\n");
    assert_eq!(bench.keeper.state().unwrap(), State::Stopped);
    bench.double.answer(print, 113, "");
    assert_eq!(bench.keeper.state().unwrap(), State::Stopped);
}

#[test]
fn systemd_is_told_of_the_socket_too() {
    let mut bench = Bench::new(Manager::Systemd, Scope::User);
    let files = bench.keeper.install(&bench.service).unwrap();
    assert_eq!(files, [bench.file("mlxd.service"), bench.file("mlxd.socket")]);
    assert_eq!(
        bench.double.taken(),
        [
            "systemctl --user daemon-reload",
            "systemctl --user enable --now mlxd.socket mlxd.service"
        ]
    );
    bench.keeper.start().unwrap();
    bench.keeper.stop().unwrap();
    assert_eq!(
        bench.double.taken(),
        ["systemctl --user start mlxd.service", "systemctl --user stop mlxd.socket mlxd.service"]
    );
    let show = "systemctl --user show";
    bench.double.answer(show, 0, "ActiveState=active\nMainPID=12\n");
    assert_eq!(bench.keeper.state().unwrap(), State::Running { pid: Some(12) });
    bench.double.answer(show, 0, "ActiveState=inactive\nMainPID=0\n");
    assert_eq!(bench.keeper.state().unwrap(), State::Stopped);
    bench.double.taken();
    bench.keeper.uninstall().unwrap();
    assert_eq!(
        bench.double.taken(),
        [
            "systemctl --user disable --now mlxd.socket mlxd.service",
            "systemctl --user daemon-reload"
        ]
    );
    assert!(!bench.file("mlxd.service").exists() && !bench.file("mlxd.socket").exists());
}

#[test]
fn the_machines_units_need_no_user() {
    let mut bench = Bench::new(Manager::Systemd, Scope::System);
    bench.service.address = None;
    bench.keeper.install(&bench.service).unwrap();
    assert_eq!(
        bench.double.taken(),
        ["systemctl daemon-reload", "systemctl enable --now mlxd.service"]
    );
    // A new installation with a socket takes the old one's place.
    bench.service.address = Some("127.0.0.1:1".parse().unwrap());
    bench.keeper.install(&bench.service).unwrap();
    assert_eq!(bench.double.taken()[0], "systemctl disable --now mlxd.service");
}

#[test]
fn a_refusal_names_the_command_and_what_it_said() {
    let mut bench = Bench::new(Manager::Launchd, Scope::System);
    bench.double.answer("launchctl bootstrap", 5, "Bootstrap failed: 5: Input/output error\n");
    let error = bench.keeper.install(&bench.service).unwrap_err().to_string();
    assert!(error.starts_with("`launchctl bootstrap system /"), "{error}");
    assert!(error.ends_with("ended with 5: Bootstrap failed: 5: Input/output error"), "{error}");
}
