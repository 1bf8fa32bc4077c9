//! `mlxctl pid`: process ids, for scripts.

use crate::client::{Failure, Front, check_protocol};
use crate::exit::Exit;
use crate::output;
use crate::selection::{Selection, Unknown};
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
    let mut unknown: Vec<Unknown> =
        selection.empty_groups.iter().map(|group| Unknown::group(group)).collect();
    let mut found = Vec::new();
    for name in &selection.names {
        match status.models.iter().find(|model| model.name == *name) {
            Some(model) => {
                if model.pid.is_none() {
                    exit = Exit::NotRunning;
                }
                found.push((name, model.pid));
            }
            None => unknown.push(Unknown::model(name)),
        }
    }
    if !unknown.is_empty() {
        unknown.iter().for_each(Unknown::tell);
        exit = Exit::Generic;
    }
    if as_json {
        let known = found.iter().map(|(name, pid)| json!({"model": name, "pid": pid}));
        let rows: Vec<_> = known.chain(unknown.iter().map(Unknown::row)).collect();
        output::json(&rows)?;
    } else {
        for (_, pid) in found {
            output::line(&pid.unwrap_or(0).to_string())?;
        }
    }
    Ok(exit)
}
