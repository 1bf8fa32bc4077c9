//! Many prompts at once: the "LLM benchmark results" of vLLM-MLX.
//!
//! tokens/s = Σ out / wall, throughput = Σ (in + out) / wall, prompts/s = N / wall.

use crate::client::Ask;
use crate::prompts;
use crate::report::{Report, Template};
use crate::session::{Benchmark, Output, Session, bar};
use crate::table::Table;
use crate::target::ServerFlags;
use crate::volley::{Volley, note_counting};
use serde_json::json;

/// `mlxd bench llm`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Prompts, all sent at once.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    num_prompts: u32,
    /// Tokens of an answer at the most.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
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

impl Benchmark for Arguments {
    const NAME: &'static str = "llm";

    fn output(&self) -> &Output {
        &self.output
    }

    fn server(&self) -> ServerFlags {
        self.server.clone()
    }

    async fn measure(&self, session: &mut Session<'_>) -> anyhow::Result<Report> {
        let quick = self.output.quick;
        let tokens = if quick { self.max_tokens.min(16) } else { self.max_tokens };
        let count = if quick { self.num_prompts.min(4) } else { self.num_prompts };
        let target = session.target().await?;
        target.warm_up(self.template, 20).await?;
        let ask = |number| {
            let mut ask = Ask::new(self.template, prompts::question(number), tokens);
            ask.exact = !self.natural_end;
            ask.at(self.temperature)
        };
        let asks: Vec<Ask> = (0..count as usize).map(ask).collect();
        let progress = bar(asks.len(), Self::NAME);
        let volley = Volley::whole(target, &asks, asks.len(), &progress).await?;
        progress.finish_and_clear();
        let totals = volley.totals();
        let mut report = target.report(Self::NAME, quick).await;
        report.subject.concurrency = vec![count];
        report.subject.template = Some(self.template);
        report.subject.temperature = Some(self.temperature);
        note_counting(&mut report, &volley.answers);
        let mut table = Table::new(format!("{count} prompts at once, {tokens} tokens each"))
            .key("model", "Model")
            .fact("prompts", "Prompts", 0)
            .fact("prompt_tokens", "Prompt tok", 0)
            .fact("completion_tokens", "Gen tok", 0)
            .lower("seconds", "Total s", 2)
            .higher("tokens_per_s", "Tokens/s", 1)
            .higher("throughput_per_s", "Throughput in+out tok/s", 1)
            .higher("prompts_per_s", "Prompts/s", 2);
        table.row([
            json!(target.model),
            json!(totals.requests),
            json!(totals.prompt_tokens),
            json!(totals.completion_tokens),
            json!(totals.seconds),
            json!(totals.generation()),
            json!(totals.throughput()),
            json!(totals.request_rate()),
        ]);
        report.tables.push(table);
        report.samples = json!(volley.answers);
        Ok(report)
    }
}
