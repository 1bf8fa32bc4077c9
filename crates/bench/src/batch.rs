//! One request against several at once: the continuous-batching tables of vLLM-MLX.
//!
//! The single leg is measured by itself, as generation speed over its requests' wall-clock time;
//! the batch leg likewise. Speed-up is the ratio of the two.

use crate::client::Ask;
use crate::prompts;
use crate::report::{Report, Template};
use crate::session::{Benchmark, Output, Session, bar};
use crate::stats::median;
use crate::table::Table;
use crate::target::ServerFlags;
use crate::volley::{Totals, Volley, note_counting};
use serde_json::json;

/// `mlxd bench batch`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Requests at once in the batch leg.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(2..=1024))]
    concurrency: u32,
    /// Tokens of an answer at the most.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Times that both legs run, in turns; the median counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Of the sampling.
    #[arg(long, default_value_t = 0.7)]
    temperature: f32,
    /// Let the model end its answers; else each has exactly --max-tokens.
    #[arg(long)]
    natural_end: bool,
    #[command(flatten)]
    server: ServerFlags,
    #[command(flatten)]
    output: Output,
}

impl Benchmark for Arguments {
    const NAME: &'static str = "batch";

    fn output(&self) -> &Output {
        &self.output
    }

    fn server(&self) -> ServerFlags {
        self.server.clone()
    }

    async fn measure(&self, session: &mut Session<'_>) -> anyhow::Result<Report> {
        let quick = self.output.quick;
        let tokens = if quick { self.max_tokens.min(16) } else { self.max_tokens };
        let runs = if quick { 1 } else { self.runs as usize };
        let at_once = self.concurrency as usize;
        let target = session.target().await?;
        let ask = |number| {
            let text = prompts::short_question(number);
            let mut ask = Ask::new(Template::Chat, text, tokens);
            ask.exact = !self.natural_end;
            ask.at(self.temperature)
        };
        let asks: Vec<Ask> = (0..at_once).map(ask).collect();
        let progress = bar((at_once + 1) * (runs + 1), Self::NAME);
        // The widths of both legs are warm before either counts.
        Volley::whole(target, &asks[..1], 1, &progress).await?;
        let mut answers = Volley::whole(target, &asks, at_once, &progress).await?.answers;
        answers.clear();
        let (mut single, mut batch): (Vec<Totals>, Vec<Totals>) = Default::default();
        for run in 0..runs {
            let one = &asks[run % at_once..][..1];
            let volley = Volley::whole(target, one, 1, &progress).await?;
            single.push(volley.totals());
            answers.extend(volley.answers);
            let volley = Volley::whole(target, &asks, at_once, &progress).await?;
            batch.push(volley.totals());
            answers.extend(volley.answers);
        }
        progress.finish_and_clear();
        let mut report = target.report(Self::NAME, quick).await;
        report.subject.concurrency = vec![1, self.concurrency];
        report.subject.template = Some(Template::Chat);
        report.subject.temperature = Some(self.temperature);
        note_counting(&mut report, &answers);
        report.tables = tables(&target.model, self.concurrency, &single, &batch);
        report.samples = json!(answers);
        Ok(report)
    }
}

fn middle(runs: &[Totals], of: impl Fn(&Totals) -> f64) -> f64 {
    median(&runs.iter().map(of).collect::<Vec<f64>>())
}

fn tables(model: &str, at_once: u32, single: &[Totals], batch: &[Totals]) -> Vec<Table> {
    let (alone, together) = (middle(single, Totals::generation), middle(batch, Totals::generation));
    let mut speedup = Table::new("Continuous batching")
        .key("model", "Model")
        .higher("single_per_s", "Single request tok/s", 1)
        .higher("batch_per_s", &format!("Batch ({at_once} req) tok/s"), 1)
        .higher("speedup", "Speed-up", 2);
    speedup.row([json!(model), json!(alone), json!(together), json!(together / alone)]);
    let mut load = Table::new("The batch")
        .key("requests", "Requests")
        .fact("total_tokens", "Total tokens", 0)
        .lower("seconds", "Total time s", 2)
        .higher("throughput_per_s", "Throughput in+out tok/s", 1)
        .higher("requests_per_s", "Requests/s", 2);
    load.row([
        json!(at_once),
        json!(middle(batch, |t| (t.prompt_tokens + t.completion_tokens) as f64) as u64),
        json!(middle(batch, |t| t.seconds)),
        json!(middle(batch, Totals::throughput)),
        json!(middle(batch, Totals::request_rate)),
    ]);
    vec![speedup, load]
}
