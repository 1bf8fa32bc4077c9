//! What a benchmark found: printed, written as JSON, put on a page.

use crate::machine::Machine;
use crate::plot::Plot;
use crate::table::Table;
use anyhow::Context;
use mlxd_protocol::bytes_in_short;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// The number in [`Report::format`]. Raised when a field changes its meaning.
pub const FORMAT: u32 = 1;

/// How the prompt reaches the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Template {
    /// As a chat message, through the model's template.
    Chat,
    /// As it is, by the completions route.
    Raw,
}

/// Who counted tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Counted {
    /// The server, in `usage`.
    Usage,
    /// Nobody but this client, which saw deltas: at most as many as tokens.
    Deltas,
    /// The engine or the tokenizer, in this machine's own process.
    Engine,
}

/// What was measured and how it was asked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Subject {
    /// The model's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// `qwen3`, ….
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// `4-bit g64`, ….
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<String>,
    /// `metal`, `cuda`, `cpu`, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Base URL of a server that ran already; absent for one started for the run, and where none
    /// was needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// Requests at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub concurrency: Vec<u32>,
    /// How the prompt reached the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<Template>,
    /// Of the sampling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Who counted tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_count_source: Option<Counted>,
    /// Whether the short form ran.
    pub quick: bool,
}

/// What was running.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// Of this program.
    pub mlxd: String,
    /// Of MLX, where this run saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mlx: Option<String>,
    /// What the server calls itself, where it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
}

/// One benchmark's outcome.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`FORMAT`].
    pub format: u32,
    /// Its subcommand.
    pub benchmark: String,
    /// When it was finished, in seconds since 1970.
    pub unix_s: u64,
    /// Where.
    pub machine: Machine,
    /// Of what.
    pub versions: Versions,
    /// Of what, more closely.
    pub subject: Subject,
    /// The figures.
    pub tables: Vec<Table>,
    /// Pictures of them.
    #[serde(default)]
    pub plots: Vec<Plot>,
    /// What a reader should know.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Every single measurement, in a shape of the benchmark's own.
    #[serde(default)]
    pub samples: Value,
}

impl Report {
    /// An empty one of now and here.
    pub fn new(benchmark: &str, subject: Subject) -> Self {
        Self {
            format: FORMAT,
            benchmark: benchmark.into(),
            unix_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            machine: Machine::this(),
            versions: Versions { mlxd: env!("CARGO_PKG_VERSION").into(), ..Versions::default() },
            subject,
            tables: Vec::new(),
            plots: Vec::new(),
            notes: Vec::new(),
            samples: Value::Null,
        }
    }

    /// One line: what, how, where.
    pub fn heading(&self) -> String {
        let subject = &self.subject;
        let mut parts = Vec::new();
        parts.extend(subject.model.clone());
        let kind = [&subject.architecture, &subject.quantization, &subject.backend];
        let kind: Vec<&str> = kind.into_iter().flatten().map(String::as_str).collect();
        if !kind.is_empty() {
            parts.push(kind.join(" "));
        }
        parts.extend(subject.server.as_ref().map(|url| format!("at {url}")));
        parts.extend(subject.temperature.map(|temperature| format!("temperature {temperature}")));
        let machine = &self.machine;
        let memory = bytes_in_short(machine.memory_bytes);
        parts.push(format!("{}, {} cores, {memory}", machine.chip, machine.cores));
        parts.extend(machine.device.clone());
        parts.push(machine.os.clone());
        parts.push(format!("mlxd {}", self.versions.mlxd));
        parts.extend(self.versions.mlx.as_ref().map(|mlx| format!("MLX {mlx}")));
        parts.join(" · ")
    }

    /// Tables and notes, for a terminal or a page.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        for table in &self.tables {
            text += &format!("\n{}\n\n{}\n", table.title, table.markdown());
        }
        for note in &self.notes {
            text += &format!("\n{note}\n");
        }
        text
    }

    /// Writes it as JSON.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        write_json(path, self)
    }
}

/// Reports that were written to a file: one, or those of `mlxd bench all`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Written {
    /// Of `mlxd bench all`.
    Many {
        /// In the order in which they ran.
        reports: Vec<Report>,
    },
    /// Of another benchmark.
    One(Box<Report>),
}

impl Written {
    /// Reads a file.
    pub fn read(path: &Path) -> anyhow::Result<Vec<Report>> {
        let at = || path.display().to_string();
        let text = std::fs::read(path).with_context(at)?;
        let written: Self = serde_json::from_slice(&text).with_context(|| {
            format!("{} is no report of `mlxd bench … --output FILE`", path.display())
        })?;
        let reports = match written {
            Self::Many { reports } => reports,
            Self::One(report) => vec![*report],
        };
        for report in &reports {
            anyhow::ensure!(
                report.format == FORMAT,
                "{} has format {}, this mlxd reads {FORMAT}",
                path.display(),
                report.format
            );
        }
        Ok(reports)
    }
}

/// Writes JSON to a file.
pub fn write_json(path: &Path, value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heading_gives_memory_in_the_units_of_every_page() {
        let mut report = Report::new("llm", Subject::default());
        report.machine.memory_bytes = 64 << 30;
        assert!(report.heading().contains(" cores, 68.7 GB"), "{}", report.heading());
    }

    #[test]
    fn one_report_and_many_are_read_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("report.json");
        let subject = Subject { model: Some("m".into()), ..Subject::default() };
        let report = Report::new("llm", subject);
        report.write(&path).expect("written");
        assert_eq!(Written::read(&path).expect("read"), std::slice::from_ref(&report));
        let many = Written::Many { reports: vec![report.clone(), report.clone()] };
        write_json(&path, &many).expect("written");
        assert_eq!(Written::read(&path).expect("read").len(), 2);
        let newer = Report { format: FORMAT + 1, ..report };
        newer.write(&path).expect("written");
        let refused = Written::read(&path).expect_err("another format").to_string();
        assert!(refused.contains("format 2"), "{refused}");
    }
}
