//! Many streams for a long time: what memory does, whether anybody waits for ever, and how even
//! tokens come.
//!
//! ```text
//! cargo build --release --bin mlxd --bin mlxd-worker --bin mlxd-scripted-worker
//! cargo bench -p mlxd-benches --bench soak [-- --minutes 10] [--engine scripted|real]
//!     [--streams 256] [--tokens 400] [--step-us 20000]
//! ```
//! So many chat streams are open all the time (256 of the scripted engine, 32 of the real one
//! with the built-in model); when one ends, another begins in its place, on a new connection and
//! with one of 500 prompts. Every answer's length is checked. Memory is the process's
//! proportional set where the system tells of it, else its resident set.
//!
//! Growth is the slope of a line through memory over the second half of the run, by when every
//! pool is full; the front's cache of tokenised texts is made small for that. Starvation: a stream
//! that waits longer than the limit for a delta, its first included, or a place among the streams
//! that had less than half as many deltas as another.

use anyhow::{Context, Result, bail, ensure};
use mlxd_benches::{Asked, Interval, Memory, Steady};
use mlxd_testkit::{Client, FrontConfig, FrontProcess, ModelFolder, Script};
use std::time::{Duration, Instant};

const SCRIPTED: &str = "scripted";
const BUILT_IN: &str = "mlxd-demo";
/// Between two looks at memory.
const INTERVAL: Duration = Duration::from_secs(10);
/// A process that grows faster than this has a leak: 10 minutes of it are 5 MiB.
const GROWTH_MAX_MIB_PER_MINUTE: f64 = 0.5;
/// What the front keeps of prompts' texts: so little that it is full within the first minute.
const CACHE_BYTES: i64 = 1 << 20;
/// Longer than this without a delta is starvation.
const WAIT_MAX: Duration = Duration::from_secs(30);

struct Arguments {
    minutes: f64,
    real: bool,
    streams: usize,
    tokens: u64,
    step_us: u64,
}

fn arguments() -> Result<Arguments> {
    let mut given = std::env::args().skip(1);
    let mut parsed =
        Arguments { minutes: 10.0, real: false, streams: 0, tokens: 400, step_us: 20_000 };
    while let Some(name) = given.next() {
        let mut value = || given.next().with_context(|| format!("{name} needs a value"));
        match name.as_str() {
            // Cargo says so to every bench.
            "--bench" => {}
            "--minutes" => parsed.minutes = value()?.parse()?,
            "--streams" => parsed.streams = value()?.parse()?,
            "--tokens" => parsed.tokens = value()?.parse()?,
            "--step-us" => parsed.step_us = value()?.parse()?,
            "--engine" => match value()?.as_str() {
                "scripted" => parsed.real = false,
                "real" => parsed.real = true,
                other => bail!("--engine is scripted or real, not {other}"),
            },
            other => bail!("{other} is not known"),
        }
    }
    if parsed.streams == 0 {
        parsed.streams = if parsed.real { 32 } else { 256 };
    }
    Ok(parsed)
}

/// One look.
struct Look {
    minutes: f64,
    front_mib: f64,
    worker_mib: f64,
}

fn main() -> Result<()> {
    let arguments = arguments()?;
    let (front, model, _folder) = start(&arguments);
    let Client::Tcp(address) = front.client() else { bail!("the front is on TCP") };
    let asked = Asked { address, model, tokens: arguments.tokens };
    println!(
        "{} streams of the {} engine, {} tokens an answer, {} minutes",
        arguments.streams,
        if arguments.real { "real" } else { "scripted" },
        arguments.tokens,
        arguments.minutes
    );
    let (looks, whole, waited, extremes) = soak(&arguments, &front, asked)?;
    let minutes = looks.last().map_or(0.0, |look| look.minutes);
    let ms = |quantile| whole.gaps_us.value_at_quantile(quantile) as f64 / 1e3;
    let first = |quantile| whole.first_us.value_at_quantile(quantile) as f64 / 1e3;
    println!(
        "\n{} answers, {:.0} deltas/s; between deltas p50 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms, \
         longest {:.0} ms; first delta p50 {:.0} ms, p99 {:.0} ms",
        whole.answers,
        whole.deltas as f64 / (minutes * 60.0),
        ms(0.5),
        ms(0.99),
        ms(0.999),
        ms(1.0),
        first(0.5),
        first(0.99),
    );
    let front_growth = growth(&looks, |look| look.front_mib);
    let worker_growth = growth(&looks, |look| look.worker_mib);
    println!(
        "growth in the second half, MiB a minute: front {front_growth:.3}, worker {worker_growth:.3}"
    );
    println!("deltas of the place with the fewest {}, with the most {}", extremes.0, extremes.1);
    let longest = waited.max(Duration::from_micros(whole.gaps_us.max()));
    ensure!(longest < WAIT_MAX, "a stream waited {longest:?} for a delta");
    ensure!(extremes.0 * 2 >= extremes.1, "some streams had less than half of others' tokens");
    for (name, growth) in [("front", front_growth), ("worker", worker_growth)] {
        ensure!(growth < GROWTH_MAX_MIB_PER_MINUTE, "the {name} grows {growth:.2} MiB a minute");
    }
    println!("no starvation, no growth");
    Ok(())
}

fn start(arguments: &Arguments) -> (FrontProcess, String, Option<ModelFolder>) {
    let streams = arguments.streams as i64;
    let limits = |config: FrontConfig, model: &str| {
        config
            .with_model_key(model, "running_max", streams)
            .with_model_key(model, "queued_max", streams)
            .with("http.streams_max", streams * 2)
            .with("requests.tokenize_cache_bytes_max", CACHE_BYTES)
    };
    if arguments.real {
        let config = limits(FrontConfig::default().with_real_worker(), BUILT_IN);
        return (FrontProcess::start(&config), BUILT_IN.into(), None);
    }
    let script =
        Script { step_us: arguments.step_us, context_tokens: 1 << 16, ..Script::default() };
    let folder = ModelFolder::new(&script);
    let config = limits(FrontConfig::default().with_model(SCRIPTED, folder.path()), SCRIPTED);
    (FrontProcess::start(&config), SCRIPTED.into(), Some(folder))
}

type Soaked = (Vec<Look>, Interval, Duration, (u64, u64));

fn soak(arguments: &Arguments, front: &FrontProcess, asked: Asked) -> Result<Soaked> {
    let begun = Instant::now();
    let end = begun + Duration::from_secs_f64(arguments.minutes * 60.0);
    let mut steady = Steady::open(asked, arguments.streams)?;
    let (mut whole, mut looks, mut waited) = (Interval::default(), Vec::new(), Duration::ZERO);
    println!("minutes  front MiB  worker MiB  answers  deltas/s  p50 ms  p99 ms  longest wait ms");
    while Instant::now() < end {
        let from = Instant::now();
        let interval = steady.read_until((from + INTERVAL).min(end))?;
        let look = Look {
            minutes: begun.elapsed().as_secs_f64() / 60.0,
            front_mib: mib(front.id())?,
            worker_mib: front.workers().into_iter().map(mib).sum::<Result<f64>>()?,
        };
        waited = waited.max(steady.longest_wait());
        let ms = |quantile| interval.gaps_us.value_at_quantile(quantile) as f64 / 1e3;
        println!(
            "{:>7.2} {:>10.1} {:>11.1} {:>8} {:>9.0} {:>7.1} {:>7.1} {:>16.0}",
            look.minutes,
            look.front_mib,
            look.worker_mib,
            interval.answers,
            interval.deltas as f64 / from.elapsed().as_secs_f64(),
            ms(0.5),
            ms(0.99),
            ms(1.0),
        );
        whole.add(&interval)?;
        looks.push(look);
    }
    Ok((looks, whole, waited, steady.extremes()))
}

fn mib(pid: u32) -> Result<f64> {
    let memory = Memory::of(pid).with_context(|| format!("process {pid} is gone"))?;
    Ok(memory.proportional.unwrap_or(memory.resident) as f64 / f64::from(1 << 20))
}

/// MiB a minute, over the second half.
fn growth(looks: &[Look], of: impl Fn(&Look) -> f64) -> f64 {
    let half = &looks[looks.len() / 2..];
    let count = half.len() as f64;
    let mean_x = half.iter().map(|look| look.minutes).sum::<f64>() / count;
    let mean_y = half.iter().map(&of).sum::<f64>() / count;
    let together: f64 = half.iter().map(|look| (look.minutes - mean_x) * (of(look) - mean_y)).sum();
    let spread: f64 = half.iter().map(|look| (look.minutes - mean_x).powi(2)).sum();
    if spread > 0.0 { together / spread } else { 0.0 }
}
