//! `mlxctl route`: which model would answer a request, and why.

use crate::arguments::Route;
use crate::client::{Failure, Front};
use crate::exit::Exit;
use crate::output::{self, harmless};
use mlxd_protocol::admin::{RouteOutcome, RouteReport, RouteStep};
use serde_json::Value;
use std::io::{Read, stdin};
use std::path::Path;

/// A longer request is none that mlxd takes by default.
const REQUEST_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Asks mlxd and shows what it decides.
pub(crate) async fn route(
    front: &Front,
    arguments: &Route,
    as_json: bool,
) -> Result<Exit, Failure> {
    let text = read(arguments.request.as_deref())?;
    let mut request: Value = serde_json::from_slice(&text)
        .map_err(|error| Failure::Broken(format!("the request is not JSON: {error}")))?;
    if let (Some(model), Some(fields)) = (&arguments.model, request.as_object_mut()) {
        fields.insert("model".to_owned(), Value::from(model.as_str()));
    }
    let priority = arguments.priority.map(|priority| ("x-priority", priority.word()));
    let report: RouteReport = front.post_with("/admin/v1/route", &request, priority).await?;
    match as_json {
        true => output::json(&report)?,
        false => output::piece(&harmless(&words(&report)))?,
    }
    Ok(if report.model.is_some() { Exit::Success } else { Exit::Generic })
}

fn read(file: Option<&Path>) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    match file.filter(|file| *file != Path::new("-")) {
        None => stdin().take(REQUEST_BYTES_MAX).read_to_end(&mut text)?,
        Some(file) => {
            let named = |error| Failure::Broken(format!("cannot read {}: {error}", file.display()));
            let file = std::fs::File::open(file).map_err(named)?;
            file.take(REQUEST_BYTES_MAX).read_to_end(&mut text).map_err(named)?
        }
    };
    Ok(text)
}

fn words(report: &RouteReport) -> String {
    let model = report.model.as_deref().unwrap_or("no model");
    let mut text = match (&report.route, report.model.as_ref() == Some(&report.asked)) {
        (None, true) => format!("{model}, which the request names\n"),
        _ => format!("{}: {model}\n", report.asked),
    };
    let names: Vec<String> = report.steps.iter().map(name).collect();
    let longest = |lengths: &mut dyn Iterator<Item = usize>| lengths.max().unwrap_or(0);
    let name_width = longest(&mut names.iter().map(|name| name.chars().count()));
    let target_width = longest(&mut report.steps.iter().map(|s| s.target.chars().count()));
    for (step, name) in report.steps.iter().zip(&names) {
        let answer = match step.outcome {
            RouteOutcome::Taken => "yes: ",
            RouteOutcome::Passed => "no: ",
            RouteOutcome::LeadsOn => "",
        };
        let (target, reason) = (&step.target, &step.reason);
        text.push_str(&format!(
            "  {name:<name_width$}  {target:<target_width$}  {answer}{reason}\n"
        ));
    }
    text.push_str(&format!("request: {}\n", request(report)));
    if let Some(problem) = &report.problem {
        text.push_str(&format!("problem: {problem}\n"));
    }
    text
}

/// Its place, deeper ones further to the right.
fn name(step: &RouteStep) -> String {
    format!("{}{}", "  ".repeat(step.depth), step.place)
}

fn request(report: &RouteReport) -> String {
    let seen = &report.request;
    let mut parts = vec!["text".to_owned()];
    parts.extend(seen.holds.iter().cloned());
    for (has, what) in [(seen.tools, "tools"), (seen.json, "JSON")] {
        parts.push(if has { what.to_owned() } else { format!("no {what}") });
    }
    parts.push(format!("priority {}", seen.priority));
    for (model, tokens) in &report.prompt_tokens {
        parts.push(format!("{tokens} tokens to {model}"));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlxd_protocol::admin::RouteRequest;

    fn step(depth: usize, place: &str, target: &str, outcome: RouteOutcome) -> RouteStep {
        RouteStep {
            route: "auto".into(),
            depth,
            place: place.into(),
            target: target.into(),
            outcome,
            reason: "so it is".into(),
        }
    }

    #[test]
    fn every_place_has_its_line() {
        let mut report = RouteReport {
            asked: "auto".into(),
            route: Some("auto".into()),
            model: Some("org/large".into()),
            request: RouteRequest {
                holds: vec!["image".into()],
                tools: true,
                json: false,
                priority: "normal".into(),
            },
            prompt_tokens: [("org/large".to_owned(), 12)].into(),
            steps: vec![
                step(0, "rule 1", "inner", RouteOutcome::LeadsOn),
                step(1, "rule 1", "org/small", RouteOutcome::Passed),
                step(0, "fallback 1", "org/large", RouteOutcome::Taken),
            ],
            problem: None,
        };
        assert_eq!(
            words(&report),
            "\
auto: org/large
  rule 1      inner      so it is
    rule 1    org/small  no: so it is
  fallback 1  org/large  yes: so it is
request: text, image, tools, no JSON, priority normal, 12 tokens to org/large
"
        );
        report.steps.clear();
        (report.route, report.asked) = (None, "org/large".into());
        assert!(words(&report).starts_with("org/large, which the request names\nrequest: "));
        (report.model, report.problem) = (None, Some("nobody".into()));
        assert!(words(&report).starts_with("org/large: no model\n"));
        assert!(words(&report).ends_with("problem: nobody\n"));
    }
}
