//! `mlxctl list`, `show` and `rm`: models on disk.

use crate::arguments::Rm;
use crate::client::{Failure, Front, Patience};
use crate::exit::Exit;
use crate::output::{self, harmless};
use mlxd_protocol::admin::{
    Incomplete, ModelOnDisk, ModelShow, PullStatus, RemoveCall, Removed, Shelf, WorkerState,
};
use mlxd_protocol::{bytes_in_short, parameters_in_short};
use serde_json::json;
use std::io::{IsTerminal, stdin};

/// Names of missing files in the table at the most.
const MISSING_SHOWN_MAX: usize = 2;

/// Every model on disk, and what is being pulled.
pub(crate) async fn list(front: &Front, as_json: bool) -> Result<Exit, Failure> {
    let shelf: Shelf = front.get("/admin/v1/models").await?;
    match as_json {
        true => output::json(&shelf)?,
        false => output::piece(&harmless(&table(&shelf)))?,
    }
    Ok(Exit::Success)
}

/// One model on disk.
pub(crate) async fn show(front: &Front, model: &str, as_json: bool) -> Result<Exit, Failure> {
    let shown: ModelShow = front.get_about("/admin/v1/show", &[("model", model)]).await?;
    match as_json {
        true => output::json(&shown)?,
        false => output::piece(&harmless(&description(&shown)))?,
    }
    Ok(Exit::Success)
}

/// Deletes models from disk, one after the other; goes on after a refusal.
pub(crate) async fn remove(front: &Front, arguments: &Rm, as_json: bool) -> Result<Exit, Failure> {
    if !arguments.yes && !confirmed(front, &arguments.models).await? {
        return Ok(Exit::Generic);
    }
    let mut exit = Exit::Success;
    let mut rows = Vec::new();
    for model in &arguments.models {
        let call = RemoveCall { model: model.clone(), force: arguments.force };
        match front.post::<Removed>("/admin/v1/remove", &call, Patience::Slow).await {
            Ok(done) if as_json => rows.push(json!(done)),
            Ok(done) => output::line(&harmless(&removal(&done)))?,
            Err(Failure::Admin(body)) => {
                eprintln!("mlxctl: {}", harmless(&body.message));
                rows.push(json!({"model": model, "error": body}));
                exit = Exit::Generic;
            }
            Err(failure) => return Err(failure),
        }
    }
    if as_json {
        output::json(&rows)?;
    }
    Ok(exit)
}

/// Asks whoever sits at the terminal. Elsewhere nobody can say yes.
async fn confirmed(front: &Front, models: &[String]) -> Result<bool, Failure> {
    if !stdin().is_terminal() {
        eprintln!("mlxctl: nothing was deleted: nobody can be asked here; say --yes");
        return Ok(false);
    }
    let shelf: Shelf = front.get("/admin/v1/models").await?;
    let yes = output::confirmed(&question(models, &shelf))?;
    if !yes {
        eprintln!("mlxctl: nothing was deleted");
    }
    Ok(yes)
}

/// Names what would go, with its size where that is known.
fn question(models: &[String], shelf: &Shelf) -> String {
    let named = |name: &String| match shelf.models.iter().find(|model| model.name == *name) {
        Some(model) => format!("{name} ({})", bytes_in_short(model.bytes)),
        None => name.clone(),
    };
    format!("delete {} from disk?", models.iter().map(named).collect::<Vec<_>>().join(", "))
}

fn removal(done: &Removed) -> String {
    let mut line = format!("{}: removed, {} freed", done.model, bytes_in_short(done.freed_bytes));
    if done.shared_bytes > 0 {
        let shared = bytes_in_short(done.shared_bytes);
        line.push_str(&format!(", {shared} stay for another revision"));
    }
    if !done.stopped.is_empty() {
        line.push_str(&format!(", stopped {}", done.stopped.join(", ")));
    }
    line
}

fn table(shelf: &Shelf) -> String {
    let head = ["MODEL", "KIND", "FORM", "PARAMS", "SIZE", "STATE"].map(str::to_owned);
    let mut rows = vec![head];
    rows.extend(shelf.models.iter().map(row));
    let notes = std::iter::once(None).chain(shelf.models.iter().map(note));
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for (row, note) in rows.iter().zip(notes) {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            // Numbers end below each other.
            if column == 3 || column == 4 {
                format!("{cell:>width$}")
            } else {
                format!("{cell:<width$}")
            }
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
        text.extend(note);
    }
    text.extend(shelf.pulls.iter().map(pull));
    text
}

fn row(model: &ModelOnDisk) -> [String; 6] {
    [
        model.name.clone(),
        model.architecture.clone(),
        model.quantization.clone(),
        model.parameters.map(parameters_in_short).unwrap_or_default(),
        bytes_in_short(model.bytes),
        match model.state {
            WorkerState::Stopped if model.incomplete.is_some() => "INCOMPLETE".to_owned(),
            WorkerState::Stopped => String::new(),
            state => state.name().to_owned(),
        },
    ]
}

/// The line below an incomplete model's: what it lacks, and what to do.
fn note(model: &ModelOnDisk) -> Option<String> {
    let Incomplete { missing, cure } = model.incomplete.as_ref()?;
    let shown = missing[..missing.len().min(MISSING_SHOWN_MAX)].join(", ");
    let more = match missing.len() - missing.len().min(MISSING_SHOWN_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!("    lacks {shown}{more}; {cure}\n"))
}

fn pull(status: &PullStatus) -> String {
    let (total, done) = status.bytes();
    let share = (done * 100).checked_div(total).unwrap_or(0);
    format!(
        "{}: being pulled, {share} %, {} of {}\n",
        status.model,
        bytes_in_short(done),
        bytes_in_short(total)
    )
}

fn description(shown: &ModelShow) -> String {
    let model = &shown.model;
    let mut lines = vec![("model", model.name.clone())];
    let mut add = |name: &'static str, value: Option<String>| {
        lines.extend(value.map(|value| (name, value)));
    };
    add("aliases", (!shown.aliases.is_empty()).then(|| shown.aliases.join(", ")));
    add("architecture", Some(model.architecture.clone()));
    add("parameters", model.parameters.map(parameters_in_short));
    add("quantization", Some(model.quantization.clone()));
    add("context", shown.context_tokens.map(|tokens| format!("{tokens} tokens")));
    add("takes", Some(shown.modalities.join(", ")));
    add("chat template", Some(if shown.chat { "yes" } else { "no" }.to_owned()));
    add("needs", Some(needs(shown)));
    add("licence", Some(shown.licence.clone().unwrap_or_else(|| "its card names none".into())));
    add("state", Some(model.state.name().to_owned()));
    add("commit", shown.commit.clone());
    add("folder", Some(format!("{} ({})", shown.folder, model.source)));
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    lines.iter().map(|(name, value)| format!("{name:<width$}  {value}\n")).collect()
}

fn needs(shown: &ModelShow) -> String {
    let weights = bytes_in_short(shown.weight_bytes);
    match shown.kv_bytes_per_token {
        Some(bytes) => {
            format!(
                "{weights} for its weights, {} for each 1,000 tokens",
                bytes_in_short(bytes * 1000)
            )
        }
        None => format!("{weights} for its weights"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlxd_protocol::admin::{PullFileStatus, PullStage};

    fn model(name: &str, state: WorkerState) -> ModelOnDisk {
        ModelOnDisk {
            name: name.into(),
            bytes: 335_000_000,
            architecture: "qwen3".into(),
            quantization: "4-bit g64".into(),
            parameters: Some(596_000_000),
            created_unix_s: 0,
            state,
            source: "hub".into(),
            incomplete: None,
        }
    }

    #[test]
    fn an_incomplete_model_says_what_it_lacks_and_what_to_do() {
        let shard = |number| format!("model-{number:05}-of-00004.safetensors");
        let mut half = model("o/half", WorkerState::Stopped);
        (half.quantization, half.parameters) = ("unknown".into(), None);
        half.incomplete = Some(Incomplete {
            missing: vec![shard(2), shard(3), shard(4)],
            cure: "finish its download with `mlxctl pull o/half`".into(),
        });
        let models = vec![model("m", WorkerState::Stopped), half];
        assert_eq!(
            table(&Shelf { models, pulls: Vec::new() }),
            "\
MODEL   KIND   FORM       PARAMS    SIZE  STATE
m       qwen3  4-bit g64    596M  335 MB
o/half  qwen3  unknown            335 MB  INCOMPLETE
    lacks model-00002-of-00004.safetensors, model-00003-of-00004.safetensors and 1 more; finish its \
             download with `mlxctl pull o/half`
"
        );
    }

    #[test]
    fn the_list_shows_what_is_here_and_what_comes() {
        let file = PullFileStatus {
            name: "x".into(),
            bytes_total: 4_000_000,
            bytes_done: 1_000_000,
            trouble: None,
        };
        let pulls = vec![PullStatus {
            model: "org/new".into(),
            stage: PullStage::Fetching,
            commit: None,
            files: vec![file],
            bytes_fetched: 0,
            retries: Vec::new(),
            elapsed_ms: 0,
            watchers: 0,
            folder: None,
            error: None,
        }];
        let models = vec![model("a/b", WorkerState::Running), model("m", WorkerState::Stopped)];
        assert_eq!(
            table(&Shelf { models, pulls }),
            "\
MODEL  KIND   FORM       PARAMS    SIZE  STATE
a/b    qwen3  4-bit g64    596M  335 MB  RUNNING
m      qwen3  4-bit g64    596M  335 MB
org/new: being pulled, 25 %, 1.00 MB of 4.00 MB
"
        );
    }

    #[test]
    fn one_model_in_full() {
        let shown = ModelShow {
            model: model("a/b", WorkerState::Stopped),
            folder: "/c".into(),
            commit: None,
            context_tokens: Some(40960),
            weight_bytes: 335_000_000,
            kv_bytes_per_token: Some(114_688),
            licence: Some("apache-2.0".into()),
            modalities: vec!["text".into(), "image".into()],
            chat: true,
            aliases: vec!["small".into()],
        };
        assert_eq!(
            description(&shown),
            "\
model          a/b
aliases        small
architecture   qwen3
parameters     596M
quantization   4-bit g64
context        40960 tokens
takes          text, image
chat template  yes
needs          335 MB for its weights, 115 MB for each 1,000 tokens
licence        apache-2.0
state          STOPPED
folder         /c (hub)
"
        );
    }

    #[test]
    fn who_is_asked_sees_what_would_go() {
        let shelf = Shelf { models: vec![model("a/b", WorkerState::Stopped)], pulls: Vec::new() };
        let models = ["a/b".to_owned(), "c@v1".to_owned()];
        assert_eq!(question(&models, &shelf), "delete a/b (335 MB), c@v1 from disk?");
    }

    #[test]
    fn a_removal_tells_what_stays() {
        let done = Removed {
            model: "a/b@v1".into(),
            freed_bytes: 2_000_000,
            shared_bytes: 1_000_000,
            stopped: vec!["a/b".into()],
        };
        assert_eq!(
            removal(&done),
            "a/b@v1: removed, 2.00 MB freed, 1.00 MB stay for another revision, stopped a/b"
        );
    }
}
