//! What is written down about a death, as far as the supervisor knows it.
//!
//! Gathered while a worker lives: its last progress pages and the end of its standard error. What
//! requests it had is for dispatch to add.

use crate::WorkerView;
use mlxd_protocol::admin::{
    CRASH_REPORT_FORMAT, CrashReport, DeathCause, DeathEnd, Deed, Sample, Versions, WorkerState,
};
use mlxd_protocol::{PROTOCOL_VERSION, Phase, exit_code};
use mlxd_ring::Progress;
use nix::sys::signal::Signal;
use std::collections::VecDeque;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Progress pages kept of a life: 10 s at the default interval.
const SAMPLES_MAX: usize = 40;
/// Bytes kept of a life's standard error.
const TAIL_BYTES_MAX: usize = 8 << 10;

/// The end of a life's standard error. Written by the log's thread.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tail(Arc<Mutex<VecDeque<u8>>>);

impl Tail {
    pub(crate) fn push(&self, piece: &[u8]) {
        let mut tail = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        tail.extend(&piece[piece.len().saturating_sub(TAIL_BYTES_MAX)..]);
        let over = tail.len().saturating_sub(TAIL_BYTES_MAX);
        tail.drain(..over);
    }

    fn text(&self) -> String {
        let tail = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let bytes: Vec<u8> = tail.iter().copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// What is gathered about one life.
#[derive(Debug, Default)]
pub(crate) struct Record {
    tail: Tail,
    pub cause: Option<DeathCause>,
    pub deeds: Vec<Deed>,
    pub worker_version: Option<String>,
    samples: VecDeque<(Instant, Progress)>,
}

impl Record {
    /// Of a life whose standard error ends up in `tail`.
    pub(crate) fn new(tail: Tail) -> Self {
        Self { tail, ..Self::default() }
    }

    /// Keeps a look at the progress page.
    pub(crate) fn sample(&mut self, progress: &Progress) {
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back((Instant::now(), *progress));
    }

    fn timeline(&self) -> Vec<Sample> {
        let sample = |(at, page): &(Instant, Progress)| Sample {
            before_ms: at.elapsed().as_millis() as u64,
            phase: phase_name(page),
            step: page.step,
            memory_bytes: page.memory_active_bytes,
            cache_bytes: page.memory_cache_bytes,
            running: page.sequences_running as u32,
            queued: page.sequences_queued as u32,
        };
        self.samples.iter().map(sample).collect()
    }

    /// The report of a death. `view` is the worker's as it was alive, `state` what came of it.
    pub(crate) fn report(
        mut self,
        model: &str,
        view: &WorkerView,
        status: Option<ExitStatus>,
        after: After<'_>,
    ) -> CrashReport {
        let page = view.progress();
        if let Some(page) = &page {
            self.sample(page);
        }
        match after.state {
            WorkerState::Backoff => self.deeds.push(Deed::StartAgain {
                after_ms: after.delay.unwrap_or_default().as_millis() as u64,
            }),
            WorkerState::Fatal => {
                self.deeds.push(Deed::GiveUp { why: after.reason.unwrap_or_default().to_owned() });
            }
            _ => {}
        }
        let since_ns = page.as_ref().map(|page| page.phase_since_ns.max(page.last_step_ns));
        let phase_ms = since_ns.map(|ns| mlxd_ring::monotonic_ns().saturating_sub(ns) / 1_000_000);
        CrashReport {
            format: CRASH_REPORT_FORMAT,
            model: model.to_owned(),
            unix_ms: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_millis() as u64),
            incarnation: view.incarnation.map_or(0, |incarnation| incarnation.0),
            pid: view.pid.unwrap_or(0),
            uptime_ms: view.since.map_or(0, |since| since.elapsed().as_millis() as u64),
            end: death_end(status),
            cause: self.cause.clone().unwrap_or(DeathCause::Itself),
            phase: page.as_ref().map(phase_name),
            phase_ms,
            architecture: view.info.as_ref().map(|info| info.architecture.clone()),
            quantization: view.info.as_ref().map(|info| info.quantization.clone()),
            requests: Vec::new(),
            requests_left_out: 0,
            shortened: false,
            stderr_tail: self.tail.text(),
            timeline: self.timeline(),
            deaths: after.deaths,
            deaths_recent: after.deaths_recent,
            deaths_max: after.deaths_max,
            deeds: self.deeds,
            versions: Versions {
                mlxd: env!("CARGO_PKG_VERSION").to_owned(),
                worker: self.worker_version,
                protocol: PROTOCOL_VERSION,
                system: sysinfo::System::long_os_version()
                    .unwrap_or_else(|_| std::env::consts::OS.to_owned()),
            },
        }
    }
}

/// What the state machine made of a death.
pub(crate) struct After<'a> {
    pub state: WorkerState,
    pub reason: Option<&'a str>,
    pub delay: Option<Duration>,
    pub deaths: u32,
    pub deaths_recent: u32,
    pub deaths_max: u32,
}

fn phase_name(page: &Progress) -> String {
    Phase::from_word(page.phase).map_or_else(|| "unknown".to_owned(), |phase| phase.name().into())
}

fn death_end(status: Option<ExitStatus>) -> DeathEnd {
    let Some(status) = status else { return DeathEnd::Unknown };
    if let Some(number) = status.signal() {
        let name = Signal::try_from(number)
            .map_or_else(|_| format!("signal {number}"), |signal| signal.to_string());
        return DeathEnd::Signal { name, number };
    }
    let code = status.code().unwrap_or(-1);
    DeathEnd::Exit { code, meaning: exit_code::describe(code).to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_keeps_the_end() {
        let tail = Tail::default();
        tail.push(&vec![b'a'; 3 * TAIL_BYTES_MAX]);
        tail.push(b"the end");
        let text = tail.text();
        assert_eq!(text.len(), TAIL_BYTES_MAX);
        assert!(text.ends_with("athe end"));
    }

    #[test]
    fn ends_are_told_apart() {
        assert_eq!(
            death_end(Some(ExitStatus::from_raw(11))),
            DeathEnd::Signal { name: "SIGSEGV".into(), number: 11 }
        );
        let DeathEnd::Exit { code, meaning } = death_end(Some(ExitStatus::from_raw(70 << 8)))
        else {
            panic!("an exit code");
        };
        assert_eq!((code, meaning.as_str()), (70, "the engine failed"));
        assert_eq!(death_end(None), DeathEnd::Unknown);
    }
}
