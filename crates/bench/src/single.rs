//! One prompt after another: the tables of `vllm-mlx-bench`.
//!
//! A warm-up of 20 tokens, then per request TTFT = the first delta, TPOT = (total − TTFT)/(n − 1),
//! generation = (n − 1)/(total − TTFT), processing = prompt tokens / TTFT; over all of them
//! throughput = Σ (in + out) / wall and P95 = sorted[⌊0.95 n⌋].

use crate::client::{Answered, Ask};
use crate::prompts;
use crate::report::{Report, Template};
use crate::session::{Benchmark, Output, Session, bar};
use crate::stats::{generation_rate, mean, ranked, time_per_output_token};
use crate::table::Table;
use crate::target::{ServerFlags, Target};
use crate::volley::{Volley, note_counting};
use serde_json::json;

/// `mlxd bench single`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Prompts, one after another.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    prompts: u32,
    /// Tokens of an answer at the most.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..))]
    max_tokens: u32,
    /// Of the sampling.
    #[arg(long, default_value_t = 0.7)]
    temperature: f32,
    /// How prompts reach the model.
    #[arg(long, value_enum, default_value_t = Template::Raw)]
    template: Template,
    /// Let the model end its answers; else each has exactly --max-tokens.
    #[arg(long)]
    natural_end: bool,
    #[command(flatten)]
    server: ServerFlags,
    #[command(flatten)]
    output: Output,
}

/// Per-request figures, as means.
struct Figures {
    first_ms: Vec<f64>,
    per_token_ms: Vec<f64>,
    generation: Vec<f64>,
    processing: Vec<f64>,
}

impl Figures {
    fn of(answers: &[Answered]) -> Self {
        let timed = |of: fn(f64, f64, u32) -> Option<f64>| {
            let one = |a: &Answered| of(a.seconds, a.first_s, a.completion_tokens);
            answers.iter().filter_map(one).collect::<Vec<f64>>()
        };
        let told = |a: &&Answered| a.prompt_tokens > 0;
        Self {
            first_ms: answers.iter().map(|a| a.first_s * 1000.0).collect(),
            per_token_ms: timed(time_per_output_token).iter().map(|s| s * 1000.0).collect(),
            generation: timed(generation_rate),
            processing: (answers.iter().filter(told))
                .map(|a| f64::from(a.prompt_tokens) / a.first_s)
                .collect(),
        }
    }
}

impl Benchmark for Arguments {
    const NAME: &'static str = "single";

    fn output(&self) -> &Output {
        &self.output
    }

    fn server(&self) -> ServerFlags {
        self.server.clone()
    }

    async fn measure(&self, session: &mut Session<'_>) -> anyhow::Result<Report> {
        let quick = self.output.quick;
        let tokens = if quick { self.max_tokens.min(32) } else { self.max_tokens };
        let count = if quick { self.prompts.min(2) } else { self.prompts };
        let target = session.target().await?;
        target.warm_up(self.template, 20).await?;
        let ask = |number| {
            let mut ask = Ask::new(self.template, prompts::question(number), tokens);
            ask.exact = !self.natural_end;
            ask.at(self.temperature)
        };
        let asks: Vec<Ask> = (0..count as usize).map(ask).collect();
        let progress = bar(asks.len(), Self::NAME);
        let volley = Volley::whole(target, &asks, 1, &progress).await?;
        progress.finish_and_clear();
        let mut report = target.report(Self::NAME, quick).await;
        report.subject.concurrency = vec![1];
        report.subject.template = Some(self.template);
        report.subject.temperature = Some(self.temperature);
        note_counting(&mut report, &volley.answers);
        report.tables = tables(target, &volley).await;
        report.samples = json!(volley.answers);
        Ok(report)
    }
}

async fn tables(target: &Target, volley: &Volley) -> Vec<Table> {
    let (totals, figures) = (volley.totals(), Figures::of(&volley.answers));
    let memory = target.status().await.and_then(|status| status.memory_bytes);
    let mut runs = Table::new("One prompt after another")
        .key("model", "Model")
        .fact("runs", "Runs", 0)
        .fact("prompt_tokens", "Prompt tok", 0)
        .fact("completion_tokens", "Gen tok", 0)
        .lower("seconds", "Total time s", 2)
        .lower("ttft_mean_ms", "TTFT mean ms", 1)
        .lower("tpot_mean_ms", "TPOT mean ms", 2)
        .higher("generation_per_s", "Gen tok/s", 1)
        .higher("throughput_per_s", "Total throughput tok/s", 1);
    runs.row([
        json!(target.model),
        json!(totals.requests),
        json!(totals.prompt_tokens),
        json!(totals.completion_tokens),
        json!(totals.seconds),
        json!(mean(&figures.first_ms)),
        json!(mean(&figures.per_token_ms)),
        json!(mean(&figures.generation)),
        json!(totals.throughput()),
    ]);
    let mut more = Table::new("Latency and memory")
        .key("model", "Model")
        .higher("generation_per_s", "Gen tok/s", 1)
        .higher("processing_per_s", "Processing tok/s", 1)
        .lower("ttft_mean_ms", "TTFT mean ms", 1)
        .lower("ttft_p95_ms", "TTFT P95 ms", 1)
        .lower("tpot_p95_ms", "TPOT P95 ms", 2)
        .lower("memory_gb", "Memory GB", 2);
    more.row([
        json!(target.model),
        json!(mean(&figures.generation)),
        json!(mean(&figures.processing)),
        json!(mean(&figures.first_ms)),
        json!(ranked(&figures.first_ms, 0.95)),
        json!(ranked(&figures.per_token_ms, 0.95)),
        json!(memory.map(|bytes| bytes as f64 / 1e9)),
    ]);
    vec![runs, more]
}
