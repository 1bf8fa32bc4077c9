//! How soon the front is there, and what it costs while nobody asks anything.
//!
//! ```text
//! cargo build --release --bin mlxd --bin mlxd-worker
//! cargo bench -p mlxd-benches --bench start [-- --quick]
//! ```
//! **Start.** From just before the program is executed to the first connection that it takes, and
//! to its answer to `GET /health`. This program tries to connect every 50 µs.
//!
//! **Memory.** Of the front alone: a second after its start, and a second after it has answered
//! with the built-in model, whose worker then still runs. The first front that is asked for that
//! model writes it out of its own program's pages, which count as resident until the system wants
//! them back; later ones find it there. The proportional figure shares pages of files among all
//! who map them.

use anyhow::{Context, Result, bail};
use mlxd_benches::Memory;
use mlxd_testkit::{FrontConfig, FrontProcess, Home};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

const START_AIM_MS: f64 = 50.0;
const MEMORY_AIM_MB: f64 = 20.0;
const CONNECT_EVERY: Duration = Duration::from_micros(50);
const PATIENCE: Duration = Duration::from_secs(20);
/// After which a front that is left alone counts as idle.
const SETTLE: Duration = Duration::from_secs(1);

fn main() -> Result<()> {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let runs = if quick { 5 } else { 20 };
    // Makes the folders and a configuration.
    let home = FrontProcess::start(&FrontConfig::default().with_real_worker()).kill();
    let mut starts = Vec::new();
    let mut idle = Vec::new();
    for _ in 0..runs {
        let (start, memory) = start_once(&home)?;
        starts.push(start);
        idle.push(memory);
    }
    let connected = sorted(starts.iter().map(|start| start.connected));
    let healthy = sorted(starts.iter().map(|start| start.healthy));
    println!("{runs} starts                         best   median      p95    aim");
    show_times("exec to first connection, ms", &connected);
    show_times("exec to /health answered, ms", &healthy);
    idle.sort_by_key(|memory| memory.resident);
    println!("front's memory, MB              resident   proportional    aim");
    show_memory("idle after start (median)", idle[idle.len() / 2]);
    let (memory, home) = after_an_answer(home)?;
    show_memory("idle after the first answer", memory);
    show_memory("idle after a later start's", after_an_answer(home)?.0);
    Ok(())
}

struct Start {
    connected: f64,
    healthy: f64,
}

/// A port that was free a moment ago.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn start_once(home: &Home) -> Result<(Start, Memory)> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let mut command = home.command("mlxd");
    command
        .args(["serve", "--config"])
        .arg(home.path().join("config/mlxd/mlxd.toml"))
        .args(["--port", &address.port().to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let begun = Instant::now();
    let mut child = command.spawn()?;
    let outcome = meet(address, begun);
    let memory = outcome.is_ok().then(|| {
        std::thread::sleep(SETTLE);
        Memory::of(child.id())
    });
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM)?;
    child.wait()?;
    let memory = memory.flatten().context("the front ended by itself");
    Ok((outcome?, memory?))
}

fn meet(address: SocketAddr, begun: Instant) -> Result<Start> {
    let mut stream = loop {
        match TcpStream::connect(address) {
            Ok(stream) => break stream,
            Err(error) if begun.elapsed() > PATIENCE => bail!("no connection: {error}"),
            Err(_) => std::thread::sleep(CONNECT_EVERY),
        }
    };
    let connected = begun.elapsed();
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
    let mut answer = [0; 512];
    let count = stream.read(&mut answer)?;
    let healthy = begun.elapsed();
    if !answer[..count].starts_with(b"HTTP/1.1 200") {
        bail!("/health said {:?}", String::from_utf8_lossy(&answer[..count]));
    }
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    Ok(Start { connected: ms(connected), healthy: ms(healthy) })
}

/// The front's memory once it has served the built-in model and is left alone again.
fn after_an_answer(home: Home) -> Result<(Memory, Home)> {
    let config = FrontConfig::default().with_real_worker();
    let front = FrontProcess::start_in(home, &config);
    let body = json!({
        "model": "mlxd-demo",
        "messages": [{"role": "user", "content": "What is mlxd?"}],
    });
    let response = front.client().post("/v1/chat/completions", &body);
    if response.status != 200 {
        let status = response.status;
        bail!("the built-in model said {status}: {}", response.text());
    }
    response.bytes()?;
    std::thread::sleep(SETTLE);
    let memory = Memory::of(front.id()).context("the front ended by itself")?;
    Ok((memory, front.kill()))
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn show_times(what: &str, sorted: &[f64]) {
    let at = |share: f64| sorted[((sorted.len() as f64 * share) as usize).min(sorted.len() - 1)];
    println!(
        "{what:<30} {:>8.1} {:>8.1} {:>8.1} {START_AIM_MS:>6.0}: {}",
        at(0.0),
        at(0.5),
        at(0.95),
        if at(0.5) < START_AIM_MS { "met" } else { "missed" },
    );
}

fn show_memory(what: &str, memory: Memory) {
    let mb = |bytes: u64| bytes as f64 / 1e6;
    let proportional = memory.proportional.map_or("-".into(), |bytes| format!("{:.1}", mb(bytes)));
    println!(
        "{what:<30} {:>9.1} {proportional:>14} {MEMORY_AIM_MB:>6.0}: {}",
        mb(memory.resident),
        if mb(memory.resident) < MEMORY_AIM_MB { "met" } else { "missed" },
    );
}
