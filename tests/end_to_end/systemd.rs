//! mlxd under systemd's protocols, for real.

use crate::fixture::config;
use crate::managed::{short_folder, variables};
use mlxd_testkit::{Client, FrontProcess, program, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};

/// A process that does not outlive its test.
struct Guarded(Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        // Fails when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn a_connection_to_systemds_socket_starts_it_and_is_answered() {
    drop(config());
    let folder = short_folder();
    let address = free_address();
    let mut activate = Command::new("systemd-socket-activate");
    activate.args(["--listen", &address.to_string()]);
    for (name, value) in variables(folder.path()) {
        activate.arg(format!("--setenv={name}={value}"));
    }
    activate.arg(program("mlxd")).args(["serve", "--port", "1"]).stdin(Stdio::null());
    let child = activate
        .spawn()
        .expect("systemd-socket-activate, from the package systemd, which scripts/setup installs");
    let mut child = Guarded(child);
    // The first connection finds systemd's socket alone; mlxd, started by it, answers it.
    let client = Client::Tcp(address);
    let answer = until("the socket", || client.try_request("GET", "/health", &[], &[]).ok());
    assert_eq!(answer.status, 200);
    let card = std::fs::read_to_string(folder.path().join("run/mlxd/mlxd.json")).unwrap();
    let card: serde_json::Value = serde_json::from_str(&card).unwrap();
    // Not the port of the command line: systemd's socket goes before it.
    assert_eq!(card["base_url"], format!("http://{address}/v1"));
    assert_eq!(card["pid"], child.0.id());
    kill(Pid::from_raw(child.0.id() as i32), Signal::SIGTERM).unwrap();
    let status = until("its end", || child.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
}

#[test]
fn systemd_is_told_ready_alive_reloading_and_stopping() {
    let folder = short_folder();
    let path = folder.path().join("notify");
    let notices = UnixDatagram::bind(&path).unwrap();
    notices.set_read_timeout(Some(mlxd_testkit::DEADLINE)).unwrap();
    let heard = |wanted: &str| {
        let mut buffer = [0; 4096];
        loop {
            let length = notices.recv(&mut buffer).unwrap_or_else(|e| panic!("no {wanted}: {e}"));
            let notice = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if notice.lines().any(|line| line == wanted) {
                return notice;
            }
        }
    };
    let config = config()
        .with_variable("NOTIFY_SOCKET", &path.to_string_lossy())
        .with_variable("WATCHDOG_USEC", "50000");
    let mut front = FrontProcess::start(&config);
    let ready = heard("READY=1");
    assert!(ready.contains(&format!("STATUS=serves {}", front.base_url())), "{ready}");
    heard("WATCHDOG=1");
    front.signal(Signal::SIGHUP);
    let reloading = heard("RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    heard("READY=1");
    heard("WATCHDOG=1");
    front.signal(Signal::SIGTERM);
    heard("STOPPING=1");
    assert_eq!(front.wait_exit().code(), Some(0));
}

#[test]
fn a_descriptor_that_is_no_listener_is_refused_in_words() {
    drop(config());
    let folder = short_folder();
    // 3 is a file here, and said to be a socket.
    let script = "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" serve 3</dev/null";
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).arg(program("mlxd")).env_clear().envs(variables(folder.path()));
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("does not listen on TCP"), "{said}");
}
