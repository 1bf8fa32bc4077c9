//! systemd: sockets by `LISTEN_FDS`, notices by `NOTIFY_SOCKET`.
#![allow(unsafe_code)] // Descriptors that were inherited belong to nobody yet.

use sd_notify::NotifyState;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Duration;

/// The sockets handed over to this process, closed when another program is executed.
pub(super) fn sockets(_by_launchd: bool) -> io::Result<Vec<OwnedFd>> {
    let descriptors = sd_notify::listen_fds()?;
    // SAFETY: systemd's protocol gives these descriptors to the process that LISTEN_PID names,
    // which is this one; mlxd asks once, before it opens anything else, so nobody owns them.
    Ok(descriptors.map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) }).collect())
}

pub(super) fn ready(base_url: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(&format!("serves {base_url}"))]);
}

pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "systemd was not told of the reload"),
    }
}

pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("finishes what runs")]);
}

/// How long systemd waits for a sign of life.
pub(super) fn watchdog_patience() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

pub(super) fn alive() {
    tell(&[NotifyState::Watchdog]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd could not be told");
    }
}
