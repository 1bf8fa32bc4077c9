//! Swapping: from a request for a model that is not loaded to its first token, when one leaves
//! for it and when there is room, with its files in the page cache and without; and a cold start
//! in parts.
//!
//! The models are one and the same under several names: what is measured is loading, not which
//! model. The parts are taken in a worker that serves nobody; a request also waits for admission,
//! for another model to leave, and for the handshake.

use crate::client::Ask;
use crate::pages;
use crate::prompts;
use crate::report::{Counted, Report, Template};
use crate::session::{Benchmark, LocalFlags, Output, Session, bar};
use crate::stats::{median, percentile};
use crate::table::Table;
use crate::target::{ServerFlags, Target};
use crate::worker::{self, Run};
use anyhow::Context;
use indicatif::ProgressBar;
use mlxd_protocol::measure::{Figure, Measurement};
use serde::Serialize;
use serde_json::json;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Models loaded at once at the most, one after the other.
const RESIDENT: [usize; 2] = [1, 2];
/// Tokens of the first prompt, where parts are measured.
const PROMPT_TOKENS: u32 = 32;
/// Tokens of an answer.
const ANSWER_TOKENS: u32 = 2;

/// `mlxd bench swap`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Swaps of each kind; the median counts.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    #[command(flatten)]
    local: LocalFlags,
    #[command(flatten)]
    output: Output,
}

/// Where the model's files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Cache {
    /// In memory.
    Warm,
    /// On the disk.
    Cold,
}

impl Cache {
    fn name(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Cold => "cold",
        }
    }
}

/// A request for a model that was not loaded.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Swap {
    /// Models loaded before.
    resident: usize,
    /// Those that left for it.
    leaves: usize,
    cache: Cache,
    /// To the first token.
    first_s: f64,
}

impl Benchmark for Arguments {
    const NAME: &'static str = "swap";

    fn output(&self) -> &Output {
        &self.output
    }

    async fn measure(&self, session: &mut Session<'_>) -> anyhow::Result<Report> {
        let runs = if self.output.quick { 1 } else { self.runs as usize };
        let config = self.local.config.as_deref();
        let model = session.front.model(config, &self.local.model)?;
        let program = session.front.worker_program(config)?;
        pages::remember(&model.folder)?;
        let caches = match pages::forget(&model.folder)? {
            true => vec![Cache::Warm, Cache::Cold],
            false => vec![Cache::Warm],
        };
        let swaps_of = |resident| resident + caches.len() * runs;
        let steps = RESIDENT.into_iter().map(swaps_of).sum::<usize>() + caches.len() * runs;
        let progress = bar(steps, Self::NAME);
        let mut swaps = Vec::new();
        for resident in RESIDENT {
            let names = Names::new(&model.folder, resident + 1)?;
            let flags = ServerFlags { config: self.local.config.clone(), ..ServerFlags::default() };
            let variables = [
                ("MLXD_MEMORY_MAX_LOADED", resident.to_string()),
                ("MLXD_MEMORY_RESIDENCE_MIN_MS", "0".to_owned()),
            ];
            let target = Target::open_with(&flags, session.front, &variables).await?;
            let asked = ask_round(&target, &names, &caches, runs, &progress).await;
            swaps.extend(target.close(asked).await?);
        }
        let what = Measurement::Start { load: model.load.clone(), length: PROMPT_TOKENS };
        let mut starts = Vec::new();
        for cache in &caches {
            for _ in 0..runs {
                cache.prepare(&model.folder)?;
                starts.push((*cache, worker::run(&program, &what, None).await?));
                progress.inc(1);
            }
        }
        progress.finish_and_clear();
        let measured = &starts[0].1.measured;
        let name = Some(self.local.model.as_str());
        let mut report = worker::report(Self::NAME, &self.output, name, measured);
        report.subject.template = Some(Template::Chat);
        report.subject.temperature = Some(0.0);
        report.subject.token_count_source = Some(Counted::Usage);
        if let Some(model) = &measured.model {
            let weights = model.weight_bytes as f64 / 1e6;
            report.notes.push(format!("The model's weights are {weights:.1} MB once loaded."));
        }
        report.notes.push(match caches.len() {
            2 => {
                "Cold: the model's files were dropped from the page cache; programs and libraries \
                  stay in it."
                    .into()
            }
            _ => "This system cannot drop a file from its page cache: nothing was measured cold."
                .to_owned(),
        });
        report.tables = vec![table(&swaps, &caches), parts(&starts, &caches)];
        report.samples = json!(swaps);
        Ok(report)
    }
}

impl Cache {
    fn prepare(self, folder: &Path) -> anyhow::Result<()> {
        match self {
            Self::Warm => pages::remember(folder),
            Self::Cold => pages::forget(folder).map(drop),
        }
    }
}

/// A model under several names: folders of links to its files.
struct Names {
    /// Removed at the end.
    _all: TempDir,
    folders: Vec<PathBuf>,
}

impl Names {
    fn new(model: &Path, count: usize) -> anyhow::Result<Self> {
        let all = tempfile::Builder::new().prefix("mlxd-swap-").tempdir()?;
        let model = model.canonicalize().with_context(|| model.display().to_string())?;
        let mut folders = Vec::new();
        for number in 0..count {
            let folder = all.path().join(format!("model-{number}"));
            std::fs::create_dir(&folder)?;
            for entry in std::fs::read_dir(&model)? {
                let entry = entry?;
                std::os::unix::fs::symlink(entry.path(), folder.join(entry.file_name()))?;
            }
            folders.push(folder);
        }
        Ok(Self { _all: all, folders })
    }
}

/// Asks for one name after the other, round and round: the one asked for is the one that left last
/// time, or the next.
async fn ask_round(
    target: &Target,
    names: &Names,
    caches: &[Cache],
    runs: usize,
    progress: &ProgressBar,
) -> anyhow::Result<Vec<Swap>> {
    let most = names.folders.len() - 1;
    let fill = (0..most).map(|resident| (resident, Cache::Warm));
    let swap = caches.iter().flat_map(|cache| (0..runs).map(move |_| (most, *cache)));
    let mut swaps = Vec::new();
    for (at, (resident, cache)) in fill.chain(swap).enumerate() {
        let folder = &names.folders[at % names.folders.len()];
        cache.prepare(folder)?;
        let ask = Ask::new(Template::Chat, prompts::short_question(at), ANSWER_TOKENS);
        let answered = target.client.ask(&folder.to_string_lossy(), &ask).await?;
        let leaves = usize::from(resident == most);
        swaps.push(Swap { resident, leaves, cache, first_s: answered.first_s });
        progress.inc(1);
    }
    Ok(swaps)
}

fn table(swaps: &[Swap], caches: &[Cache]) -> Table {
    let mut table = Table::new("From a request for a model that is not loaded to its first token")
        .key("resident", "Resident")
        .key("leaves", "One leaves")
        .key("page_cache", "Page cache")
        .fact("swaps", "Swaps", 0)
        .lower("first_ms", "First token ms", 1)
        .lower("first_worst_ms", "Worst ms", 1);
    let kinds = [(0, 0), (1, 0), (1, 1), (2, 1)];
    for (resident, leaves) in kinds {
        for cache in caches {
            let of_kind = swaps.iter().filter(|swap| {
                (swap.resident, swap.leaves, swap.cache) == (resident, leaves, *cache)
            });
            let ms: Vec<f64> = of_kind.map(|swap| swap.first_s * 1e3).collect();
            if ms.is_empty() {
                continue;
            }
            table.row([
                json!(resident),
                json!(if leaves > 0 { "yes" } else { "no" }),
                json!(cache.name()),
                json!(ms.len()),
                json!(median(&ms)),
                json!(percentile(&ms, 1.0)),
            ]);
        }
    }
    table
}

fn parts(starts: &[(Cache, Run)], caches: &[Cache]) -> Table {
    let mut table = Table::new("A cold start in parts")
        .key("page_cache", "Page cache")
        .lower("spawn_ms", "Spawn ms", 1)
        .lower("device_ms", "MLX's device ms", 1)
        .lower("weights_ms", "Weights ms", 1)
        .lower("kernels_ms", "First kernels ms", 1)
        .lower("first_token_ms", "First token ms", 1)
        .lower("together_ms", "Together ms", 1);
    for cache in caches {
        let of_cache = || starts.iter().filter(|(of, _)| of == cache).map(|(_, run)| run);
        let part = |of: fn(&Run) -> f64| median(&of_cache().map(of).collect::<Vec<f64>>()) * 1e3;
        let times = [
            part(|run| run.spawn_s),
            part(|run| figure(run, 0)),
            part(|run| figure(run, 1)),
            part(|run| figure(run, 2)),
            part(|run| figure(run, 3)),
        ];
        let [spawn, device, weights, kernels, first] = times;
        table.row([
            json!(cache.name()),
            json!(spawn),
            json!(device),
            json!(weights),
            json!(kernels),
            json!(first),
            json!(times.iter().sum::<f64>()),
        ]);
    }
    table
}

/// Seconds of a part, by its place.
fn figure(run: &Run, part: usize) -> f64 {
    match run.measured.figures.first() {
        Some(Figure::Start { device_s, weights_s, kernels_s, first_token_s }) => {
            [*device_s, *weights_s, *kernels_s, *first_token_s][part]
        }
        _ => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_the_same_files() {
        let model = tempfile::tempdir().expect("a folder");
        std::fs::write(model.path().join("config.json"), "{}").expect("written");
        let names = Names::new(model.path(), 3).expect("names");
        assert_eq!(names.folders.len(), 3);
        for folder in &names.folders {
            assert_eq!(std::fs::read(folder.join("config.json")).expect("read"), b"{}");
        }
    }

    #[test]
    fn swaps_are_told_apart_by_who_is_there_and_who_leaves() {
        let swap = |resident, leaves, cache, first_s| Swap { resident, leaves, cache, first_s };
        let swaps = [
            swap(0, 0, Cache::Warm, 0.3),
            swap(1, 1, Cache::Warm, 0.1),
            swap(1, 1, Cache::Warm, 0.2),
            swap(1, 1, Cache::Cold, 0.4),
        ];
        let table = table(&swaps, &[Cache::Warm, Cache::Cold]);
        assert_eq!(table.rows.len(), 3);
        assert_eq!(table.rows[1]["first_ms"].as_f64().map(f64::round), Some(150.0));
        assert_eq!(table.rows[2]["page_cache"], "cold");
    }
}
