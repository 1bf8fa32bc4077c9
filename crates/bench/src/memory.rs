//! What a sequence takes in memory, by its length: the KV it keeps, and the highest that
//! computing its prompt needed. A line through the first says what a token costs, with R².

use crate::fit::fit;
use crate::plot::Plot;
use crate::report::Report;
use crate::session::{Benchmark, LocalFlags, Output, Session};
use crate::table::Table;
use crate::worker::{measure, report};
use mlxd_protocol::measure::{Figure, Measurement};
use serde_json::json;

const QUICK_LENGTHS: [u32; 3] = [32, 128, 256];

/// `mlxd bench memory`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Tokens of the sequence.
    #[arg(long, value_delimiter = ',', default_values_t = [32, 64, 128, 256, 512, 1024, 2048, 4096, 8192], value_parser = clap::value_parser!(u32).range(1..))]
    lengths: Vec<u32>,
    #[command(flatten)]
    local: LocalFlags,
    #[command(flatten)]
    output: Output,
}

impl Benchmark for Arguments {
    const NAME: &'static str = "memory";

    fn output(&self) -> &Output {
        &self.output
    }

    async fn measure(&self, session: &mut Session<'_>) -> anyhow::Result<Report> {
        let config = self.local.config.as_deref();
        let program = session.front.worker_program(config)?;
        let load = session.front.model(config, &self.local.model)?.load;
        let lengths = if self.output.quick { QUICK_LENGTHS.to_vec() } else { self.lengths.clone() };
        let what = Measurement::Memory { load, lengths };
        let measured = measure(&program, Self::NAME, &what).await?;
        let mut report = report(Self::NAME, &self.output, Some(&self.local.model), &measured);
        let per_token = measured.model.as_ref().map_or(0, |model| model.kv_bytes_per_token);
        let mut table = Table::new("Memory of one sequence, beyond the weights")
            .key("length", "Tokens")
            .lower("state_mb", "Kept MB", 2)
            .fact("formula_mb", "By the architecture MB", 2)
            .lower("peak_mb", "Peak in its prompt MB", 2);
        for figure in &measured.figures {
            let Figure::Memory { length, state_bytes, peak_bytes } = figure else { continue };
            table.row([
                json!(length),
                json!(*state_bytes as f64 / 1e6),
                json!((u64::from(*length) * per_token) as f64 / 1e6),
                json!(*peak_bytes as f64 / 1e6),
            ]);
        }
        if let Some(model) = &measured.model {
            report.notes.push(format!(
                "Weights: {:.1} MB; in live arrays with no sequence: {:.1} MB.",
                model.weight_bytes as f64 / 1e6,
                model.active_bytes as f64 / 1e6
            ));
        }
        if let Some(line) = fit(&table.points("length", "state_mb")) {
            report.notes.push(format!(
                "Kept = {:.0} bytes a token + {:.2} MB, R² = {:.4}; by the architecture {per_token} \
                 bytes a token.",
                line.slope * 1e6,
                line.intercept,
                line.r_squared
            ));
        }
        report.plots.push(
            Plot::new("Memory of one sequence", "tokens", "MB")
                .line("kept", table.points("length", "state_mb"))
                .line("peak", table.points("length", "peak_mb")),
        );
        report.tables.push(table);
        Ok(report)
    }
}
