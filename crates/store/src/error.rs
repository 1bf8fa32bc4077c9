//! Why a model was not found or cannot be used. Every message says what to do.

use std::path::PathBuf;

/// Names shown in a message at the most.
const NAMES_SHOWN_MAX: usize = 10;

/// Why a name has no usable folder.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No model has this name.
    #[error("there is no model {name:?}{}", way_out(known, nearest.as_deref()))]
    Unknown {
        /// As asked for.
        name: String,
        /// The names there are, in order.
        known: Vec<String>,
        /// The one that is spelled most like it.
        nearest: Option<String>,
    },
    /// The name cannot be a model's.
    #[error("{name:?} cannot be a model's name: {fault}")]
    BadName {
        /// As asked for.
        name: String,
        /// What is wrong with it.
        fault: String,
    },
    /// It is a path, and `models.paths_allowed` is off.
    #[error("{name:?} is a path, and models.paths_allowed is false; ask for a model by its name")]
    PathsNotAllowed {
        /// As asked for.
        name: String,
    },
    /// The folder is there, but files are missing.
    #[error("the model {name:?} is incomplete: {} missing from {}; {}", listed(missing), folder.display(), cure(name, *from_hub))]
    Incomplete {
        /// As asked for.
        name: String,
        /// Where it should be whole.
        folder: PathBuf,
        /// File names.
        missing: Vec<String>,
        /// Whether it lies in the Hugging Face cache.
        from_hub: bool,
    },
    /// A file of the model is not what it should be.
    #[error("the model file {file} is damaged: {fault}; fetch it again", file = file.display())]
    Corrupt {
        /// Which.
        file: PathBuf,
        /// What is wrong.
        fault: String,
    },
    /// The operating system does not let it go.
    #[error("cannot remove {path}: {error}", path = path.display())]
    Unremovable {
        /// Which.
        path: PathBuf,
        /// Why.
        error: String,
    },
    /// The operating system refuses a file.
    #[error("cannot read {path}: {error}", path = path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        error: String,
    },
}

fn way_out(known: &[String], nearest: Option<&str>) -> String {
    match (known, nearest) {
        ([], _) => "; there are no models here yet".to_owned(),
        (known, Some(nearest)) => {
            format!("; did you mean {nearest:?}? Models here: {}", listed(known))
        }
        (known, None) => format!(". Models here: {}", listed(known)),
    }
}

fn listed(names: &[String]) -> String {
    let shown = names[..names.len().min(NAMES_SHOWN_MAX)].join(", ");
    match names.len().saturating_sub(NAMES_SHOWN_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// What to do about missing files.
pub(crate) fn cure(name: &str, from_hub: bool) -> String {
    if from_hub {
        let repository = name.split('@').next().unwrap_or(name);
        format!("finish its download with `mlxctl pull {repository}`")
    } else {
        "put them there".to_owned()
    }
}
