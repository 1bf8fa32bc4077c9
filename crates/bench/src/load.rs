//! Loading: time and memory by model, with the fits that the "MLX Enhanced" report prints, time
//! against the logarithm of the parameters and memory against the parameters; and what sequences
//! take by their length.
//!
//! Every load is a process of its own. Memory is the process as its system counts it, and MLX's
//! live arrays, which are all there is to see of a CUDA device's.

use crate::fit::{Fit, fit};
use crate::plot::Plot;
use crate::report::Report;
use crate::session::{Benchmark, ModelsFlags, Output, Session, bar};
use crate::stats::median;
use crate::table::Table;
use crate::worker::{self, Run};
use mlxd_protocol::measure::{Figure, Measured, Measurement};
use serde_json::json;

const QUICK_LENGTHS: [u32; 3] = [32, 128, 256];
/// Tokens of the first prompt.
const PROMPT_TOKENS: u32 = 32;

/// `mlxd bench load`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Loads of each model; the median counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Tokens of the sequences.
    #[arg(long, value_delimiter = ',', default_values_t = [32, 64, 128, 256, 512, 1024, 2048, 4096, 8192], value_parser = clap::value_parser!(u32).range(1..))]
    lengths: Vec<u32>,
    #[command(flatten)]
    models: ModelsFlags,
    #[command(flatten)]
    output: Output,
}

/// One load.
#[derive(Debug, Clone, Copy)]
struct Timed {
    spawn_s: f64,
    /// Until it can take a request: MLX's device, weights, first kernels.
    load_s: f64,
    weights_s: f64,
    kernels_s: f64,
}

/// A model's loads.
struct Loaded {
    name: String,
    times: Vec<Timed>,
    last: Run,
    by_length: Measured,
}

impl Benchmark for Arguments {
    const NAME: &'static str = "load";

    fn output(&self) -> &Output {
        &self.output
    }

    async fn measure(&self, session: &mut Session<'_>) -> anyhow::Result<Report> {
        let quick = self.output.quick;
        let runs = if quick { 1 } else { self.runs };
        let lengths = if quick { QUICK_LENGTHS.to_vec() } else { self.lengths.clone() };
        let config = self.models.config.as_deref();
        let program = session.front.worker_program(config)?;
        let progress = bar(self.models.models.len() * (runs as usize + 1), Self::NAME);
        let mut models: Vec<Loaded> = Vec::new();
        for name in &self.models.models {
            let load = session.front.model(config, name)?.load;
            let what = Measurement::Start { load: load.clone(), length: PROMPT_TOKENS };
            let (mut times, mut last) = (Vec::new(), None);
            for _ in 0..runs {
                let run = worker::run(&program, &what, None).await?;
                times.extend(timed(&run));
                last = Some(run);
                progress.inc(1);
            }
            let what = Measurement::Memory { load, lengths: lengths.clone() };
            let by_length = worker::run(&program, &what, None).await?.measured;
            progress.inc(1);
            let last = last.expect("there is a run at least");
            models.push(Loaded { name: name.clone(), times, last, by_length });
        }
        progress.finish_and_clear();
        let names = self.models.models.join(", ");
        let first = &models[0].last.measured;
        let mut report = worker::report(Self::NAME, &self.output, Some(&names), first);
        for model in &models {
            let left_out = model.by_length.left_out.iter();
            report.notes.extend(left_out.map(|what| format!("{}: left out: {what}", model.name)));
        }
        let loads = loads(&models);
        if let Some(fits) = fits(&loads) {
            report.tables.push(fits);
            report.plots = vec![
                Plot::new("Load time", "million parameters", "s")
                    .log_x()
                    .line("load", loads.points("parameters_m", "load_s")),
                Plot::new("Memory once loaded", "million parameters", "MB")
                    .line("live arrays", loads.points("parameters_m", "active_mb"))
                    .line("process", loads.points("parameters_m", "process_mb")),
            ];
        } else {
            report.notes.push("Name models of different sizes with --models for the fits.".into());
        }
        report.tables.insert(0, loads);
        let (table, plot) = lengths_table(&models);
        report.tables.push(table);
        report.plots.push(plot);
        let samples = models.iter().map(|model| {
            let seconds =
                |of: fn(&Timed) -> f64| -> Vec<f64> { model.times.iter().map(of).collect() };
            json!({
                "model": model.name,
                "spawn_s": seconds(|one| one.spawn_s),
                "load_s": seconds(|one| one.load_s),
                "by_length": model.by_length,
            })
        });
        report.samples = samples.collect();
        Ok(report)
    }
}

fn timed(run: &Run) -> Option<Timed> {
    let Figure::Start { device_s, weights_s, kernels_s, .. } = run.measured.figures.first()? else {
        return None;
    };
    Some(Timed {
        spawn_s: run.spawn_s,
        load_s: device_s + weights_s + kernels_s,
        weights_s: *weights_s,
        kernels_s: *kernels_s,
    })
}

fn loads(models: &[Loaded]) -> Table {
    let mut table = Table::new("Loading")
        .key("model", "Model")
        .fact("parameters_m", "Million parameters", 2)
        .fact("quantization", "Form", 0)
        .lower("spawn_ms", "Spawn ms", 1)
        .lower("load_s", "Load s", 3)
        .lower("weights_s", "of it weights s", 3)
        .lower("kernels_s", "first kernels s", 3)
        .fact("weights_mb", "Weights MB", 1)
        .lower("active_mb", "Live arrays MB", 1)
        .lower("process_mb", "Process MB", 1)
        .lower("process_peak_mb", "its peak MB", 1);
    for model in models {
        let middle =
            |of: fn(&Timed) -> f64| median(&model.times.iter().map(of).collect::<Vec<f64>>());
        let told = model.last.measured.model.as_ref();
        let mb = |bytes: u64| bytes as f64 / 1e6;
        let footprint = model.last.footprint();
        table.row([
            json!(model.name),
            json!(told.map(|told| told.parameters as f64 / 1e6)),
            json!(told.map(|told| &told.quantization)),
            json!(middle(|one| one.spawn_s) * 1e3),
            json!(middle(|one| one.load_s)),
            json!(middle(|one| one.weights_s)),
            json!(middle(|one| one.kernels_s)),
            json!(told.map(|told| mb(told.weight_bytes))),
            json!(told.map(|told| mb(told.active_bytes))),
            json!(footprint.map(|footprint| mb(footprint.bytes))),
            json!(footprint.and_then(|footprint| footprint.peak_bytes).map(mb)),
        ]);
    }
    table
}

/// None for models that are all of one size.
fn fits(loads: &Table) -> Option<Table> {
    let mut logarithms = loads.points("parameters_m", "load_s");
    logarithms.iter_mut().for_each(|(parameters, _)| *parameters = parameters.log10());
    let time = fit(&logarithms)?;
    let memory = fit(&loads.points("parameters_m", "active_mb"))?;
    let process = fit(&loads.points("parameters_m", "process_mb"));
    let mut table = Table::new("Fits")
        .key("fit", "Line")
        .fact("slope", "Rise", 4)
        .fact("slope_unit", "of", 0)
        .fact("intercept", "At zero", 3)
        .fact("r_squared", "R²", 4);
    let mut row = |name: &str, unit: &str, fit: Fit| {
        let Fit { slope, intercept, r_squared } = fit;
        table.row([json!(name), json!(slope), json!(unit), json!(intercept), json!(r_squared)]);
    };
    row("load time by log10(million parameters)", "s per tenfold", time);
    row("live arrays by parameters", "bytes a parameter (MB at zero)", memory);
    if let Some(process) = process {
        row("process by parameters", "bytes a parameter (MB at zero)", process);
    }
    Some(table)
}

fn lengths_table(models: &[Loaded]) -> (Table, Plot) {
    let mut table = Table::new("Memory by the length of a sequence")
        .key("model", "Model")
        .key("length", "Tokens")
        .lower("state_mb", "Kept MB", 2)
        .lower("peak_mb", "Peak in its prompt MB", 2)
        .lower("with_model_mb", "with the model MB", 1);
    let mut plot = Plot::new("Memory by length, with the model", "tokens", "MB");
    for model in models {
        let active = model.by_length.model.as_ref().map_or(0, |told| told.active_bytes);
        let mut points = Vec::new();
        for figure in &model.by_length.figures {
            let Figure::Memory { length, state_bytes, peak_bytes } = figure else { continue };
            let with_model_mb = (active + peak_bytes) as f64 / 1e6;
            points.push((f64::from(*length), with_model_mb));
            table.row([
                json!(model.name),
                json!(length),
                json!(*state_bytes as f64 / 1e6),
                json!(*peak_bytes as f64 / 1e6),
                json!(with_model_mb),
            ]);
        }
        plot = plot.line(&model.name, points);
    }
    (table, plot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fits_are_over_the_logarithm_and_the_number_of_parameters() {
        let table = |sizes: &[f64]| {
            let mut table = Table::new("t").fact("parameters_m", "", 0).fact("load_s", "", 0).fact(
                "active_mb",
                "",
                0,
            );
            for size in sizes {
                table.row([json!(size), json!(1.0 + 2.0 * size.log10()), json!(4.0 * size + 3.0)]);
            }
            table
        };
        let fits = fits(&table(&[1.0, 10.0, 1000.0])).expect("two lines");
        assert_eq!(fits.rows.len(), 2);
        let near = |row: usize, key: &str, expected: f64| {
            let got = fits.rows[row][key].as_f64().expect("a number");
            assert!((got - expected).abs() < 1e-9, "{key}: {got}");
        };
        near(0, "slope", 2.0);
        near(0, "intercept", 1.0);
        near(1, "slope", 4.0);
        near(1, "r_squared", 1.0);
        assert!(super::fits(&table(&[5.0, 5.0])).is_none());
    }
}
