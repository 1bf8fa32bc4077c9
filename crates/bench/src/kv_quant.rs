//! Keys and values as they are computed against packed ones: what a token takes, how fast long
//! sequences go on, and how far the answers get from full precision.

use crate::plot::Plot;
use crate::prompts;
use crate::report::Report;
use crate::session::{Benchmark, LocalFlags, Output, Session};
use crate::stats::median;
use crate::table::Table;
use crate::worker::{measure, report};
use mlxd_protocol::TokenId;
use mlxd_protocol::measure::{Figure, Measurement};
use mlxd_text::Tokenizer;
use serde_json::json;

const QUICK_LENGTHS: [u32; 2] = [64, 256];

/// `mlxd bench kv-quant`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Bits of a key or value, packed.
    #[arg(long, value_delimiter = ',', default_values_t = [8, 4], value_parser = bits)]
    bits: Vec<u32>,
    /// Tokens before the ones that are timed.
    #[arg(long, value_delimiter = ',', default_values_t = [512, 2048, 8192], value_parser = clap::value_parser!(u32).range(1..))]
    lengths: Vec<u32>,
    /// Tokens generated in each timed run.
    #[arg(long, default_value_t = 33, value_parser = clap::value_parser!(u32).range(2..))]
    new_tokens: u32,
    /// Timed runs per form and length.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Texts that are gone on with for the judgement.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    prompts: u32,
    /// Tokens of each of them.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: u32,
    /// Tokens that each is gone on with.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    answer_tokens: u32,
    #[command(flatten)]
    local: LocalFlags,
    #[command(flatten)]
    output: Output,
}

fn bits(text: &str) -> Result<u32, String> {
    match text {
        "4" => Ok(4),
        "8" => Ok(8),
        _ => Err("keys and values are packed in 4 or 8 bits".to_owned()),
    }
}

/// How a form is called.
fn form(bits: Option<u32>) -> String {
    bits.map_or_else(|| "full".to_owned(), |bits| format!("{bits}-bit"))
}

impl Benchmark for Arguments {
    const NAME: &'static str = "kv-quant";

    fn output(&self) -> &Output {
        &self.output
    }

    async fn measure(&self, session: &mut Session<'_>) -> anyhow::Result<Report> {
        let config = self.local.config.as_deref();
        let program = session.front.worker_program(config)?;
        let model = session.front.model(config, &self.local.model)?;
        let tokenizer = Tokenizer::load(&model.folder)?;
        let quick = self.output.quick;
        let what = Measurement::Kv {
            load: model.load,
            bits: self.bits.clone(),
            lengths: if quick { QUICK_LENGTHS.to_vec() } else { self.lengths.clone() },
            new_tokens: self.new_tokens,
            runs: if quick { 1 } else { self.runs },
            prompts: self.texts(&tokenizer)?,
            answer_tokens: if quick { 16 } else { self.answer_tokens },
        };
        let measured = measure(&program, Self::NAME, &what).await?;
        let mut report = report(Self::NAME, &self.output, Some(&self.local.model), &measured);
        let speed = speed(&measured.figures);
        let mut plot =
            Plot::new("Decoding by length and form", "tokens before", "tokens/s").log_x();
        for name in std::iter::once(None).chain(self.bits.iter().copied().map(Some)).map(form) {
            let mut of_form = speed.clone();
            of_form.rows.retain(|row| row["form"] == name.as_str());
            plot = plot.line(&name, of_form.points("length", "tokens_per_s"));
        }
        report.plots.push(plot);
        report.tables.push(speed);
        report.tables.push(quality(&measured.figures));
        report.notes.push(
            "Everything is packed from a sequence's first token on; kv_quantize_from_tokens leaves \
             short ones as they are. Quality: the full form answers, and the packed ones are asked \
             at each of its tokens what they would have said. Equal counts the tokens of their own \
             greedy answers before the first that differs."
                .to_owned(),
        );
        Ok(report)
    }
}

impl Arguments {
    /// Texts of ours as tokens.
    fn texts(&self, tokenizer: &Tokenizer) -> anyhow::Result<Vec<Vec<TokenId>>> {
        let (count, tokens) = match self.output.quick {
            true => (2, 48),
            false => (self.prompts as usize, self.prompt_tokens as usize),
        };
        let text = |number| {
            let mut ids = tokenizer.encode(&prompts::text(number, tokens), false)?;
            ids.truncate(tokens);
            Ok(ids)
        };
        (0..count).map(text).collect()
    }
}

fn speed(figures: &[Figure]) -> Table {
    let mut table = Table::new("Decoding by the form of keys and values")
        .key("form", "Form")
        .key("length", "Tokens before")
        .fact("bytes_per_token", "KV bytes/token", 0)
        .higher("kv_saved_percent", "KV saved %", 1)
        .higher("tokens_per_s", "Tokens/s", 1)
        .higher("of_full", "× full", 2)
        .lower("first_ms", "First token ms", 1)
        .lower("state_mb", "Kept MB", 2)
        .lower("peak_mb", "Peak MB", 2);
    // By length, what the full form came to: it is measured first.
    let mut full = Vec::new();
    for figure in figures {
        let Figure::Kv {
            bits,
            bytes_per_token,
            length,
            first_s,
            rest_s,
            rest_tokens,
            state_bytes,
            peak_bytes,
        } = figure
        else {
            continue;
        };
        let rate = f64::from(*rest_tokens) / median(rest_s);
        if bits.is_none() {
            full.push((*length, rate, *bytes_per_token));
        }
        let beside = full.iter().find(|(of, ..)| of == length);
        let saved =
            |full: u64| if full == 0 { 0.0 } else { 1.0 - *bytes_per_token as f64 / full as f64 };
        table.row([
            json!(form(*bits)),
            json!(length),
            json!(bytes_per_token),
            json!(beside.map(|(.., full)| saved(*full) * 100.0)),
            json!(rate),
            json!(beside.map(|(_, full, _)| rate / full)),
            json!(median(first_s) * 1e3),
            json!(*state_bytes as f64 / 1e6),
            json!(*peak_bytes as f64 / 1e6),
        ]);
    }
    table
}

fn quality(figures: &[Figure]) -> Table {
    let mut table = Table::new("Quality against full precision")
        .key("form", "Form")
        .fact("tokens", "Tokens judged", 0)
        .lower("divergence", "Mean KL, nats", 5)
        .lower("divergence_max", "Largest KL", 5)
        .lower("difference_max", "Largest logit difference", 3)
        .higher("agreeing_percent", "Same best token %", 1)
        .higher("equal_percent", "Greedy answer equal %", 1);
    for figure in figures {
        let Figure::KvQuality {
            bits,
            tokens,
            divergence,
            divergence_max,
            difference_max,
            agreeing,
            equal,
        } = figure
        else {
            continue;
        };
        let percent = |part: u32| f64::from(part) / f64::from((*tokens).max(1)) * 100.0;
        table.row([
            json!(form(Some(*bits))),
            json!(tokens),
            json!(divergence),
            json!(divergence_max),
            json!(difference_max),
            json!(percent(*agreeing)),
            json!(percent(*equal)),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_divergence_is_shown_as_finely_as_the_mean() {
        let judged = Figure::KvQuality {
            bits: 8,
            tokens: 1,
            divergence: 4e-5,
            divergence_max: 4e-5,
            difference_max: 0.01,
            agreeing: 1,
            equal: 1,
        };
        let text = quality(&[judged]).markdown();
        assert_eq!(text.matches(" 0.00004 ").count(), 2, "{text}");
    }
}
