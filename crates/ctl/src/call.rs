//! `start`, `stop` and `restart`: the same call for each model named, one line for each.

use crate::arguments::model_from_here;
use crate::client::{Failure, Front, Patience};
use crate::exit::Exit;
use crate::output;
use mlxd_protocol::admin::{ModelCall, ModelStatus, Status, WorkerState};

/// What to do with a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deed {
    Start,
    Stop,
    Restart,
}

impl Deed {
    fn route(self) -> &'static str {
        match self {
            Self::Start => "/admin/v1/start",
            Self::Stop => "/admin/v1/stop",
            Self::Restart => "/admin/v1/restart",
        }
    }

    fn done(self) -> &'static str {
        match self {
            Self::Start => "started",
            Self::Stop => "stopped",
            Self::Restart => "restarted",
        }
    }

    /// The refusal that means that it is so already.
    fn harmless_code(self) -> Option<&'static str> {
        match self {
            Self::Start => Some("already_started"),
            Self::Stop => Some("not_running"),
            Self::Restart => None,
        }
    }

    /// Whether `all` means this model: those that are in use, and for `start` every one.
    fn concerns(self, model: &ModelStatus) -> bool {
        self == Self::Start || model.state != WorkerState::Stopped
    }
}

/// Does it, model after model; goes on after a failure. The worst exit is the last failure's, as
/// in supervisorctl.
pub(crate) async fn call(
    front: &Front,
    deed: Deed,
    names: &[String],
    as_json: bool,
) -> Result<Exit, Failure> {
    let names = expanded(front, deed, names).await?;
    let mut exit = Exit::Success;
    for name in &names {
        let body = ModelCall { model: name.clone() };
        match front.post::<ModelStatus>(deed.route(), &body, Patience::Slow).await {
            Ok(status) if as_json => output::json(&status)?,
            Ok(status) => output::line(&format!("{}: {}", status.name, deed.done()))?,
            Err(Failure::Admin(body)) => {
                let is_harmless = deed.harmless_code() == Some(body.code.as_str());
                // Like supervisorctl's, these lines belong to the result.
                output::line(&format!("{name}: ERROR ({})", output::harmless(&body.message)))?;
                if !is_harmless {
                    exit = Failure::Admin(body).exit();
                }
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(exit)
}

async fn expanded(front: &Front, deed: Deed, names: &[String]) -> Result<Vec<String>, Failure> {
    if names.iter().any(|name| name == "all") {
        let status: Status = front.get("/admin/v1/status").await?;
        let concerned = status.models.into_iter().filter(|model| deed.concerns(model));
        return Ok(concerned.map(|model| model.name).collect());
    }
    Ok(names.iter().map(|name| model_from_here(name)).collect::<std::io::Result<_>>()?)
}
