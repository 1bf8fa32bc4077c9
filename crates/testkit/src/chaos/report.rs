//! What a run came to, in numbers.

use super::clients::Record;
use super::faults::{Deaths, Disturbance, FaultKind};
use super::requests::Manner;
use super::verdict::{Verdict, judge};
use super::{ChaosPlan, Health};
use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

/// Details of what went wrong that a report shows at the most.
const DETAILS_MAX: usize = 20;

/// A silence that begins so long after a worker's end at the latest is the one it caused: what
/// it had published was still being read until then.
const SILENCE_BEGINS: Duration = Duration::from_millis(50);

/// Shorter silences are none: the machine was busy.
const SILENCE_MIN: Duration = Duration::from_millis(10);

/// Longest time from a fault to the end of a worker by it: hang, TERM, KILL on a busy machine.
const FATE_MS: u64 = 15_000;

/// What a run came to.
#[derive(Debug, Default)]
pub struct ChaosReport {
    /// How long it took.
    pub took: Duration,
    /// Faults injected, by kind.
    pub faults: BTreeMap<FaultKind, u64>,
    /// Ends of workers, asked for or not, by how.
    pub worker_ends: BTreeMap<String, u64>,
    /// Requests, and how many of them were streams.
    pub requests: u64,
    /// See `requests`.
    pub streams: u64,
    /// Slow clients.
    pub slow: u64,
    /// Clients that hung up.
    pub left: u64,
    /// Answers equal to their undisturbed twins.
    pub complete: u64,
    /// Errors in words whose cause was injected, by code.
    pub explained: BTreeMap<String, u64>,
    /// Whole answers with tokens missing.
    pub lost: u64,
    /// Whole answers with tokens twice.
    pub duplicated: u64,
    /// Beginnings that looked whole.
    pub truncated: u64,
    /// Answers that are otherwise wrong.
    pub wrong: u64,
    /// Whatever nobody injected: errors, cut connections, deaths, a sick front, leftovers.
    pub unexplained: u64,
    /// By kind: from the fault to the next event of each stream that it caught in the middle,
    /// sorted. For a hang the time until it is noticed is part of it.
    pub recoveries: BTreeMap<FaultKind, Vec<Duration>>,
    /// How often `/health` was asked, and its slowest answer.
    pub health_asked: u64,
    /// See `health_asked`.
    pub health_slowest: Duration,
    /// The first things that went wrong, in words.
    pub details: Vec<String>,
}

impl ChaosReport {
    /// Faults injected.
    pub fn faults_total(&self) -> u64 {
        self.faults.values().sum()
    }

    /// Whether nothing is lost, doubled, truncated, wrong or unexplained.
    pub fn is_clean(&self) -> bool {
        self.lost + self.duplicated + self.truncated + self.wrong + self.unexplained == 0
    }

    fn detail(&mut self, text: impl FnOnce() -> String) {
        if self.details.len() < DETAILS_MAX {
            self.details.push(text());
        }
    }

    fn count(&mut self, record: &Record, verdict: Verdict) {
        self.requests += 1;
        self.streams += u64::from(record.ask.is_stream());
        self.slow += u64::from(matches!(record.ask.manner, Manner::Slow { .. }));
        let what = match &verdict {
            Verdict::Complete => return self.complete += 1,
            Verdict::Left => return self.left += 1,
            Verdict::Explained(code) => {
                return *self.explained.entry(code.clone()).or_default() += 1;
            }
            Verdict::Lost => &mut self.lost,
            Verdict::Duplicated => &mut self.duplicated,
            Verdict::Truncated => &mut self.truncated,
            Verdict::Wrong(_) => &mut self.wrong,
            Verdict::Unexplained(_) => &mut self.unexplained,
        };
        *what += 1;
        self.detail(|| {
            let Record { began_ms, ended_ms, ask, outcome, expected, .. } = record;
            format!(
                "{verdict:?}\n  asked {began_ms} to {ended_ms}: {}\n  got {outcome:?}\n  not {expected:?}",
                ask.body
            )
        });
    }
}

/// Judges and counts everything.
pub(super) fn sum_up(
    plan: &ChaosPlan,
    records: &[Record],
    disturbances: &[Disturbance],
    deaths: &Deaths,
    health: &Health,
    left_over: Vec<String>,
    took: Duration,
) -> ChaosReport {
    let mut report = ChaosReport {
        took,
        health_asked: health.asked,
        health_slowest: health.slowest,
        unexplained: health.failed + deaths.missed + left_over.len() as u64,
        ..ChaosReport::default()
    };
    report.details = left_over;
    for done in disturbances {
        *report.faults.entry(done.kind).or_default() += 1;
    }
    for (.., how) in &deaths.all {
        *report.worker_ends.entry(how.clone()).or_default() += 1;
    }
    for record in records {
        let verdict = judge(record, plan.request_deaths_max, deaths, disturbances);
        report.count(record, verdict);
    }
    for (model, at, how) in unasked_deaths(deaths, disturbances) {
        report.unexplained += 1;
        report.detail(|| format!("a worker of model {model} ended at {at}: {how}"));
    }
    for done in disturbances.iter().filter(|done| done.kind.is_recovered_from()) {
        let recoveries = report.recoveries.entry(done.kind).or_default();
        let readers = records.iter().filter(|record| {
            record.model == done.model && !matches!(record.ask.manner, Manner::Slow { .. })
        });
        let Some(death) = death_by(done, deaths) else { continue };
        // The engine carries out what it is asked to at its next step.
        let from = if done.kind.is_asked() { death } else { done.at };
        recoveries.extend(readers.filter_map(|record| recovery(&record.read_at, from, death)));
    }
    report.recoveries.values_mut().for_each(|times| times.sort_unstable());
    report
}

/// When the worker ended by a fault.
fn death_by(done: &Disturbance, deaths: &Deaths) -> Option<Instant> {
    let fate = done.began_ms..=done.ended_ms + FATE_MS;
    let mut ends =
        deaths.all.iter().filter(|(model, at, _)| *model == done.model && fate.contains(at));
    ends.next().map(|(_, at, _)| done.at + Duration::from_millis(at - done.began_ms))
}

/// From `from` to the first event after a death of a stream that was in the middle of its answer.
fn recovery(read_at: &[Instant], from: Instant, death: Instant) -> Option<Duration> {
    let silences = read_at.windows(2).filter(|pair| {
        let [before, after] = pair else { return false };
        *after > death && *before <= death + SILENCE_BEGINS && *after - *before >= SILENCE_MIN
    });
    let longest = silences.max_by_key(|pair| pair[1] - pair[0])?;
    read_at.first().filter(|first| **first < from)?;
    Some(longest[1] - from)
}

/// Ends of workers for which there is no fault: each fault accounts for one.
fn unasked_deaths<'a>(
    deaths: &'a Deaths,
    disturbances: &[Disturbance],
) -> Vec<&'a (usize, u64, String)> {
    let mut open: Vec<&Disturbance> =
        disturbances.iter().filter(|done| done.kind.may_kill()).collect();
    open.sort_by_key(|done| done.began_ms);
    let mut is_unasked = |(model, at, _): &&(usize, u64, String)| {
        let cause = open.iter().position(|done| {
            done.model == *model
                && done.began_ms <= at + 1
                && *at <= done.ended_ms.saturating_add(FATE_MS)
        });
        cause.map(|place| open.remove(place)).is_none()
    };
    deaths.all.iter().filter(|death| is_unasked(death)).collect()
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let place = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(place).copied().unwrap_or_default()
}

fn counts(of: &BTreeMap<String, u64>) -> String {
    of.iter().map(|(what, count)| format!("{what} {count}")).collect::<Vec<_>>().join(", ")
}

fn times(name: &str, sorted: &[Duration]) -> String {
    format!(
        "{name:<24}p50 {} ms, p99 {} ms, longest {} ms ({} streams)",
        percentile(sorted, 50).as_millis(),
        percentile(sorted, 99).as_millis(),
        percentile(sorted, 100).as_millis(),
        sorted.len()
    )
}

impl fmt::Display for ChaosReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by_kind: Vec<String> =
            self.faults.iter().map(|(kind, count)| format!("{kind:?} {count}")).collect();
        let explained: u64 = self.explained.values().sum();
        let by_code = counts(&self.explained);
        let ends: u64 = self.worker_ends.values().sum();
        writeln!(f, "{:<24}{:.0?}", "time", self.took)?;
        writeln!(f, "{:<24}{} ({})", "faults injected", self.faults_total(), by_kind.join(", "))?;
        writeln!(
            f,
            "{:<24}{}",
            "worker ends",
            format_args!("{ends} ({})", counts(&self.worker_ends))
        )?;
        writeln!(f, "{:<24}{} ({} streams)", "requests", self.requests, self.streams)?;
        writeln!(f, "{:<24}{} slow, {} left", "clients", self.slow, self.left)?;
        writeln!(f, "{:<24}{}", "equal to their twin", self.complete)?;
        writeln!(f, "{:<24}{explained} ({})", "explained errors", by_code)?;
        writeln!(f, "{:<24}{}", "lost", self.lost)?;
        writeln!(f, "{:<24}{}", "duplicated", self.duplicated)?;
        writeln!(f, "{:<24}{}", "clean but truncated", self.truncated)?;
        writeln!(f, "{:<24}{}", "wrong", self.wrong)?;
        writeln!(f, "{:<24}{}", "unexplained", self.unexplained)?;
        let of = |hangs: bool| {
            let kinds = self.recoveries.iter().filter(move |(kind, _)| kind.is_hang() == hangs);
            let mut all: Vec<_> = kinds.flat_map(|(_, times)| times.iter().copied()).collect();
            all.sort_unstable();
            all
        };
        writeln!(f, "{}", times("death to next token", &of(false)))?;
        writeln!(f, "{}", times("hang to next token", &of(true)))?;
        for (kind, sorted) in &self.recoveries {
            writeln!(f, "{}", times(&format!("  {kind:?}"), sorted))?;
        }
        writeln!(
            f,
            "{:<24}{} times, slowest {:.0?}",
            "/health", self.health_asked, self.health_slowest
        )?;
        self.details.iter().try_for_each(|detail| writeln!(f, "! {detail}"))
    }
}
