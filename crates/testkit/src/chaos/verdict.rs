//! Whether what a client got is what its twin got, and if not, whether that can be explained.

use super::clients::Record;
use super::faults::{Deaths, Disturbance};
use crate::answer::{Answer, Outcome};

/// Milliseconds by which the clocks of a client and of the front's events may be read apart.
const SLACK_MS: u64 = 20;

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Equal to its twin.
    Complete,
    /// The client left, and what it had read is how its twin begins.
    Left,
    /// An error in words, with its cause among the faults; what came before is right.
    Explained(String),
    /// An error in words, or a cut connection, that no fault explains.
    Unexplained(String),
    /// Said to be whole, and tokens are missing from it.
    Lost,
    /// Tokens came twice.
    Duplicated,
    /// Said to be whole, or ended cleanly, and only the beginning.
    Truncated,
    /// Anything else that is not the twin's.
    Wrong(String),
}

/// Judges one request.
pub(super) fn judge(
    record: &Record,
    request_deaths_max: u32,
    deaths: &Deaths,
    disturbances: &[Disturbance],
) -> Verdict {
    let begins = |so_far: &Answer| so_far.begins(&record.expected);
    match &record.outcome {
        Outcome::Whole(answer) => compare(answer, &record.expected),
        Outcome::HungUp(so_far) if begins(so_far) => Verdict::Left,
        Outcome::Error { code, message, so_far, .. } if begins(so_far) => {
            match is_explained(code, record, request_deaths_max, deaths, disturbances) {
                true => Verdict::Explained(code.clone()),
                false => Verdict::Unexplained(format!("{code}: {message}")),
            }
        }
        Outcome::HungUp(so_far) | Outcome::Error { so_far, .. } => {
            Verdict::Wrong(format!("{so_far:?} is not how {:?} begins", record.expected))
        }
        Outcome::CleanEnd(_) => Verdict::Truncated,
        Outcome::Cut { reason, .. } => Verdict::Unexplained(format!("cut: {reason}")),
        Outcome::Malformed(what) => Verdict::Wrong(what.clone()),
    }
}

fn is_explained(
    code: &str,
    record: &Record,
    request_deaths_max: u32,
    deaths: &Deaths,
    disturbances: &[Disturbance],
) -> bool {
    let (from, to) = (record.began_ms.saturating_sub(SLACK_MS), record.ended_ms + SLACK_MS);
    match code {
        "quarantined" => {
            let during = |(model, at, _): &&(usize, u64, String)| {
                *model == record.model && (from..=to).contains(at)
            };
            deaths.all.iter().filter(during).count() >= request_deaths_max as usize
        }
        "model_stopped" => disturbances.iter().any(|done| {
            let overlaps = done.began_ms <= to && done.ended_ms >= from;
            done.model == record.model && done.kind.stops() && overlaps
        }),
        _ => false,
    }
}

fn compare(got: &Answer, expected: &Answer) -> Verdict {
    if got == expected {
        return Verdict::Complete;
    }
    for (got, expected) in got.choices.iter().zip(&expected.choices) {
        let (got, expected) = (got.text.as_bytes(), expected.text.as_bytes());
        if got == expected {
            continue;
        }
        if expected.starts_with(got) {
            return Verdict::Truncated;
        }
        if is_subsequence(got, expected) {
            return Verdict::Lost;
        }
        if is_subsequence(expected, got) {
            return Verdict::Duplicated;
        }
    }
    Verdict::Wrong(format!("{got:?} and not {expected:?}"))
}

/// Whether `part` is `whole` with some bytes left out.
fn is_subsequence(part: &[u8], whole: &[u8]) -> bool {
    let mut rest = whole.iter();
    part.iter().all(|byte| rest.any(|other| other == byte))
}

#[cfg(test)]
mod tests {
    use super::super::requests::{Ask, Manner};
    use super::*;
    use crate::answer::AnswerChoice;
    use crate::chaos::FaultKind;
    use serde_json::json;
    use std::time::Instant;

    fn answer(text: &str) -> Answer {
        let finish = Some("length".to_owned());
        let choice = AnswerChoice { text: text.into(), finish, logprobs: Vec::new() };
        Answer { choices: vec![choice], usage: Some((3, text.len() as u64)) }
    }

    fn begun(text: &str) -> Answer {
        let choice = AnswerChoice { text: text.into(), ..AnswerChoice::default() };
        Answer { choices: vec![choice], usage: None }
    }

    fn record(outcome: Outcome) -> Record {
        Record {
            model: 0,
            ask: Ask { path: "/", body: json!({}), manner: Manner::Plain },
            began_ms: 1000,
            ended_ms: 2000,
            expected: answer("abcdef"),
            outcome,
            read_at: Vec::new(),
        }
    }

    fn error(code: &str, so_far: &str) -> Outcome {
        let (code, message) = (code.to_owned(), String::new());
        Outcome::Error { status: 200, code, message, so_far: begun(so_far) }
    }

    #[test]
    fn whole_answers_are_compared_to_the_byte() {
        let judged =
            |text: &str| judge(&record(Outcome::Whole(answer(text))), 2, &Deaths::default(), &[]);
        assert_eq!(judged("abcdef"), Verdict::Complete);
        assert_eq!(judged("abc"), Verdict::Truncated);
        assert_eq!(judged("abdef"), Verdict::Lost);
        assert_eq!(judged("abccdef"), Verdict::Duplicated);
        assert!(matches!(judged("abcxef"), Verdict::Wrong(_)));
        let miscounted = Answer { usage: Some((3, 7)), ..answer("abcdef") };
        let judged = judge(&record(Outcome::Whole(miscounted)), 2, &Deaths::default(), &[]);
        assert!(matches!(judged, Verdict::Wrong(_)));
        let ended = judge(&record(Outcome::CleanEnd(begun("abc"))), 2, &Deaths::default(), &[]);
        assert_eq!(ended, Verdict::Truncated);
    }

    #[test]
    fn an_error_needs_its_cause_at_its_time_and_a_right_beginning() {
        let death = |model, at| (model, at, "killed by SIGKILL".to_owned());
        let deaths = |all| Deaths { all, missed: 0 };
        let quarantined = record(error("quarantined", "ab"));
        let judged = |all| judge(&quarantined, 2, &deaths(all), &[]);
        let explained = Verdict::Explained("quarantined".into());
        assert_eq!(judged(vec![death(0, 1100), death(0, 1900)]), explained);
        for few in [
            vec![death(0, 1100)],
            vec![death(0, 1100), death(1, 1200)],
            vec![death(0, 1100), death(0, 2500)],
        ] {
            assert!(matches!(judged(few), Verdict::Unexplained(_)));
        }
        let wrong = record(error("quarantined", "ax"));
        let judged = judge(&wrong, 2, &deaths(vec![death(0, 1100), death(0, 1900)]), &[]);
        assert!(matches!(judged, Verdict::Wrong(_)));

        let stopped = record(error("model_stopped", ""));
        let stop = |kind, began_ms| Disturbance {
            model: 0,
            kind,
            at: Instant::now(),
            began_ms,
            ended_ms: began_ms + 100,
        };
        let judged = |done| judge(&stopped, 2, &Deaths::default(), &[done]);
        assert_eq!(
            judged(stop(FaultKind::Unload, 950)),
            Verdict::Explained("model_stopped".into())
        );
        assert!(matches!(judged(stop(FaultKind::Unload, 2100)), Verdict::Unexplained(_)));
        assert!(matches!(judged(stop(FaultKind::Kill, 1500)), Verdict::Unexplained(_)));
    }
}
