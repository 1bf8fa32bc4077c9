//! The whole configuration, put together from file, variables and flags.
//!
//! Pure: texts go in, a [`Config`] or every problem at once comes out. Later sources win:
//! defaults, file, variables, flags.

use crate::file::read_file;
use crate::problem::{Fault, Origin, Problem, Problems, nearest};
use crate::section::{Section, SetError};
use crate::value::{Given, expand_home};
use crate::{
    HttpConfig, HubConfig, LogConfig, MemoryConfig, ModelTable, ModelsConfig, PathsConfig,
    RequestsConfig, RouteRule, RouteTable, RoutesConfig, StreamsConfig, WorkersConfig,
};
use std::collections::BTreeMap;
use std::path::Path;

/// What `mlxd.toml` says, checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// `[http]`
    pub http: HttpConfig,
    /// `[models]` and `[models."name"]`
    pub models: ModelsConfig,
    /// The `[routes."name"]` tables
    pub routes: RoutesConfig,
    /// `[workers]`
    pub workers: WorkersConfig,
    /// `[memory]`
    pub memory: MemoryConfig,
    /// `[requests]`
    pub requests: RequestsConfig,
    /// `[streams]`
    pub streams: StreamsConfig,
    /// `[hub]`
    pub hub: HubConfig,
    /// `[log]`
    pub log: LogConfig,
    /// `[paths]`
    pub paths: PathsConfig,
}

/// A value from the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    /// The flag as the user wrote it, for messages: `--port`.
    pub flag: String,
    /// Section and key: `http.port`.
    pub key: String,
    /// The value.
    pub value: String,
}

/// Everything a configuration is made of.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sources<'a> {
    /// The file's path, for messages, and its text.
    pub file: Option<(&'a Path, &'a str)>,
    /// The environment; only names that begin with `MLXD_` are looked at.
    pub variables: &'a [(String, String)],
    /// From the command line.
    pub overrides: &'a [Override],
    /// What `~` stands for; without it a `~` stays.
    pub home: Option<&'a Path>,
}

/// A configuration that can be used, and what is questionable about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// To be logged.
    pub warnings: Vec<Problem>,
}

/// Variables that are no keys of the file, or that others of the three programs read.
pub const VARIABLES: &[&str] = &["MLXD_CONFIG", "MLXD_LOG", "MLXD_SOCKET"];

impl Config {
    /// Puts the sources together.
    pub fn from_sources(sources: Sources<'_>) -> Result<Loaded, Problems> {
        let mut config = Self::default();
        let mut problems = Vec::new();
        let mut warnings = Vec::new();
        if let Some((path, text)) = sources.file {
            read_file(&mut config, path, text, &mut problems);
        }
        for (name, value) in sources.variables {
            config.take_variable(name, value, &mut problems, &mut warnings);
        }
        for given in sources.overrides {
            let origin = Origin::Flag(given.flag.clone());
            let (section, key) = given.key.split_once('.').unwrap_or(("", &given.key));
            if let Err(fault) = config.set(section, key, Given::Text(&given.value)) {
                problems.push(Problem { origin, fault });
            }
        }
        if let Some(home) = sources.home {
            config.expand_home(home);
        }
        config.check_together(&mut problems);
        config.warn(&mut warnings);
        if problems.is_empty() { Ok(Loaded { config, warnings }) } else { Err(Problems(problems)) }
    }

    /// Section names, in the order of the file.
    pub fn section_names() -> &'static [&'static str] {
        &[
            "http", "models", "routes", "workers", "memory", "requests", "streams", "hub", "log",
            "paths",
        ]
    }

    /// The keys of a section; none for an unknown one.
    pub fn keys(section: &str) -> &'static [&'static str] {
        match section {
            "http" => HttpConfig::KEYS,
            "models" => crate::ModelsSection::KEYS,
            "workers" => WorkersConfig::KEYS,
            "memory" => MemoryConfig::KEYS,
            "requests" => RequestsConfig::KEYS,
            "streams" => StreamsConfig::KEYS,
            "hub" => HubConfig::KEYS,
            "log" => LogConfig::KEYS,
            "paths" => PathsConfig::KEYS,
            _ => &[],
        }
    }

    /// The keys of a `[models."name"]` table.
    pub fn model_keys() -> &'static [&'static str] {
        ModelTable::KEYS
    }

    /// The keys of a `[routes."name"]` table, and those of one of its rules.
    pub fn route_keys() -> (&'static [&'static str], &'static [&'static str]) {
        (RouteTable::KEYS, RouteRule::KEYS)
    }

    /// Sets one key of one section.
    pub(crate) fn set(&mut self, section: &str, key: &str, given: Given<'_>) -> Result<(), Fault> {
        let result = match section {
            "http" => self.http.set(key, given),
            "models" => self.models.all.set(key, given),
            // It has tables only.
            "routes" => Err(SetError::UnknownKey),
            "workers" => self.workers.set(key, given),
            "memory" => self.memory.set(key, given),
            "requests" => self.requests.set(key, given),
            "streams" => self.streams.set(key, given),
            "hub" => self.hub.set(key, given),
            "log" => self.log.set(key, given),
            "paths" => self.paths.set(key, given),
            _ => {
                return Err(Fault::UnknownSection {
                    name: section.to_owned(),
                    nearest: nearest_section(section),
                });
            }
        };
        result.map_err(|error| key_fault(section, key, given, Self::keys(section), error))
    }

    /// Values of every section for rendering: name, then keys with values.
    pub(crate) fn sections(&self) -> Vec<(&'static str, Shown)> {
        vec![
            (HttpConfig::NAME, self.http.show()),
            (crate::ModelsSection::NAME, self.models.all.show()),
            ("routes", Vec::new()),
            (WorkersConfig::NAME, self.workers.show()),
            (MemoryConfig::NAME, self.memory.show()),
            (RequestsConfig::NAME, self.requests.show()),
            (StreamsConfig::NAME, self.streams.show()),
            (HubConfig::NAME, self.hub.show()),
            (LogConfig::NAME, self.log.show()),
            (PathsConfig::NAME, self.paths.show()),
        ]
    }

    fn take_variable(
        &mut self,
        name: &str,
        value: &str,
        problems: &mut Vec<Problem>,
        warnings: &mut Vec<Problem>,
    ) {
        let Some(rest) = name.strip_prefix("MLXD_") else {
            return;
        };
        let origin = Origin::Variable(name.to_owned());
        let (section, key) = match rest.split_once('_') {
            _ if name == "MLXD_LOG" => ("log".to_owned(), "level".to_owned()),
            _ if VARIABLES.contains(&name) => return,
            Some((section, key)) => (section.to_lowercase(), key.to_lowercase()),
            None => (rest.to_lowercase(), String::new()),
        };
        if !Self::section_names().contains(&section.as_str()) {
            let fault = Fault::UnknownVariable { nearest: nearest_variable(name) };
            warnings.push(Problem { origin, fault });
            return;
        }
        match self.set(&section, &key, Given::Text(value)) {
            Ok(()) => {}
            Err(Fault::UnknownKey { .. }) => {
                let fault = Fault::UnknownVariable { nearest: nearest_variable(name) };
                problems.push(Problem { origin, fault });
            }
            Err(fault) => problems.push(Problem { origin, fault }),
        }
    }

    fn expand_home(&mut self, home: &Path) {
        let models = &mut self.models;
        let paths = &mut self.paths;
        let optional = [
            &mut models.all.hf_cache,
            &mut self.workers.program,
            &mut paths.state,
            &mut paths.logs,
            &mut paths.cache,
            &mut paths.runtime,
        ];
        let tables = models.tables.values_mut().filter_map(|table| table.path.as_mut());
        optional
            .into_iter()
            .filter_map(Option::as_mut)
            .chain(models.all.folders.iter_mut())
            .chain(tables)
            .for_each(|path| expand_home(path, home));
    }

    /// Rules that concern more than one key.
    fn check_together(&self, problems: &mut Vec<Problem>) {
        let mut wrong = |message: String| {
            problems.push(Problem { origin: Origin::Whole, fault: Fault::Together(message) });
        };
        let workers = &self.workers;
        if workers.backoff_initial_ms > workers.backoff_max_ms {
            wrong(format!(
                "workers.backoff_initial_ms ({}) must not be above workers.backoff_max_ms ({})",
                workers.backoff_initial_ms, workers.backoff_max_ms
            ));
        }
        self.check_kv(&mut wrong);
        self.check_names(&mut wrong);
        if let Some(round) = self.routes.cycle() {
            let way: Vec<String> = round.iter().map(|name| format!("{name:?}")).collect();
            wrong(format!("[routes] leads round in a circle: {}", way.join(" to ")));
        }
    }

    /// Keys and values that are packed are all kept.
    fn check_kv(&self, wrong: &mut impl FnMut(String)) {
        let tables = self.models.tables.iter();
        let own = tables
            .filter(|(_, table)| table.kv_bits.is_some() || table.max_kv_tokens.is_some())
            .map(|(name, _)| (format!("[models.{name:?}]"), name.as_str()));
        // No model has an empty name, so this is what holds for those without a table.
        for (section, name) in [("[models]".to_owned(), "")].into_iter().chain(own) {
            let settings = self.models.settings(name);
            if let (Some((bits, _)), Some(most)) =
                (settings.kv_quantized(), settings.kv_tokens_max())
            {
                wrong(format!(
                    "{section}: kv_bits ({bits}) and max_kv_tokens ({most}) do not go together; \
                     set one of them to 0"
                ));
            }
        }
    }

    /// No two things may have one name.
    fn check_names(&self, wrong: &mut impl FnMut(String)) {
        let models =
            self.models.tables.iter().map(|(name, table)| ("models", name, &table.aliases));
        let routes = self.routes.tables.iter();
        let routes = routes.map(|(name, route)| ("routes", name, &route.table.aliases));
        let tables: Vec<(&str, &String, &Vec<String>)> = models.chain(routes).collect();
        let mut owners: BTreeMap<&str, (&str, &str)> = BTreeMap::new();
        let mut claim = |name, table: (_, _)| {
            let other = owners.insert(name, table).filter(|other| *other != table);
            if let Some((kind, owner)) = other {
                let (own_kind, own) = table;
                wrong(format!(
                    "the name {name:?} belongs to both [{kind}.{owner:?}] and [{own_kind}.{own:?}]"
                ));
            }
        };
        for (kind, name, _) in &tables {
            claim(name.as_str(), (*kind, name.as_str()));
        }
        for (kind, name, aliases) in &tables {
            aliases.iter().for_each(|alias| claim(alias.as_str(), (*kind, name.as_str())));
        }
    }

    fn warn(&self, warnings: &mut Vec<Problem>) {
        if !self.http.is_loopback() {
            warnings.push(Problem {
                origin: Origin::Whole,
                fault: Fault::Together(format!(
                    "http.host is {:?}: every machine that reaches it can use the models",
                    self.http.host
                )),
            });
        }
    }
}

/// Keys with their values.
pub(crate) type Shown = Vec<(&'static str, Option<toml::Value>)>;

/// Tells a [`SetError`] with the key's full name.
pub(crate) fn key_fault(
    section: &str,
    key: &str,
    given: Given<'_>,
    keys: &[&str],
    error: SetError,
) -> Fault {
    match error {
        SetError::UnknownKey => Fault::UnknownKey {
            key: format!("{section}.{key}"),
            nearest: nearest_key(section, key, keys),
        },
        SetError::MustBe(must_be) => {
            Fault::Value { key: format!("{section}.{key}"), given: given.shown(), must_be }
        }
    }
}

pub(crate) fn nearest_section(name: &str) -> Option<String> {
    nearest(name, Config::section_names().iter().copied()).map(|name| format!("[{name}]"))
}

/// The same key in another section, else one of this section that is spelled alike.
fn nearest_key(section: &str, key: &str, keys: &[&str]) -> Option<String> {
    let elsewhere = Config::section_names().iter().find(|other| Config::keys(other).contains(&key));
    match elsewhere {
        Some(other) => Some(format!("{other}.{key}")),
        None => nearest(key, keys.iter().copied()).map(|found| format!("{section}.{found}")),
    }
}

fn nearest_variable(name: &str) -> Option<String> {
    let all: Vec<String> = Config::section_names()
        .iter()
        .flat_map(|section| {
            Config::keys(section)
                .iter()
                .map(move |key| format!("MLXD_{}_{}", section.to_uppercase(), key.to_uppercase()))
        })
        .chain(VARIABLES.iter().map(|name| (*name).to_owned()))
        .collect();
    // The prefix is the same in all of them and would make any two look alike.
    let bare = |name: &str| name.trim_start_matches("MLXD_").to_owned();
    let bare_all: Vec<String> = all.iter().map(|name| bare(name)).collect();
    nearest(&bare(name), bare_all.iter().map(String::as_str)).map(|found| format!("MLXD_{found}"))
}
