//! `keep_alive`: how long the model is to stay loaded after this request, as ollama's clients say it.

use super::fields::{Fields, wrong};
use crate::error::ApiError;
use mlxd_dispatch::KeepAlive;
use serde_json::Value;
use std::time::Duration;

/// A year: longer is for ever.
const LONGEST_S: f64 = 31_536_000.0;

/// Seconds as a number, or a text such as `30s`, `5m`, `1h30m`; negative is for ever, 0 unloads the
/// model once nobody uses it.
pub(crate) fn take(fields: &mut Fields) -> Result<Option<KeepAlive>, ApiError> {
    let Some(value) = fields.take("keep_alive") else { return Ok(None) };
    let seconds = match &value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => seconds_of(text.trim()),
        _ => None,
    };
    match seconds {
        Some(seconds) if (0.0..=LONGEST_S).contains(&seconds) => {
            Ok(Some(KeepAlive::For(Duration::from_secs_f64(seconds))))
        }
        Some(seconds) if !seconds.is_nan() => Ok(Some(KeepAlive::Forever)),
        _ => Err(wrong("keep_alive", "seconds, or a duration such as \"5m\"", &value)),
    }
}

fn seconds_of(text: &str) -> Option<f64> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text),
    };
    if let Ok(plain) = rest.parse::<f64>() {
        return Some(sign * plain);
    }
    let mut sum = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit = &rest[digits..];
        let length = unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len());
        let seconds = match &unit[..length] {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return None,
        };
        sum += number * seconds;
        rest = &unit[length..];
    }
    (!text.is_empty()).then_some(sign * sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn taken(value: Value) -> Result<Option<KeepAlive>, ApiError> {
        let body = json!({"keep_alive": value}).to_string();
        take(&mut Fields::parse(body.as_bytes()).unwrap())
    }

    #[test]
    fn numbers_and_durations_are_taken_and_nothing_else() {
        let for_s = |seconds| Some(KeepAlive::For(Duration::from_secs_f64(seconds)));
        for (value, expected) in [
            (json!(null), None),
            (json!(0), for_s(0.0)),
            (json!(90), for_s(90.0)),
            (json!(0.5), for_s(0.5)),
            (json!("30"), for_s(30.0)),
            (json!("5m"), for_s(300.0)),
            (json!("1h30m"), for_s(5400.0)),
            (json!("1.5s"), for_s(1.5)),
            (json!("250ms"), for_s(0.25)),
            (json!(-1), Some(KeepAlive::Forever)),
            (json!("-1m"), Some(KeepAlive::Forever)),
            (json!("9999d"), Some(KeepAlive::Forever)),
        ] {
            assert_eq!(taken(value.clone()), Ok(expected), "{value}");
        }
        for value in [json!("soon"), json!(""), json!("5x"), json!("m"), json!(true), json!([1])] {
            assert!(taken(value.clone()).is_err(), "{value}");
        }
    }
}
