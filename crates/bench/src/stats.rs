//! The arithmetic behind the tables. Pure; every formula is the one that the field publishes.

/// The mean; not a number for nothing.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The middle value, of an even number the mean of the two.
pub fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

/// The value below which the share `quantile` of all lies, between two of them in proportion.
pub fn percentile(values: &[f64], quantile: f64) -> f64 {
    let sorted = sorted(values);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = quantile.clamp(0.0, 1.0) * last as f64;
    let below = at.floor() as usize;
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * (at - below as f64)
}

/// `sorted[⌊quantile · n⌋]`, as `vllm-mlx-bench` takes its P95.
pub fn ranked(values: &[f64], quantile: f64) -> f64 {
    let sorted = sorted(values);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    sorted[((quantile * sorted.len() as f64) as usize).min(last)]
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// Seconds per output token after the first: (total − TTFT)/(n − 1). None for a single token.
pub fn time_per_output_token(total_s: f64, first_s: f64, tokens: u32) -> Option<f64> {
    (tokens > 1).then(|| (total_s - first_s) / f64::from(tokens - 1))
}

/// Tokens a second while generating: (n − 1)/(total − TTFT). None for a single token, or when all
/// came at one moment.
pub fn generation_rate(total_s: f64, first_s: f64, tokens: u32) -> Option<f64> {
    time_per_output_token(total_s, first_s, tokens)
        .filter(|each| *each > 0.0)
        .map(|each| 1.0 / each)
}

/// What a client may expect of a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Objective {
    /// Seconds to the first token at the most.
    pub first_s: f64,
    /// Seconds per output token after it at the most.
    pub per_token_s: f64,
}

impl Objective {
    /// Whether a finished request was as good. One with a single token has only a first.
    pub fn met(&self, first_s: f64, per_token_s: Option<f64>) -> bool {
        first_s <= self.first_s && per_token_s.is_none_or(|each| each <= self.per_token_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_and_medians() {
        assert_eq!(mean(&[1.0, 2.0, 6.0]), 3.0);
        assert!(mean(&[]).is_nan());
        assert_eq!(median(&[6.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[6.0, 1.0, 2.0, 4.0]), 3.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn percentiles_lie_between_values() {
        let values: Vec<f64> = (1..=101).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 0.0), 1.0);
        assert_eq!(percentile(&values, 0.99), 100.0);
        assert_eq!(percentile(&values, 1.0), 101.0);
        assert_eq!(percentile(&[10.0, 20.0], 0.25), 12.5);
        assert!(percentile(&[], 0.5).is_nan());
    }

    #[test]
    fn ranks_are_the_published_ones() {
        let values: Vec<f64> = (0..20).map(f64::from).collect();
        assert_eq!(ranked(&values, 0.95), 19.0);
        assert_eq!(ranked(&values[..5], 0.95), 4.0);
        assert_eq!(ranked(&values, 0.5), 10.0);
        assert!(ranked(&[], 0.5).is_nan());
    }

    #[test]
    fn times_per_token_leave_the_first_out() {
        // The published M1 Max run: 256 tokens, TTFT 119 ms, 3.97 ms each, 251.9 tok/s.
        let total = 0.119 + 255.0 * 0.00397;
        let each = time_per_output_token(total, 0.119, 256).expect("more than one");
        assert!((each - 0.00397).abs() < 1e-9);
        let rate = generation_rate(total, 0.119, 256).expect("some time");
        assert!((rate - 251.889).abs() < 0.001, "{rate}");
        assert_eq!(time_per_output_token(1.0, 1.0, 1), None);
        assert_eq!(generation_rate(1.0, 1.0, 5), None);
    }

    #[test]
    fn an_objective_has_two_sides() {
        let objective = Objective { first_s: 0.5, per_token_s: 0.05 };
        assert!(objective.met(0.5, Some(0.05)));
        assert!(objective.met(0.1, None));
        assert!(!objective.met(0.51, Some(0.01)));
        assert!(!objective.met(0.1, Some(0.06)));
    }
}
