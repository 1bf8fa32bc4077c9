//! What the server keeps of prompts: the hit and miss sequences of vLLM-MLX's prefix cache test,
//! then a conversation and a shared system prompt. Tokens saved are those that the server says it
//! had, `usage.prompt_tokens_details.cached_tokens`; time is that to the first token.

use crate::client::{Answered, Ask, Prompt};
use crate::prompts;
use crate::report::{Report, Template};
use crate::session::{Benchmark, Output, Session, bar};
use crate::stats::mean;
use crate::table::Table;
use crate::target::{ServerFlags, Target};
use crate::volley::{note_counting, totals};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// `mlxd bench prefix-cache`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Words of a prompt.
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u32).range(20..))]
    words: u32,
    /// Tokens of an answer.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    #[command(flatten)]
    server: ServerFlags,
    #[command(flatten)]
    output: Output,
}

/// What the server had of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Half of it or more.
    Hit,
    /// Less: what a template begins with, say.
    Miss,
}

impl Outcome {
    fn of(answered: &Answered) -> Self {
        let half = answered.prompt_tokens.div_ceil(2).max(1);
        if answered.cached_tokens >= half { Self::Hit } else { Self::Miss }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Hit => "HIT",
            Self::Miss => "MISS",
        }
    }
}

/// A request that was answered.
struct Step {
    number: &'static str,
    what: &'static str,
    expected: Outcome,
    answered: Answered,
}

impl Benchmark for Arguments {
    const NAME: &'static str = "prefix-cache";

    fn output(&self) -> &Output {
        &self.output
    }

    fn server(&self) -> ServerFlags {
        self.server.clone()
    }

    async fn measure(&self, session: &mut Session<'_>) -> anyhow::Result<Report> {
        let quick = self.output.quick;
        let words = if quick { self.words.min(80) } else { self.words };
        let tokens = if quick { self.max_tokens.min(4) } else { self.max_tokens };
        let target = session.target().await?;
        target.warm_up(Template::Chat, tokens).await?;
        let progress = bar(10, Self::NAME);
        let mut run = Run { target, words: words as usize, tokens, steps: Vec::new(), progress };
        run.repeats().await?;
        run.conversation().await?;
        run.system_prompt().await?;
        run.progress.finish_and_clear();
        let steps = run.steps;
        let answers: Vec<Answered> = steps.iter().map(|step| step.answered.clone()).collect();
        let mut report = target.report(Self::NAME, quick).await;
        report.subject.concurrency = vec![1];
        report.subject.template = Some(Template::Chat);
        report.subject.temperature = Some(0.0);
        note_counting(&mut report, &answers);
        if answers.iter().all(|answered| answered.cached_tokens == 0) {
            report.notes.push(
                "The server told of no cached tokens: it has no prefix cache, it is off, or it does \
                 not say."
                    .into(),
            );
        }
        report.tables = vec![table(&steps), summary(&answers)];
        report.samples = json!(answers);
        Ok(report)
    }
}

struct Run<'a> {
    target: &'a Target,
    words: usize,
    tokens: u32,
    steps: Vec<Step>,
    progress: ProgressBar,
}

impl Run<'_> {
    async fn ask(
        &mut self,
        number: &'static str,
        what: &'static str,
        expected: Outcome,
        messages: &[Value],
    ) -> anyhow::Result<String> {
        let mut ask = Ask::new(Template::Chat, "", self.tokens);
        ask.prompt = Prompt::Chat(messages.to_vec());
        let answered = self.target.ask(&ask).await?;
        self.progress.inc(1);
        let text = answered.text.clone();
        self.steps.push(Step { number, what, expected, answered });
        Ok(text)
    }

    /// The published sequence.
    async fn repeats(&mut self) -> anyhow::Result<()> {
        let first = [user(&unseen(1, self.words))];
        let other = [user(&unseen(2, self.words))];
        self.ask("1a", "First request", Outcome::Miss, &first).await?;
        self.ask("1b", "Same prompt", Outcome::Hit, &first).await?;
        self.ask("1c", "Different prompt", Outcome::Miss, &other).await?;
        self.ask("1d", "Return to prompt 1", Outcome::Hit, &first).await?;
        Ok(())
    }

    /// Every turn sends all the earlier ones again, answers included.
    async fn conversation(&mut self) -> anyhow::Result<()> {
        let mut messages = vec![user(&unseen(3, self.words))];
        let turns = [
            ("2a", "First turn", Outcome::Miss),
            ("2b", "Second turn", Outcome::Hit),
            ("2c", "Third turn", Outcome::Hit),
        ];
        for (turn, (number, what, expected)) in turns.into_iter().enumerate() {
            let said = self.ask(number, what, expected, &messages).await?;
            messages.push(json!({"role": "assistant", "content": said}));
            messages.push(user(prompts::short_question(turn)));
        }
        Ok(())
    }

    async fn system_prompt(&mut self) -> anyhow::Result<()> {
        let system = json!({"role": "system", "content": unseen(4, self.words)});
        let steps = [
            ("3a", "A system prompt", Outcome::Miss),
            ("3b", "Same system prompt, second question", Outcome::Hit),
            ("3c", "Same system prompt, third question", Outcome::Hit),
        ];
        for (at, (number, what, expected)) in steps.into_iter().enumerate() {
            let messages = [system.clone(), user(prompts::short_question(at + 3))];
            self.ask(number, what, expected, &messages).await?;
        }
        Ok(())
    }
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

/// A text that no server has seen: it begins with the time.
pub fn unseen(number: usize, words: usize) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    format!("{now} {}", prompts::text(number, words))
}

fn table(steps: &[Step]) -> Table {
    let mut table = Table::new("Hits and misses")
        .key("step", "Step")
        .fact("request", "Request", 0)
        .fact("prompt_tokens", "Prompt tok", 0)
        .fact("cached_tokens", "Saved tok", 0)
        .fact("expected", "Expected", 0)
        .fact("actual", "Actual", 0)
        .fact("as_expected", "As expected", 0)
        .lower("first_ms", "First token ms", 1)
        .lower("total_ms", "Whole answer ms", 1);
    for step in steps {
        let answered = &step.answered;
        let actual = Outcome::of(answered);
        table.row([
            json!(step.number),
            json!(step.what),
            json!(answered.prompt_tokens),
            json!(answered.cached_tokens),
            json!(step.expected.name()),
            json!(actual.name()),
            json!(if actual == step.expected { "yes" } else { "NO" }),
            json!(answered.first_s * 1e3),
            json!(answered.seconds * 1e3),
        ]);
    }
    table
}

fn summary(answers: &[Answered]) -> Table {
    let firsts = |outcome: Outcome| -> Vec<f64> {
        let those = answers.iter().filter(|answered| Outcome::of(answered) == outcome);
        those.map(|answered| answered.first_s * 1e3).collect()
    };
    let (hits, misses) = (firsts(Outcome::Hit), firsts(Outcome::Miss));
    let sums = totals(answers, 1.0);
    let mut table = Table::new("Together")
        .key("requests", "Requests")
        .higher("hits", "Hits", 0)
        .lower("misses", "Misses", 0)
        .higher("hit_rate_percent", "Hit rate %", 1)
        .higher("saved_tokens", "Tokens saved", 0)
        .fact("prompt_tokens", "of prompt tokens", 0)
        .lower("miss_first_ms", "First token, miss ms", 1)
        .lower("hit_first_ms", "First token, hit ms", 1)
        .higher("speedup", "Speed-up", 2);
    table.row([
        json!(answers.len()),
        json!(hits.len()),
        json!(misses.len()),
        json!(hits.len() as f64 / answers.len() as f64 * 100.0),
        json!(sums.cached_tokens),
        json!(sums.prompt_tokens),
        json!(mean(&misses)),
        json!(mean(&hits)),
        json!(mean(&misses) / mean(&hits)),
    ]);
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Counted;

    fn answered(prompt_tokens: u32, cached_tokens: u32, first_s: f64) -> Answered {
        Answered {
            begun_s: 0.0,
            seconds: first_s * 2.0,
            first_s,
            deltas_s: vec![],
            completion_tokens: 1,
            prompt_tokens,
            cached_tokens,
            counted: Counted::Usage,
            finish_reason: None,
            text: String::new(),
        }
    }

    #[test]
    fn a_template_s_beginning_is_no_hit() {
        assert_eq!(Outcome::of(&answered(100, 5, 1.0)), Outcome::Miss);
        assert_eq!(Outcome::of(&answered(100, 50, 1.0)), Outcome::Hit);
        assert_eq!(Outcome::of(&answered(0, 0, 1.0)), Outcome::Miss);
    }

    #[test]
    fn hits_are_set_against_misses() {
        let answers = [answered(100, 0, 0.4), answered(100, 99, 0.1), answered(100, 99, 0.1)];
        let row = &summary(&answers).rows[0];
        assert_eq!((row["hits"].as_u64(), row["saved_tokens"].as_u64()), (Some(2), Some(198)));
        assert!((row["speedup"].as_f64().expect("a number") - 4.0).abs() < 1e-9);
    }

    #[test]
    fn texts_are_new_every_time() {
        assert_ne!(unseen(1, 20), unseen(1, 20));
    }
}
