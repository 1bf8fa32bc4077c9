//! A configuration as TOML, for `mlxd config show`.

use crate::config::{Config, Shown};
use crate::section::Section;
use std::fmt::Write;

impl Config {
    /// The effective configuration as a valid `mlxd.toml`. Keys that are not set appear as
    /// comments.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        for (name, keys) in self.sections() {
            write_section(&mut text, name, &keys);
            if name == "models" {
                for (model, table) in &self.models.tables {
                    let header = format!("models.{}", toml::Value::String(model.clone()));
                    write_section(&mut text, &header, &table.show());
                }
            }
            if name == "routes" {
                for (route, config) in &self.routes.tables {
                    let header = format!("routes.{}", toml::Value::String(route.clone()));
                    write_section(&mut text, &header, &config.table.show());
                    for rule in &config.rules {
                        write_section(&mut text, &format!("[{header}.rules]"), &rule.show());
                    }
                }
            }
        }
        text
    }
}

fn write_section(text: &mut String, name: &str, keys: &Shown) {
    let separator = if text.is_empty() { "" } else { "\n" };
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{separator}[{name}]");
    for (key, value) in keys {
        let _ = match value {
            Some(value) => writeln!(text, "{key} = {value}"),
            None => writeln!(text, "# {key} is not set"),
        };
    }
}
