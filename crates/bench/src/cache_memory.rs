//! Memory that sequences need together because they share beginnings: the published scenarios of
//! vLLM-MLX's paged cache, counted by the index that workers use, over token ids of the model.
//!
//! | scenario | sequences |
//! |---|---|
//! | shared system prompt | 20 of 256 tokens they all have, and 20 to 115 of their own |
//! | concurrent requests | 20, 15 and 15 of 256 tokens, the first 128 of each group the same |
//! | branches | a root of 64 tokens, two conversations of 104 on it, 3 and 2 ways to go on |

use crate::prefixes::{BLOCK_TOKENS, Prefixes};
use crate::prompts;
use crate::report::{Counted, Report, Subject};
use crate::session::{Benchmark, LocalFlags, Output, Session, bar};
use crate::table::Table;
use mlxd_memory::ModelShape;
use mlxd_protocol::TokenId;
use mlxd_text::Tokenizer;
use serde_json::json;

/// Blocks that the published table divides by, for each of its users with a system prompt.
const PUBLISHED_BLOCKS_A_USER: u64 = 6;

/// `mlxd bench cache-memory`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    local: LocalFlags,
    #[command(flatten)]
    output: Output,
}

/// A published scenario.
struct Scenario {
    name: &'static str,
    sequences: Vec<Vec<TokenId>>,
    /// Percent, as vLLM-MLX comes to it, from our counts.
    formula: fn(&Prefixes) -> f64,
    /// What it printed.
    published: f64,
    /// What it should have.
    corrected: f64,
}

impl Benchmark for Arguments {
    const NAME: &'static str = "cache-memory";

    fn output(&self) -> &Output {
        &self.output
    }

    async fn measure(&self, session: &mut Session<'_>) -> anyhow::Result<Report> {
        let model = session.front.model(self.local.config.as_deref(), &self.local.model)?;
        let tokenizer = Tokenizer::load(&model.folder)?;
        let per_token = model.needs.sequence_bytes(ModelShape::KV_BLOCK) / ModelShape::KV_BLOCK;
        let mut report = Report::new(
            Self::NAME,
            Subject {
                model: Some(self.local.model.clone()),
                architecture: model.needs.shape.map(|shape| shape.architecture),
                token_count_source: Some(Counted::Engine),
                quick: self.output.quick,
                ..Subject::default()
            },
        );
        let mut table = Table::new(format!(
            "Memory that shared beginnings save, in blocks of {BLOCK_TOKENS} tokens"
        ))
        .key("scenario", "Scenario")
        .fact("sequences", "Sequences", 0)
        .fact("tokens", "Tokens", 0)
        .fact("blocks_apart", "Blocks apart", 0)
        .lower("blocks", "Blocks held", 0)
        .fact("blocks_shared", "Shared", 0)
        .lower("held_mb", "Held MB", 2)
        .higher("memory_saved_percent", "Memory saved %", 1)
        .higher("prefill_saved_percent", "Prompt work saved %", 1)
        .higher("as_published_percent", "By the published formula %", 1)
        .fact("published_percent", "Published %", 1)
        .fact("corrected_percent", "Published, corrected %", 1);
        let scenarios = scenarios(&tokenizer)?;
        let progress = bar(scenarios.len(), Self::NAME);
        for scenario in &scenarios {
            let mut prefixes = Prefixes::new();
            scenario.sequences.iter().for_each(|tokens| prefixes.run(tokens));
            let totals = prefixes.totals;
            table.row([
                json!(scenario.name),
                json!(totals.sequences),
                json!(totals.tokens),
                json!(totals.blocks_apart),
                json!(prefixes.blocks()),
                json!(prefixes.blocks_shared()),
                json!((prefixes.tokens_held() * per_token) as f64 / 1e6),
                json!(share_saved(prefixes.tokens_held(), totals.tokens as u64)),
                json!(totals.found as f64 / totals.tokens as f64 * 100.0),
                json!((scenario.formula)(&prefixes)),
                json!(scenario.published),
                json!(scenario.corrected),
            ]);
            progress.inc(1);
        }
        progress.finish_and_clear();
        report.tables.push(table);
        report.notes.push(format!(
            "Memory saved counts tokens: a sequence's last block has only its own. The published \
             formulas count whole blocks: of {PUBLISHED_BLOCKS_A_USER} a user, of those a sequence \
             has, and tokens found in whole blocks; theirs also count one block that nobody uses, \
             so ours may be half a percent above. Their 83.5 % came from a hash over shortened ids, \
             which took different blocks for equal ones."
        ));
        Ok(report)
    }
}

fn share_saved(held: u64, apart: u64) -> f64 {
    (1.0 - held as f64 / apart as f64) * 100.0
}

fn scenarios(tokenizer: &Tokenizer) -> anyhow::Result<[Scenario; 3]> {
    let mut texts = Texts { tokenizer, number: 0 };
    let system = texts.of(256)?;
    let mut shared = Vec::new();
    for user in 0..20 {
        shared.push([system.clone(), texts.of(20 + user * 5)?].concat());
    }
    let mut concurrent = Vec::new();
    for requests in [20, 15, 15] {
        let prefix = texts.of(128)?;
        for _ in 0..requests {
            concurrent.push([prefix.clone(), texts.of(128)?].concat());
        }
    }
    let root = texts.of(64)?;
    let mut branches = Vec::new();
    for ways in [[30, 60, 50].as_slice(), &[50, 80]] {
        let conversation = [root.clone(), texts.of(40)?].concat();
        branches.push(conversation.clone());
        for length in ways {
            branches.push([conversation.clone(), texts.of(*length)?].concat());
        }
    }
    Ok([
        Scenario {
            name: "Shared system prompt",
            sequences: shared,
            formula: |it| {
                share_saved(it.blocks(), PUBLISHED_BLOCKS_A_USER * it.totals.sequences as u64)
            },
            published: 70.8,
            corrected: 70.0,
        },
        Scenario {
            name: "Concurrent requests",
            sequences: concurrent,
            formula: |it| share_saved(it.blocks(), it.totals.blocks_apart as u64),
            published: 83.5,
            corrected: 46.5,
        },
        Scenario {
            name: "Branches",
            sequences: branches,
            formula: |it| it.totals.found_whole as f64 / it.totals.tokens as f64 * 100.0,
            published: 38.5,
            corrected: 38.5,
        },
    ])
}

/// Texts of ours as tokens, each with a beginning of its own.
struct Texts<'a> {
    tokenizer: &'a Tokenizer,
    number: usize,
}

impl Texts<'_> {
    fn of(&mut self, tokens: usize) -> anyhow::Result<Vec<TokenId>> {
        self.number += 1;
        // The number first: few of the leading tokens are another text's too.
        let text = format!("{} {}", self.number, prompts::text(self.number, tokens));
        let mut ids = self.tokenizer.encode(&text, false)?;
        anyhow::ensure!(
            ids.len() >= tokens,
            "{tokens} words came to {} tokens: this tokenizer does not suit the table",
            ids.len()
        );
        ids.truncate(tokens);
        Ok(ids)
    }
}
