//! `config/mlxd.toml` is what users copy from: it must name every key, with its default and
//! its range, and it must be a configuration that mlxd takes.

use mlxd_config::{Config, ModelTable, Override, Sources};
use std::collections::BTreeSet;
use std::path::Path;

const TEXT: &str = include_str!("../../../config/mlxd.toml");

/// A key as documented: its section, its name, whether it is commented out, the words above it.
struct Documented {
    section: String,
    key: String,
    is_set: bool,
    comment: String,
}

fn documented() -> Vec<Documented> {
    let mut section = String::new();
    let mut comment = String::new();
    let mut found: Vec<Documented> = Vec::new();
    for line in TEXT.lines() {
        let bare = line.strip_prefix('#').unwrap_or(line);
        if let Some(words) = line.strip_prefix("# ") {
            comment.push(' ');
            comment.push_str(words);
        } else if let Some(name) = bare.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.to_owned();
            comment.clear();
        } else if let Some((key, _)) = bare.split_once(" = ") {
            found.push(Documented {
                section: section.clone(),
                key: key.to_owned(),
                is_set: !line.starts_with('#'),
                comment: comment.clone(),
            });
        } else {
            // A blank line parts one key's words from the next one's.
            comment.clear();
        }
    }
    found
}

fn parse(text: &str) -> Config {
    let path = Path::new("config/mlxd.toml");
    let sources = Sources { file: Some((path, text)), ..Sources::default() };
    Config::from_sources(sources).unwrap_or_else(|problems| panic!("{problems}")).config
}

#[test]
fn as_it_stands_it_changes_nothing() {
    assert_eq!(parse(TEXT), Config::default());
}

#[test]
fn every_key_is_there_once_and_no_other() {
    let documented = documented();
    let names: Vec<(String, String)> =
        documented.iter().map(|d| (d.section.clone(), d.key.clone())).collect();
    let mut known: Vec<(String, String)> = Config::section_names()
        .iter()
        .flat_map(|section| {
            Config::keys(section).iter().map(|key| (section.to_string(), key.to_string()))
        })
        .collect();
    known.extend(
        Config::model_keys().iter().map(|key| ("models.\"example\"".to_owned(), key.to_string())),
    );
    let (route, rule) = Config::route_keys();
    known.extend(route.iter().map(|key| ("routes.\"auto\"".to_owned(), key.to_string())));
    known.extend(rule.iter().map(|key| ("[routes.\"auto\".rules]".to_owned(), key.to_string())));
    let unique: BTreeSet<_> = names.iter().cloned().collect();
    assert_eq!(unique.len(), names.len(), "a key is documented twice");
    assert_eq!(unique, known.into_iter().collect::<BTreeSet<_>>());
}

#[test]
fn a_key_is_commented_out_just_when_it_has_no_default() {
    let shown = Config::default().to_toml();
    let mut section = "";
    let mut unset = BTreeSet::new();
    for line in shown.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name;
        } else if let Some(key) =
            line.strip_prefix("# ").and_then(|rest| rest.strip_suffix(" is not set"))
        {
            unset.insert((section.to_owned(), key.to_owned()));
        }
    }
    for d in documented().iter().filter(|d| !d.section.contains('.')) {
        let has_default = !unset.contains(&(d.section.clone(), d.key.clone()));
        assert_eq!(d.is_set, has_default, "{}.{}", d.section, d.key);
    }
}

#[test]
fn the_examples_are_taken_too() {
    let uncommented: String = TEXT
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') => rest,
            _ => line,
        })
        .collect::<Vec<_>>()
        .join("\n");
    let config = parse(&uncommented);
    let model = &config.models.tables["example"];
    assert_eq!(model.aliases, ["small", "fast"]);
    assert_eq!(model.groups, ["coding"]);
    assert!(model.running_max.is_some() && model.path.is_some());
    assert_ne!(*model, ModelTable::default());
    assert_eq!(config.models.all.context_tokens_max, Some(32768));
}

#[test]
fn ranges_are_written_beside_the_key() {
    let mut checked = 0;
    for d in documented().iter().filter(|d| !d.section.contains('.')) {
        // A value that nothing allows makes the crate say what it does allow.
        let wrong = Override {
            flag: "--x".to_owned(),
            key: format!("{}.{}", d.section, d.key),
            value: "\u{1} \u{1}".to_owned(),
        };
        let overrides = [wrong];
        let Err(problems) =
            Config::from_sources(Sources { overrides: &overrides, ..Sources::default() })
        else {
            continue;
        };
        let message = problems.to_string();
        let Some((_, range)) = message.split_once(" from ") else {
            continue;
        };
        let range = range.split(',').next().unwrap();
        assert!(
            d.comment.contains(range),
            "{}.{}: {range:?} is not in {:?}",
            d.section,
            d.key,
            d.comment
        );
        checked += 1;
    }
    assert!(checked > 40, "only {checked} ranges were checked");
}
