//! Many users of one system prompt: two rounds of ten requests at once, as vLLM-MLX's paged cache
//! is published. Once every request has a system prompt of its own, as long, so that there is
//! nothing to share; once all have the same. Tokens saved are those that the server says it had.
//! Blocks are counted by the index that workers use, from the same prompts.

use crate::client::Ask;
use crate::prefix_cache::unseen;
use crate::prefixes::Prefixes;
use crate::prompts;
use crate::report::{Report, Template};
use crate::session::{Benchmark, Output, Session, bar};
use crate::table::Table;
use crate::target::{ServerFlags, Target};
use crate::volley::{Totals, Volley, note_counting, totals};
use indicatif::ProgressBar;
use mlxd_text::Tokenizer;
use serde_json::json;
use std::path::Path;

const ROUNDS: usize = 2;

/// `mlxd bench paged-cache`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Requests at once in each of the two rounds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    requests: u32,
    /// Words of the system prompt; about as many tokens.
    #[arg(long, default_value_t = 230, value_parser = clap::value_parser!(u32).range(1..))]
    words: u32,
    /// Tokens of an answer.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Of the sampling.
    #[arg(long, default_value_t = 0.7)]
    temperature: f32,
    #[command(flatten)]
    server: ServerFlags,
    #[command(flatten)]
    output: Output,
}

/// Both rounds of one kind.
struct Leg {
    name: &'static str,
    prompts: Vec<String>,
    totals: Totals,
    hits: usize,
    blocks: Option<(u64, usize)>,
}

impl Benchmark for Arguments {
    const NAME: &'static str = "paged-cache";

    fn output(&self) -> &Output {
        &self.output
    }

    fn server(&self) -> ServerFlags {
        self.server.clone()
    }

    async fn measure(&self, session: &mut Session<'_>) -> anyhow::Result<Report> {
        let quick = self.output.quick;
        let requests = if quick { self.requests.min(3) } else { self.requests } as usize;
        let front = session.front;
        let target = session.target().await?;
        target.warm_up(Template::Raw, 20).await?;
        let progress = bar(ROUNDS * requests * 2, Self::NAME);
        let words = self.words as usize;
        let apart = |number| question(&unseen(number, words), number);
        let mut apart = Leg::new("A system prompt each", (0..ROUNDS * requests).map(apart));
        let system = unseen(1, words);
        let shared = |number| question(&system, number);
        let mut shared = Leg::new("One system prompt for all", (0..ROUNDS * requests).map(shared));
        let mut answers = Vec::new();
        for leg in [&mut apart, &mut shared] {
            answers.extend(self.run(target, leg, requests, &progress).await?);
        }
        progress.finish_and_clear();
        let mut report = target.report(Self::NAME, quick).await;
        report.subject.concurrency = vec![requests as u32];
        report.subject.template = Some(Template::Raw);
        report.subject.temperature = Some(self.temperature);
        note_counting(&mut report, &answers);
        // The model of somebody else's server may not be on this machine.
        let model = front.model(self.server.config.as_deref(), &target.model);
        match model.and_then(|model| tokenizer(&model.folder, &system)) {
            Ok((tokenizer, length)) => {
                apart.count(&tokenizer)?;
                shared.count(&tokenizer)?;
                report.notes.push(format!("The system prompt has {length} tokens."));
            }
            Err(error) => {
                report.notes.push(format!("Blocks were not counted without the model: {error:#}"));
            }
        }
        report.tables.push(table(&[apart, shared]));
        report.samples = json!(answers);
        Ok(report)
    }
}

impl Arguments {
    async fn run(
        &self,
        target: &Target,
        leg: &mut Leg,
        at_once: usize,
        progress: &ProgressBar,
    ) -> anyhow::Result<Vec<crate::client::Answered>> {
        let tokens = if self.output.quick { self.max_tokens.min(6) } else { self.max_tokens };
        let (mut answers, mut seconds) = (Vec::new(), 0.0);
        for round in leg.prompts.chunks(at_once) {
            let ask = |text: &String| Ask::new(Template::Raw, text, tokens).at(self.temperature);
            let asks: Vec<Ask> = round.iter().map(ask).collect();
            let volley = Volley::whole(target, &asks, at_once, progress).await?;
            seconds += volley.seconds;
            answers.extend(volley.answers);
        }
        leg.totals = totals(&answers, seconds);
        leg.hits = answers.iter().filter(|one| one.cached_tokens * 2 >= one.prompt_tokens).count();
        Ok(answers)
    }
}

impl Leg {
    fn new(name: &'static str, prompts: impl Iterator<Item = String>) -> Self {
        let prompts = prompts.collect();
        Self { name, prompts, totals: totals(&[], 0.0), hits: 0, blocks: None }
    }

    fn count(&mut self, tokenizer: &Tokenizer) -> anyhow::Result<()> {
        let mut prefixes = Prefixes::new();
        for prompt in &self.prompts {
            prefixes.run(&tokenizer.encode(prompt, true)?);
        }
        self.blocks = Some((prefixes.blocks(), prefixes.blocks_shared()));
        Ok(())
    }
}

/// The tokenizer, and how many tokens it makes of a text.
fn tokenizer(folder: &Path, text: &str) -> anyhow::Result<(Tokenizer, usize)> {
    let tokenizer = Tokenizer::load(folder)?;
    let length = tokenizer.encode(text, true)?.len();
    Ok((tokenizer, length))
}

fn question(system: &str, number: usize) -> String {
    // The number tells apart those that come round.
    format!("{system}\n\nUser: {number}. {}\nAssistant:", prompts::question(number))
}

fn table(legs: &[Leg; 2]) -> Table {
    let mut table = Table::new(format!("{} requests in {ROUNDS} rounds", legs[0].prompts.len()))
        .key("prompts", "Prompts")
        .lower("seconds", "Time s", 2)
        .higher("tokens_per_s", "Throughput tok/s", 1)
        .fact("prompt_tokens", "Prompt tok", 0)
        .lower("blocks", "Blocks of the prompts", 0)
        .fact("blocks_shared", "Shared", 0)
        .higher("hits", "Cache hits", 0)
        .higher("saved_tokens", "Tokens saved", 0)
        .higher("speedup", "Speed-up", 2);
    for leg in legs {
        table.row([
            json!(leg.name),
            json!(leg.totals.seconds),
            json!(leg.totals.generation()),
            json!(leg.totals.prompt_tokens),
            json!(leg.blocks.map(|(blocks, _)| blocks)),
            json!(leg.blocks.map(|(_, shared)| shared)),
            json!(leg.hits),
            json!(leg.totals.cached_tokens),
            json!(legs[0].totals.seconds / leg.totals.seconds),
        ]);
    }
    table
}
