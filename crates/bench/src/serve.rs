//! Any server that speaks the OpenAI API, under load.
//!
//! Per level of concurrency, so many requests are open all the time until all are answered. TTFT
//! is taken at the first delta of any kind, reasoning included; tokens are the server's own
//! count. Inter-token latency is the time between deltas; TPOT, per request, divides by tokens,
//! so that a server which packs several tokens into a delta is not flattered. Goodput counts the
//! requests a second that kept both objectives.

use crate::client::{Answered, Ask};
use crate::plot::Plot;
use crate::prompts;
use crate::report::{Report, Template};
use crate::session::{Benchmark, Output, Session, bar};
use crate::stats::{Objective, percentile, time_per_output_token};
use crate::table::Table;
use crate::target::ServerFlags;
use crate::volley::{Volley, note_counting};
use serde_json::{Value, json};

/// `mlxd bench serve`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Requests at once, one level after another.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4, 8, 16])]
    concurrency: Vec<u32>,
    /// Requests per level; 4 for each that is open at once when not given.
    #[arg(long, value_name = "N")]
    requests: Option<u32>,
    /// Tokens of an answer at the most.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Words of a prompt; a short question when not given.
    #[arg(long, value_name = "WORDS")]
    prompt_words: Option<usize>,
    /// Of the sampling.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Let the model end its answers; else each has exactly --max-tokens where the server knows
    /// `ignore_eos`.
    #[arg(long)]
    natural_end: bool,
    /// Goodput: milliseconds to the first token at the most.
    #[arg(long, default_value_t = 1000.0, value_name = "MS")]
    ttft_ms: f64,
    /// Goodput: milliseconds per output token at the most.
    #[arg(long, default_value_t = 50.0, value_name = "MS")]
    tpot_ms: f64,
    #[command(flatten)]
    server: ServerFlags,
    #[command(flatten)]
    output: Output,
}

impl Arguments {
    fn ask(&self, number: usize, tokens: u32) -> Ask {
        let text = match self.prompt_words {
            Some(words) => format!("{}\n\nSum this up.", prompts::text(number, words)),
            None => prompts::question(number).to_owned(),
        };
        let mut ask = Ask::new(Template::Chat, &text, tokens);
        ask.exact = !self.natural_end;
        ask.at(self.temperature)
    }

    fn levels(&self) -> anyhow::Result<Vec<u32>> {
        anyhow::ensure!(
            self.concurrency.iter().all(|level| (1..=4096).contains(level)),
            "--concurrency takes numbers from 1 to 4096"
        );
        let most = if self.output.quick { 2 } else { usize::MAX };
        Ok(self.concurrency.iter().copied().take(most).collect())
    }

    fn requests(&self, level: u32) -> usize {
        let wanted = self.requests.unwrap_or(level * 4).max(level) as usize;
        if self.output.quick { wanted.min(2 * level as usize) } else { wanted }
    }
}

impl Benchmark for Arguments {
    const NAME: &'static str = "serve";

    fn output(&self) -> &Output {
        &self.output
    }

    fn server(&self) -> ServerFlags {
        self.server.clone()
    }

    async fn measure(&self, session: &mut Session<'_>) -> anyhow::Result<Report> {
        let quick = self.output.quick;
        let tokens = if quick { self.max_tokens.min(16) } else { self.max_tokens };
        let levels = self.levels()?;
        let target = session.target().await?;
        target.warm_up(Template::Chat, 20).await?;
        let all = levels.iter().map(|level| self.requests(*level)).sum();
        let progress = bar(all, Self::NAME);
        let objective =
            Objective { first_s: self.ttft_ms / 1000.0, per_token_s: self.tpot_ms / 1000.0 };
        let mut latency = latency_table();
        let mut rates = rate_table(&objective);
        let (mut answers, mut samples, mut failures) = (Vec::new(), Vec::new(), Vec::new());
        let mut number = 0;
        for level in &levels {
            let asks: Vec<Ask> = (0..self.requests(*level))
                .map(|_| {
                    number += 1;
                    self.ask(number, tokens)
                })
                .collect();
            progress.set_message(format!("{level} at once"));
            let volley = Volley::fly(target, &asks, *level as usize, &progress).await;
            anyhow::ensure!(
                !volley.answers.is_empty(),
                "all {} requests failed, the first: {}",
                asks.len(),
                volley.failures.first().map_or("", String::as_str)
            );
            latency.row(latency_row(*level, &volley));
            rates.row(rate_row(*level, &volley, &objective));
            samples.push(json!({"concurrency": level, "answers": &volley.answers}));
            failures.extend(volley.failures);
            answers.extend(volley.answers);
        }
        progress.finish_and_clear();
        let mut report = target.report(Self::NAME, quick).await;
        report.subject.concurrency = levels;
        report.subject.template = Some(Template::Chat);
        report.subject.temperature = Some(self.temperature);
        note_counting(&mut report, &answers);
        if let Some(first) = failures.first() {
            report.notes.push(format!("{} requests failed, the first: {first}", failures.len()));
        }
        report.plots = plots(&latency, &rates);
        report.tables = vec![latency, rates];
        report.samples = Value::Array(samples);
        Ok(report)
    }
}

fn latency_table() -> Table {
    Table::new("Latency by concurrency")
        .key("concurrency", "At once")
        .lower("ttft_p50_ms", "TTFT p50 ms", 1)
        .lower("ttft_p90_ms", "p90", 1)
        .lower("ttft_p99_ms", "p99", 1)
        .lower("itl_p50_ms", "ITL p50 ms", 2)
        .lower("itl_p90_ms", "p90", 2)
        .lower("itl_p99_ms", "p99", 2)
        .lower("tpot_p50_ms", "TPOT p50 ms", 2)
        .lower("tpot_p99_ms", "p99", 2)
}

fn rate_table(objective: &Objective) -> Table {
    let (first, each) = (objective.first_s * 1000.0, objective.per_token_s * 1000.0);
    Table::new(format!(
        "Throughput by concurrency; goodput: TTFT within {first:.0} ms and TPOT within {each:.0} ms"
    ))
    .key("concurrency", "At once")
    .fact("requests", "Requests", 0)
    .fact("failed", "Failed", 0)
    .fact("tokens_per_delta", "Tokens a delta", 2)
    .higher("generation_per_s", "Output tok/s", 1)
    .higher("throughput_per_s", "In+out tok/s", 1)
    .higher("requests_per_s", "Requests/s", 2)
    .higher("goodput_per_s", "Goodput req/s", 2)
}

fn per_token(answered: &Answered) -> Option<f64> {
    time_per_output_token(answered.seconds, answered.first_s, answered.completion_tokens)
}

fn latency_row(level: u32, volley: &Volley) -> [Value; 9] {
    let answers = &volley.answers;
    let firsts: Vec<f64> = answers.iter().map(|a| a.first_s * 1000.0).collect();
    let each: Vec<f64> = answers.iter().filter_map(per_token).map(|s| s * 1000.0).collect();
    let gaps: Vec<f64> = (answers.iter())
        .flat_map(|a| a.deltas_s.windows(2).map(|pair| (pair[1] - pair[0]) * 1000.0))
        .collect();
    [
        json!(level),
        json!(percentile(&firsts, 0.5)),
        json!(percentile(&firsts, 0.9)),
        json!(percentile(&firsts, 0.99)),
        json!(percentile(&gaps, 0.5)),
        json!(percentile(&gaps, 0.9)),
        json!(percentile(&gaps, 0.99)),
        json!(percentile(&each, 0.5)),
        json!(percentile(&each, 0.99)),
    ]
}

fn rate_row(level: u32, volley: &Volley, objective: &Objective) -> [Value; 8] {
    let totals = volley.totals();
    let deltas: usize = volley.answers.iter().map(|a| a.deltas_s.len()).sum();
    let good = volley.answers.iter().filter(|a| objective.met(a.first_s, per_token(a))).count();
    [
        json!(level),
        json!(totals.requests),
        json!(volley.failures.len()),
        json!(totals.completion_tokens as f64 / deltas as f64),
        json!(totals.generation()),
        json!(totals.throughput()),
        json!(totals.request_rate()),
        json!(good as f64 / totals.seconds),
    ]
}

fn plots(latency: &Table, rates: &Table) -> Vec<Plot> {
    let at_once = "requests at once";
    vec![
        Plot::new("Output by concurrency", at_once, "tokens/s")
            .log_x()
            .line("output", rates.points("concurrency", "generation_per_s")),
        Plot::new("Time to first token by concurrency", at_once, "ms")
            .log_x()
            .line("p50", latency.points("concurrency", "ttft_p50_ms"))
            .line("p99", latency.points("concurrency", "ttft_p99_ms")),
        Plot::new("Between deltas by concurrency", at_once, "ms")
            .log_x()
            .line("p50", latency.points("concurrency", "itl_p50_ms"))
            .line("p99", latency.points("concurrency", "itl_p99_ms")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Counted;

    fn answered(first_s: f64, seconds: f64, tokens: u32) -> Answered {
        Answered {
            begun_s: 0.0,
            seconds,
            first_s,
            deltas_s: vec![first_s, seconds],
            completion_tokens: tokens,
            prompt_tokens: 5,
            cached_tokens: 0,
            counted: Counted::Usage,
            finish_reason: None,
            text: String::new(),
        }
    }

    #[test]
    fn goodput_counts_requests_that_kept_both_objectives() {
        let volley = Volley {
            // Both kept; a late first token; slow tokens.
            answers: vec![answered(0.1, 0.5, 11), answered(2.0, 2.1, 11), answered(0.1, 2.1, 11)],
            failures: vec!["x".into()],
            seconds: 2.0,
        };
        let objective = Objective { first_s: 1.0, per_token_s: 0.05 };
        let [level, requests, failed, per_delta, output, both, rate, good] =
            rate_row(3, &volley, &objective);
        assert_eq!([level, requests, failed], [json!(3), json!(3), json!(1)]);
        assert_eq!([per_delta, output, both], [json!(5.5), json!(16.5), json!(24.0)]);
        assert_eq!([rate, good], [json!(1.5), json!(0.5)]);
    }

    #[test]
    fn latencies_are_in_milliseconds() {
        let volley =
            Volley { answers: vec![answered(0.1, 0.5, 11)], failures: vec![], seconds: 1.0 };
        let row = latency_row(1, &volley);
        let number = |at: usize| row[at].as_f64().expect("a number");
        assert!((number(1) - 100.0).abs() < 1e-9);
        assert!((number(4) - 400.0).abs() < 1e-9);
        assert!((number(7) - 40.0).abs() < 1e-9);
    }
}
