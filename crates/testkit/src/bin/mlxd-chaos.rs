//! `make chaos`: faults at random for some minutes, every answer checked. Exits 1 if any answer
//! was lost, doubled, truncated or wrong, or if anything happened that was not injected.

use mlxd_testkit::chaos::{ChaosPlan, Engine, run};
use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str = "mlxd-chaos [--minutes N] [--faults N] [--seed N] [--clients N]
           [--request-deaths-max N] [--engine scripted|mlx]";

fn plan(mut arguments: impl Iterator<Item = String>) -> Result<ChaosPlan, String> {
    let mut plan = ChaosPlan {
        engine: Engine::Scripted,
        seed: fastrand::u64(..1_000_000),
        faults_max: u64::MAX,
        time_max: Duration::from_secs(5 * 60),
        clients: 8,
        request_deaths_max: 1000,
    };
    while let Some(flag) = arguments.next() {
        if flag == "--help" {
            println!("{USAGE}");
            std::process::exit(0);
        }
        let value = arguments.next().ok_or(format!("{flag} wants a number\n{USAGE}"))?;
        let wrong = |_| format!("{flag} {value}: not a number\n{USAGE}");
        let whole = || value.parse::<u64>().map_err(|error| wrong(error.to_string()));
        match flag.as_str() {
            "--seed" => plan.seed = whole()?,
            "--faults" => plan.faults_max = whole()?,
            "--clients" => plan.clients = whole()?.clamp(1, 64) as usize,
            "--request-deaths-max" => plan.request_deaths_max = whole()?.clamp(1, 1000) as u32,
            "--engine" => {
                plan.engine = match value.as_str() {
                    "scripted" => Engine::Scripted,
                    "mlx" => Engine::Mlx,
                    _ => return Err(format!("--engine {value}: scripted or mlx\n{USAGE}")),
                }
            }
            "--minutes" => {
                let minutes = value.parse::<f64>().map_err(|error| wrong(error.to_string()))?;
                plan.time_max = Duration::from_secs_f64((60.0 * minutes).clamp(1.0, 1e6));
            }
            _ => return Err(USAGE.to_owned()),
        }
    }
    Ok(plan)
}

fn main() -> ExitCode {
    let plan = match plan(std::env::args().skip(1)) {
        Ok(plan) => plan,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    println!("seed {}, {} clients for each model, {:?}", plan.seed, plan.clients, plan.engine);
    let report = run(&plan);
    print!("{report}");
    ExitCode::from(u8::from(!report.is_clean()))
}
