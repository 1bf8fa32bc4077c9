//! mlxd as a service: property lists for launchd, units for systemd, and what their commands are
//! told.
//!
//! [`Service`] says what is to run, [`launchd`] and [`systemd`] put it into their words, and
//! [`Keeper`] writes the files and drives `launchctl` or `systemctl` through [`Commands`], so that
//! tests see every call. Nothing here reads mlxd's configuration or talks to mlxd.

mod commands;
mod keeper;
pub mod launchd;
mod service;
pub mod systemd;

pub use commands::{Commands, Ran, System};
pub use keeper::{Keeper, KeeperError, Places, State};
pub use service::{Manager, Scope, Service};
