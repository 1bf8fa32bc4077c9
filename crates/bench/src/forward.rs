//! Whole forward passes a second, from a prompt's first token to its logits: what a training
//! step would start with, and the figure that MLX Enhanced publishes as its training simulation.

use crate::plot::Plot;
use crate::report::Report;
use crate::session::{Benchmark, LocalFlags, Output, Session};
use crate::stats::{median, percentile};
use crate::table::Table;
use crate::worker::{measure, report};
use mlxd_protocol::measure::{Figure, Measurement};
use serde_json::json;

const QUICK_LENGTHS: [u32; 2] = [32, 128];

/// `mlxd bench forward`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Tokens of a pass.
    #[arg(long, value_delimiter = ',', default_values_t = [32, 64, 128, 256, 512], value_parser = clap::value_parser!(u32).range(1..))]
    lengths: Vec<u32>,
    /// Timed passes per length.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    #[command(flatten)]
    local: LocalFlags,
    #[command(flatten)]
    output: Output,
}

impl Benchmark for Arguments {
    const NAME: &'static str = "forward";

    fn output(&self) -> &Output {
        &self.output
    }

    async fn measure(&self, session: &mut Session<'_>) -> anyhow::Result<Report> {
        let config = self.local.config.as_deref();
        let program = session.front.worker_program(config)?;
        let load = session.front.model(config, &self.local.model)?.load;
        let quick = self.output.quick;
        let what = Measurement::Forward {
            load,
            lengths: if quick { QUICK_LENGTHS.to_vec() } else { self.lengths.clone() },
            runs: if quick { 3 } else { self.runs },
        };
        let measured = measure(&program, Self::NAME, &what).await?;
        let mut report = report(Self::NAME, &self.output, Some(&self.local.model), &measured);
        let mut table = Table::new("Forward passes")
            .key("length", "Tokens")
            .fact("passes", "Passes", 0)
            .higher("passes_per_s", "Passes/s", 2)
            .higher("tokens_per_s", "Tokens/s", 1)
            .lower("p50_ms", "p50 ms", 2)
            .lower("p95_ms", "p95 ms", 2);
        for figure in &measured.figures {
            let Figure::Forward { length, seconds } = figure else { continue };
            let rate = seconds.len() as f64 / seconds.iter().sum::<f64>();
            table.row([
                json!(length),
                json!(seconds.len()),
                json!(rate),
                json!(rate * f64::from(*length)),
                json!(median(seconds) * 1e3),
                json!(percentile(seconds, 0.95) * 1e3),
            ]);
        }
        report.plots.push(
            Plot::new("Forward passes", "tokens of a pass", "tokens/s")
                .log_x()
                .line("tokens/s", table.points("length", "tokens_per_s")),
        );
        report.tables.push(table);
        Ok(report)
    }
}
