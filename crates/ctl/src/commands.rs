//! Which command does what.

use crate::arguments::{Command, model_from_here};
use crate::call::{Deed, call};
use crate::client::{Failure, Front, Patience, check_protocol};
use crate::exit::Exit;
use crate::selection::{Selection, Unknown};
use crate::{
    ask, cache, estimate, events, generate, output, pid, pull, reload, route, service, shelf,
    socket, status, tail, top, why,
};
use mlxd_protocol::PROTOCOL_VERSION;
use mlxd_protocol::admin::{ModelStatus, Status, Version};
use serde_json::json;
use std::path::PathBuf;

/// The front that a command line is about.
pub(crate) fn front(socket: Option<PathBuf>) -> MaybeFront {
    let place = socket.map_or_else(socket::standard_place, Ok);
    place.map(Front::new).map_err(Failure::NoPlace)
}

/// Does what the arguments say.
pub(crate) async fn run(
    command: Command,
    socket: Option<PathBuf>,
    as_json: bool,
) -> Result<Exit, Failure> {
    let front = || front(socket);
    match command {
        Command::Status { models } => match show_status(front(), &models, as_json).await {
            // `status` has a code of its own for an mlxd that says nothing.
            Err(failure) if failure.is_unreachable() => {
                failure.tell(as_json);
                Ok(Exit::StatusUnknown)
            }
            result => result,
        },
        Command::Version => show_version(front(), as_json).await,
        Command::Shutdown => shutdown(front(), as_json).await,
        Command::Start(named) => deed(front(), Deed::Start, &named.models, as_json).await,
        Command::Stop(named) => deed(front(), Deed::Stop, &named.models, as_json).await,
        Command::Restart(named) => deed(front(), Deed::Restart, &named.models, as_json).await,
        Command::Signal(signal) => {
            deed(front(), Deed::Signal(signal.signal), &signal.models.models, as_json).await
        }
        Command::Pin(named) => deed(front(), Deed::Pin, &named.models, as_json).await,
        Command::Unpin(named) => deed(front(), Deed::Unpin, &named.models, as_json).await,
        Command::Estimate(mut of) => {
            let front = reached(front()).await?;
            of.model = model_from_here(&of.model)?;
            estimate::estimate(&front, &of, as_json).await
        }
        Command::Ask(mut arguments) => {
            let front = reached(front()).await?;
            arguments.model = model_from_here(&arguments.model)?;
            ask::ask(&front, &arguments, as_json).await
        }
        Command::Tail(arguments) => {
            let front = reached(front()).await?;
            let model = model_from_here(&arguments.model)?;
            tail::tail(&front, Some(&model), &arguments.end, as_json).await
        }
        Command::Maintail(end) => tail::tail(&reached(front()).await?, None, &end, as_json).await,
        Command::Pid { models } => pid::pid(&front()?, &models, as_json).await,
        Command::Why { model } => {
            let model = model_from_here(&model)?;
            why::why(&reached(front()).await?, &model, as_json).await
        }
        Command::Events(arguments) => {
            events::events(&reached(front()).await?, &arguments, as_json).await
        }
        Command::Top => top::top(reached(front()).await?, as_json).await,
        Command::Pull(arguments) => pull::pull(&reached(front()).await?, arguments, as_json).await,
        Command::List => shelf::list(&reached(front()).await?, as_json).await,
        Command::Show { model } => {
            let model = model_from_here(&model)?;
            shelf::show(&reached(front()).await?, &model, as_json).await
        }
        Command::Rm(arguments) => {
            shelf::remove(&reached(front()).await?, &arguments, as_json).await
        }
        Command::Cache(arguments) => {
            let model = arguments.model.as_deref().map(model_from_here).transpose()?;
            let front = reached(front()).await?;
            cache::cache(&front, model.as_deref(), arguments.clear, as_json).await
        }
        Command::Route(arguments) => {
            route::route(&reached(front()).await?, &arguments, as_json).await
        }
        Command::Reread => reload::reload(&reached(front()).await?, false, as_json).await,
        Command::Update => reload::reload(&reached(front()).await?, true, as_json).await,
        Command::Service(arguments) => service::service(&arguments, as_json),
        Command::Completions { shell } => generate::completions(shell),
        Command::Man(arguments) => generate::man(&arguments),
    }
}

type MaybeFront = Result<Front, Failure>;

/// The front, once it has answered in our protocol.
async fn reached(front: MaybeFront) -> MaybeFront {
    let front = front?;
    front.version().await?;
    Ok(front)
}

async fn deed(
    front: MaybeFront,
    deed: Deed,
    models: &[String],
    as_json: bool,
) -> Result<Exit, Failure> {
    let front = reached(front).await?;
    call(&front, deed, models, as_json).await
}

async fn show_status(front: MaybeFront, names: &[String], as_json: bool) -> Result<Exit, Failure> {
    let front = front?;
    front.reach()?;
    let mut status: Status = front.get("/admin/v1/status").await?;
    check_protocol(&status.server)?;
    let mut exit = Exit::Success;
    let mut unknown = Vec::new();
    let mut shown: Vec<&ModelStatus> = status.models.iter().collect();
    if !names.is_empty() {
        let selection = Selection::of(names, &status.models, |_| true)?;
        let is_unknown = |name: &&String| !shown.iter().any(|model| model.name == **name);
        let groups = selection.empty_groups.iter().map(|group| Unknown::group(group));
        let names = selection.names.iter().filter(is_unknown).map(|name| Unknown::model(name));
        unknown = groups.chain(names).collect();
        if !unknown.is_empty() {
            unknown.iter().for_each(Unknown::tell);
            exit = Exit::StatusUnknown;
        }
        shown.retain(|model| selection.names.contains(&model.name));
    }
    // As in supervisorctl, a stopped model outweighs an unknown one.
    if status::exit(&shown) != Exit::Success {
        exit = status::exit(&shown);
    }
    if as_json {
        let shown: Vec<ModelStatus> = shown.into_iter().cloned().collect();
        status.models = shown;
        let mut answer = serde_json::to_value(&status).map_err(output::no_json)?;
        if !unknown.is_empty() {
            answer["errors"] = unknown.iter().map(Unknown::row).collect();
        }
        output::json(&answer)?;
    } else {
        output::piece(&status::table(&status, &shown, output::columns()))?;
    }
    Ok(exit)
}

async fn show_version(front: MaybeFront, as_json: bool) -> Result<Exit, Failure> {
    let own = env!("CARGO_PKG_VERSION");
    if !as_json {
        output::line(&format!("mlxctl {own}, protocol {PROTOCOL_VERSION}"))?;
    }
    let front = front?;
    front.reach()?;
    let version: Version = front.get("/admin/v1/version").await?;
    if as_json {
        check_protocol(&version)?;
        output::json(&json!({
            "mlxctl": {"version": own, "protocol": PROTOCOL_VERSION},
            "mlxd": version,
        }))?;
    } else {
        output::line(&format!(
            "mlxd   {}, protocol {}, pid {}",
            version.version, version.protocol, version.pid
        ))?;
    }
    check_protocol(&version)?;
    Ok(Exit::Success)
}

/// Does not mind another protocol: an old mlxd must be stoppable.
async fn shutdown(front: MaybeFront, as_json: bool) -> Result<Exit, Failure> {
    let front = front?;
    front.reach()?;
    let version: Version = front.post("/admin/v1/shutdown", &json!({}), Patience::Quick).await?;
    if as_json {
        output::json(&version)?;
    } else {
        output::line(&format!("mlxd, pid {}: finishes what runs, then ends", version.pid))?;
    }
    Ok(Exit::Success)
}
