//! What a client that reads one stream sees: the streaming table of vLLM-MLX.

use crate::client::Ask;
use crate::prompts;
use crate::report::{Report, Template};
use crate::session::{Benchmark, Output, Session, bar};
use crate::stats::{generation_rate, median, percentile};
use crate::table::Table;
use crate::target::ServerFlags;
use crate::volley::{Volley, note_counting};
use serde_json::json;

/// `mlxd bench stream`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Streams, one after another.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Tokens of an answer.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..))]
    max_tokens: u32,
    /// Of the sampling.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    #[command(flatten)]
    server: ServerFlags,
    #[command(flatten)]
    output: Output,
}

impl Benchmark for Arguments {
    const NAME: &'static str = "stream";

    fn output(&self) -> &Output {
        &self.output
    }

    fn server(&self) -> ServerFlags {
        self.server.clone()
    }

    async fn measure(&self, session: &mut Session<'_>) -> anyhow::Result<Report> {
        let quick = self.output.quick;
        let tokens = if quick { self.max_tokens.min(24) } else { self.max_tokens };
        let runs = if quick { 1 } else { self.runs as usize };
        let target = session.target().await?;
        target.warm_up(Template::Chat, 20).await?;
        let ask = |number| {
            Ask::new(Template::Chat, prompts::short_question(number), tokens).at(self.temperature)
        };
        let asks: Vec<Ask> = (0..runs).map(ask).collect();
        let progress = bar(runs, Self::NAME);
        let volley = Volley::whole(target, &asks, 1, &progress).await?;
        progress.finish_and_clear();
        let answers = &volley.answers;
        let firsts: Vec<f64> = answers.iter().map(|a| a.first_s * 1000.0).collect();
        let rates: Vec<f64> = (answers.iter())
            .filter_map(|a| generation_rate(a.seconds, a.first_s, a.completion_tokens))
            .collect();
        let gaps: Vec<f64> = (answers.iter())
            .flat_map(|a| a.deltas_s.windows(2).map(|pair| (pair[1] - pair[0]) * 1000.0))
            .collect();
        let mut report = target.report(Self::NAME, quick).await;
        report.subject.concurrency = vec![1];
        report.subject.template = Some(Template::Chat);
        report.subject.temperature = Some(self.temperature);
        note_counting(&mut report, answers);
        let mut table = Table::new("Streaming")
            .key("model", "Model")
            .lower("ttft_ms", "TTFT ms", 1)
            .higher("generation_per_s", "Generation tok/s", 1)
            .lower("gap_p50_ms", "Between deltas, p50 ms", 2)
            .lower("gap_p99_ms", "p99 ms", 2)
            .fact("deltas", "Deltas", 0)
            .fact("tokens", "Tokens", 0);
        table.row([
            json!(target.model),
            json!(median(&firsts)),
            json!(median(&rates)),
            json!(percentile(&gaps, 0.5)),
            json!(percentile(&gaps, 0.99)),
            json!(answers.iter().map(|a| a.deltas_s.len()).sum::<usize>()),
            json!(volley.totals().completion_tokens),
        ]);
        report.tables.push(table);
        report.samples = json!(answers);
        Ok(report)
    }
}
