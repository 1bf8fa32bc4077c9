//! `mlxctl pull`: the pull runs inside mlxd, this shows it.
//!
//! Ctrl-C calls it off, as with other model tools, unless somebody else watches it too; what has
//! come is kept. A terminal that is closed, or a client that is killed, leaves it going on.

use crate::arguments::Pull;
use crate::client::{Failure, Front, Patience, broken};
use crate::exit::Exit;
use crate::lines::Lines;
use crate::output::{self, harmless};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use mlxd_config::Environment;
use mlxd_protocol::admin::{
    PullCall, PullCancelCall, PullFileStatus, PullRetry, PullStage, PullStatus,
};
use mlxd_protocol::bytes_in_short;
use std::collections::HashMap;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// mlxd tells how it goes five times a second.
const SILENCE_MAX: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(120);
/// The first line, and what it is while the hub does not say what there is.
const TOTAL: &str = "{spinner} {msg} {bar:30} {decimal_bytes}/{decimal_total_bytes} \
                     {decimal_bytes_per_sec} {eta}";
const WAITING: &str = "{spinner} {wide_msg}";
/// Lines for single files at the most.
const FILE_BARS_MAX: usize = 8;

/// Begins, joins or calls off a pull.
pub(crate) async fn pull(front: &Front, arguments: Pull, as_json: bool) -> Result<Exit, Failure> {
    if arguments.cancel {
        let status = cancel(front, &arguments.model, true).await?;
        let line = format!("{}: called off; the next pull goes on from there", status.model);
        return output::line(&harmless(&line)).map(|()| Exit::Success);
    }
    let environment = Environment::of_process();
    let token = environment.hf_token.as_ref().map(|token| token.reveal().to_owned());
    let call = PullCall {
        model: arguments.model.clone(),
        endpoint: arguments.endpoint.or(environment.hf_endpoint),
        token,
        offline: arguments.offline || environment.hf_offline,
    };
    // Registered before there is anything to call off.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let patience = Patience::Stream(Some(SILENCE_MAX));
    let mut response = front.post_stream("/admin/v1/pull", &call, patience).await?;
    let mut lines = Lines::default();
    let mut shown = Shown::new(as_json);
    let mut last: Option<PullStatus> = None;
    loop {
        let piece = tokio::select! {
            piece = response.chunk() => piece.map_err(broken)?,
            _ = interrupt.recv() => {
                let status = cancel(front, &arguments.model, false).await?;
                if status.watchers > 1 {
                    shown.end();
                    let others = status.watchers - 1;
                    let line = format!("{}: goes on, {others} more watch it", status.model);
                    output::line(&harmless(&line))?;
                    return Ok(Exit::Generic);
                }
                continue;
            }
        };
        let Some(piece) = piece else { break };
        for line in lines.take(&piece)? {
            let status: PullStatus = serde_json::from_str(&line).map_err(|error| {
                Failure::Broken(format!("mlxd's answer is not understood: {error}"))
            })?;
            if as_json {
                output::line(&line)?;
            }
            shown.show(&status);
            last = Some(status);
        }
        let is_begun = last.as_ref().is_some_and(|status| status.stage != PullStage::Asking);
        if arguments.background && is_begun {
            break;
        }
    }
    shown.end();
    finish(last, as_json)
}

async fn cancel(front: &Front, model: &str, force: bool) -> Result<PullStatus, Failure> {
    let call = PullCancelCall { model: model.to_owned(), force };
    front.post("/admin/v1/pull/cancel", &call, Patience::Quick).await
}

/// The last line, and how mlxctl ends.
fn finish(last: Option<PullStatus>, as_json: bool) -> Result<Exit, Failure> {
    let Some(status) = last else {
        return Err(Failure::Broken("mlxd said nothing of the pull".into()));
    };
    match (status.stage, status.error) {
        (_, Some(error)) => Err(Failure::Admin(error)),
        (PullStage::Done, None) if as_json => Ok(Exit::Success),
        (PullStage::Done, None) => {
            let bytes: u64 = status.files.iter().map(|file| file.bytes_total).sum();
            let commit = status.commit.unwrap_or_default();
            let commit = commit.get(..7).unwrap_or(&commit);
            let news = match status.bytes_fetched {
                0 => "is here already".to_owned(),
                fetched if fetched == bytes => "pulled".to_owned(),
                fetched => format!("pulled, {} of it now", bytes_in_short(fetched)),
            };
            let size = match status.files.len() {
                0 => String::new(),
                files => format!(", {files} files, {}", bytes_in_short(bytes)),
            };
            let line = format!("{}: {news}{size}, commit {commit}", status.model);
            output::line(&harmless(&line)).map(|()| Exit::Success)
        }
        (stage, None) if stage.is_end() => Err(Failure::Broken("the pull failed".into())),
        _ => {
            let line = format!("{}: goes on inside mlxd; `mlxctl list` shows it", status.model);
            output::line(&harmless(&line)).map(|()| Exit::Success)
        }
    }
}

/// Bars on a terminal, a line for each file elsewhere.
struct Shown {
    bars: Option<Bars>,
    is_silent: bool,
    finished: Vec<String>,
    troubles: HashMap<String, String>,
    /// The number of the last retry that was told.
    retries_told: u64,
}

struct Bars {
    all: MultiProgress,
    total: ProgressBar,
    /// Whether the hub does not say what there is, and the first line tells that alone.
    is_waiting: bool,
    files: HashMap<String, ProgressBar>,
}

impl Shown {
    fn new(as_json: bool) -> Self {
        let bars = (output::is_terminal() && !as_json).then(Bars::new);
        Self {
            bars,
            is_silent: as_json,
            finished: Vec::new(),
            troubles: HashMap::new(),
            retries_told: 0,
        }
    }

    fn show(&mut self, status: &PullStatus) {
        if self.is_silent {
            return;
        }
        if let Some(bars) = &mut self.bars {
            bars.show(status);
            return;
        }
        for line in self.news_of_retries(status) {
            eprintln!("mlxctl: {}", harmless(&line));
        }
        for file in &status.files {
            match &file.trouble {
                // Told with the attempt it leads to.
                Some(_) if retry_of(status, file).is_some() => {}
                Some(trouble) if self.troubles.get(&file.name) != Some(trouble) => {
                    eprintln!(
                        "mlxctl: {}: {}, trying again",
                        harmless(&file.name),
                        harmless(trouble)
                    );
                    self.troubles.insert(file.name.clone(), trouble.clone());
                }
                _ => {}
            }
            let is_new = !self.finished.contains(&file.name);
            if file.bytes_done == file.bytes_total && is_new {
                let size = bytes_in_short(file.bytes_total);
                eprintln!("mlxctl: {}: here, {size}", harmless(&file.name));
                self.finished.push(file.name.clone());
            }
        }
    }

    /// A line for each retry that was not told.
    fn news_of_retries(&mut self, status: &PullStatus) -> Vec<String> {
        let told = self.retries_told;
        let new = status.retries.iter().filter(|retry| retry.number > told);
        self.retries_told = new.clone().map(|retry| retry.number).fold(told, u64::max);
        new.map(retrying).collect()
    }

    fn end(&mut self) {
        if let Some(bars) = self.bars.take() {
            // The terminal may be gone; then nobody misses them.
            let _ = bars.all.clear();
        }
    }
}

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::new();
        let total = all.add(ProgressBar::new(0));
        total.set_style(style(TOTAL));
        total.enable_steady_tick(TICK);
        Self { all, total, is_waiting: false, files: HashMap::new() }
    }

    fn show(&mut self, status: &PullStatus) {
        let (bytes_total, bytes_done) = status.bytes();
        // Those for a file's bytes stand on the file's line.
        let retry = status.retries.iter().rfind(|retry| retry.file.is_none());
        if self.is_waiting != retry.is_some() {
            self.is_waiting = retry.is_some();
            self.total.set_style(style(if self.is_waiting { WAITING } else { TOTAL }));
        }
        self.total.set_message(match (retry, status.stage) {
            (Some(retry), _) => harmless(&retrying(retry)),
            (None, PullStage::Asking) => "asking".to_owned(),
            (None, PullStage::Finishing) => "finishing".to_owned(),
            (None, _) => harmless(&status.model),
        });
        self.total.set_length(bytes_total);
        if self.total.position() == 0 && bytes_done > 0 {
            // What was here before says nothing of the speed.
            self.total.set_position(bytes_done);
            self.total.reset_eta();
        }
        self.total.set_position(bytes_done);
        for file in &status.files {
            let is_under_way = file.bytes_done > 0 && file.bytes_done < file.bytes_total;
            if !is_under_way && file.trouble.is_none() {
                if let Some(bar) = self.files.remove(&file.name) {
                    bar.finish_and_clear();
                }
                continue;
            }
            if !self.files.contains_key(&file.name) && self.files.len() >= FILE_BARS_MAX {
                continue;
            }
            let bar = self.files.entry(file.name.clone()).or_insert_with(|| {
                let bar = self.all.add(ProgressBar::new(file.bytes_total));
                bar.set_style(style("  {bar:30} {decimal_bytes}/{decimal_total_bytes} {msg}"));
                bar
            });
            bar.set_position(file.bytes_done);
            bar.set_message(harmless(&match (retry_of(status, file), &file.trouble) {
                (Some(retry), _) => retrying(retry),
                (None, Some(trouble)) => format!("{}: {trouble}", file.name),
                (None, None) => file.name.clone(),
            }));
        }
    }
}

/// The retry that the bytes of `file` wait for.
fn retry_of<'a>(status: &'a PullStatus, file: &PullFileStatus) -> Option<&'a PullRetry> {
    status.retries.iter().find(|retry| retry.file.as_ref() == Some(&file.name))
}

/// The fault and the next attempt first: the end of a line is lost on a narrow terminal.
fn retrying(retry: &PullRetry) -> String {
    let PullRetry { what, file, endpoint, fault, attempt, attempts_max, wait_ms, .. } = retry;
    let what = match file {
        Some(file) => file.clone(),
        None => format!("{what} from {endpoint}"),
    };
    let when = match wait_ms.div_ceil(1000) {
        0 => "now".to_owned(),
        seconds => format!("in {seconds} s"),
    };
    format!("{fault}, trying again {when} (attempt {attempt} of {attempts_max}): {what}")
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry(number: u64, file: Option<&str>, attempt: u32, wait_ms: u64) -> PullRetry {
        PullRetry {
            what: format!("{} of org/m", file.unwrap_or("config.json")),
            file: file.map(str::to_owned),
            endpoint: "http://127.0.0.1:9".into(),
            fault: "nobody answers there".into(),
            attempt,
            attempts_max: 8,
            wait_ms,
            number,
        }
    }

    fn status(stage: PullStage, retries: Vec<PullRetry>) -> PullStatus {
        let file = PullFileStatus {
            name: "w".into(),
            bytes_total: 9,
            bytes_done: 1,
            trouble: retries.first().map(|retry| retry.fault.clone()),
        };
        PullStatus {
            model: "org/m".into(),
            stage,
            commit: None,
            files: if stage == PullStage::Asking { Vec::new() } else { vec![file] },
            bytes_fetched: 0,
            retries,
            elapsed_ms: 0,
            watchers: 1,
            folder: None,
            error: None,
        }
    }

    const ASKED: &str = "config.json of org/m from http://127.0.0.1:9";

    #[test]
    fn every_retry_has_its_line_once() {
        let mut shown = Shown::new(false);
        let mut told = |retries| shown.news_of_retries(&status(PullStage::Asking, retries));
        let first = format!("nobody answers there, trying again in 1 s (attempt 2 of 8): {ASKED}");
        assert_eq!(told(vec![retry(1, None, 2, 480)]), [first]);
        assert_eq!(told(vec![retry(1, None, 2, 280)]), [""; 0]);
        assert_eq!(told(vec![retry(1, None, 2, 0)]), [""; 0]);
        let second = format!("nobody answers there, trying again in 2 s (attempt 3 of 8): {ASKED}");
        let third = "nobody answers there, trying again now (attempt 2 of 8): w";
        assert_eq!(
            told(vec![retry(3, Some("w"), 2, 0), retry(2, None, 3, 1001)]),
            [third, &second]
        );
        assert_eq!(told(Vec::new()), [""; 0]);
    }

    #[test]
    fn the_progress_line_says_what_is_waited_for() {
        let mut bars = Bars::new();
        bars.show(&status(PullStage::Asking, vec![retry(1, None, 2, 3200)]));
        let line = format!("nobody answers there, trying again in 4 s (attempt 2 of 8): {ASKED}");
        assert_eq!((bars.total.message(), bars.is_waiting), (line, true));
        bars.show(&status(PullStage::Asking, Vec::new()));
        assert_eq!((bars.total.message().as_str(), bars.is_waiting), ("asking", false));
        bars.show(&status(PullStage::Fetching, vec![retry(2, Some("w"), 2, 900)]));
        assert_eq!(bars.total.message(), "org/m");
        let of_file = "nobody answers there, trying again in 1 s (attempt 2 of 8): w";
        assert_eq!(bars.files["w"].message(), of_file);
    }
}
