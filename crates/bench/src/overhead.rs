//! The engine alone against the full HTTP path: the table of MLX Inference Server's benchmark.
//!
//! tok/s is tokens over the time of the whole request, prompt included; overhead = 1 − server/direct.
//! Both legs run the same prompt in the same worker, in turns, so that what the machine does
//! meanwhile falls on both.

use crate::client::{Client, direct};
use crate::machine::Machine;
use crate::server::Server;
use crate::table::{mean, median, table, write_json};
use mlxd_protocol::admin::BenchCall;
use serde::Serialize;
use std::path::PathBuf;

const QUESTION: &str =
    "Explain in a few paragraphs how a program can keep serving while one of its parts crashes.";
const CASES: [(&str, u32); 3] = [("short", 50), ("medium", 100), ("long", 200)];

/// `mlxd bench overhead`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Model to measure, by name or path.
    #[arg(long, default_value = "mlxd-demo")]
    model: String,
    /// Timed runs per case.
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// Runs before the timed ones.
    #[arg(long, default_value_t = 1)]
    warmup_runs: u32,
    /// One timed run per case.
    #[arg(long)]
    quick: bool,
    /// Configuration file of the server.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Write the report as JSON.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Case {
    name: &'static str,
    tokens: u32,
    direct_tok_s: Vec<f64>,
    server_tok_s: Vec<f64>,
    /// 1 − median server / median direct.
    overhead: f64,
    /// Median seconds from the request to its first text.
    server_first_delta_s: f64,
    /// Median seconds from the prompt to its first token.
    direct_first_token_s: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    benchmark: &'static str,
    machine: Machine,
    model: String,
    architecture: Option<String>,
    quantization: Option<String>,
    prompt_tokens: u32,
    runs: u32,
    temperature: f32,
    concurrency: u32,
    token_count_source: &'static str,
    cases: Vec<Case>,
}

/// Runs both legs of every case and prints the table.
pub async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let server = Server::start(arguments.config.as_deref()).await?;
    let outcome = measure(arguments, &server).await;
    match outcome {
        Ok(report) => {
            print(&report);
            server.stop().await?;
            arguments.output.as_ref().map_or(Ok(()), |path| write_json(path, &report))
        }
        Err(error) => Err(error.context(server.log())),
    }
}

async fn measure(arguments: &Arguments, server: &Server) -> anyhow::Result<Report> {
    let runs = if arguments.quick { 1 } else { arguments.runs.max(1) };
    let client = Client::new(&server.card.base_url)?;
    let bar = indicatif::ProgressBar::new(u64::from(runs) * CASES.len() as u64 * 2);
    let mut report = Report {
        benchmark: "overhead",
        machine: Machine::this(),
        model: arguments.model.clone(),
        architecture: None,
        quantization: None,
        prompt_tokens: 0,
        runs,
        temperature: 0.0,
        concurrency: 1,
        token_count_source: "usage",
        cases: Vec::new(),
    };
    for (name, tokens) in CASES {
        let call = |warmup_runs| BenchCall {
            model: arguments.model.clone(),
            question: QUESTION.into(),
            new_tokens: tokens,
            warmup_runs,
            runs: 1,
        };
        for _ in 0..arguments.warmup_runs {
            direct(&server.card.admin_socket, &call(1)).await?;
            client.chat(&arguments.model, QUESTION, tokens).await?;
        }
        let (mut alone, mut served) = (Vec::new(), Vec::new());
        let (mut alone_first, mut served_first) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            let answer = direct(&server.card.admin_socket, &call(0)).await?;
            alone.push(f64::from(tokens) / mean(&answer.leg.seconds));
            alone_first.push(mean(&answer.leg.first_token_seconds));
            bar.inc(1);
            let answered = client.chat(&arguments.model, QUESTION, tokens).await?;
            anyhow::ensure!(
                answered.completion_tokens == tokens,
                "{} tokens came instead of {tokens}",
                answered.completion_tokens
            );
            anyhow::ensure!(
                answer.prompt_tokens == answered.prompt_tokens,
                "the legs' prompts differ"
            );
            served.push(f64::from(tokens) / answered.seconds);
            served_first.push(answered.first_delta_seconds);
            bar.inc(1);
            report.prompt_tokens = answer.prompt_tokens;
            report.architecture = answer.status.architecture;
            report.quantization = answer.status.quantization;
        }
        report.cases.push(Case {
            name,
            tokens,
            overhead: 1.0 - median(&served) / median(&alone),
            direct_tok_s: alone,
            server_tok_s: served,
            server_first_delta_s: median(&served_first),
            direct_first_token_s: median(&alone_first),
        });
    }
    bar.finish_and_clear();
    Ok(report)
}

fn print(report: &Report) {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    println!(
        "\n{} ({} {}), prompt of {} tokens, {} runs, on {} ({} cores, {})\n",
        report.model,
        text(&report.architecture),
        text(&report.quantization),
        report.prompt_tokens,
        report.runs,
        report.machine.cpu,
        report.machine.cores,
        report.machine.os
    );
    let mut rows =
        table(&["case", "tokens", "direct tok/s", "server tok/s", "overhead", "first delta ms"]);
    for case in &report.cases {
        rows.add_row([
            case.name.to_owned(),
            case.tokens.to_string(),
            format!("{:.1}", median(&case.direct_tok_s)),
            format!("{:.1}", median(&case.server_tok_s)),
            format!("{:.1} %", case.overhead * 100.0),
            format!("{:.1}", case.server_first_delta_s * 1000.0),
        ]);
    }
    println!("{rows}");
}
