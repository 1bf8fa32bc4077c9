//! `mlxctl reread` and `mlxctl update`: what a new configuration changes, or changed.

use crate::client::{Failure, Front, Patience};
use crate::exit::Exit;
use crate::output::{self, harmless};
use mlxd_protocol::admin::{ModelChange, ModelChangeKind, Reread, SettingChange};
use serde_json::json;

/// Checks the configuration, and with `apply` puts it to work.
pub(crate) async fn reload(front: &Front, apply: bool, as_json: bool) -> Result<Exit, Failure> {
    let (route, patience) = match apply {
        true => ("/admin/v1/update", Patience::Slow),
        false => ("/admin/v1/reread", Patience::Quick),
    };
    let reread: Reread = front.post(route, &json!({}), patience).await?;
    match as_json {
        true => output::json(&reread)?,
        false => output::piece(&harmless(&told(&reread)))?,
    }
    Ok(Exit::Success)
}

fn told(reread: &Reread) -> String {
    let mut lines: Vec<String> =
        reread.warnings.iter().map(|warning| format!("warning: {warning}")).collect();
    lines.extend(reread.models.iter().map(|change| model(change, reread.applied)));
    lines.extend(reread.settings.iter().map(|change| setting(change, reread.applied)));
    if reread.models.is_empty() && reread.settings.is_empty() {
        let place = reread.file.as_deref().map(|file| format!(" in {file}"));
        lines.push(format!("nothing changed{}", place.unwrap_or_default()));
    } else if !reread.applied {
        lines.push("`mlxctl update` puts it to work".to_owned());
    }
    lines.join("\n") + "\n"
}

fn model(change: &ModelChange, applied: bool) -> String {
    let what = match (change.change, applied) {
        (ModelChangeKind::Added, false) => "available",
        (ModelChangeKind::Added, true) => "added",
        (ModelChangeKind::Changed, false) => "changed",
        (ModelChangeKind::Changed, true) => "updated",
        (ModelChangeKind::Removed, false) => "disappeared",
        (ModelChangeKind::Removed, true) => "removed",
    };
    let keys = match change.keys.is_empty() {
        true => String::new(),
        false => format!(" ({})", change.keys.join(", ")),
    };
    let note = change.note.as_ref().map(|note| format!("; {note}"));
    format!("{}: {what}{keys}{}", change.model, note.unwrap_or_default())
}

fn setting(change: &SettingChange, applied: bool) -> String {
    let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "not set".to_owned());
    let when = match (change.needs_restart, applied) {
        (true, _) => "; needs a new start of mlxd",
        (false, true) if of_workers(&change.key) => "; at work for workers that start from now on",
        (false, true) => "; at work",
        (false, false) => "",
    };
    format!("{}: {} -> {}{when}", change.key, shown(&change.from), shown(&change.to))
}

/// Whether a worker is told of it when it is started.
fn of_workers(key: &str) -> bool {
    key.starts_with("models.") || key.starts_with("workers.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_told_as_supervisorctl_does() {
        let mut reread = Reread {
            file: Some("/c/mlxd.toml".into()),
            applied: false,
            models: vec![
                ModelChange {
                    model: "a".into(),
                    change: ModelChangeKind::Added,
                    keys: vec![],
                    note: None,
                },
                ModelChange {
                    model: "b".into(),
                    change: ModelChangeKind::Changed,
                    keys: vec!["running_max".into(), "device".into()],
                    note: Some("its worker is started anew".into()),
                },
            ],
            settings: vec![SettingChange {
                key: "http.port".into(),
                from: Some("1".into()),
                to: None,
                needs_restart: true,
            }],
            warnings: vec!["http.host is open to all".into()],
        };
        assert_eq!(
            told(&reread),
            "\
warning: http.host is open to all
a: available
b: changed (running_max, device); its worker is started anew
http.port: 1 -> not set; needs a new start of mlxd
`mlxctl update` puts it to work
"
        );
        reread.applied = true;
        assert!(told(&reread).contains("a: added\nb: updated (running_max, device)"));
        assert!(!told(&reread).contains("mlxctl update"));
        let nothing = Reread { file: reread.file, ..Reread::default() };
        assert_eq!(told(&nothing), "nothing changed in /c/mlxd.toml\n");
    }
}
