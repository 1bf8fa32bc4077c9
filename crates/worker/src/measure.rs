//! `mlxd-worker measure SPEC`: measures, says so on standard output, ends. For `mlxd bench`.

use mlxd_protocol::exit_code;
use mlxd_protocol::measure::{Measured, Measurement, Said};
use std::io::{BufRead, Write};

/// Measures what the argument says. Gives the exit code.
pub(crate) fn run(spec: Option<&str>) -> i32 {
    let spec = spec.unwrap_or_default();
    let what: Measurement = match serde_json::from_str(spec) {
        Ok(what) => what,
        Err(error) => {
            eprintln!(
                "mlxd-worker measure is started by `mlxd bench` and takes what to measure as JSON \
                 ({error})"
            );
            return exit_code::USAGE;
        }
    };
    say(&Said::Progress { done: 0, of: 1 });
    let outcome = mlxd_models::measure(&what, &mut |done, of| say(&Said::Progress { done, of }));
    match outcome {
        Ok(measured) => finish(measured),
        Err(error) => {
            say(&Said::Failed { reason: error.to_string() });
            exit_code::FAULT
        }
    }
}

fn finish(measured: Measured) -> i32 {
    say(&Said::Done(measured));
    exit_code::DONE
}

/// One line, and the wait for its answer. When nobody reads it any more, nobody wants the figures
/// either.
fn say(said: &Said) {
    let line = serde_json::to_string(said).expect("numbers and texts");
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        std::process::exit(exit_code::FRONT_GONE);
    }
    // An end of the input is an answer too.
    let _ = std::io::stdin().lock().read_line(&mut String::new());
}
