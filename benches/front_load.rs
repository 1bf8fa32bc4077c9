//! What the front costs: 64 chat streams at once from a scripted engine that costs next to
//! nothing, through ring, journal, text and server-sent events, out of real programs.
//!
//! ```text
//! cargo build --release --bin mlxd && cargo build --release -p mlxd-testkit --bins
//! cargo bench -p mlxd-benches --bench front_load [-- --quick]
//! ```
//! **Throughput.** The engine takes no time for a step; tokens are counted by the usage at each
//! stream's end, time from before the first connection to the last stream's end. What a stream
//! has waiting goes out as one event, so under such load an event holds many tokens.
//!
//! **Added latency.** The engine takes so long for a step of 64 tokens that it makes 5,000 tokens
//! a second, and then again 200,000. Each token's text tells when its step was done, on the clock
//! that this program reads too, to 10 µs: a figure is up to 10 µs too high. So the latency is that
//! from the step's end in the worker's engine to the token's bytes in this program's hands:
//! publishing, ring, journal, decode, JSON, the socket, and the wait for this one thread to come
//! round to it. All 64 tokens of a step are made at one moment, so the last of them waits for 63
//! others. Recorded once every stream has begun.
//!
//! Front, worker and this client share the machine's processors. Every measurement is taken
//! several times and the best is shown with all of them: the others measure the neighbours. On a
//! Linux machine that does other work, `chrt -f 1` before this program keeps that away from all
//! three, since the front and the worker inherit it.

use anyhow::{Result, bail};
use mlxd_benches::{Ages, Counted, CpuTimes, STREAMS, Streams};
use mlxd_testkit::{Client, FrontConfig, FrontProcess, ModelFolder, Script};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const MODEL: &str = "scripted";
const THROUGHPUT_AIM_TOKENS_PER_S: f64 = 200_000.0;
/// The rates at which latency is measured, over all streams: the aim's, and throughput's aim.
const PACES_TOKENS_PER_S: [u64; 2] = [5_000, 200_000];
const P99_AIM_US: f64 = 2_000.0;

struct Effort {
    runs: usize,
    tokens_per_stream: u64,
    paced_seconds: u64,
}

fn main() -> Result<()> {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let effort = match quick {
        true => Effort { runs: 2, tokens_per_stream: 4_000, paced_seconds: 3 },
        false => Effort { runs: 7, tokens_per_stream: 16_000, paced_seconds: 10 },
    };
    let throughput = best_throughput(&effort)?;
    let [latency, loaded] = PACES_TOKENS_PER_S.map(|pace| best_latency(pace, &effort));
    println!("\n{:<44}{:>10}{:>12}", "", "best", "aim");
    println!(
        "{:<44}{throughput:>10.0}{THROUGHPUT_AIM_TOKENS_PER_S:>12.0}  {}",
        format!("tokens a second, {STREAMS} streams"),
        verdict(throughput >= THROUGHPUT_AIM_TOKENS_PER_S)
    );
    let [pace, loaded_pace] = PACES_TOKENS_PER_S;
    let latency = latency?;
    println!(
        "{:<44}{latency:>10.0}{P99_AIM_US:>12.0}  {}",
        format!("p99 of added latency at {pace} tokens/s, us"),
        verdict(latency < P99_AIM_US)
    );
    println!("{:<44}{:>10.0}", format!("  at {loaded_pace} tokens/s"), loaded?);
    Ok(())
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "missed" }
}

/// A front with a model for so many streams.
struct Setup {
    front: FrontProcess,
    address: SocketAddr,
    _folder: ModelFolder,
}

impl Setup {
    fn start(script: &Script) -> Result<Self> {
        let folder = ModelFolder::new(script);
        let streams = STREAMS as i64;
        let config = FrontConfig::default()
            .with_model(MODEL, folder.path())
            .with_model_key(MODEL, "running_max", streams)
            .with_model_key(MODEL, "queued_max", streams)
            .with("http.streams_max", streams);
        let front = FrontProcess::start(&config);
        let Client::Tcp(address) = front.client() else { bail!("the front is on TCP") };
        let this = Self { front, address, _folder: folder };
        // Loads the model, starts the worker, warms what there is to warm.
        this.stream(100, None)?;
        Ok(this)
    }

    fn stream(&self, tokens: u64, ages: Option<&mut Ages>) -> Result<Counted> {
        Streams::ask(self.address, MODEL, tokens)?.read(ages)
    }

    /// Front, worker, this program.
    fn processes(&self) -> Vec<u32> {
        let mut pids = vec![self.front.id()];
        pids.extend(self.front.workers());
        pids.push(std::process::id());
        pids
    }
}

/// What processes used in `wall`, in processors.
fn processors(before: &CpuTimes, pids: &[u32], wall: Duration) -> String {
    let used = CpuTimes::of(pids).since(before);
    let used: Vec<_> =
        used.iter().map(|used| format!("{:.2}", used.as_secs_f64() / wall.as_secs_f64())).collect();
    used.join(" ")
}

fn best_throughput(effort: &Effort) -> Result<f64> {
    let script = Script { context_tokens: 1 << 20, ..Script::default() };
    let setup = Setup::start(&script)?;
    let pids = setup.processes();
    println!("throughput, {STREAMS} streams of {} tokens:", effort.tokens_per_stream);
    println!("   tokens/s    events/s   tokens an event   processors: front worker client");
    let mut best: f64 = 0.0;
    for _ in 0..effort.runs {
        let before = CpuTimes::of(&pids);
        let begun = Instant::now();
        let counted = setup.stream(effort.tokens_per_stream, None)?;
        let wall = begun.elapsed();
        let (tokens, events) = (counted.tokens as f64, counted.events as f64);
        let rate = tokens / wall.as_secs_f64();
        println!(
            "{rate:>11.0} {:>11.0} {:>17.1}   {}",
            events / wall.as_secs_f64(),
            tokens / events,
            processors(&before, &pids, wall)
        );
        best = best.max(rate);
    }
    Ok(best)
}

/// The best run's 99th percentile in microseconds.
fn best_latency(tokens_per_s: u64, effort: &Effort) -> Result<f64> {
    let step_us = STREAMS as u64 * 1_000_000 / tokens_per_s;
    let script = Script { step_us, context_tokens: 1 << 20, ..Script::of_clock() };
    let setup = Setup::start(&script)?;
    let pids = setup.processes();
    let tokens_per_stream = tokens_per_s * effort.paced_seconds / STREAMS as u64;
    println!("added latency, us, {STREAMS} streams of {tokens_per_stream} tokens:");
    println!("   tokens/s   tokens an event     p50     p90     p99   p99.9     max   processors");
    let mut best = f64::INFINITY;
    for _ in 0..effort.runs {
        let mut ages = Ages::default();
        let before = CpuTimes::of(&pids);
        let begun = Instant::now();
        let counted = setup.stream(tokens_per_stream, Some(&mut ages))?;
        let wall = begun.elapsed();
        let us = |quantile| ages.histogram.value_at_quantile(quantile) as f64 / 1000.0;
        println!(
            "{:>11.0} {:>17.1} {:>7.0} {:>7.0} {:>7.0} {:>7.0} {:>7.0}   {}",
            counted.tokens as f64 / wall.as_secs_f64(),
            counted.tokens as f64 / counted.events as f64,
            us(0.5),
            us(0.9),
            us(0.99),
            us(0.999),
            us(1.0),
            processors(&before, &pids, wall)
        );
        best = best.min(us(0.99));
    }
    Ok(best)
}
