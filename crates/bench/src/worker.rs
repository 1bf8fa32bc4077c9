//! A measurement in a worker program of its own: what needs MLX itself.

use crate::report::{Counted, Report, Subject};
use crate::session::{Output, bar};
use anyhow::{Context, bail};
use clap::Args;
use indicatif::ProgressBar;
use mlxd_memory::machine::ThisMachine;
use mlxd_memory::{Footprint, Machine};
use mlxd_protocol::DeviceChoice;
use mlxd_protocol::measure::{MEASURE, Measured, Measurement, Said};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

/// Flags of what is measured on a device, with no model.
#[derive(Debug, Clone, Args)]
pub struct DeviceFlags {
    /// Where MLX computes.
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    pub device: Device,
    /// Configuration file that names another worker program.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Where MLX computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Device {
    /// On the GPU if there is one.
    Auto,
    /// On the processor.
    Cpu,
    /// On the GPU.
    Gpu,
}

impl From<Device> for DeviceChoice {
    fn from(device: Device) -> Self {
        match device {
            Device::Auto => Self::Auto,
            Device::Cpu => Self::Cpu,
            Device::Gpu => Self::Gpu,
        }
    }
}

/// What a worker measured, and what was seen of its process.
#[derive(Debug)]
pub struct Run {
    /// What it says.
    pub measured: Measured,
    /// Seconds from asking the system for the process to its first line.
    pub spawn_s: f64,
    /// The process at each of its lines: the first when it began, the last when it had measured.
    /// Empty where the system does not tell.
    pub footprints: Vec<Footprint>,
}

impl Run {
    /// The process when it had measured.
    pub fn footprint(&self) -> Option<Footprint> {
        self.footprints.last().copied()
    }
}

/// Has a worker measure, with a bar.
pub async fn measure(program: &Path, name: &str, what: &Measurement) -> anyhow::Result<Measured> {
    let progress = bar(0, name);
    let run = run(program, what, Some(&progress)).await;
    progress.finish_and_clear();
    Ok(run?.measured)
}

/// Has a worker measure, and looks at its process meanwhile. Steps go to the bar, if there is one.
pub async fn run(
    program: &Path,
    what: &Measurement,
    progress: Option<&ProgressBar>,
) -> anyhow::Result<Run> {
    let begun = Instant::now();
    let mut child = Command::new(program)
        .arg(MEASURE)
        .arg(serde_json::to_string(what)?)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env_remove("MLX_METAL_FAST_SYNCH")
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let pid = child.id().context("the worker has ended")?;
    let machine = ThisMachine::new();
    let mut answers = child.stdin.take().context("no input")?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let mut errors = child.stderr.take().context("no errors")?;
    let (mut text, mut spawn_s, mut footprints) = (String::new(), 0.0, Vec::new());
    let said = async {
        while let Some(line) = lines.next_line().await? {
            // MLX and its libraries may write there too.
            let Ok(said) = serde_json::from_str::<Said>(&line) else { continue };
            if spawn_s == 0.0 {
                spawn_s = begun.elapsed().as_secs_f64();
            }
            footprints.extend(machine.footprint(pid));
            // One that is gone says so by the end of its lines.
            let _ = answers.write_all(b"\n").await;
            match said {
                Said::Progress { done, of } => {
                    if let Some(progress) = progress {
                        progress.set_length(of);
                        progress.set_position(done);
                    }
                }
                said => return Ok(Some(said)),
            }
        }
        anyhow::Ok(None)
    };
    let (said, read) = tokio::join!(said, errors.read_to_string(&mut text));
    read?;
    match said? {
        Some(Said::Done(measured)) => {
            child.wait().await?;
            Ok(Run { measured, spawn_s, footprints })
        }
        Some(Said::Failed { reason }) => bail!("{reason}"),
        _ => {
            let status = child.wait().await?;
            bail!("{} ended with {status} and no figures:\n{text}", program.display())
        }
    }
}

/// A report about what a worker measured.
pub fn report(name: &str, output: &Output, model: Option<&str>, measured: &Measured) -> Report {
    let loaded = measured.model.as_ref();
    let subject = Subject {
        model: model.map(str::to_owned),
        architecture: loaded.map(|loaded| loaded.architecture.clone()),
        quantization: loaded.map(|loaded| loaded.quantization.clone()),
        backend: Some(measured.device.backend.clone()),
        concurrency: loaded.map(|_| 1).into_iter().collect(),
        token_count_source: loaded.map(|_| Counted::Engine),
        quick: output.quick,
        ..Subject::default()
    };
    let mut report = Report::new(name, subject);
    report.versions.mlx = measured.device.mlx.clone();
    report.machine.device = measured.device.name.clone();
    report.notes.extend(measured.left_out.iter().map(|what| format!("Left out: {what}")));
    report.samples = serde_json::json!(measured);
    report
}
