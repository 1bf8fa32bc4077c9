//! The text of `mlxd.toml` laid over a [`Config`], with the place of everything that is wrong.

use crate::ModelTable;
use crate::config::{Config, key_fault, nearest_section};
use crate::problem::{Fault, Origin, Problem};
use crate::routes::{ROUTE_KEYS, RULES_MAX, RouteRule};
use crate::section::Section;
use crate::value::Given;
use std::ops::Range;
use std::path::Path;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

/// Lays `text` over `config`; what is wrong goes to `problems`, the rest is taken.
pub(crate) fn read_file(config: &mut Config, path: &Path, text: &str, problems: &mut Vec<Problem>) {
    let places = Places { path, text };
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        problems.extend(errors.iter().map(|error| Problem {
            origin: places.of(error.span().unwrap_or(0..0)),
            fault: Fault::Syntax(error.message().replace('\n', ", ")),
        }));
        return;
    }
    for (name, section) in document.get_ref() {
        let mut wrong = |fault| problems.push(Problem { origin: places.of(name.span()), fault });
        let name_text = name.get_ref().as_ref();
        if !Config::section_names().contains(&name_text) {
            wrong(Fault::UnknownSection {
                name: name_text.to_owned(),
                nearest: nearest_section(name_text),
            });
            continue;
        }
        let Some(keys) = section.get_ref().as_table() else {
            wrong(Fault::Value {
                key: name_text.to_owned(),
                given: Given::Toml(section.get_ref()).shown(),
                must_be: format!("a section, written as [{name_text}]"),
            });
            continue;
        };
        for (key, value) in keys {
            let given = value.get_ref();
            let key_text = key.get_ref().as_ref();
            let is_model = name_text == "models"
                && given.is_table()
                && !Config::keys("models").contains(&key_text);
            if name_text == "routes" && given.is_table() {
                read_route(config, key_text, given, &places, key.span(), problems);
            } else if is_model {
                read_model(config, key_text, given, &places, key.span(), problems);
            } else if let Err(fault) = config.set(name_text, key_text, Given::Toml(given)) {
                // A wrong value is shown where it stands, an unknown key where it is written.
                let span = match fault {
                    Fault::Value { .. } => value.span(),
                    _ => key.span(),
                };
                problems.push(Problem { origin: places.of(span), fault });
            }
        }
    }
}

/// One `[models."name"]` table.
fn read_model(
    config: &mut Config,
    name: &str,
    table: &DeValue<'_>,
    places: &Places<'_>,
    span: Range<usize>,
    problems: &mut Vec<Problem>,
) {
    if let Err(fault) = check_name("models", name) {
        problems.push(Problem { origin: places.of(span), fault });
        return;
    }
    let section = format!("models.{name:?}");
    let model = config.models.tables.entry(name.to_owned()).or_default();
    for (key, value) in table.as_table().into_iter().flatten() {
        set_key(model, ModelTable::KEYS, &section, key, value, places, problems);
    }
}

/// One `[routes."name"]` table with its rules.
fn read_route(
    config: &mut Config,
    name: &str,
    table: &DeValue<'_>,
    places: &Places<'_>,
    span: Range<usize>,
    problems: &mut Vec<Problem>,
) {
    if let Err(fault) = check_name("routes", name) {
        problems.push(Problem { origin: places.of(span), fault });
        return;
    }
    let section = format!("routes.{name:?}");
    let route = config.routes.tables.entry(name.to_owned()).or_default();
    let mut leads_on = false;
    for (key, value) in table.as_table().into_iter().flatten() {
        leads_on |= ["rules", "fallback"].contains(&key.get_ref().as_ref());
        if key.get_ref() != "rules" {
            set_key(&mut route.table, &ROUTE_KEYS, &section, key, value, places, problems);
            continue;
        }
        let rules = value.get_ref().as_array().filter(|rules| {
            rules.len() <= RULES_MAX && rules.iter().all(|rule| rule.get_ref().is_table())
        });
        let Some(rules) = rules else {
            let fault = Fault::Value {
                key: format!("{section}.rules"),
                given: Given::Toml(value.get_ref()).shown(),
                must_be: format!("at most {RULES_MAX} tables, written as [[{section}.rules]]"),
            };
            problems.push(Problem { origin: places.of(value.span()), fault });
            continue;
        };
        for rule in rules {
            route.rules.push(read_rule(&format!("{section}.rules"), rule, places, problems));
        }
    }
    if !leads_on {
        let message = format!("[{section}] has neither rules nor a fallback, so it leads nowhere");
        problems.push(Problem { origin: places.of(span), fault: Fault::Together(message) });
    }
}

fn read_rule(
    section: &str,
    table: &Spanned<DeValue<'_>>,
    places: &Places<'_>,
    problems: &mut Vec<Problem>,
) -> RouteRule {
    let mut rule = RouteRule::default();
    let keys = table.get_ref().as_table();
    for (key, value) in keys.into_iter().flatten() {
        set_key(&mut rule, RouteRule::KEYS, section, key, value, places, problems);
    }
    if !keys.is_some_and(|keys| keys.contains_key("model")) {
        let message = format!("a rule of [{section}] has no model");
        problems.push(Problem { origin: places.of(table.span()), fault: Fault::Together(message) });
    }
    rule
}

/// Names of tables come from requests.
fn check_name(section: &str, name: &str) -> Result<(), Fault> {
    let is_good = (1..=512).contains(&name.len())
        && !name.chars().any(|c| c.is_control() || c.is_whitespace());
    if is_good {
        return Ok(());
    }
    Err(Fault::Value {
        key: section.to_owned(),
        given: format!("[{section}.{name:?}]"),
        must_be: "named without blanks and control characters, 1 to 512 bytes".to_owned(),
    })
}

/// Sets one key of a named table, which has these.
fn set_key<S: Section>(
    table: &mut S,
    keys: &[&str],
    section: &str,
    key: &Spanned<DeString<'_>>,
    value: &Spanned<DeValue<'_>>,
    places: &Places<'_>,
    problems: &mut Vec<Problem>,
) {
    let key_text = key.get_ref().as_ref();
    let given = Given::Toml(value.get_ref());
    if let Err(error) = table.set(key_text, given) {
        let fault = key_fault(section, key_text, given, keys, error);
        let span = match fault {
            Fault::Value { .. } => value.span(),
            _ => key.span(),
        };
        problems.push(Problem { origin: places.of(span), fault });
    }
}

/// Turns byte offsets of one file into lines and columns.
struct Places<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Places<'_> {
    fn of(&self, span: Range<usize>) -> Origin {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Origin::File {
            path: self.path.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}
