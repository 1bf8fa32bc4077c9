//! `mlxctl why`: a worker's last death in plain words.

use crate::client::{Failure, Front};
use crate::exit::Exit;
use crate::output::{self, harmless};
use crate::units;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use mlxd_protocol::admin::{CrashReport, DeathCause, DeathEnd, Deed, Why, WorkerState};
use mlxd_protocol::bytes_in_short;

/// Lines of the worker's standard error that are shown.
const STDERR_LINES_MAX: usize = 12;
/// Requests that are listed one by one.
const REQUESTS_MAX: usize = 8;

/// Asks and explains.
pub(crate) async fn why(front: &Front, model: &str, as_json: bool) -> Result<Exit, Failure> {
    let why: Why = front.get_about("/admin/v1/why", &[("model", model)]).await?;
    match as_json {
        true => output::json(&why)?,
        false => output::piece(&harmless(&explained(&why, &TimeZone::system(), Timestamp::now())))?,
    }
    Ok(Exit::Success)
}

/// The explanation.
fn explained(why: &Why, zone: &TimeZone, now: Timestamp) -> String {
    let mut lines = Vec::new();
    match &why.report {
        None => lines.push(format!("{}: no death of its worker is on record.", why.status.name)),
        Some(report) => {
            lines.push(headline(report, zone, now));
            lines.push(meaning(report));
            lines.extend(requests(report));
            lines.extend(memory(report));
            lines.push("What mlxd did:".to_owned());
            lines.extend(deeds(report));
            lines.extend(last_words(report));
        }
    }
    lines.push(at_present(why));
    if let (WorkerState::Stopped, Some(reason)) = (why.status.state, &why.status.reason) {
        lines.push(format!("It was not loaded when that was asked for last: {reason}."));
    }
    if let Some(folder) = &why.folder {
        let others = match why.reports {
            0 | 1 => String::new(),
            count => format!(", the newest of {count}"),
        };
        lines.push(format!("The whole report{others}: {folder}"));
    }
    lines.join("\n") + "\n"
}

fn headline(report: &CrashReport, zone: &TimeZone, now: Timestamp) -> String {
    let at = i64::try_from(report.unix_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let at = at.unwrap_or(Timestamp::UNIX_EPOCH);
    let ago = now.duration_since(at).as_secs().max(0).unsigned_abs();
    let doing = match report.phase.as_deref() {
        Some("idle") => " while it had nothing to do".to_owned(),
        Some(phase) => format!(", in {phase}{}", lasting(report.phase_ms)),
        None => String::new(),
    };
    format!(
        "{}: its worker (pid {}) died at {}, {} ago, after {}{doing}: {}.",
        report.model,
        report.pid,
        at.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S"),
        units::duration(ago),
        units::duration(report.uptime_ms / 1000),
        end(&report.end),
    )
}

fn lasting(phase_ms: Option<u64>) -> String {
    phase_ms.map(|ms| format!(" for {}", seconds(ms))).unwrap_or_default()
}

fn seconds(ms: u64) -> String {
    format!("{:.1} s", ms as f64 / 1000.0)
}

fn end(end: &DeathEnd) -> String {
    match end {
        DeathEnd::Signal { name, .. } => format!("ended by {name}"),
        DeathEnd::Exit { code, meaning } => format!("exit code {code}, {meaning}"),
        DeathEnd::Unknown => "how it ended is not known".to_owned(),
    }
}

/// What that means for who reads it.
fn meaning(report: &CrashReport) -> String {
    match &report.cause {
        DeathCause::Hang { still_ms, limit_ms, key } => format!(
            "It stood still for {}, longer than {} ({key}), so mlxd ended it. If the model is only \
             slow, raise that limit.",
            seconds(*still_ms),
            seconds(*limit_ms)
        ),
        DeathCause::Overdue { why } => {
            format!("mlxd ended it: {why}. If it is only slow, raise that limit.")
        }
        DeathCause::Condemned { why } => {
            format!("mlxd ended it, because it could not be trusted any more: {why}.")
        }
        DeathCause::Itself => match &report.end {
            DeathEnd::Signal { name, .. } => signal_meaning(name),
            DeathEnd::Exit { code: 0, .. } => {
                "It finished what it had and ended, as on SIGTERM: somebody told its process to."
                    .to_owned()
            }
            DeathEnd::Exit { .. } => {
                "It gave up by itself; what it said last stands below.".to_owned()
            }
            DeathEnd::Unknown => "Nothing more is known of it.".to_owned(),
        },
    }
}

fn signal_meaning(name: &str) -> String {
    match name {
        "SIGKILL" => {
            "Somebody killed it, or the operating system did: because memory ran out, or because \
             it took more than mlxd lets it (overrun_percent under [memory]). See the system's \
             log, and the memory figures below."
        }
        "SIGSEGV" | "SIGBUS" | "SIGILL" | "SIGFPE" | "SIGTRAP" => {
            "It crashed inside its own code or a library's: a fault of mlxd, of MLX or of the \
             machine, most likely not of your request. Please report it, with the report below."
        }
        "SIGABRT" => {
            "It ended itself because something that must not happen did: an MLX or Metal error, \
             or an allocation that failed; unless somebody sent it this signal. What it said last \
             stands below."
        }
        "SIGTERM" | "SIGINT" | "SIGHUP" | "SIGQUIT" => {
            "Somebody told its process to end, past mlxd. To stop a model use `mlxctl stop`."
        }
        _ => "A signal from outside mlxd ended it.",
    }
    .to_owned()
}

fn requests(report: &CrashReport) -> Vec<String> {
    let left_out = report.requests_left_out as usize;
    let total = report.requests.len() + left_out;
    if total == 0 {
        return vec!["It had no requests.".to_owned()];
    }
    let mut lines = vec![format!("It had {}:", counted(total, "request"))];
    for request in report.requests.iter().take(REQUESTS_MAX) {
        let place = if request.running { "running" } else { "waiting" };
        let again = match request.deaths {
            0 | 1 => String::new(),
            deaths => format!(", present at {deaths} deaths in a row"),
        };
        lines.push(format!(
            "  {} {place}: prompt of {}, {} of at most {} generated{again}",
            request.id,
            counted(request.prompt_tokens as usize, "token"),
            request.generated_tokens,
            request.max_tokens
        ));
    }
    let more = report.requests.len().saturating_sub(REQUESTS_MAX) + left_out;
    if more > 0 {
        lines.push(format!("  and {more} more"));
    }
    lines
}

fn counted(count: usize, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    }
}

fn memory(report: &CrashReport) -> Option<String> {
    let (first, last) = (report.timeline.first()?, report.timeline.last()?);
    let most = report.timeline.iter().map(|sample| sample.memory_bytes).max().unwrap_or(0);
    Some(format!(
        "Memory of the engine: {} at {} before, {} at the last look, {} at the most; steps {} to {}.",
        bytes_in_short(first.memory_bytes),
        seconds(first.before_ms),
        bytes_in_short(last.memory_bytes),
        bytes_in_short(most),
        first.step,
        last.step
    ))
}

fn deeds(report: &CrashReport) -> Vec<String> {
    if report.deeds.is_empty() {
        return vec!["  nothing".to_owned()];
    }
    let told = |deed: &Deed| match deed {
        Deed::Signalled { signal } => format!("sent {signal}"),
        Deed::Passed { signal } => format!("sent {signal}, as `mlxctl signal` asked"),
        Deed::StartAgain { after_ms } => format!(
            "starts another worker after {} (death {} of {} that are borne)",
            seconds(*after_ms),
            report.deaths_recent,
            report.deaths_max
        ),
        Deed::GiveUp { why } => {
            format!("gave the model up: {why}. `mlxctl start {}` tries again", report.model)
        }
        Deed::Replay { requests } => format!(
            "kept {} for the next worker, which goes on where this one stopped",
            counted(*requests as usize, "request")
        ),
        Deed::Quarantine { request } => {
            format!("ended request {request} with an error: worker after worker died with it")
        }
        Deed::Fail { requests, why } => {
            format!("ended {} with an error: {why}", counted(*requests as usize, "request"))
        }
    };
    report.deeds.iter().map(|deed| format!("  {}", told(deed))).collect()
}

fn last_words(report: &CrashReport) -> Vec<String> {
    let said: Vec<&str> = report.stderr_tail.trim_end().lines().collect();
    if said.is_empty() {
        let line = match report.shortened {
            true => "What it said was left out of the report (workers.crash_report_bytes_max).",
            false => "It said nothing on its standard error.",
        };
        return vec![line.to_owned()];
    }
    let shown = &said[said.len().saturating_sub(STDERR_LINES_MAX)..];
    let head = "The end of what it said:".to_owned();
    std::iter::once(head).chain(shown.iter().map(|line| format!("  | {line}"))).collect()
}

fn at_present(why: &Why) -> String {
    let status = &why.status;
    let deaths = match status.deaths {
        0 => "no death counts against it since mlxd started".to_owned(),
        1 => "it died once since mlxd started".to_owned(),
        count => format!("it died {count} times since mlxd started"),
    };
    let state = match status.state {
        WorkerState::Fatal => format!("FATAL; `mlxctl start {}` tries again", status.name),
        state => state.name().to_owned(),
    };
    format!("Now: {state}; {deaths}.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlxd_protocol::admin::{CRASH_REPORT_FORMAT, ModelStatus, RequestShape, Sample, Versions};

    fn status(state: &str, deaths: u32) -> ModelStatus {
        serde_json::from_value(serde_json::json!({
            "name": "org/m", "state": state, "requests_total": 0, "tokens_total": 0,
            "running": 0, "queued": 0, "tokens_per_s": 0.0, "deaths": deaths,
        }))
        .unwrap()
    }

    fn report() -> CrashReport {
        let sample = |before_ms, step, memory_bytes| Sample {
            before_ms,
            phase: "decode".into(),
            step,
            memory_bytes,
            cache_bytes: 0,
            running: 2,
            queued: 1,
        };
        let request = |id: &str, running, deaths| RequestShape {
            id: id.into(),
            prompt_tokens: 1,
            generated_tokens: 7,
            max_tokens: 100,
            running,
            deaths,
            prompt: None,
        };
        CrashReport {
            format: CRASH_REPORT_FORMAT,
            model: "org/m".into(),
            unix_ms: 1_700_000_000_000,
            incarnation: 3,
            pid: 4711,
            uptime_ms: 62_000,
            end: DeathEnd::Signal { name: "SIGSEGV".into(), number: 11 },
            cause: DeathCause::Itself,
            phase: Some("decode".into()),
            phase_ms: Some(1500),
            architecture: None,
            quantization: None,
            requests: vec![request("r1", true, 1), request("r2", false, 2)],
            requests_left_out: 0,
            shortened: false,
            stderr_tail: "one\ntwo\n".into(),
            timeline: vec![sample(4000, 10, 1_000_000_000), sample(50, 90, 3_000_000_000)],
            deaths: 2,
            deaths_recent: 1,
            deaths_max: 5,
            deeds: vec![
                Deed::StartAgain { after_ms: 500 },
                Deed::Replay { requests: 1 },
                Deed::Quarantine { request: "r2".into() },
            ],
            versions: Versions::default(),
        }
    }

    fn text(report: Option<CrashReport>, state: &str) -> String {
        let folder = report.as_ref().map(|_| "/s/crashes/m/1".to_owned());
        let why = Why { status: status(state, 2), report, folder, reports: 4 };
        explained(&why, &TimeZone::UTC, Timestamp::from_second(1_700_000_065).unwrap())
    }

    #[test]
    fn a_crash_is_explained() {
        assert_eq!(
            text(Some(report()), "RUNNING"),
            "\
org/m: its worker (pid 4711) died at 2023-11-14 22:13:20, 0:01:05 ago, after 0:01:02, in decode for 1.5 s: ended by SIGSEGV.
It crashed inside its own code or a library's: a fault of mlxd, of MLX or of the machine, most likely not of your request. Please report it, with the report below.
It had 2 requests:
  r1 running: prompt of 1 token, 7 of at most 100 generated
  r2 waiting: prompt of 1 token, 7 of at most 100 generated, present at 2 deaths in a row
Memory of the engine: 1.00 GB at 4.0 s before, 3.00 GB at the last look, 3.00 GB at the most; steps 10 to 90.
What mlxd did:
  starts another worker after 0.5 s (death 1 of 5 that are borne)
  kept 1 request for the next worker, which goes on where this one stopped
  ended request r2 with an error: worker after worker died with it
The end of what it said:
  | one
  | two
Now: RUNNING; it died 2 times since mlxd started.
The whole report, the newest of 4: /s/crashes/m/1
"
        );
    }

    #[test]
    fn a_hang_names_the_limit_and_fatal_the_way_out() {
        let mut hung = report();
        hung.end = DeathEnd::Signal { name: "SIGKILL".into(), number: 9 };
        hung.cause = DeathCause::Hang {
            still_ms: 61_000,
            limit_ms: 60_000,
            key: "workers.decode_hang_ms".into(),
        };
        hung.deeds = vec![Deed::GiveUp { why: "it died 6 times within 300 s".into() }];
        hung.stderr_tail.clear();
        let text = text(Some(hung), "FATAL");
        for part in [
            "stood still for 61.0 s, longer than 60.0 s (workers.decode_hang_ms)",
            "gave the model up: it died 6 times within 300 s. `mlxctl start org/m` tries again",
            "It said nothing on its standard error.",
            "Now: FATAL; `mlxctl start org/m` tries again",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
    }

    #[test]
    fn one_that_was_ended_is_not_said_to_have_given_up() {
        let ended = DeathEnd::Exit { code: 0, meaning: "finished".into() };
        let limit = "not loaded within 300s (workers.load_timeout_ms)";
        let mut late = CrashReport { end: ended, shortened: true, ..report() };
        late.stderr_tail.clear();
        late.deeds = vec![Deed::Passed { signal: "SIGTERM".into() }];
        let told = text(Some(late.clone()), "EXITED");
        assert!(told.contains("somebody told its process to"), "{told}");
        assert!(told.contains("sent SIGTERM, as `mlxctl signal` asked"), "{told}");
        assert!(told.contains("left out of the report"), "{told}");
        late.cause = DeathCause::Overdue { why: limit.into() };
        let told = text(Some(late), "BACKOFF");
        assert!(told.contains(&format!("mlxd ended it: {limit}")), "{told}");
    }

    #[test]
    fn without_a_death_it_says_so() {
        let text = text(None, "RUNNING");
        assert!(text.starts_with("org/m: no death of its worker is on record.\n"), "{text}");
    }
}
