//! Where mlxd's admin socket is, and where mlxctl may keep something.

use mlxd_config::{Config, Environment, Folders, Sources, load};
use std::path::PathBuf;

/// The socket's place by mlxd's own rules: its configuration file and `MLXD_*` variables, then
/// the standard folders. A file with errors must not keep anybody from stopping what runs, so
/// then it is left aside.
pub(crate) fn standard_place() -> Result<PathBuf, String> {
    let environment = Environment::of_process();
    let config = match load(None, &environment, &[]) {
        Ok(loaded) => loaded.config,
        Err(error) => {
            eprintln!(
                "mlxctl: the configuration has errors, so the socket is looked for without its file:\n{error}"
            );
            without_file(&environment)
        }
    };
    let folders = Folders::new(&config, &environment);
    let socket = folders.and_then(|folders| {
        let standard = folders.admin_socket()?;
        // The machine's service has no session to keep its socket in: see `mlxctl service`.
        let of_service = folders.state.join("run/mlxd.sock");
        Ok(if !standard.exists() && of_service.exists() { of_service } else { standard })
    });
    socket.map_err(|error| format!("{error}; or name the socket with --socket"))
}

/// mlxd's state folder, by the same rules, if there can be one.
pub(crate) fn state_folder() -> Option<PathBuf> {
    let environment = Environment::of_process();
    let config = load(None, &environment, &[]).map(|loaded| loaded.config);
    let config = config.unwrap_or_else(|_| without_file(&environment));
    Folders::new(&config, &environment).ok().map(|folders| folders.state)
}

fn without_file(environment: &Environment) -> Config {
    let variables = Sources {
        variables: &environment.mlxd,
        home: environment.home.as_deref(),
        ..Sources::default()
    };
    Config::from_sources(variables).map(|loaded| loaded.config).unwrap_or_default()
}
