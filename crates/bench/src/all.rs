//! Every benchmark against one server, on one page with pictures.

use crate::report::{Report, Written, write_json};
use crate::session::{Benchmark, Session, print};
use crate::target::ServerFlags;
use crate::{
    Front, admission, attention, bandwidth, batch, cache_memory, detok, forward, kv_quant, llm,
    load, memory, overhead, paged_cache, prefix_cache, serve, single, stream, swap,
};
use anyhow::Context;
use clap::{Args, Command};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// `mlxd bench all`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The page to write, as Markdown. Pictures and figures go into a folder beside it, named
    /// like it.
    #[arg(long, value_name = "FILE", default_value = "report.md")]
    report: PathBuf,
    /// Only these benchmarks.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    only: Vec<String>,
    /// All but these.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    skip: Vec<String>,
    /// Measure less: a look at the shape, not figures to publish.
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    server: ServerFlags,
}

/// What became of the benchmarks.
#[derive(Default)]
struct Outcome {
    reports: Vec<Report>,
    /// Names and reasons.
    failed: Vec<(&'static str, String)>,
    /// Every name, for `--only`.
    names: Vec<&'static str>,
}

/// Runs them, prints each, writes the page.
pub async fn run(arguments: &Arguments, front: &dyn Front) -> anyhow::Result<()> {
    let mut session = Session::new(front, arguments.server.clone());
    let mut outcome = Outcome::default();
    let measured = measure(arguments, &mut session, &mut outcome).await;
    session.close(measured).await?;
    let known = |name: &&String| !outcome.names.contains(&name.as_str());
    if let Some(unknown) = arguments.only.iter().chain(&arguments.skip).find(known) {
        anyhow::bail!("there is no benchmark {unknown}; there are {}", outcome.names.join(", "));
    }
    write(&arguments.report, &outcome)?;
    println!("{} was written", arguments.report.display());
    match outcome.failed.first() {
        None => Ok(()),
        Some((name, reason)) => anyhow::bail!(
            "{} of {} benchmarks failed, the first: {name}: {reason}",
            outcome.failed.len(),
            outcome.failed.len() + outcome.reports.len()
        ),
    }
}

async fn measure(
    arguments: &Arguments,
    session: &mut Session<'_>,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    one::<llm::Arguments>(arguments, session, outcome).await?;
    one::<single::Arguments>(arguments, session, outcome).await?;
    one::<batch::Arguments>(arguments, session, outcome).await?;
    one::<stream::Arguments>(arguments, session, outcome).await?;
    one::<serve::Arguments>(arguments, session, outcome).await?;
    one::<overhead::Arguments>(arguments, session, outcome).await?;
    one::<detok::Arguments>(arguments, session, outcome).await?;
    one::<bandwidth::Arguments>(arguments, session, outcome).await?;
    one::<attention::Arguments>(arguments, session, outcome).await?;
    one::<memory::Arguments>(arguments, session, outcome).await?;
    one::<forward::Arguments>(arguments, session, outcome).await?;
    one::<prefix_cache::Arguments>(arguments, session, outcome).await?;
    one::<paged_cache::Arguments>(arguments, session, outcome).await?;
    one::<cache_memory::Arguments>(arguments, session, outcome).await?;
    one::<kv_quant::Arguments>(arguments, session, outcome).await?;
    one::<load::Arguments>(arguments, session, outcome).await?;
    one::<swap::Arguments>(arguments, session, outcome).await?;
    one::<admission::Arguments>(arguments, session, outcome).await
}

/// Runs a benchmark with its defaults. A failure of it is noted and the others go on; a server
/// that cannot be had ends all.
async fn one<B: Benchmark>(
    all: &Arguments,
    session: &mut Session<'_>,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    outcome.names.push(B::NAME);
    let named = |names: &[String]| names.iter().any(|name| name == B::NAME);
    if (!all.only.is_empty() && !named(&all.only)) || named(&all.skip) {
        return Ok(());
    }
    let target = session.target().await?;
    if B::NEEDS_ADMIN
        && let Err(error) = target.admin_socket()
    {
        eprintln!("{}: left out: {error}", B::NAME);
        return Ok(());
    }
    let benchmark = defaults::<B>(all)?;
    match benchmark.measure(session).await {
        Ok(report) => {
            print(&report);
            outcome.reports.push(report);
        }
        Err(error) => {
            eprintln!("{}: {error:#}", B::NAME);
            outcome.failed.push((B::NAME, format!("{error:#}")));
        }
    }
    Ok(())
}

/// A benchmark's arguments as nobody changed them, but for what all of them share.
fn defaults<B: Args>(all: &Arguments) -> anyhow::Result<B> {
    let command = B::augment_args(Command::new("all"));
    let has = |name: &str| command.get_arguments().any(|argument| argument.get_id() == name);
    let mut line = vec!["all".to_owned()];
    let server = &all.server;
    if has("url") {
        let given = [("--url", &server.url), ("--api-key", &server.api_key)];
        for (flag, value) in given {
            line.extend(value.iter().flat_map(|value| [flag.to_owned(), value.clone()]));
        }
    }
    if has("model") {
        line.extend(server.model.iter().flat_map(|model| ["--model".to_owned(), model.clone()]));
    }
    if has("models") {
        line.extend(server.model.iter().flat_map(|model| ["--models".to_owned(), model.clone()]));
    }
    if has("config") && (server.url.is_none() || !has("url")) {
        let config = server.config.as_ref().map(|path| path.to_string_lossy().into_owned());
        line.extend(config.into_iter().flat_map(|config| ["--config".to_owned(), config]));
    }
    if all.quick {
        line.push("--quick".into());
    }
    Ok(B::from_arg_matches(&command.try_get_matches_from(line)?)?)
}

/// Writes the page, the pictures, and the figures as `report.json`.
fn write(page: &Path, outcome: &Outcome) -> anyhow::Result<()> {
    let folder = page.with_extension("");
    anyhow::ensure!(folder != *page, "give the page an ending, as report.md");
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make {}", folder.display()))?;
    let beside = folder.file_name().map_or_else(String::new, |name| name.to_string_lossy().into());
    let mut text = String::from("# Benchmark report\n");
    if let Some(first) = outcome.reports.first() {
        write!(text, "\n{}\n", first.heading())?;
    }
    for report in &outcome.reports {
        write!(text, "\n## {}\n{}", report.benchmark, report.markdown())?;
        for (number, plot) in report.plots.iter().filter(|plot| !plot.is_empty()).enumerate() {
            let name = format!("{}-{}.svg", report.benchmark, number + 1);
            let path = folder.join(&name);
            std::fs::write(&path, plot.svg()?)
                .with_context(|| format!("cannot write {}", path.display()))?;
            write!(text, "\n![{}]({beside}/{name})\n", plot.title)?;
        }
    }
    if !outcome.failed.is_empty() {
        text += "\n## Not measured\n\n";
        for (name, reason) in &outcome.failed {
            writeln!(text, "- {name}: {reason}")?;
        }
    }
    let reports = outcome.reports.clone();
    write_json(&folder.join("report.json"), &Written::Many { reports })?;
    std::fs::write(page, text).with_context(|| format!("cannot write {}", page.display()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::plot::Plot;
    use crate::report::Subject;
    use crate::table::Table;
    use serde_json::json;

    /// A benchmark's arguments from its flags.
    pub(crate) fn arguments<A: Args>(line: &[&str]) -> A {
        let command = A::augment_args(Command::new("bench"));
        let matches = command.try_get_matches_from([&["bench"], line].concat()).expect("flags");
        A::from_arg_matches(&matches).expect("arguments")
    }

    #[test]
    fn a_page_has_tables_pictures_and_what_failed() {
        let folder = tempfile::tempdir().expect("a folder");
        let page = folder.path().join("page.md");
        let mut report = Report::new("serve", Subject::default());
        let mut table = Table::new("Latency").key("n", "At once").lower("ms", "ms", 1);
        table.row([json!(1), json!(2.5)]);
        report.plots.push(Plot::new("P", "n", "ms").line("a", table.points("n", "ms")));
        report.tables.push(table);
        let failed = vec![("detok", "no tokenizer".to_owned())];
        let outcome = Outcome { reports: vec![report], failed, names: vec![] };
        write(&page, &outcome).expect("written");
        let text = std::fs::read_to_string(&page).expect("the page");
        for part in ["## serve", "|       1 | 2.5 |", "![P](page/serve-1.svg)", "- detok: no tok"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let picture = folder.path().join("page/serve-1.svg");
        assert!(std::fs::read_to_string(picture).expect("a picture").contains("<svg"));
        let read = Written::read(&folder.path().join("page/report.json")).expect("figures");
        assert_eq!(read, outcome.reports);
    }

    #[test]
    fn what_is_shared_is_passed_on() {
        let quick = arguments::<Arguments>(&["--quick", "--model", "m", "--url", "http://a:1"]);
        let serve = defaults::<serve::Arguments>(&quick).expect("its arguments");
        assert!(serve.output().quick);
        assert_eq!(serve.server().model.as_deref(), Some("m"));
        assert_eq!(serve.server().url.as_deref(), Some("http://a:1"));
        let detok =
            defaults::<detok::Arguments>(&arguments(&["--config", "c.toml"])).expect("its own");
        assert!(!detok.output().quick);
    }
}
