//! `mlxctl events`: what happened, one line each.

use crate::arguments::Events;
use crate::client::{Failure, Front, Patience};
use crate::exit::Exit;
use crate::lines::{Lines, Pieces};
use crate::output::{harmless, line};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use mlxd_protocol::admin::{Event, Happening};

/// Shows them; with `follow` until Ctrl-C or the end of mlxd.
pub(crate) async fn events(
    front: &Front,
    arguments: &Events,
    as_json: bool,
) -> Result<Exit, Failure> {
    let last = arguments.last.to_string();
    let mut query = vec![("last", last.as_str())];
    if arguments.follow {
        query.push(("follow", "true"));
    }
    // Nothing may happen for ever.
    let response = front.get_stream("/admin/v1/events", &query, Patience::Stream(None)).await?;
    let mut pieces = Pieces::new(response)?;
    let mut lines = Lines::default();
    let zone = TimeZone::system();
    let mut seen: Option<u64> = None;
    while let Some(piece) = pieces.next().await? {
        for text in lines.take(piece.as_ref())? {
            let event = read(&text)?;
            if as_json {
                line(&text)?;
                continue;
            }
            let missed = seen.map_or(0, |seen| event.sequence.saturating_sub(seen + 1));
            if missed > 0 {
                line(&format!(
                    "({missed} events were missed: they came faster than they were read)"
                ))?;
            }
            seen = Some(event.sequence);
            line(&harmless(&format!("{} {}", day_and_time(&event, &zone), told(&event))))?;
        }
    }
    Ok(Exit::Success)
}

/// The last events, for `top`.
pub(crate) async fn last(front: &Front, count: usize) -> Result<Vec<Event>, Failure> {
    let count = count.to_string();
    let text = front.get_text("/admin/v1/events", &[("last", &count)]).await?;
    text.lines().map(read).collect()
}

fn read(text: &str) -> Result<Event, Failure> {
    serde_json::from_str(text)
        .map_err(|error| Failure::Broken(format!("mlxd's event is not understood: {error}")))
}

fn day_and_time(event: &Event, zone: &TimeZone) -> String {
    format_time(event, zone, "%Y-%m-%d %H:%M:%S%.3f")
}

/// The time of the day.
pub(crate) fn clock(event: &Event, zone: &TimeZone) -> String {
    format_time(event, zone, "%H:%M:%S")
}

fn format_time(event: &Event, zone: &TimeZone, format: &str) -> String {
    let at = i64::try_from(event.unix_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let at = at.unwrap_or(Timestamp::UNIX_EPOCH).to_zoned(zone.clone());
    at.strftime(format).to_string()
}

/// An event as a sentence, with the model's name first.
pub(crate) fn told(event: &Event) -> String {
    let what = happening(&event.happening);
    match &event.model {
        Some(model) => format!("{model}: {what}"),
        None => format!("mlxd: {what}"),
    }
}

fn happening(happening: &Happening) -> String {
    match happening {
        Happening::Serving { base_url } => format!("serves {base_url}"),
        Happening::WorkerState { from, to, reason } => {
            let reason = reason.as_ref().map(|reason| format!(" ({reason})"));
            format!("{} -> {}{}", from.name(), to.name(), reason.unwrap_or_default())
        }
        Happening::WorkerSpawned { pid } => format!("worker started, pid {pid}"),
        Happening::WorkerGone { pid, how } => format!("worker ended, pid {pid}: {how}"),
        Happening::Replayed { requests } => {
            let go = if *requests == 1 { "goes" } else { "go" };
            format!("{} of the dead worker {go} on in a new one", requests_of(*requests))
        }
        Happening::Quarantined { request, reason } => {
            format!("request {request} was given up: {reason}")
        }
        Happening::Unloading { reason } => format!("is unloaded: {reason}"),
        Happening::NoRoom { reason } => format!("no worker is started: {reason}"),
        Happening::MemoryPressure { level } => format!("memory pressure is {level}"),
        Happening::Reloaded { models } if models.is_empty() => {
            "a new configuration is at work".to_owned()
        }
        Happening::Reloaded { models } => {
            format!("a new configuration is at work, for {}", models.join(", "))
        }
        Happening::ShuttingDown => "finishes what runs, then ends".to_owned(),
        Happening::Other => "something that this mlxctl does not know".to_owned(),
    }
}

fn requests_of(count: u32) -> String {
    match count {
        1 => "1 request".to_owned(),
        _ => format!("{count} requests"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_sentences_at_a_local_time() {
        let read = |text: &str| read(text).unwrap();
        let state = read(
            r#"{"sequence": 7, "unix_ms": 1700000000250, "model": "a/b", "event": "worker_state",
                "from": "RUNNING", "to": "BACKOFF", "reason": "killed by SIGKILL"}"#,
        );
        assert_eq!(told(&state), "a/b: RUNNING -> BACKOFF (killed by SIGKILL)");
        assert_eq!(day_and_time(&state, &TimeZone::UTC), "2023-11-14 22:13:20.250");
        let east = TimeZone::fixed(jiff::tz::offset(2));
        assert_eq!(clock(&state, &east), "00:13:20");
        let front = read(r#"{"sequence": 1, "unix_ms": 0, "event": "shutting_down"}"#);
        assert_eq!(told(&front), "mlxd: finishes what runs, then ends");
        let newer = read(r#"{"sequence": 1, "unix_ms": 0, "event": "of_tomorrow", "x": [1]}"#);
        assert_eq!(told(&newer), "mlxd: something that this mlxctl does not know");
    }
}
