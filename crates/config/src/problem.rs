//! What can be wrong with a configuration, told with its place and a way out.

use std::fmt;
use std::path::PathBuf;

/// Where a value was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// In the file.
    File {
        /// Which.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
    },
    /// In an environment variable of this name.
    Variable(String),
    /// In a command-line flag of this name.
    Flag(String),
    /// In several places together.
    Whole,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Not TOML.
    Syntax(String),
    /// A section that mlxd does not have.
    UnknownSection {
        /// As given.
        name: String,
        /// One that is spelled alike.
        nearest: Option<String>,
    },
    /// A key that mlxd does not have.
    UnknownKey {
        /// As given, with its section.
        key: String,
        /// One that is spelled alike.
        nearest: Option<String>,
    },
    /// An `MLXD_` variable that mlxd does not have.
    UnknownVariable {
        /// One that is spelled alike.
        nearest: Option<String>,
    },
    /// A wrong type, or a value that is not allowed.
    Value {
        /// The key with its section.
        key: String,
        /// The value as given.
        given: String,
        /// What it must be.
        must_be: String,
    },
    /// Values that do not go together, or a value that deserves a warning.
    Together(String),
}

/// One thing that is wrong, or, among warnings, questionable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub origin: Origin,
    /// What.
    pub fault: Fault,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Self::Variable(name) => write!(f, "variable {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
            Self::Whole => f.write_str("configuration"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suggest = |f: &mut fmt::Formatter<'_>, nearest: &Option<String>| match nearest {
            Some(nearest) => write!(f, "; did you mean {nearest}?"),
            None => Ok(()),
        };
        match self {
            Self::Syntax(message) => write!(f, "not valid TOML: {message}"),
            Self::UnknownSection { name, nearest } => {
                write!(f, "there is no section [{name}]")?;
                suggest(f, nearest)
            }
            Self::UnknownKey { key, nearest } => {
                write!(f, "there is no key {key}")?;
                suggest(f, nearest)
            }
            Self::UnknownVariable { nearest } => {
                f.write_str("mlxd knows no such variable")?;
                suggest(f, nearest)
            }
            Self::Value { key, given, must_be } => {
                write!(f, "{key} is {given}, but must be {must_be}")
            }
            Self::Together(message) => f.write_str(message),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.fault)
    }
}

/// Everything that is wrong with a configuration, one line each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", lines(.0))]
pub struct Problems(pub Vec<Problem>);

fn lines(problems: &[Problem]) -> String {
    let all: Vec<String> = problems.iter().map(Problem::to_string).collect();
    all.join("\n")
}

/// The candidate spelled most like `given`, when it is near enough to be meant.
pub(crate) fn nearest<'a>(
    given: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    const SIMILARITY_MIN: f64 = 0.72;
    let given = given.to_lowercase();
    let similarity = |candidate: &str| {
        // Single slips count first; a common beginning with other words after it, a little less.
        let slips = strsim::normalized_damerau_levenshtein(&given, &candidate.to_lowercase());
        slips.max(strsim::jaro_winkler(&given, &candidate.to_lowercase()) - 0.1)
    };
    candidates
        .into_iter()
        .map(|candidate| (similarity(candidate), candidate))
        .filter(|(similarity, _)| *similarity >= SIMILARITY_MIN)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}
