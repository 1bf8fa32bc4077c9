//! What a user is told about a wrong file, variable or flag, and which source wins.

use mlxd_config::{Config, Fault, Loaded, Origin, Override, Problems, Sources};
use proptest::prelude::*;
use std::path::{Path, PathBuf};

fn file(text: &str) -> Result<Loaded, Problems> {
    Config::from_sources(Sources {
        file: Some((Path::new("m.toml"), text)),
        home: Some(Path::new("/home/u")),
        ..Sources::default()
    })
}

fn told(text: &str) -> String {
    file(text).expect_err("it is wrong").to_string()
}

fn variables(pairs: &[(&str, &str)]) -> Result<Loaded, Problems> {
    let variables: Vec<(String, String)> =
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    Config::from_sources(Sources { variables: &variables, ..Sources::default() })
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest() {
    assert_eq!(
        told("[http]\nhost = \"::1\"\nprot = 1\n"),
        "m.toml:3:1: there is no key http.prot; did you mean http.port?"
    );
    assert_eq!(
        told("[http]\n  body_max_bytes = 1"),
        "m.toml:2:3: there is no key http.body_max_bytes; did you mean http.body_bytes_max?"
    );
    // The right key in the wrong section.
    assert_eq!(
        told("[http]\nlog_bytes_max = 1"),
        "m.toml:2:1: there is no key http.log_bytes_max; did you mean workers.log_bytes_max?"
    );
    assert_eq!(told("[http]\nzzzzqqq = 1"), "m.toml:2:1: there is no key http.zzzzqqq");
}

#[test]
fn an_unknown_section_is_refused_with_the_nearest() {
    assert_eq!(
        told("[worker]\nterm_ms = 1"),
        "m.toml:1:2: there is no section [worker]; did you mean [workers]?"
    );
    assert_eq!(told("port = 1"), "m.toml:1:1: there is no section [port]");
    assert_eq!(told("http = 1"), "m.toml:1:1: http is 1, but must be a section, written as [http]");
}

#[test]
fn a_wrong_value_is_named_with_what_is_allowed() {
    for (text, message) in [
        (
            "[http]\nport = 70000",
            "m.toml:2:8: http.port is 70000, but must be a whole number from 0 to 65535",
        ),
        (
            "[http]\nport = -1",
            "m.toml:2:8: http.port is -1, but must be a whole number from 0 to 65535",
        ),
        (
            "[http]\nport = 1.5",
            "m.toml:2:8: http.port is 1.5, but must be a whole number from 0 to 65535",
        ),
        (
            "[http]\nport = \"x\"",
            "m.toml:2:8: http.port is \"x\", but must be a whole number from 0 to 65535",
        ),
        (
            "[http]\nport = [1]",
            "m.toml:2:8: http.port is […], but must be a whole number from 0 to 65535",
        ),
        (
            "[http]\nthreads = 0",
            "m.toml:2:11: http.threads is 0, but must be a whole number from 1 to 256",
        ),
        (
            "[http]\nhost = \"\"",
            "m.toml:2:8: http.host is \"\", but must be an address or a host name",
        ),
        (
            "[log]\nformat = \"xml\"",
            "m.toml:2:10: log.format is \"xml\", but must be one of \"text\", \"json\"",
        ),
        (
            "[models]\npaths_allowed = 1",
            "m.toml:2:17: models.paths_allowed is 1, but must be true or false",
        ),
        (
            "[workers]\ntokens_ring_bytes = 1000000",
            "m.toml:2:21: workers.tokens_ring_bytes is 1000000, but must be a power of two from 4096 to 268435456",
        ),
        (
            "[paths]\nstate = \"here\"",
            "m.toml:2:9: paths.state is \"here\", but must be an absolute path, or one that begins with ~/, or left out",
        ),
        (
            "[models.\"a/b\"]\nrunning_max = 0",
            "m.toml:2:15: models.\"a/b\".running_max is 0, but must be a whole number from 1 to 1024, or left out",
        ),
    ] {
        assert_eq!(told(text), message, "{text}");
    }
}

#[test]
fn bounded_keys_and_values_are_not_packed() {
    assert_eq!(
        told("[models]\nmax_kv_tokens = 8"),
        "m.toml:2:17: models.max_kv_tokens is 8, but must be 0, or 16 to 16777216"
    );
    assert_eq!(
        told("[models]\nmax_kv_tokens = 4096\n[models.\"m\"]\nkv_bits = 8"),
        "configuration: [models.\"m\"]: kv_bits (8) and max_kv_tokens (4096) do not go together; \
         set one of them to 0"
    );
    assert!(told("[models]\nmax_kv_tokens = 4096\nkv_bits = 4").contains("[models]: kv_bits (4)"));
    let text = "[models]\nkv_bits = 8\n[models.\"m\"]\nkv_bits = 0\nmax_kv_tokens = 4096";
    let models = file(text).unwrap().config.models;
    assert_eq!(models.settings("m").kv_tokens_max(), Some(4096));
    assert_eq!(models.settings("other").kv_tokens_max(), None);
}

#[test]
fn log_levels_are_checked() {
    for good in ["info", "DEBUG", "warn,mlxd_http=trace", "info, hyper::proto=off"] {
        let loaded = file(&format!("[log]\nlevel = \"{good}\"")).unwrap();
        assert_eq!(loaded.config.log.level, good);
    }
    for bad in ["", "loud", "info,", "a b=info", "=info", "mlxd_http"] {
        assert!(told(&format!("[log]\nlevel = \"{bad}\"")).contains("log.level"), "{bad}");
    }
}

#[test]
fn every_problem_is_told_at_once() {
    let Problems(problems) = file(
        "[http]\nport = 0x1ffff\nhots = \"h\"\n[wrokers]\n[models.m]\npaht = \"/m\"\ndevice = \"tpu\"\n",
    )
    .unwrap_err();
    let lines: Vec<usize> = problems
        .iter()
        .map(|problem| match problem.origin {
            Origin::File { line, .. } => line,
            _ => 0,
        })
        .collect();
    let mut sorted = lines.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, [2, 3, 4, 6, 7]);
}

#[test]
fn text_that_is_no_toml_is_placed() {
    let message = told("[http]\nport = = 3\n");
    assert!(message.starts_with("m.toml:2:"), "{message}");
    assert!(message.contains("not valid TOML"), "{message}");
    assert!(told("[http]\nport = 1\nport = 2\n").contains("m.toml:3:1"), "duplicate keys");
}

#[test]
fn later_sources_win() {
    let text = "[http]\nport = 1\nthreads = 3\nkeep_alive_s = 9\n[log]\nlevel = \"warn\"";
    let variables = [
        ("MLXD_HTTP_PORT".to_owned(), "2".to_owned()),
        ("MLXD_HTTP_THREADS".to_owned(), "4".to_owned()),
        ("MLXD_LOG".to_owned(), "debug".to_owned()),
        ("PATH".to_owned(), "/bin".to_owned()),
    ];
    let overrides = [Override {
        flag: "--port".to_owned(),
        key: "http.port".to_owned(),
        value: "3".to_owned(),
    }];
    let config = Config::from_sources(Sources {
        file: Some((Path::new("m.toml"), text)),
        variables: &variables,
        overrides: &overrides,
        home: None,
    })
    .unwrap()
    .config;
    assert_eq!((config.http.port, config.http.threads, config.http.keep_alive_s), (3, 4, 9));
    assert_eq!(config.log.level, "debug");
}

#[test]
fn variables_are_checked_as_strictly() {
    assert_eq!(
        variables(&[("MLXD_HTTP_PROT", "1")]).unwrap_err().to_string(),
        "variable MLXD_HTTP_PROT: mlxd knows no such variable; did you mean MLXD_HTTP_PORT?"
    );
    assert_eq!(
        variables(&[("MLXD_HTTP_PORT", "many")]).unwrap_err().to_string(),
        "variable MLXD_HTTP_PORT: http.port is \"many\", but must be a whole number from 0 to 65535"
    );
    // No section of ours: other programs may own it, but it is most likely a slip.
    let loaded = variables(&[("MLXD_HTPT_PORT", "1")]).unwrap();
    assert_eq!(
        loaded.warnings[0].to_string(),
        "variable MLXD_HTPT_PORT: mlxd knows no such variable; did you mean MLXD_HTTP_PORT?"
    );
    let loaded =
        variables(&[("MLXD_SOCKET", "/s"), ("MLXD_CONFIG", "/c"), ("MLXDX", "1")]).unwrap();
    assert_eq!(loaded.warnings, []);
}

#[test]
fn variables_carry_every_type() {
    let config = variables(&[
        ("MLXD_MODELS_FOLDERS", "/a:/b"),
        ("MLXD_MODELS_PATHS_ALLOWED", "false"),
        ("MLXD_MODELS_DEVICE", "cpu"),
        ("MLXD_MODELS_CONTEXT_TOKENS_MAX", "4_096"),
        ("MLXD_WORKERS_PROGRAM", ""),
    ])
    .unwrap()
    .config;
    assert_eq!(config.models.all.folders, [PathBuf::from("/a"), PathBuf::from("/b")]);
    assert!(!config.models.all.paths_allowed);
    assert_eq!(config.models.all.device, mlxd_config::Device::Cpu);
    assert_eq!(config.models.all.context_tokens_max, Some(4096));
    assert_eq!(config.workers.program, None);
}

#[test]
fn flags_are_named_in_messages() {
    let overrides = [Override {
        flag: "--port".to_owned(),
        key: "http.port".to_owned(),
        value: "99999".to_owned(),
    }];
    let problems =
        Config::from_sources(Sources { overrides: &overrides, ..Sources::default() }).unwrap_err();
    assert!(problems.to_string().starts_with("flag --port: http.port is \"99999\""), "{problems}");
}

#[test]
fn tables_of_models_lie_over_the_section() {
    let config = file(
        "[models]\nrunning_max = 3\nfolders = [\"~/models\"]\n\
         [models.\"org/Name-4bit\"]\nrunning_max = 1\naliases = [\"n\"]\npreload = true\n\
         [models.mine]\npath = \"~/m\"\ndevice = \"gpu\"\n",
    )
    .unwrap()
    .config;
    let models = &config.models;
    assert_eq!(models.all.folders, [PathBuf::from("/home/u/models")]);
    assert_eq!(models.canonical("n"), "org/Name-4bit");
    assert_eq!(models.canonical("other"), "other");
    assert_eq!(models.settings("n").running_max, 1);
    assert_eq!(models.settings("other").running_max, 3);
    assert_eq!(models.settings("mine").device, mlxd_config::Device::Gpu);
    assert_eq!(models.preloaded().collect::<Vec<_>>(), ["org/Name-4bit"]);
    let named: Vec<_> = models.named_folders().collect();
    assert_eq!(named, [("mine", &PathBuf::from("/home/u/m"))]);
}

#[test]
fn one_name_belongs_to_one_model() {
    assert_eq!(
        told("[models.a]\naliases = [\"x\"]\n[models.b]\naliases = [\"x\"]"),
        "configuration: the name \"x\" belongs to both [models.\"a\"] and [models.\"b\"]"
    );
    assert!(told("[models.a]\naliases = [\"b\"]\n[models.b]").contains("belongs to both"));
    assert!(
        told("[workers]\nbackoff_initial_ms = 50\nbackoff_max_ms = 40")
            .contains("backoff_max_ms (40)")
    );
}

#[test]
fn a_host_that_others_reach_deserves_a_warning() {
    for quiet in ["127.0.0.1", "::1", "localhost", "127.1.2.3"] {
        assert_eq!(file(&format!("[http]\nhost = \"{quiet}\"")).unwrap().warnings, [], "{quiet}");
    }
    let warnings = file("[http]\nhost = \"0.0.0.0\"").unwrap().warnings;
    assert!(matches!(&warnings[..], [only] if matches!(only.fault, Fault::Together(_))));
}

#[test]
fn what_is_shown_reads_back_the_same() {
    let config =
        file("[http]\nport = 0\n[models]\ndefault = \"d\"\n[models.\"a \\u00e9\\\"b\".x]\n");
    assert!(config.is_err(), "a blank in a model's name is refused");
    let config = file(
        "[http]\nport = 0\n[log]\nformat = \"json\"\n[models]\ndefault = \"d\"\n\
         [models.\"o/n.4\\\"\"]\naliases = [\"z\"]\npath = \"/p\"\n[paths]\nruntime = \"/r\"",
    )
    .unwrap()
    .config;
    assert_eq!(file(&config.to_toml()).unwrap().config, config);
    assert_eq!(file(&Config::default().to_toml()).unwrap().config, Config::default());
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "(\\[(http|models|models\\.\"a\")\\]|port|=|\"|'|\\{|\\}|\\[|\\]|,|\n| |0x|1e9|é|[a-z]{1,3}){0,40}") {
        let _ = file(&text);
    }

    #[test]
    fn a_port_is_taken_just_when_it_is_in_range(port in -100_000i64..200_000) {
        let taken = file(&format!("[http]\nport = {port}"));
        prop_assert_eq!(taken.is_ok(), (0..=65535).contains(&port));
    }
}
