//! Python methods that templates call and `minijinja-contrib` lacks.

use minijinja::value::{Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

/// Methods of strings, lists and mappings.
pub(super) fn call(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let (ValueKind::String, Some(text)) = (value.kind(), value.as_str())
        && let Some(result) = of_string(text, method, args)
    {
        return result;
    }
    if value.kind() == ValueKind::Seq && method == "index" {
        let (wanted,): (&Value,) = from_args(args)?;
        let mut items = value.try_iter()?;
        return match items.position(|item| item == *wanted) {
            Some(at) => Ok(Value::from(at)),
            None => Err(invalid(format!("{wanted} is not in list"))),
        };
    }
    if value.kind() == ValueKind::Map && method == "copy" {
        let () = from_args(args)?;
        return Ok(value.clone());
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

fn of_string(text: &str, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    let result = match method {
        // Python knows more about these than the shared implementation does.
        "split" => split(text, args),
        "rsplit" => rsplit(text, args),
        "strip" => stripped(text, args, true, true),
        "lstrip" => stripped(text, args, true, false),
        "rstrip" => stripped(text, args, false, true),
        "partition" => partition(text, args),
        "rpartition" => rpartition(text, args),
        "removeprefix" => one(args).map(|cut| text.strip_prefix(cut).unwrap_or(text).into()),
        "removesuffix" => one(args).map(|cut| text.strip_suffix(cut).unwrap_or(text).into()),
        "index" => one(args).and_then(|wanted| match text.find(wanted) {
            Some(at) => Ok(Value::from(text[..at].chars().count())),
            None => Err(invalid("substring not found")),
        }),
        "zfill" => from_args(args).map(|(width,): (usize,)| zfill(text, width.min(1024))),
        "casefold" => from_args(args).map(|()| Value::from(text.to_lowercase())),
        "swapcase" => from_args(args).map(|()| swapcase(text)),
        _ => return None,
    };
    Some(result)
}

fn one(args: &[Value]) -> Result<&str, Error> {
    let (text,): (&str,) = from_args(args)?;
    Ok(text)
}

/// Characters that Python's `str.isspace` counts and Rust's does not.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1C}'..='\u{1F}').contains(&c)
}

fn stripped(text: &str, args: &[Value], start: bool, end: bool) -> Result<Value, Error> {
    let (chars,): (Option<&str>,) = from_args(args)?;
    let cut = |c: char| match chars {
        Some(chars) => chars.contains(c),
        None => is_space(c),
    };
    let text = if start { text.trim_start_matches(cut) } else { text };
    let text = if end { text.trim_end_matches(cut) } else { text };
    Ok(Value::from(text))
}

fn separator_and_count(args: &[Value]) -> Result<(Option<&str>, Option<usize>), Error> {
    let (separator, count): (Option<&str>, Option<i64>) = from_args(args)?;
    if separator == Some("") {
        return Err(invalid("empty separator"));
    }
    Ok((separator, count.and_then(|count| usize::try_from(count).ok())))
}

fn split(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (separator, count) = separator_and_count(args)?;
    let parts = count.map_or(usize::MAX, |count| count.saturating_add(1));
    Ok(match separator {
        Some(separator) => text.splitn(parts, separator).map(Value::from).collect(),
        None => {
            let mut found: Vec<Value> = Vec::new();
            let mut rest = text.trim_start_matches(is_space);
            while !rest.is_empty() {
                let end = match found.len() + 1 < parts {
                    true => rest.find(is_space).unwrap_or(rest.len()),
                    false => rest.len(),
                };
                found.push(Value::from(&rest[..end]));
                rest = rest[end..].trim_start_matches(is_space);
            }
            found.into_iter().collect()
        }
    })
}

fn rsplit(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (separator, count) = separator_and_count(args)?;
    let (Some(separator), Some(count)) = (separator, count) else {
        return split(text, args);
    };
    let mut parts: Vec<Value> =
        text.rsplitn(count.saturating_add(1), separator).map(Value::from).collect();
    parts.reverse();
    Ok(parts.into_iter().collect())
}

fn partition(text: &str, args: &[Value]) -> Result<Value, Error> {
    let separator = one(args)?;
    Ok(match text.split_once(separator) {
        Some((before, after)) => triple(before, separator, after),
        None => triple(text, "", ""),
    })
}

fn rpartition(text: &str, args: &[Value]) -> Result<Value, Error> {
    let separator = one(args)?;
    Ok(match text.rsplit_once(separator) {
        Some((before, after)) => triple(before, separator, after),
        None => triple("", "", text),
    })
}

fn triple(before: &str, separator: &str, after: &str) -> Value {
    Value::from(Tuple::from([before, separator, after].map(Value::from)))
}

fn zfill(text: &str, width: usize) -> Value {
    let missing = width.saturating_sub(text.chars().count());
    let (sign, digits) = match text.strip_prefix(['-', '+']) {
        Some(digits) => text.split_at(text.len() - digits.len()),
        None => ("", text),
    };
    Value::from(format!("{sign}{}{digits}", "0".repeat(missing)))
}

fn swapcase(text: &str) -> Value {
    let swapped = text.chars().map(|c| match c.is_uppercase() {
        true => c.to_lowercase().collect::<String>(),
        false => c.to_uppercase().collect(),
    });
    Value::from(swapped.collect::<String>())
}

fn invalid(reason: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}
