//! Several requests, so many of them at once.

use crate::client::{Answered, Ask};
use crate::report::{Counted, Report};
use crate::target::Target;
use futures_util::StreamExt;
use futures_util::stream::iter;
use indicatif::ProgressBar;
use std::time::Instant;

/// Answers of one volley.
#[derive(Debug)]
pub struct Volley {
    /// In the order in which they ended.
    pub answers: Vec<Answered>,
    /// What went wrong with the others.
    pub failures: Vec<String>,
    /// From the first request to the last answer's end.
    pub seconds: f64,
}

/// Sums over answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Totals {
    /// Requests answered.
    pub requests: usize,
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// Tokens of answers.
    pub completion_tokens: u64,
    /// Of prompts, as the server says.
    pub cached_tokens: u64,
    /// Wall-clock time.
    pub seconds: f64,
}

impl Totals {
    /// Tokens of answers a second.
    pub fn generation(&self) -> f64 {
        self.completion_tokens as f64 / self.seconds
    }

    /// Tokens of prompts and answers a second.
    pub fn throughput(&self) -> f64 {
        (self.prompt_tokens + self.completion_tokens) as f64 / self.seconds
    }

    /// Requests a second.
    pub fn request_rate(&self) -> f64 {
        self.requests as f64 / self.seconds
    }
}

impl Volley {
    /// Sends all, `at_once` of them at a time, and waits for the last. Failures are collected.
    pub async fn fly(target: &Target, asks: &[Ask], at_once: usize, bar: &ProgressBar) -> Self {
        let begun = Instant::now();
        let sent = iter(asks).map(|ask| target.ask(ask)).buffer_unordered(at_once.max(1));
        let outcomes: Vec<_> = sent.inspect(|_| bar.inc(1)).collect().await;
        let seconds = begun.elapsed().as_secs_f64();
        let (mut answers, mut failures) = (Vec::new(), Vec::new());
        for outcome in outcomes {
            match outcome {
                Ok(answered) => answers.push(answered),
                Err(error) => failures.push(format!("{error:#}")),
            }
        }
        Self { answers, failures, seconds }
    }

    /// The same, where a failure is an error.
    pub async fn whole(
        target: &Target,
        asks: &[Ask],
        at_once: usize,
        bar: &ProgressBar,
    ) -> anyhow::Result<Self> {
        let volley = Self::fly(target, asks, at_once, bar).await;
        match volley.failures.first() {
            None => Ok(volley),
            Some(first) => anyhow::bail!(
                "{} of {} requests failed, the first: {first}",
                volley.failures.len(),
                asks.len()
            ),
        }
    }

    /// Sums.
    pub fn totals(&self) -> Totals {
        totals(&self.answers, self.seconds)
    }
}

/// Sums over answers that took so long together.
pub fn totals(answers: &[Answered], seconds: f64) -> Totals {
    let sum = |of: fn(&Answered) -> u32| answers.iter().map(|one| u64::from(of(one))).sum();
    Totals {
        requests: answers.len(),
        prompt_tokens: sum(|one| one.prompt_tokens),
        completion_tokens: sum(|one| one.completion_tokens),
        cached_tokens: sum(|one| one.cached_tokens),
        seconds,
    }
}

/// Says in the report who counted tokens.
pub fn note_counting(report: &mut Report, answers: &[Answered]) {
    let deltas = answers.iter().any(|answered| answered.counted == Counted::Deltas);
    report.subject.token_count_source = Some(if deltas { Counted::Deltas } else { Counted::Usage });
    if deltas {
        report.notes.push(
            "The server gave no usage for some answers: their tokens are deltas counted, which \
             is at most as many as tokens."
                .into(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_over_wall_clock_time() {
        let answered = |prompt, completion| Answered {
            begun_s: 0.0,
            seconds: 1.0,
            first_s: 0.1,
            deltas_s: vec![],
            completion_tokens: completion,
            prompt_tokens: prompt,
            cached_tokens: 1,
            counted: Counted::Usage,
            finish_reason: None,
            text: String::new(),
        };
        let totals = totals(&[answered(10, 30), answered(20, 20)], 2.0);
        assert_eq!((totals.requests, totals.prompt_tokens, totals.completion_tokens), (2, 30, 50));
        assert_eq!(totals.generation(), 25.0);
        assert_eq!(totals.throughput(), 40.0);
        assert_eq!(totals.request_rate(), 1.0);
        assert_eq!(totals.cached_tokens, 2);
    }
}
