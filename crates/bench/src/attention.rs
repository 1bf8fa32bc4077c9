//! Causal attention written out (products, mask, softmax, products) against MLX's fused one.
//!
//! One layer, batch 1, bfloat16 on a GPU and float32 on a processor, as the engine computes it.

use crate::plot::Plot;
use crate::report::Report;
use crate::session::{Benchmark, Output, Session};
use crate::stats::median;
use crate::table::Table;
use crate::worker::{DeviceFlags, measure, report};
use mlxd_protocol::measure::{Figure, Measurement};
use serde_json::json;

const QUICK_LENGTHS: [u32; 2] = [128, 256];

/// `mlxd bench attention`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Tokens.
    #[arg(long, value_delimiter = ',', default_values_t = [128, 256, 512, 2048, 8192], value_parser = clap::value_parser!(u32).range(1..=65536))]
    lengths: Vec<u32>,
    /// Heads, of queries as of keys.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=128))]
    heads: u32,
    /// Numbers per head.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(8..=256))]
    head_dim: u32,
    /// Timed runs per length; the median counts.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    #[command(flatten)]
    device: DeviceFlags,
    #[command(flatten)]
    output: Output,
}

impl Benchmark for Arguments {
    const NAME: &'static str = "attention";

    fn output(&self) -> &Output {
        &self.output
    }

    async fn measure(&self, session: &mut Session<'_>) -> anyhow::Result<Report> {
        let program = session.front.worker_program(self.device.config.as_deref())?;
        let quick = self.output.quick;
        let what = Measurement::Attention {
            device: self.device.device.into(),
            lengths: if quick { QUICK_LENGTHS.to_vec() } else { self.lengths.clone() },
            heads: self.heads,
            head_dim: self.head_dim,
            runs: if quick { 2 } else { self.runs },
        };
        let measured = measure(&program, Self::NAME, &what).await?;
        let mut report = report(Self::NAME, &self.output, None, &measured);
        let title = format!("Attention, {} heads of {}", self.heads, self.head_dim);
        let mut table = Table::new(title)
            .key("length", "Tokens")
            .fact("dtype", "Type", 0)
            .lower("naive_ms", "Written out ms", 2)
            .lower("fused_ms", "Fused ms", 2)
            .higher("speedup", "Speed-up", 2)
            .lower("naive_peak_mb", "Written out, peak MB", 1)
            .lower("fused_peak_mb", "Fused, peak MB", 1)
            .fact("difference", "Largest difference", 6);
        for figure in &measured.figures {
            let Figure::Attention {
                length,
                dtype,
                naive_s,
                fused_s,
                naive_peak_bytes,
                fused_peak_bytes,
                difference,
            } = figure
            else {
                continue;
            };
            let (naive, fused) = (median(naive_s), median(fused_s));
            table.row([
                json!(length),
                json!(dtype),
                json!(naive * 1e3),
                json!(fused * 1e3),
                json!(naive / fused),
                json!(*naive_peak_bytes as f64 / 1e6),
                json!(*fused_peak_bytes as f64 / 1e6),
                json!(difference),
            ]);
        }
        report.plots.push(
            Plot::new("Attention", "tokens", "ms")
                .log_x()
                .line("written out", table.points("length", "naive_ms"))
                .line("fused", table.points("length", "fused_ms")),
        );
        report.tables.push(table);
        Ok(report)
    }
}
