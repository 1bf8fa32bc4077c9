//! `mlxctl estimate`: what a model would need, before anything of it is loaded.

use crate::arguments::EstimateOf;
use crate::client::{Failure, Front};
use crate::exit::Exit;
use crate::output::{self, harmless};
use mlxd_protocol::admin::{Estimate, Verdict};
use mlxd_protocol::bytes_in_short;

/// Prints the arithmetic and the verdict. Exit code 1 for what can never fit.
pub(crate) async fn estimate(
    front: &Front,
    of: &EstimateOf,
    as_json: bool,
) -> Result<Exit, Failure> {
    let number = |number: Option<u32>| number.map(|number| number.to_string());
    let (context, batch) = (number(of.context), number(of.batch));
    let mut query = vec![("model", of.model.as_str())];
    query.extend(context.as_deref().map(|context| ("context", context)));
    query.extend(batch.as_deref().map(|batch| ("batch", batch)));
    let estimate: Estimate = front.get_about("/admin/v1/estimate", &query).await?;
    match as_json {
        true => output::json(&estimate)?,
        false => output::piece(&harmless(&text(&estimate)))?,
    }
    Ok(match estimate.verdict {
        Verdict::Never => Exit::Generic,
        Verdict::Fits | Verdict::Evicts | Verdict::Waits => Exit::Success,
    })
}

fn text(estimate: &Estimate) -> String {
    let sum: u64 = estimate.parts.iter().map(|part| part.bytes).sum();
    let mut rows: Vec<(&str, String, &str)> = Vec::new();
    for part in &estimate.parts {
        rows.push((&part.name, bytes_in_short(part.bytes), &part.how));
    }
    rows.push(("in all, computed", bytes_in_short(sum), ""));
    let measured = |bytes: Option<u64>| bytes.map_or_else(|| "never".to_owned(), bytes_in_short);
    rows.push(("measured, loaded", measured(estimate.measured_loaded_bytes), ""));
    rows.push(("measured, so used", measured(estimate.measured_peak_bytes), ""));
    rows.push(("to be promised", bytes_in_short(estimate.needs_bytes), ""));
    if estimate.promised_bytes > 0 {
        rows.push(("of that promised", bytes_in_short(estimate.promised_bytes), ""));
    }
    let memory = &estimate.memory;
    let of_budget = format!("of {} for all models", bytes_in_short(memory.budget_bytes));
    rows.push(("free", bytes_in_short(memory.free_bytes), &of_budget));
    let width = |text: fn(&(&str, String, &str)) -> usize| rows.iter().map(text).max().unwrap_or(0);
    let (names, sizes) = (width(|row| row.0.len()), width(|row| row.1.len()));
    let sequences = if estimate.batch == 1 { "sequence" } else { "sequences" };
    let mut text = format!(
        "{}, {} {sequences} of {} tokens\n",
        estimate.model, estimate.batch, estimate.context
    );
    for (name, size, how) in &rows {
        let line = format!("  {name:<names$}  {size:>sizes$}  {how}");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text.push_str(&estimate.message);
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlxd_protocol::admin::{EstimatePart, MemoryStatus};

    #[test]
    fn the_arithmetic_is_a_table() {
        let part = |name: &str, bytes, how: &str| EstimatePart {
            name: name.into(),
            bytes,
            how: how.into(),
        };
        let estimate = Estimate {
            model: "a/b".into(),
            context: 8192,
            batch: 2,
            parts: vec![
                part("weights", 335_000_000, "as stored"),
                part("sequences", 1_880_000_000, "2 × 8192 tokens"),
            ],
            measured_loaded_bytes: Some(400_000_000),
            measured_peak_bytes: None,
            needs_bytes: 2_300_000_000,
            promised_bytes: 0,
            memory: MemoryStatus {
                budget_bytes: 8_000_000_000,
                free_bytes: 8_000_000_000,
                ..MemoryStatus::default()
            },
            verdict: Verdict::Fits,
            message: "it fits".into(),
        };
        assert_eq!(
            text(&estimate),
            "\
a/b, 2 sequences of 8192 tokens
  weights             335 MB  as stored
  sequences          1.88 GB  2 × 8192 tokens
  in all, computed   2.21 GB
  measured, loaded    400 MB
  measured, so used    never
  to be promised     2.30 GB
  free               8.00 GB  of 8.00 GB for all models
it fits
"
        );
    }
}
