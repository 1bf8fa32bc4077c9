//! The engine alone against the full HTTP path: the table of MLX Inference Server's benchmark.
//!
//! tok/s is tokens over the time of the whole request, prompt included; overhead = 1 − server/direct.
//! Both legs run the same prompt in the same worker, in turns, so that what the machine does
//! meanwhile falls on both.

use crate::client::{Ask, direct};
use crate::report::{Counted, Report, Template};
use crate::session::{Benchmark, Output, Session, bar};
use crate::stats::{mean, median};
use crate::table::Table;
use crate::target::{ServerFlags, Target};
use indicatif::ProgressBar;
use mlxd_protocol::admin::BenchCall;
use serde::Serialize;
use serde_json::json;

const QUESTION: &str =
    "Explain in a few paragraphs how a program can keep serving while one of its parts crashes.";
const CASES: [(&str, u32); 3] = [("short", 50), ("medium", 100), ("long", 200)];

/// `mlxd bench overhead`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Timed runs per case.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Runs before the timed ones.
    #[arg(long, default_value_t = 1)]
    warmup_runs: u32,
    #[command(flatten)]
    server: ServerFlags,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Serialize)]
struct Case {
    name: &'static str,
    tokens: u32,
    prompt_tokens: u32,
    direct_tok_s: Vec<f64>,
    server_tok_s: Vec<f64>,
    direct_first_token_s: Vec<f64>,
    server_first_delta_s: Vec<f64>,
}

impl Benchmark for Arguments {
    const NAME: &'static str = "overhead";
    const NEEDS_ADMIN: bool = true;

    fn output(&self) -> &Output {
        &self.output
    }

    fn server(&self) -> ServerFlags {
        self.server.clone()
    }

    async fn measure(&self, session: &mut Session<'_>) -> anyhow::Result<Report> {
        let runs = if self.output.quick { 1 } else { self.runs };
        let target = session.target().await?;
        let progress = bar(runs as usize * CASES.len() * 2, Self::NAME);
        let mut cases = Vec::new();
        for (name, tokens) in CASES {
            cases.push(self.case(target, name, tokens, runs, &progress).await?);
        }
        progress.finish_and_clear();
        let mut report = target.report(Self::NAME, self.output.quick).await;
        report.subject.concurrency = vec![1];
        report.subject.template = Some(Template::Chat);
        report.subject.temperature = Some(0.0);
        report.subject.token_count_source = Some(Counted::Usage);
        report.tables.push(table(&cases));
        report.samples = json!(cases);
        Ok(report)
    }
}

impl Arguments {
    async fn case(
        &self,
        target: &Target,
        name: &'static str,
        tokens: u32,
        runs: u32,
        progress: &ProgressBar,
    ) -> anyhow::Result<Case> {
        let socket = target.admin_socket()?;
        let call = |warmup_runs| BenchCall {
            model: target.model.clone(),
            question: QUESTION.into(),
            new_tokens: tokens,
            warmup_runs,
            runs: 1,
        };
        let ask = Ask::new(Template::Chat, QUESTION, tokens);
        for _ in 0..self.warmup_runs {
            direct(socket, &call(1)).await?;
            target.ask(&ask).await?;
        }
        let mut case = Case {
            name,
            tokens,
            prompt_tokens: 0,
            direct_tok_s: Vec::new(),
            server_tok_s: Vec::new(),
            direct_first_token_s: Vec::new(),
            server_first_delta_s: Vec::new(),
        };
        for _ in 0..runs {
            let alone = direct(socket, &call(0)).await?;
            case.direct_tok_s.push(f64::from(tokens) / mean(&alone.leg.seconds));
            case.direct_first_token_s.push(mean(&alone.leg.first_token_seconds));
            progress.inc(1);
            let served = target.ask(&ask).await?;
            anyhow::ensure!(
                served.completion_tokens == tokens,
                "{} tokens came instead of {tokens}",
                served.completion_tokens
            );
            anyhow::ensure!(
                alone.prompt_tokens == served.prompt_tokens,
                "the legs' prompts differ: {} and {} tokens",
                alone.prompt_tokens,
                served.prompt_tokens
            );
            case.server_tok_s.push(f64::from(tokens) / served.seconds);
            case.server_first_delta_s.push(served.first_s);
            case.prompt_tokens = alone.prompt_tokens;
            progress.inc(1);
        }
        Ok(case)
    }
}

fn table(cases: &[Case]) -> Table {
    let mut table = Table::new("Engine alone against the HTTP path")
        .key("case", "Case")
        .key("tokens", "Tokens")
        .fact("prompt_tokens", "Prompt tok", 0)
        .higher("direct_per_s", "Direct tok/s", 1)
        .higher("server_per_s", "Server tok/s", 1)
        .lower("overhead_percent", "Overhead %", 1)
        .lower("first_delta_ms", "First delta ms", 1);
    for case in cases {
        let (alone, served) = (median(&case.direct_tok_s), median(&case.server_tok_s));
        table.row([
            json!(case.name),
            json!(case.tokens),
            json!(case.prompt_tokens),
            json!(alone),
            json!(served),
            json!((1.0 - served / alone) * 100.0),
            json!(median(&case.server_first_delta_s) * 1000.0),
        ]);
    }
    table
}
