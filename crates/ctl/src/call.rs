//! `start`, `stop`, `restart`, `pin`, `unpin` and `signal`: the same call for each model meant, one line for each.

use crate::client::{Failure, Front, Patience};
use crate::exit::Exit;
use crate::output;
use crate::selection::{Selection, Unknown};
use mlxd_protocol::admin::{ModelCall, ModelStatus, SignalCall, SignalName, WorkerState};
use serde_json::{Value, json};

/// What to do with a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deed {
    Start,
    Stop,
    Restart,
    Pin,
    Unpin,
    Signal(SignalName),
}

impl Deed {
    /// What it is called.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Pin => "pin",
            Self::Unpin => "unpin",
            Self::Signal(_) => "signal",
        }
    }

    /// What a model is once it is done.
    pub(crate) fn done(self) -> String {
        match self {
            Self::Start => "started".to_owned(),
            Self::Stop => "stopped".to_owned(),
            Self::Restart => "restarted".to_owned(),
            Self::Pin => "pinned".to_owned(),
            Self::Unpin => "no longer pinned".to_owned(),
            Self::Signal(signal) => format!("sent {signal}"),
        }
    }

    /// The refusal that means that it is so already.
    fn harmless_code(self) -> Option<&'static str> {
        match self {
            Self::Start => Some("already_started"),
            Self::Stop => Some("not_running"),
            Self::Restart | Self::Pin | Self::Unpin | Self::Signal(_) => None,
        }
    }

    /// Whether `all` and a group mean this model: those that are in use, and for `start` every one.
    fn concerns(self, model: &ModelStatus) -> bool {
        match self {
            Self::Start => true,
            Self::Stop | Self::Restart => model.state != WorkerState::Stopped,
            Self::Unpin => model.residence.pinned,
            Self::Pin | Self::Signal(_) => model.pid.is_some(),
        }
    }

    /// What is said when `words` mean models, but none that this would change.
    fn nothing_to_do(self, words: &[String]) -> String {
        let models = match words.iter().any(|word| word == "all") {
            true => "no model".to_owned(),
            false => format!("no model of {}", words.join(", ")),
        };
        match self {
            Self::Start => format!("{models} is in the table; `mlxctl start MODEL` names one"),
            Self::Unpin => format!("{models} is pinned"),
            Self::Stop | Self::Restart | Self::Pin | Self::Signal(_) => {
                format!("{models} is running")
            }
        }
    }

    /// Does it to one model.
    pub(crate) async fn perform(self, front: &Front, model: &str) -> Result<ModelStatus, Failure> {
        let model = model.to_owned();
        let named = ModelCall { model: model.clone() };
        match self {
            Self::Start => front.post("/admin/v1/start", &named, Patience::Slow).await,
            Self::Stop => front.post("/admin/v1/stop", &named, Patience::Slow).await,
            Self::Restart => front.post("/admin/v1/restart", &named, Patience::Slow).await,
            Self::Pin => front.post("/admin/v1/pin", &named, Patience::Quick).await,
            Self::Unpin => front.post("/admin/v1/unpin", &named, Patience::Quick).await,
            Self::Signal(signal) => {
                let call = SignalCall { model, signal };
                front.post("/admin/v1/signal", &call, Patience::Quick).await
            }
        }
    }
}

/// Does it, model after model; goes on after a refusal. The exit is the last refusal's, as in
/// supervisorctl.
pub(crate) async fn call(
    front: &Front,
    deed: Deed,
    words: &[String],
    as_json: bool,
) -> Result<Exit, Failure> {
    let selection = Selection::read(front, words, |model| deed.concerns(model)).await?;
    let mut told = Told { as_json, results: Vec::new() };
    let mut exit = Exit::Success;
    for group in &selection.empty_groups {
        let unknown = Unknown::group(group);
        unknown.tell();
        if as_json {
            let mut row = unknown.row();
            row["done"] = false.into();
            told.results.push(row);
        }
        exit = Exit::Generic;
    }
    for name in &selection.names {
        match deed.perform(front, name).await {
            Ok(status) => {
                let line = format!("{}: {}", status.name, deed.done());
                told.tell(&line, json!({"model": name, "done": true, "status": status}))?;
            }
            Err(Failure::Admin(body)) => {
                let is_harmless = deed.harmless_code() == Some(body.code.as_str());
                // Like supervisorctl's, these lines belong to the result.
                let line = format!("{name}: ERROR ({})", output::harmless(&body.message));
                told.tell(&line, json!({"model": name, "done": is_harmless, "error": body}))?;
                if !is_harmless {
                    exit = Failure::Admin(body).exit();
                }
            }
            Err(failure) if as_json => {
                // A row of the one list, not a second document behind it.
                eprintln!("mlxctl: {failure}");
                let row = json!({"model": name, "done": false, "error": failure.body()});
                told.results.push(row);
                exit = failure.exit();
                break;
            }
            Err(failure) => return Err(failure),
        }
    }
    // Silence could be mistaken for success; the exit is, as supervisorctl's, that of success.
    if selection == Selection::default() && !as_json {
        output::line(&deed.nothing_to_do(words))?;
    }
    told.end()?;
    Ok(exit)
}

/// Lines as they come, or one JSON list at the end.
struct Told {
    as_json: bool,
    results: Vec<Value>,
}

impl Told {
    fn tell(&mut self, line: &str, result: Value) -> Result<(), Failure> {
        if self.as_json {
            self.results.push(result);
            return Ok(());
        }
        output::line(line)
    }

    fn end(&self) -> Result<(), Failure> {
        match self.as_json {
            true => output::json(&self.results),
            false => Ok(()),
        }
    }
}
