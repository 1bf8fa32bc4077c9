//! Finds a model folder's templates and prepares their text for the engine.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde_json::Value;

use super::TemplateLimits;
use crate::error::TextError;
use crate::folder::{read_object, read_text, refuse};

/// Most named templates taken from a model folder.
const TEMPLATES_MAX: usize = 64;

/// The templates as (name, source), empty if there are none.
pub(super) fn find(
    folder: &Path,
    config: &Value,
    limits: TemplateLimits,
) -> Result<Vec<(String, String)>, TextError> {
    let bytes_max = limits.source_bytes_max as u64;
    let mut found = Vec::new();
    if let Some(source) = read_text(&folder.join("chat_template.jinja"), bytes_max)? {
        found.push(("default".to_owned(), source));
    }
    found.extend(additional(&folder.join("additional_chat_templates"), bytes_max)?);
    if !found.is_empty() {
        return Ok(found);
    }
    let json = folder.join("chat_template.json");
    if let Some(object) = read_object(&json)?
        && let Some(value) = object.get("chat_template")
    {
        return from_value(value).map_err(|reason| refuse(&json, reason));
    }
    match config.get("chat_template") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(value) => from_value(value)
            .map_err(|reason| refuse(&folder.join("tokenizer_config.json"), reason)),
    }
}

/// `*.jinja` in the folder, named by their file names, in order.
fn additional(folder: &Path, bytes_max: u64) -> Result<Vec<(String, String)>, TextError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(refuse(folder, error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| refuse(folder, error))?.path();
        let is_template = path.extension().is_some_and(|ending| ending == "jinja");
        let Some(name) = path.file_stem().and_then(|name| name.to_str()) else {
            continue;
        };
        if !is_template {
            continue;
        }
        if found.len() == TEMPLATES_MAX {
            return Err(refuse(folder, format!("holds more than {TEMPLATES_MAX} templates")));
        }
        if let Some(source) = read_text(&path, bytes_max)? {
            found.push((name.to_owned(), source));
        }
    }
    found.sort();
    Ok(found)
}

/// `chat_template`'s value: one template, or a list of objects with `name` and `template`.
fn from_value(value: &Value) -> Result<Vec<(String, String)>, String> {
    let one = |entry: &Value| {
        let text = |key| entry.get(key)?.as_str().map(str::to_owned);
        Some((text("name")?, text("template")?))
    };
    let wrong = || "chat_template is neither a text nor a list of named texts".to_owned();
    match value {
        Value::String(source) => Ok(vec![("default".to_owned(), source.clone())]),
        Value::Array(entries) if entries.len() <= TEMPLATES_MAX => {
            entries.iter().map(|entry| one(entry).ok_or_else(wrong)).collect()
        }
        Value::Object(entries) if entries.len() <= TEMPLATES_MAX => entries
            .iter()
            .map(|(name, text)| Some((name.clone(), text.as_str()?.to_owned())))
            .map(|entry| entry.ok_or_else(wrong))
            .collect(),
        _ => Err(wrong()),
    }
}

/// The template as the engine takes it: Jinja reads any line end as `\n`, and
/// [`without_generation_tags`].
pub(super) fn prepared(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    without_generation_tags(&source)
}

/// Turns `{% generation %}` … `{% endgeneration %}` into a plain scope.
///
/// `transformers` adds these tags to mark what the assistant wrote, for training. They write
/// nothing themselves, but they are a scope and their whitespace control counts.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        let word = tag
            .trim_start_matches("{%")
            .trim_end_matches("%}")
            .trim_start_matches(['-', '+'])
            .trim_end_matches(['-', '+'])
            .trim();
        match word {
            "generation" => out.push_str(&tag.replace("generation", "with")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endwith")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_are_one_character() {
        assert_eq!(prepared("a\r\nb\rc\n"), "a\nb\nc\n");
    }

    #[test]
    fn generation_tags_become_scopes() {
        assert_eq!(
            without_generation_tags("a{%- generation -%} b {%+endgeneration%}{% if generation %}"),
            "a{%- with -%} b {%+endwith%}{% if generation %}"
        );
        assert_eq!(without_generation_tags("{% generation"), "{% with");
    }
}
