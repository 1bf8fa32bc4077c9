//! Admission: what is predicted that a worker takes, against what it took, over models, contexts
//! and batches; first by formula, then after one measured run of the bucket.
//!
//! Every run is a worker process of its own. In each bucket three quarters of the context are run
//! first, and that is learned from; then the same again, and the whole context.
//!
//! A decision is one on one budget, from a quarter to four times of what was taken, in equal
//! ratios: admitting where it does not fit is false, and so is refusing where it does. Decisions
//! are admission's own: a cold model asks for its base and for all sequences, and the plan says
//! whether that fits.

use crate::plot::Plot;
use crate::report::Report;
use crate::session::{Benchmark, ModelsFlags, Output, Session, bar};
use crate::stats::mean;
use crate::table::Table;
use crate::worker::{self, Run};
use mlxd_memory::{Form, Load, Measured, Needs, Plan, Promise, Rules, Sample, Wanted, plan};
use mlxd_protocol::LoadSpec;
use mlxd_protocol::measure::{Figure, Measurement};
use serde::Serialize;
use serde_json::json;
use std::path::Path;
use std::time::Duration;

/// What a prediction must be within, as a share.
const TOLERANCE: f64 = 0.05;
/// Decisions that may be false, in percent.
const FALSE_ADMITS_MAX: f64 = 0.0;
const FALSE_REJECTS_MAX: f64 = 2.0;
/// Budgets that a decision is tried on, and the ratio of the largest to what was taken.
const BUDGETS: u32 = 401;
const BUDGET_RATIO: f64 = 4.0;

/// `mlxd bench admission`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Tokens of each sequence; those beyond a model's context are left out.
    #[arg(long, value_delimiter = ',', default_values_t = [512, 2048, 8192], value_parser = clap::value_parser!(u32).range(8..))]
    contexts: Vec<u32>,
    /// Sequences at once.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4], value_parser = clap::value_parser!(u32).range(1..))]
    batches: Vec<u32>,
    #[command(flatten)]
    models: ModelsFlags,
    #[command(flatten)]
    output: Output,
}

/// How a prediction came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Stage {
    /// Nothing was ever measured.
    Formula,
    /// The same load was, once.
    Repeated,
    /// Three quarters of the context were, once.
    Extrapolated,
}

impl Stage {
    const ALL: [Self; 3] = [Self::Formula, Self::Repeated, Self::Extrapolated];

    fn name(self) -> &'static str {
        match self {
            Self::Formula => "by formula",
            Self::Repeated => "repeated",
            Self::Extrapolated => "extrapolated",
        }
    }
}

/// A prediction, and what became of it.
#[derive(Debug, Clone, Serialize)]
struct Outcome {
    model: String,
    context: u32,
    batch: u32,
    stage: Stage,
    predicted_bytes: u64,
    /// What admission would have to find free.
    promised_bytes: u64,
    took_bytes: u64,
}

impl Outcome {
    /// As a share of what was taken; positive for a prediction that is too high.
    fn error(&self) -> f64 {
        self.predicted_bytes as f64 / self.took_bytes as f64 - 1.0
    }
}

impl Benchmark for Arguments {
    const NAME: &'static str = "admission";

    fn output(&self) -> &Output {
        &self.output
    }

    async fn measure(&self, session: &mut Session<'_>) -> anyhow::Result<Report> {
        let contexts = if self.output.quick { vec![512] } else { self.contexts.clone() };
        let batches = if self.output.quick { vec![2] } else { self.batches.clone() };
        let config = self.models.config.as_deref();
        let program = session.front.worker_program(config)?;
        let progress =
            bar(self.models.models.len() * contexts.len() * batches.len() * 3, Self::NAME);
        let (mut outcomes, mut left_out, mut last) = (Vec::new(), Vec::new(), None);
        for name in &self.models.models {
            let local = session.front.model(config, name)?;
            let most = local.needs.shape.as_ref().map_or(u64::MAX, |shape| shape.context);
            // What the worker may keep of prompts is promised apart, and bounded.
            let load = LoadSpec { prefix_cache_bytes_max: 0, ..local.load };
            let needs = Needs { prefix_bytes_max: 0, ..local.needs };
            for context in &contexts {
                if u64::from(*context) > most {
                    left_out.push(format!("{name}: {context} tokens, its context is {most}"));
                    progress.inc(batches.len() as u64 * 3);
                    continue;
                }
                for batch in &batches {
                    let mut bucket =
                        Bucket { program: &program, load: &load, needs: needs.clone() };
                    let lower = *context - *context / 4;
                    let first = bucket.run(lower, *batch).await?;
                    progress.inc(1);
                    outcomes.push(bucket.by_formula(name, &first));
                    let known = bucket.learn(&first);
                    for context in [lower, *context] {
                        let shot = bucket.run(context, *batch).await?;
                        progress.inc(1);
                        if context != lower {
                            outcomes.push(bucket.by_formula(name, &shot));
                        }
                        let stage = match context == lower {
                            true => Stage::Repeated,
                            false => Stage::Extrapolated,
                        };
                        outcomes.push(bucket.measured(name, stage, &known, &shot));
                    }
                    last = Some(first.run);
                }
            }
        }
        progress.finish_and_clear();
        let Some(last) = last else {
            anyhow::bail!("no model has so much context: {}", left_out.join("; "))
        };
        let names = self.models.models.join(", ");
        let mut report = worker::report(Self::NAME, &self.output, Some(&names), &last.measured);
        report.subject.concurrency = batches;
        report.notes.extend(left_out.into_iter().map(|what| format!("Left out: {what}")));
        report.notes.push(format!(
            "Decisions: {BUDGETS} budgets a shape, from 1/{BUDGET_RATIO} to {BUDGET_RATIO} times of \
             what it took, in equal ratios; each decided by admission's own plan for the cold model \
             and held against the measured peak. {}",
            if last.measured.device.backend == "cuda" {
                "Taken is MLX's peak on the device, and the worker's own overhead as planned."
            } else {
                "Taken is the worker's peak as its system counts it."
            }
        ));
        report.tables = vec![bars(&outcomes), summary(&outcomes), shapes(&outcomes)];
        report.plots.push(plot(&outcomes));
        report.samples = json!(outcomes);
        Ok(report)
    }
}

/// Loads of one bucket.
struct Bucket<'a> {
    program: &'a Path,
    load: &'a LoadSpec,
    needs: Needs,
}

/// One run.
struct Shot {
    at: Load,
    run: Run,
    /// With the model loaded and nothing run.
    loaded_bytes: u64,
    /// The most while loading.
    loading_bytes: u64,
    /// When all sequences were over.
    resting_bytes: u64,
    /// The most of all.
    took_bytes: u64,
}

impl Bucket<'_> {
    async fn run(&mut self, context: u32, batch: u32) -> anyhow::Result<Shot> {
        let what = Measurement::Peak { load: self.load.clone(), context, batch };
        let run = worker::run(self.program, &what, None).await?;
        self.needs.form =
            if run.measured.device.backend == "cpu" { Form::Float32 } else { Form::Stored };
        let at = Load { context: context.into(), batch: batch.into() };
        let Some(&Figure::Peak { loading_bytes, peak_bytes, resting_bytes, .. }) =
            run.measured.figures.first()
        else {
            anyhow::bail!("the worker measured something else")
        };
        if run.measured.device.backend == "cuda" {
            // The system does not tell what of a device is whose.
            let overhead = self.needs.overhead_bytes();
            let active = run.measured.model.as_ref().map_or(0, |model| model.active_bytes);
            return Ok(Shot {
                at,
                loaded_bytes: active + overhead,
                loading_bytes: loading_bytes + overhead,
                resting_bytes: resting_bytes + overhead,
                took_bytes: peak_bytes.max(loading_bytes) + overhead,
                run,
            });
        }
        let [_, loaded, .., end] = run.footprints[..] else {
            anyhow::bail!("this system does not tell what a process takes")
        };
        let loading_bytes = loaded.peak_bytes.unwrap_or(loaded.bytes);
        let took_bytes = end.peak_bytes.unwrap_or(end.bytes);
        Ok(Shot {
            at,
            loaded_bytes: loaded.bytes,
            loading_bytes,
            resting_bytes: end.bytes,
            took_bytes,
            run,
        })
    }

    /// What admission would write down.
    fn learn(&self, shot: &Shot) -> Measured {
        let mut known = Measured {
            loaded_bytes: Some(shot.loaded_bytes),
            loading_peak_bytes: Some(shot.loading_bytes),
            resting_bytes: Some(shot.resting_bytes),
            ..Measured::default()
        };
        if shot.took_bytes > shot.loading_bytes {
            let Load { context, batch } = shot.at;
            known.record(Sample { context, batch, peak_bytes: shot.took_bytes });
        }
        known
    }

    fn by_formula(&self, model: &str, shot: &Shot) -> Outcome {
        let predicted = self.needs.peak_bytes(shot.at);
        let nothing = Measured::default();
        let promise = Promise { needs: &self.needs, measured: &nothing };
        let promised = promise.load_bytes(shot.at);
        outcome(model, shot, Stage::Formula, predicted, promised)
    }

    fn measured(&self, model: &str, stage: Stage, known: &Measured, shot: &Shot) -> Outcome {
        let loading = known.loading_peak_bytes.unwrap_or(0);
        let predicted = known.peak_bytes(&self.needs, shot.at).max(loading);
        let promise = Promise { needs: &self.needs, measured: known };
        let promised = promise.load_bytes(shot.at);
        outcome(model, shot, stage, predicted, promised)
    }
}

fn outcome(
    model: &str,
    shot: &Shot,
    stage: Stage,
    predicted_bytes: u64,
    promised_bytes: u64,
) -> Outcome {
    Outcome {
        model: model.to_owned(),
        context: shot.at.context as u32,
        batch: shot.at.batch as u32,
        stage,
        predicted_bytes,
        promised_bytes,
        took_bytes: shot.took_bytes,
    }
}

/// Shares of decisions in percent: admitted though it does not fit, refused though it does.
fn false_decisions(outcomes: &[&Outcome]) -> (f64, f64) {
    let (mut admits, mut rejects) = (0, 0);
    for outcome in outcomes {
        let took = outcome.took_bytes;
        for step in 0..BUDGETS {
            let exponent = f64::from(step) / f64::from(BUDGETS - 1) * 2.0 - 1.0;
            let budget = took as f64 * BUDGET_RATIO.powf(exponent);
            match (admits_at(outcome, budget as u64), took <= budget as u64) {
                (true, false) => admits += 1,
                (false, true) => rejects += 1,
                _ => {}
            }
        }
    }
    let share =
        |count: u32| f64::from(count) * 100.0 / (outcomes.len() as f64 * f64::from(BUDGETS));
    (share(admits), share(rejects))
}

/// Whether the model would be let in where nothing else is loaded.
fn admits_at(outcome: &Outcome, budget: u64) -> bool {
    let rules =
        Rules { budget, free: budget, elsewhere: 0, residence_min: Duration::ZERO, loaded_max: 1 };
    let wanted = Wanted { name: outcome.model.clone(), bytes: outcome.promised_bytes };
    plan(&rules, &[], &wanted) == Plan::Fits
}

/// What is asked of predictions after one measured run of their bucket, and whether it holds.
fn bars(outcomes: &[Outcome]) -> Table {
    let mut table = Table::new("After one measured run of the bucket")
        .key("what", "What")
        .fact("found", "Found", 2)
        .fact("bar", "At most", 2)
        .key("holds", "Holds");
    let measured: Vec<&Outcome> =
        outcomes.iter().filter(|outcome| outcome.stage != Stage::Formula).collect();
    let largest = measured.iter().map(|outcome| outcome.error().abs()).fold(0.0, f64::max);
    let (admits, rejects) = false_decisions(&measured);
    for (what, found, bar) in [
        ("largest error of a prediction, %", largest * 100.0, TOLERANCE * 100.0),
        ("false admits, %", admits, FALSE_ADMITS_MAX),
        ("false rejects, %", rejects, FALSE_REJECTS_MAX),
    ] {
        let holds = if found <= bar { "yes" } else { "no" };
        table.row([json!(what), json!(found), json!(bar), json!(holds)]);
    }
    table
}

fn summary(outcomes: &[Outcome]) -> Table {
    let mut table = Table::new("Predictions and decisions")
        .key("stage", "Predicted")
        .fact("shapes", "Shapes", 0)
        .lower("mean_error_percent", "Mean error %", 2)
        .fact("lowest_percent", "Lowest %", 2)
        .fact("highest_percent", "Highest %", 2)
        .higher("within_percent", "Within 5 %, share %", 1)
        .lower("false_admits_percent", "False admits %", 2)
        .lower("false_rejects_percent", "False rejects %", 2);
    let lines: [(&str, &[Stage]); 4] = [
        ("by formula", &[Stage::Formula]),
        ("after one run of the bucket", &[Stage::Repeated, Stage::Extrapolated]),
        ("… of the same load", &[Stage::Repeated]),
        ("… at 3/4 of the context", &[Stage::Extrapolated]),
    ];
    for (name, stages) in lines {
        let of_stage: Vec<&Outcome> =
            outcomes.iter().filter(|outcome| stages.contains(&outcome.stage)).collect();
        let errors: Vec<f64> = of_stage.iter().map(|outcome| outcome.error()).collect();
        let sizes: Vec<f64> = errors.iter().map(|error| error.abs()).collect();
        let within = sizes.iter().filter(|size| **size <= TOLERANCE).count();
        let (admits, rejects) = false_decisions(&of_stage);
        table.row([
            json!(name),
            json!(of_stage.len()),
            json!(mean(&sizes) * 100.0),
            json!(errors.iter().copied().fold(f64::INFINITY, f64::min) * 100.0),
            json!(errors.iter().copied().fold(f64::NEG_INFINITY, f64::max) * 100.0),
            json!(within as f64 * 100.0 / sizes.len() as f64),
            json!(admits),
            json!(rejects),
        ]);
    }
    table
}

fn shapes(outcomes: &[Outcome]) -> Table {
    let mut table = Table::new("Shapes")
        .key("model", "Model")
        .key("context", "Context")
        .key("batch", "Batch")
        .key("stage", "Predicted")
        .fact("took_mb", "Taken MB", 1)
        .fact("predicted_mb", "Predicted MB", 1)
        .fact("error_percent", "Error %", 2)
        .fact("promised_mb", "To be promised MB", 1);
    for outcome in outcomes {
        table.row([
            json!(outcome.model),
            json!(outcome.context),
            json!(outcome.batch),
            json!(outcome.stage.name()),
            json!(outcome.took_bytes as f64 / 1e6),
            json!(outcome.predicted_bytes as f64 / 1e6),
            json!(outcome.error() * 100.0),
            json!(outcome.promised_bytes as f64 / 1e6),
        ]);
    }
    table
}

fn plot(outcomes: &[Outcome]) -> Plot {
    let mut plot = Plot::new("Predicted against taken", "taken, MB", "predicted, MB").log_x();
    for stage in Stage::ALL {
        let of_stage = outcomes.iter().filter(|outcome| outcome.stage == stage);
        let mut points: Vec<(f64, f64)> = of_stage
            .map(|one| (one.took_bytes as f64 / 1e6, one.predicted_bytes as f64 / 1e6))
            .collect();
        points.sort_by(|one, other| one.0.total_cmp(&other.0));
        plot = plot.line(stage.name(), points);
    }
    plot
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(predicted_bytes: u64, promised_bytes: u64) -> Outcome {
        Outcome {
            model: "m".into(),
            context: 256,
            batch: 1,
            stage: Stage::Repeated,
            predicted_bytes,
            promised_bytes,
            took_bytes: 1_000_000,
        }
    }

    #[test]
    fn promises_below_are_false_admits_and_above_false_rejects() {
        // A sixteenfold range: each doubling is a quarter of it.
        let (admits, rejects) = false_decisions(&[&outcome(500_000, 500_000)]);
        assert!((admits - 25.0).abs() < 0.5 && rejects == 0.0, "{admits} {rejects}");
        let (admits, rejects) = false_decisions(&[&outcome(2_000_000, 2_000_000)]);
        assert!(admits == 0.0 && (rejects - 25.0).abs() < 0.5, "{admits} {rejects}");
        let exact = false_decisions(&[&outcome(1_000_000, 1_050_000)]);
        assert!(exact.0 == 0.0 && exact.1 < 2.0, "{exact:?}");
    }

    #[test]
    fn bars_are_held_against_the_worst_and_leave_the_formula_out() {
        let holds = |outcomes: &[Outcome]| -> Vec<String> {
            bars(outcomes).rows.iter().map(|row| row["holds"].as_str().unwrap().into()).collect()
        };
        let mut formula = outcome(3_000_000, 4_000_000);
        formula.stage = Stage::Formula;
        let good = outcome(1_010_000, 1_040_000);
        assert_eq!(holds(&[formula.clone(), good.clone()]), ["yes", "yes", "yes"]);
        assert_eq!(holds(&[good.clone(), outcome(940_000, 1_000_000)]), ["no", "yes", "yes"]);
        assert_eq!(holds(&[good.clone(), outcome(960_000, 990_000)]), ["yes", "no", "yes"]);
        assert_eq!(holds(&[outcome(1_000_000, 1_100_000)]), ["yes", "yes", "no"]);
    }

    #[test]
    fn a_summary_has_a_line_for_each_stage() {
        let mut first = outcome(1_200_000, 1_300_000);
        first.stage = Stage::Formula;
        let mut last = outcome(970_000, 1_020_000);
        last.stage = Stage::Extrapolated;
        let table = summary(&[first, outcome(1_010_000, 1_060_000), last]);
        let number = |row: usize, key: &str| table.rows[row][key].as_f64().expect("a number");
        assert!((number(0, "highest_percent") - 20.0).abs() < 1e-9);
        assert!((number(1, "mean_error_percent") - 2.0).abs() < 1e-9);
        assert_eq!((number(0, "within_percent"), number(1, "within_percent")), (0.0, 100.0));
        assert!((number(1, "lowest_percent") + 3.0).abs() < 1e-9);
        assert!((number(2, "highest_percent") - 1.0).abs() < 1e-9);
        assert!((number(3, "highest_percent") + 3.0).abs() < 1e-9);
    }
}
