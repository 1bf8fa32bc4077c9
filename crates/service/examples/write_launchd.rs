//! Writes the examples in `launchd/` anew, after a change of what is generated. A test compares
//! them with what is generated.

#[path = "../tests/common/mod.rs"]
mod common;

use mlxd_service::{Manager, Scope, launchd, systemd};
use std::path::Path;

fn main() -> std::io::Result<()> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../launchd");
    let places = [
        (Scope::User, "LaunchAgents", "systemd/user"),
        (Scope::System, "LaunchDaemons", "systemd/system"),
    ];
    for (scope, property_lists, units) in places {
        let service = common::example(Manager::Systemd, scope);
        let socket = systemd::socket_unit(&service).unwrap_or_default();
        let property_list = launchd::xml(&common::example(Manager::Launchd, scope));
        let files = [
            (top.join(property_lists).join("local.mlxd.plist"), property_list),
            (top.join(units).join(systemd::UNIT), systemd::service_unit(&service)),
            (top.join(units).join(systemd::SOCKET_UNIT), socket),
        ];
        for (path, text) in files {
            std::fs::create_dir_all(path.parent().expect("a file in a folder"))?;
            std::fs::write(path, text)?;
        }
    }
    Ok(())
}
