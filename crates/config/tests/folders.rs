//! Where files and sockets go, and how the file is found.

use mlxd_config::{
    Config, ConfigError, Environment, Folders, Override, PathsError, check, load, own_folder,
};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

fn environment() -> Environment {
    Environment {
        home: Some(PathBuf::from("/home/u")),
        temporary: PathBuf::from("/tmp"),
        uid: 501,
        ..Environment::default()
    }
}

#[test]
fn xdg_variables_decide() {
    let environment = Environment {
        xdg_config: Some("/x/c".into()),
        xdg_state: Some("/x/s".into()),
        xdg_cache: Some("/x/k".into()),
        xdg_runtime: Some("/x/r".into()),
        ..environment()
    };
    let folders = Folders::new(&Config::default(), &environment).unwrap();
    assert_eq!(folders.config_file, Path::new("/x/c/mlxd/mlxd.toml"));
    assert_eq!(folders.state, Path::new("/x/s/mlxd"));
    assert_eq!(folders.logs, Path::new("/x/s/mlxd/logs"));
    assert_eq!(folders.cache, Path::new("/x/k/mlxd"));
    assert_eq!(folders.runtime, Path::new("/x/r/mlxd"));
    assert_eq!(folders.hf_cache, Path::new("/x/k/huggingface/hub"));
    assert_eq!(folders.admin_socket().unwrap(), Path::new("/x/r/mlxd/mlxd.sock"));
}

#[test]
fn without_them_the_system_has_its_places() {
    let folders = Folders::new(&Config::default(), &environment()).unwrap();
    if cfg!(target_os = "macos") {
        assert_eq!(
            folders.config_file,
            Path::new("/home/u/Library/Application Support/mlxd/mlxd.toml")
        );
        assert_eq!(folders.logs, Path::new("/home/u/Library/Logs/mlxd"));
    } else {
        assert_eq!(folders.config_file, Path::new("/home/u/.config/mlxd/mlxd.toml"));
        assert_eq!(folders.state, Path::new("/home/u/.local/state/mlxd"));
        assert_eq!(folders.logs, Path::new("/home/u/.local/state/mlxd/logs"));
        assert_eq!(folders.cache, Path::new("/home/u/.cache/mlxd"));
    }
    assert_eq!(folders.runtime, Path::new("/tmp/mlxd-501"));
    assert_eq!(folders.hf_cache, Path::new("/home/u/.cache/huggingface/hub"));
}

#[test]
fn the_file_wins_over_both() {
    let mut config = Config::default();
    config.paths.state = Some("/p/s".into());
    config.paths.runtime = Some("/p/r".into());
    config.models.all.hf_cache = Some("/p/h".into());
    let environment = Environment {
        xdg_state: Some("/x/s".into()),
        hf_home: Some("/x/hf".into()),
        ..environment()
    };
    let folders = Folders::new(&config, &environment).unwrap();
    assert_eq!(folders.state, Path::new("/p/s"));
    assert_eq!(folders.logs, Path::new("/p/s/logs"));
    assert_eq!(folders.runtime, Path::new("/p/r"));
    assert_eq!(folders.hf_cache, Path::new("/p/h"));
}

#[test]
fn the_hugging_face_variables_count() {
    let home = Environment { hf_home: Some("/hf".into()), ..environment() };
    assert_eq!(Folders::new(&Config::default(), &home).unwrap().hf_cache, Path::new("/hf/hub"));
    let cache = Environment { hf_hub_cache: Some("/hub".into()), ..home };
    assert_eq!(Folders::new(&Config::default(), &cache).unwrap().hf_cache, Path::new("/hub"));
}

#[test]
fn a_socket_path_beyond_the_system_limit_is_told() {
    let mut config = Config::default();
    config.paths.runtime = Some(PathBuf::from(format!("/{}", "r".repeat(120))));
    let error = Folders::new(&config, &environment()).unwrap().admin_socket().unwrap_err();
    assert!(matches!(error, PathsError::SocketPathTooLong { got: 131, .. }), "{error}");
}

#[test]
fn without_a_home_it_says_what_to_set() {
    let environment = Environment { home: None, ..environment() };
    let error = Folders::new(&Config::default(), &environment).unwrap_err();
    assert!(error.to_string().contains("HOME"), "{error}");
}

#[test]
fn an_own_folder_is_private() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("a/b");
    own_folder(&folder).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder), 0o700);
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    own_folder(&folder).unwrap();
    assert_eq!(mode(&folder), 0o700);
    // A link could lead into a folder that another user controls.
    let link = place.path().join("link");
    std::os::unix::fs::symlink(&folder, &link).unwrap();
    assert!(matches!(own_folder(&link), Err(PathsError::NotOwn { .. })));
    let file = place.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(matches!(own_folder(&file), Err(PathsError::NotOwn { .. })));
}

#[test]
fn the_file_is_found_in_order() {
    let place = tempfile::tempdir().unwrap();
    let write = |name: &str, port: u16| {
        let path = place.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, format!("[http]\nport = {port}\n")).unwrap();
        path
    };
    let mut environment =
        Environment { xdg_config: Some(place.path().to_owned()), ..environment() };
    let loaded = load(None, &environment, &[]).unwrap();
    assert_eq!((loaded.file, loaded.config.http.port), (None, 11440), "there is none yet");

    let standard = write("mlxd/mlxd.toml", 1);
    let loaded = load(None, &environment, &[]).unwrap();
    assert_eq!((loaded.file, loaded.config.http.port), (Some(standard), 1));

    environment.mlxd_config = Some(write("by-variable.toml", 2));
    assert_eq!(load(None, &environment, &[]).unwrap().config.http.port, 2);

    let flagged = write("by-flag.toml", 3);
    assert_eq!(load(Some(&flagged), &environment, &[]).unwrap().config.http.port, 3);
    let port = Override { flag: "--port".into(), key: "http.port".into(), value: "4".into() };
    assert_eq!(load(Some(&flagged), &environment, &[port]).unwrap().config.http.port, 4);

    let missing = place.path().join("missing.toml");
    assert!(matches!(load(Some(&missing), &environment, &[]), Err(ConfigError::Read { .. })));
}

#[test]
fn check_reports_errors_and_warnings() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("m.toml");
    std::fs::write(&path, "[http]\nhost = \"0.0.0.0\"\n").unwrap();
    let report = check(&path, &environment()).unwrap();
    assert!(report.is_good());
    assert!(report.to_string().starts_with("warning: configuration: http.host"), "{report}");
    assert!(report.to_string().ends_with("\ngood"), "{report}");

    std::fs::write(&path, "[http]\nhots = 1\nport = -3\n").unwrap();
    let report = check(&path, &environment()).unwrap();
    assert!(!report.is_good());
    let text = report.to_string();
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(
        text.contains(&format!("error: {}:2:1: there is no key http.hots", path.display())),
        "{text}"
    );
    assert!(text.ends_with("2 errors"), "{text}");

    std::fs::write(&path, "#".repeat(2 << 20)).unwrap();
    assert!(matches!(check(&path, &environment()), Err(ConfigError::Read { .. })));
    std::fs::write(&path, [0xff, 0xfe]).unwrap();
    assert!(matches!(check(&path, &environment()), Err(ConfigError::Read { .. })));
}
