//! `mlxctl pid`: process ids, for scripts.

use crate::client::{Failure, Front, check_protocol};
use crate::exit::Exit;
use crate::output;
use crate::selection::{Selection, no_group};
use mlxd_protocol::admin::Status;
use serde_json::json;

/// Prints them, one a line; 0 for a model without a process, as supervisorctl does.
pub(crate) async fn pid(front: &Front, words: &[String], as_json: bool) -> Result<Exit, Failure> {
    if words.is_empty() {
        let version = front.version().await?;
        match as_json {
            true => output::json(&json!({"pid": version.pid}))?,
            false => output::line(&version.pid.to_string())?,
        }
        return Ok(Exit::Success);
    }
    front.reach()?;
    let status: Status = front.get("/admin/v1/status").await?;
    check_protocol(&status.server)?;
    let selection = Selection::of(words, &status.models, |_| true)?;
    let mut exit = Exit::Success;
    for group in &selection.empty_groups {
        eprintln!("mlxctl: {}", no_group(group));
        exit = Exit::Generic;
    }
    let mut found = Vec::new();
    for name in &selection.names {
        match status.models.iter().find(|model| model.name == *name) {
            Some(model) => {
                if model.pid.is_none() {
                    exit = Exit::NotRunning;
                }
                found.push((name, model.pid));
            }
            None => {
                eprintln!(
                    "mlxctl: {name}: ERROR (no such model in the table; `mlxctl status` shows it)"
                );
                exit = Exit::Generic;
            }
        }
    }
    if as_json {
        let rows: Vec<_> =
            found.iter().map(|(name, pid)| json!({"model": name, "pid": pid})).collect();
        output::json(&rows)?;
    } else {
        for (_, pid) in found {
            output::line(&pid.unwrap_or(0).to_string())?;
        }
    }
    Ok(exit)
}
