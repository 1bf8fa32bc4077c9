//! launchd and systemd: the socket that they hold for mlxd, and what systemd is told.
//!
//! Without them, everything here finds nothing and does nothing.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;
#[cfg(target_os = "linux")]
use linux as platform;
#[cfg(target_os = "macos")]
use macos as platform;

use nix::sys::socket::{SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt};
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

/// The TCP socket that is held for mlxd, if there is one. `by_launchd` says that launchd started
/// it; systemd says so itself. Of several sockets the first that listens on TCP is taken, the
/// others are closed.
///
/// # Errors
/// When a manager says that it holds a socket, and none can be used.
pub fn listener(by_launchd: bool) -> io::Result<Option<TcpListener>> {
    let sockets = platform::sockets(by_launchd)?;
    if sockets.is_empty() {
        return Ok(None);
    }
    let usable = sockets.into_iter().find(listens_on_tcp).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "the socket that was handed over does not listen on TCP",
        )
    })?;
    let listener = TcpListener::from(usable);
    listener.set_nonblocking(true)?;
    Ok(Some(listener))
}

fn listens_on_tcp(socket: &OwnedFd) -> bool {
    let listens = getsockopt(socket, sockopt::AcceptConn).unwrap_or(false);
    let name = getsockname::<SockaddrStorage>(socket.as_fd().as_raw_fd());
    let is_ip = name.is_ok_and(|name| {
        matches!(
            name.family(),
            Some(nix::sys::socket::AddressFamily::Inet | nix::sys::socket::AddressFamily::Inet6)
        )
    });
    listens && is_ip
}

/// Tells that requests are taken.
pub fn ready(base_url: &str) {
    platform::ready(base_url);
}

/// Tells that a new configuration is being read; [`ready`] follows.
pub fn reloading() {
    platform::reloading();
}

/// Tells that it ends.
pub fn stopping() {
    platform::stopping();
}

/// Tells that the event loop turns, for as long as it does, if somebody wants to know.
pub fn start_watchdog() {
    let Some(patience) = platform::watchdog_patience() else {
        return;
    };
    tokio::spawn(async move {
        let mut turns = tokio::time::interval((patience / 2).max(Duration::from_millis(1)));
        loop {
            turns.tick().await;
            platform::alive();
        }
    });
}
