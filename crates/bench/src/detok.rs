//! Tokens to text: `decode([t])` for every token against a streaming decoder, at the published
//! lengths, and what making a decoder costs.
//!
//! The naive way is fast to write and wrong wherever a character spans tokens; it is the
//! published baseline. Making the decoder is timed apart, as published: 52.7 ms each there.

use crate::prompts;
use crate::report::{Counted, Report, Subject};
use crate::session::{Benchmark, LocalFlags, Output, Session, bar};
use crate::stats::{mean, median};
use crate::table::Table;
use mlxd_text::{Decoder, Tokenizer};
use serde_json::json;
use std::hint::black_box;
use std::time::Instant;

/// Names and tokens of the published sequences.
const SEQUENCES: [(&str, usize); 6] =
    [("Short", 8), ("Medium", 103), ("Long", 511), ("1K", 1191), ("2K", 2381), ("4K", 4761)];

/// Decoders made for the figure of making one.
const MADE: usize = 100;

/// `mlxd bench detok`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Timed runs per sequence; the median counts.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    iterations: u32,
    #[command(flatten)]
    local: LocalFlags,
    #[command(flatten)]
    output: Output,
}

impl Benchmark for Arguments {
    const NAME: &'static str = "detok";

    fn output(&self) -> &Output {
        &self.output
    }

    async fn measure(&self, session: &mut Session<'_>) -> anyhow::Result<Report> {
        let iterations = if self.output.quick { 3 } else { self.iterations };
        let model = session.front.model(self.local.config.as_deref(), &self.local.model)?;
        let tokenizer = Tokenizer::load(&model.folder)?;
        let ids = ids(&tokenizer, SEQUENCES[SEQUENCES.len() - 1].1)?;
        let mut report = Report::new(
            Self::NAME,
            Subject {
                model: Some(self.local.model.clone()),
                token_count_source: Some(Counted::Engine),
                quick: self.output.quick,
                ..Subject::default()
            },
        );
        let mut table = Table::new("Detokenising: decode() a token against streaming")
            .key("sequence", "Sequence")
            .key("tokens", "Tokens")
            .fact("iterations", "Iterations", 0)
            .lower("naive_ms", "decode() ms", 3)
            .lower("streaming_ms", "Streaming ms", 3)
            .lower("streaming_us_per_token", "µs a token", 3)
            .higher("speedup", "Speed-up", 2)
            .fact("same_text", "Same text as at once", 0);
        let progress = bar(SEQUENCES.len(), Self::NAME);
        let mut speedups = Vec::new();
        for (name, tokens) in SEQUENCES {
            let ids = &ids[..tokens];
            let (text, _) = stream(&tokenizer, ids);
            let naive_s = timed(iterations, || one_by_one(&tokenizer, ids));
            let streaming_s = timed(iterations, || stream(&tokenizer, ids).1);
            speedups.push(naive_s / streaming_s);
            let same = text == tokenizer.decode(ids, true);
            table.row([
                json!(name),
                json!(tokens),
                json!(iterations),
                json!(naive_s * 1e3),
                json!(streaming_s * 1e3),
                json!(streaming_s * 1e6 / tokens as f64),
                json!(naive_s / streaming_s),
                json!(if same { "yes" } else { "no" }),
            ]);
            progress.inc(1);
        }
        progress.finish_and_clear();
        report.notes.push(format!("Average speed-up: {:.2}", mean(&speedups)));
        report.tables = vec![table, making(&tokenizer, &ids, iterations)];
        Ok(report)
    }
}

/// So many tokens of text of ours.
fn ids(tokenizer: &Tokenizer, count: usize) -> anyhow::Result<Vec<u32>> {
    let mut ids = tokenizer.encode(&prompts::text(1, count), false)?;
    anyhow::ensure!(!ids.is_empty(), "the tokenizer makes no tokens of a plain text");
    while ids.len() < count {
        ids.extend_from_within(..);
    }
    ids.truncate(count);
    Ok(ids)
}

/// Median seconds of a run.
fn timed<T>(iterations: u32, mut run: impl FnMut() -> T) -> f64 {
    let once = |_| {
        let begun = Instant::now();
        black_box(run());
        begun.elapsed().as_secs_f64()
    };
    median(&(0..iterations).map(once).collect::<Vec<f64>>())
}

fn one_by_one(tokenizer: &Tokenizer, ids: &[u32]) -> usize {
    ids.iter().map(|id| black_box(tokenizer.decode(&[*id], true)).len()).sum()
}

/// The text, and its length as pushed.
fn stream(tokenizer: &Tokenizer, ids: &[u32]) -> (String, usize) {
    let mut text = String::new();
    let mut decoder = Decoder::new(tokenizer, &[]);
    for id in ids {
        decoder.push_into(*id, &mut text);
    }
    text += &decoder.finish();
    let length = text.len();
    (text, length)
}

fn making(tokenizer: &Tokenizer, ids: &[u32], iterations: u32) -> Table {
    let tail = &ids[..ids.len().min(8)];
    let seconds = timed(iterations, || {
        for _ in 0..MADE {
            black_box(Decoder::new(black_box(tokenizer), black_box(tail)));
        }
    });
    let mut table = Table::new("Making a decoder")
        .key("decoder", "Decoder")
        .fact("made", "Made", 0)
        .lower("each_us", "µs each", 3);
    table.row([json!("streaming"), json!(MADE), json!(seconds * 1e6 / MADE as f64)]);
    table
}
