//! A measurement in a worker program of its own: what needs MLX itself.

use crate::report::{Counted, Report, Subject};
use crate::session::{Output, bar};
use anyhow::{Context, bail};
use clap::Args;
use mlxd_protocol::DeviceChoice;
use mlxd_protocol::measure::{MEASURE, Measured, Measurement, Said};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
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

/// Has a worker measure, with a bar.
pub async fn measure(program: &Path, name: &str, what: &Measurement) -> anyhow::Result<Measured> {
    let mut child = Command::new(program)
        .arg(MEASURE)
        .arg(serde_json::to_string(what)?)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env_remove("MLX_METAL_FAST_SYNCH")
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let mut errors = child.stderr.take().context("no errors")?;
    let mut text = String::new();
    let progress = bar(0, name);
    let said = async {
        while let Some(line) = lines.next_line().await? {
            // MLX and its libraries may write there too.
            match serde_json::from_str(&line) {
                Ok(Said::Progress { done, of }) => {
                    progress.set_length(of);
                    progress.set_position(done);
                }
                Ok(said) => return Ok(Some(said)),
                Err(_) => {}
            }
        }
        anyhow::Ok(None)
    };
    let (said, read) = tokio::join!(said, errors.read_to_string(&mut text));
    progress.finish_and_clear();
    read?;
    match said? {
        Some(Said::Done(measured)) => {
            child.wait().await?;
            Ok(measured)
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
