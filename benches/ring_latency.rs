//! The ring between two processes: one-way latency and token records per second.
//!
//! ```text
//! cargo bench -p mlxd-benches --bench ring_latency [-- --quick]
//! ```
//! The child is this program, started again as the worker's side. It writes the time into each
//! record; the parent reads the same clock when it has the record. Every measurement is taken
//! several times and the best is shown, with the spread of its kind: on a machine that does other
//! work the others measure the neighbours. Needs two free cores; on Linux each process is bound to
//! one of its own, for a scheduler that puts a polling reader beside its writer measures its own
//! time slice. On a Linux machine that does other work at the same time, `chrt -f 1` before the
//! program itself keeps the others off its two cores while it runs.

use std::env;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use command_fds::{CommandFdExt, FdMapping};
use hdrhistogram::Histogram;
use mlxd_ring::{
    FrontLink, RingError, Segment, SegmentSpec, SendError, WorkerLink, Writer, monotonic_ns,
    take_inherited_fd,
};

/// A token record's size in the protocol.
const RECORD_BYTES: usize = 24;
/// Records per frame, where a step of a batch is one frame.
const BATCH: usize = 16;
const COMMANDS_FD: i32 = 3;
const TOKENS_FD: i32 = 4;
/// Between two records of a latency measurement, so that the reader has taken the last one, and,
/// for the sleeping reader, sleeps again.
const POLLING_GAP: Duration = Duration::from_micros(5);
const SLEEPING_GAP: Duration = Duration::from_micros(100);
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// Looks at the ring without pause.
    Polling,
    /// Sleeps on the doorbell whenever the ring is empty.
    Sleeping,
}

struct Effort {
    polled_records: u64,
    slept_records: u64,
    rate_records: u64,
    repeats: u32,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [role, name, rest @ ..] = arguments.as_slice()
        && role == "--as-worker"
    {
        return work(name, rest);
    }
    pin(0)?;
    let effort = if arguments.iter().any(|argument| argument == "--quick") {
        Effort { polled_records: 20_000, slept_records: 5_000, rate_records: 2_000_000, repeats: 2 }
    } else {
        Effort {
            polled_records: 200_000,
            slept_records: 20_000,
            rate_records: 20_000_000,
            repeats: 5,
        }
    };
    println!("ring between two processes, best of {}", effort.repeats);
    println!("one-way latency of a {RECORD_BYTES}-byte record, ns:");
    println!("  reader       p50      p99    p99.9    p50 of all runs   aim for p50");
    show_latency("polling ", Reading::Polling, POLLING_GAP, 1_000, &effort)?;
    show_latency("sleeping", Reading::Sleeping, SLEEPING_GAP, 20_000, &effort)?;
    println!("{RECORD_BYTES}-byte token records, millions a second:");
    println!("  records a frame   reader      best   all runs");
    show_rate(1, Reading::Polling, &effort)?;
    show_rate(1, Reading::Sleeping, &effort)?;
    show_rate(BATCH, Reading::Polling, &effort)?;
    show_rate(BATCH, Reading::Sleeping, &effort)?;
    println!("  aim: 5 or more");
    Ok(())
}

fn show_latency(
    label: &str,
    reading: Reading,
    gap: Duration,
    aim_ns: u64,
    effort: &Effort,
) -> Result<()> {
    let records = match reading {
        Reading::Polling => effort.polled_records,
        Reading::Sleeping => effort.slept_records,
    };
    let mut runs = Vec::new();
    for _ in 0..effort.repeats {
        runs.push(latency(reading, gap, records)?);
    }
    runs.sort_by_key(|run| run.value_at_quantile(0.5));
    let at = |run: &Histogram<u64>, quantile| run.value_at_quantile(quantile);
    let (best, worst) = (&runs[0], &runs[runs.len() - 1]);
    println!(
        "  {label} {:>7} {:>8} {:>8}    {:>6} to {:<6}   {:>6}: {}",
        at(best, 0.5),
        at(best, 0.99),
        at(best, 0.999),
        at(best, 0.5),
        at(worst, 0.5),
        aim_ns,
        if at(best, 0.5) < aim_ns { "met" } else { "missed" },
    );
    Ok(())
}

fn show_rate(batch: usize, reading: Reading, effort: &Effort) -> Result<()> {
    let mut runs = Vec::new();
    for _ in 0..effort.repeats {
        runs.push(rate(batch, reading, effort.rate_records)?);
    }
    runs.sort_by(f64::total_cmp);
    let (worst, best) = (runs[0], runs[runs.len() - 1]);
    let reader = match reading {
        Reading::Polling => "polling ",
        Reading::Sleeping => "sleeping",
    };
    println!("  {batch:>15}   {reader} {best:>7.1}   {worst:.1} to {best:.1}");
    Ok(())
}

/// Binds this process to the machine's first or second core. The child inherits the parent's
/// binding and replaces it.
#[cfg(target_os = "linux")]
fn pin(core: usize) -> Result<()> {
    use nix::sched::{CpuSet, sched_setaffinity};
    use nix::unistd::Pid;

    let mut set = CpuSet::new();
    set.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &set).context("two cores are needed")
}

/// Other systems place threads themselves.
#[cfg(not(target_os = "linux"))]
fn pin(_core: usize) -> Result<()> {
    Ok(())
}

/// Time from just before the send to just after the receipt, record by record.
fn latency(reading: Reading, gap: Duration, records: u64) -> Result<Histogram<u64>> {
    let gap = gap.as_nanos().to_string();
    let mut run = Run::start(&["latency", &records.to_string(), &gap])?;
    let mut histogram = Histogram::new(3)?;
    let mut record = Vec::new();
    // The first few find cold caches and a reader that is not there yet.
    let warm_up = records / 20;
    run.receive(Reading::Sleeping, &mut record)?;
    for number in 1..records {
        run.receive(reading, &mut record)?;
        let now = monotonic_ns();
        let sent = read_word(&record)?;
        if number >= warm_up {
            histogram.record(now.saturating_sub(sent).max(1))?;
        }
    }
    run.finish()?;
    Ok(histogram)
}

/// Token records a second, in millions, from the first record's receipt to the last's.
fn rate(batch: usize, reading: Reading, records: u64) -> Result<f64> {
    let frames = records / batch as u64;
    let mut run = Run::start(&["rate", &frames.to_string(), &batch.to_string()])?;
    let mut record = Vec::new();
    run.receive(Reading::Sleeping, &mut record)?;
    let begun = monotonic_ns();
    for number in 1..frames {
        run.receive(reading, &mut record)?;
        ensure!(record.len() == RECORD_BYTES * batch, "a frame of {} bytes", record.len());
        ensure!(read_word(&record)? == number, "out of order");
    }
    let seconds = (monotonic_ns() - begun) as f64 / 1e9;
    run.finish()?;
    Ok((frames - 1) as f64 * batch as f64 / seconds / 1e6)
}

fn read_word(record: &[u8]) -> Result<u64> {
    let word = record.first_chunk().context("a record without its word")?;
    Ok(u64::from_ne_bytes(*word))
}

/// A child and the front's ends to it.
struct Run {
    child: Child,
    link: FrontLink,
}

impl Run {
    fn start(task: &[&str]) -> Result<Self> {
        let mut segment = Segment::create(&SegmentSpec::default())?;
        let fds = segment.worker_fds().context("a new segment has doorbells")?;
        let mut command = Command::new(env::current_exe()?);
        command.args(["--as-worker", segment.name()]).args(task).stdin(Stdio::null());
        command.fd_mappings(vec![
            FdMapping { parent_fd: fds.commands, child_fd: COMMANDS_FD },
            FdMapping { parent_fd: fds.tokens, child_fd: TOKENS_FD },
        ])?;
        let child = command.spawn()?;
        Ok(Self { child, link: segment.into_front() })
    }

    fn receive(&mut self, reading: Reading, record: &mut Vec<u8>) -> Result<()> {
        let tokens = &mut self.link.tokens;
        match reading {
            Reading::Polling => {
                let mut looks = 0_u32;
                while tokens.try_recv(record)?.is_none() {
                    std::hint::spin_loop();
                    looks = looks.wrapping_add(1);
                    if looks == 0 {
                        // Only the doorbell tells of a dead child.
                        tokens.woken()?;
                    }
                }
            }
            Reading::Sleeping => {
                if tokens.recv(record, Some(PATIENCE))?.is_none() {
                    bail!("the child is silent");
                }
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        drop(self.link);
        let status = self.child.wait()?;
        ensure!(status.success(), "the child: {status}");
        Ok(())
    }
}

/// The child: attaches, does its task, waits until the parent has read everything.
fn work(name: &str, task: &[String]) -> Result<()> {
    pin(1)?;
    let commands = take_inherited_fd(COMMANDS_FD)?;
    let tokens = take_inherited_fd(TOKENS_FD)?;
    let mut link = WorkerLink::attach(name, commands, tokens)?;
    let [what, count, parameter] = task else {
        bail!("a task has three words");
    };
    let (count, parameter) = (count.parse()?, parameter.parse()?);
    match what.as_str() {
        "latency" => send_timed(&mut link.tokens, count, parameter)?,
        "rate" => send_fast(&mut link.tokens, count, usize::try_from(parameter)?)?,
        other => bail!("no such task: {other}"),
    }
    match link.commands.recv(&mut Vec::new(), None) {
        Err(RingError::PeerGone) => Ok(()),
        other => bail!("the parent said {other:?}"),
    }
}

fn send_timed(writer: &mut Writer, records: u64, gap_ns: u64) -> Result<()> {
    let mut record = [0; RECORD_BYTES];
    for _ in 0..records {
        let next = monotonic_ns() + gap_ns;
        while monotonic_ns() < next {
            std::hint::spin_loop();
        }
        record[..8].copy_from_slice(&monotonic_ns().to_ne_bytes());
        writer.send(1, &record, Some(PATIENCE))?;
    }
    Ok(())
}

fn send_fast(writer: &mut Writer, frames: u64, batch: usize) -> Result<()> {
    let mut frame = vec![0; RECORD_BYTES * batch];
    for number in 0..frames {
        frame[..8].copy_from_slice(&number.to_ne_bytes());
        match writer.try_send(1, &frame) {
            Ok(()) => {}
            Err(SendError::Full) => writer.send(1, &frame, Some(PATIENCE))?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
