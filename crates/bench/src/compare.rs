//! Two reports side by side: what became better, what worse.

use crate::report::{Report, Written, write_json};
use crate::table::{Better, Column, Holds, Table};
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// `mlxd bench compare`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The report to compare with, of `mlxd bench … --output FILE`.
    before: PathBuf,
    /// The report to look at.
    after: PathBuf,
    /// Fail when a measurement is worse by more than so many percent: 100 is half the rate, or
    /// twice the time.
    #[arg(long, value_name = "PERCENT")]
    worse_than: Option<f64>,
    /// Write the comparison as JSON.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// One measurement in both reports.
#[derive(Debug, Clone, PartialEq)]
struct Pair {
    /// Benchmark, table and row, as people read them.
    place: String,
    heading: String,
    better: Better,
    decimals: u8,
    before: f64,
    after: f64,
}

impl Pair {
    /// Percent by which it became better; less than 0 when worse. Of the smaller value: half the
    /// rate and twice the time are the same loss, −100, and the reverse of either a gain of 100.
    fn gain(&self) -> f64 {
        let smaller = self.before.abs().min(self.after.abs());
        let more = (self.after - self.before) / smaller * 100.0;
        match self.better {
            Better::Higher => more,
            Better::Lower => -more,
        }
    }
}

/// Compares, prints, writes; fails when something is too much worse.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let before = Written::read(&arguments.before)?;
    let after = Written::read(&arguments.after)?;
    let pairs = pairs(&before, &after);
    anyhow::ensure!(
        !pairs.is_empty(),
        "the reports have no measurement in common: {} against {}",
        names(&before),
        names(&after)
    );
    for difference in differences(&before, &after) {
        println!("note: {difference}");
    }
    let table = table(&pairs);
    println!("\n{}\n", table.markdown());
    if let Some(path) = &arguments.output {
        write_json(path, &json!({"benchmark": "compare", "tables": [&table]}))?;
    }
    let allowed = arguments.worse_than.unwrap_or(f64::INFINITY);
    let worse: Vec<_> = pairs.iter().filter(|pair| pair.gain() < -allowed).collect();
    anyhow::ensure!(
        worse.is_empty(),
        "{} of {} measurements are worse by more than {allowed} %, the first: {} of {}",
        worse.len(),
        pairs.len(),
        worse[0].heading,
        worse[0].place
    );
    Ok(())
}

fn names(reports: &[Report]) -> String {
    let names: Vec<_> = reports.iter().map(|report| report.benchmark.as_str()).collect();
    names.join(", ")
}

/// Why the figures may differ although the program does not.
fn differences(before: &[Report], after: &[Report]) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for new in after {
        for old in before.iter().filter(|old| old.benchmark == new.benchmark) {
            let (a, b) = (&old.subject, &new.subject);
            let mut tell = |what: &str, a: String, b: String| {
                let text = format!("{what} differs: {a} against {b}");
                if a != b && !found.contains(&text) {
                    found.push(text);
                }
            };
            tell("the chip", old.machine.chip.clone(), new.machine.chip.clone());
            tell("the system", old.machine.os.clone(), new.machine.os.clone());
            let model = |of: &Option<String>| of.clone().unwrap_or_else(|| "none".into());
            tell("the model", model(&a.model), model(&b.model));
            tell("the quantisation", model(&a.quantization), model(&b.quantization));
            tell("the template", format!("{:?}", a.template), format!("{:?}", b.template));
            tell("the temperature", format!("{:?}", a.temperature), format!("{:?}", b.temperature));
            let counted = |of| format!("{of:?}");
            tell("the token count", counted(a.token_count_source), counted(b.token_count_source));
            tell("the length of the run", a.quick.to_string(), b.quick.to_string());
        }
    }
    found
}

/// Every measurement that both have, in the order of the second.
fn pairs(before: &[Report], after: &[Report]) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for new in after {
        for old in before.iter().filter(|old| old.benchmark == new.benchmark) {
            for (at, table) in new.tables.iter().enumerate() {
                // Titles may tell numbers of the run; the place tells which table it is.
                if let Some(earlier) = old.tables.get(at) {
                    add_table(&new.benchmark, earlier, table, &mut pairs);
                }
            }
        }
    }
    pairs
}

fn add_table(benchmark: &str, before: &Table, after: &Table, pairs: &mut Vec<Pair>) {
    let keys: Vec<&Column> = after.columns.iter().filter(|c| c.holds == Holds::Key).collect();
    for row in &after.rows {
        // The model may differ: that is what people compare. Other keys must agree.
        let same = |old: &&Map<String, Value>| {
            keys.iter().all(|key| key.key == "model" || old.get(&key.key) == row.get(&key.key))
        };
        let Some(old) = before.rows.iter().find(same) else { continue };
        for column in &after.columns {
            let Holds::Measure(better) = column.holds else { continue };
            let number = |row: &Map<String, Value>| row.get(&column.key).and_then(Value::as_f64);
            let (Some(before), Some(after)) = (number(old), number(row)) else { continue };
            pairs.push(Pair {
                place: place(benchmark, &keys, row),
                heading: column.heading.clone(),
                better,
                decimals: column.decimals,
                before,
                after,
            });
        }
    }
}

fn place(benchmark: &str, keys: &[&Column], row: &Map<String, Value>) -> String {
    let mut parts = vec![benchmark.to_owned()];
    for key in keys {
        match row.get(&key.key) {
            Some(Value::String(text)) => parts.push(text.clone()),
            Some(value) => parts.push(format!("{} {value}", key.heading.to_lowercase())),
            None => {}
        }
    }
    parts.join(", ")
}

fn table(pairs: &[Pair]) -> Table {
    let mut table = Table::new("Before and after")
        .key("place", "Benchmark")
        .key("measurement", "Measurement")
        .fact("before", "Before", 0)
        .fact("after", "After", 0)
        .fact("ratio", "After/before", 3)
        .fact("verdict", "", 0);
    for pair in pairs {
        let gain = pair.gain();
        let verdict = match gain {
            gain if gain.is_nan() => String::new(),
            f64::INFINITY => "better".to_owned(),
            f64::NEG_INFINITY => "worse".to_owned(),
            gain if gain >= 1.0 => format!("better by {gain:.1} %"),
            gain if gain <= -1.0 => format!("worse by {:.1} %", -gain),
            _ => "equal within 1 %".to_owned(),
        };
        let shown = |value: f64| format!("{value:.*}", usize::from(pair.decimals));
        table.row([
            json!(pair.place),
            json!(pair.heading),
            json!(shown(pair.before)),
            json!(shown(pair.after)),
            json!(pair.after / pair.before),
            json!(verdict),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Subject;

    fn report(model: &str, rows: &[(u32, f64, f64)]) -> Report {
        let subject = Subject { model: Some(model.into()), ..Subject::default() };
        let mut report = Report::new("serve", subject);
        let mut table = Table::new("t")
            .key("model", "Model")
            .key("n", "At once")
            .higher("rate", "tok/s", 1)
            .lower("ms", "TTFT ms", 1);
        for (n, rate, ms) in rows {
            table.row([json!(model), json!(n), json!(rate), json!(ms)]);
        }
        report.tables.push(table);
        report
    }

    #[test]
    fn rows_are_matched_by_their_keys() {
        let before = [report("a", &[(1, 100.0, 10.0), (2, 150.0, 20.0)])];
        let after = [report("b", &[(2, 300.0, 40.0), (4, 400.0, 50.0)])];
        let found = pairs(&before, &after);
        let gains: Vec<_> = found.iter().map(|pair| (pair.heading.as_str(), pair.gain())).collect();
        assert_eq!(gains, [("tok/s", 100.0), ("TTFT ms", -100.0)]);
        assert_eq!(found[0].place, "serve, b, at once 2");
        assert_eq!(differences(&before, &after), ["the model differs: a against b"]);
        let text = table(&found).markdown();
        assert!(text.contains("better by 100.0 %") && text.contains("worse by 100.0 %"), "{text}");
    }

    #[test]
    fn a_loss_is_the_same_in_rates_and_times() {
        let gains = |before, after| {
            let found = pairs(&[report("a", &[before])], &[report("a", &[after])]);
            found.iter().map(|pair| pair.gain().round()).collect::<Vec<_>>()
        };
        assert_eq!(gains((1, 30.3, 18.2), (1, 18.2, 30.3)), [-66.0, -66.0]);
        assert_eq!(gains((1, 18.2, 30.3), (1, 30.3, 18.2)), [66.0, 66.0]);
        assert_eq!(gains((1, 300.0, 10.0), (1, 100.0, 30.0)), [-200.0, -200.0]);
        // From nothing, and over it, as an overhead that was within the noise.
        assert_eq!(gains((1, 5.0, 0.0), (1, 0.0, 5.0)), [f64::NEG_INFINITY; 2]);
        assert_eq!(gains((1, 2.0, -1.0), (1, -1.0, 2.0)), [-300.0, -300.0]);
    }

    #[test]
    fn other_benchmarks_have_nothing_in_common() {
        let mut other = report("a", &[(1, 1.0, 1.0)]);
        other.benchmark = "llm".into();
        assert_eq!(pairs(&[other], &[report("a", &[(1, 1.0, 1.0)])]), []);
    }
}
