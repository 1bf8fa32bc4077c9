//! What a model's name may be made of.
//!
//! Checks come before any path is built from a name, so that no name leaves the folders it is
//! looked for in, and no name looks like another to a person.

use crate::StoreError;

/// The longest name, in bytes.
const NAME_BYTES_MAX: usize = 512;
/// The longest of a Hugging Face name's parts, in bytes.
const PART_BYTES_MAX: usize = 96;

/// A name that was checked, by its form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Name<'a> {
    /// Begins with `/`, `~/` or `./`.
    Path(&'a str),
    /// `name` or `organisation/name`, with the revision after an `@` if one was given.
    Hub { repository: &'a str, revision: Option<&'a str> },
}

/// Checks what holds for every name, configured ones included.
pub(crate) fn check_any(name: &str) -> Result<(), StoreError> {
    let bad =
        |fault: &str| Err(StoreError::BadName { name: name.to_owned(), fault: fault.to_owned() });
    if name.is_empty() {
        return bad("it is empty");
    }
    if name.len() > NAME_BYTES_MAX {
        return bad("it has more than 512 bytes");
    }
    if name.chars().any(char::is_control) {
        return bad("it holds a control character");
    }
    if name.split(['/', '\\']).any(|part| part == "..") {
        return bad("it holds a '..' part");
    }
    if let Some(odd) = name.chars().find(|c| is_deceptive(*c)) {
        return bad(&format!(
            "it holds U+{:04X}, which looks like something else or like nothing",
            odd as u32
        ));
    }
    Ok(())
}

/// Characters that imitate separators or dots, are invisible, or turn the writing direction.
fn is_deceptive(c: char) -> bool {
    matches!(c,
        '\u{00AD}' | '\u{061C}' | '\u{180E}' | '\u{200B}'..='\u{200F}' | '\u{2024}'..='\u{2026}'
        | '\u{2028}'..='\u{202E}' | '\u{2044}' | '\u{2060}'..='\u{206F}' | '\u{2215}' | '\u{2216}'
        | '\u{29F5}' | '\u{29F8}' | '\u{29F9}' | '\u{FE52}' | '\u{FE68}' | '\u{FEFF}' | '\u{FF0E}'
        | '\u{FF0F}' | '\u{FF3C}' | '\u{E0000}'..='\u{E007F}')
}

/// Checks `name` and tells its form.
pub(crate) fn parse(name: &str) -> Result<Name<'_>, StoreError> {
    check_any(name)?;
    if name.starts_with(['/', '~']) || name.starts_with("./") {
        return Ok(Name::Path(name));
    }
    let bad = |fault: String| StoreError::BadName { name: name.to_owned(), fault };
    let (repository, revision) = match name.split_once('@') {
        Some((repository, revision)) => (repository, Some(revision)),
        None => (name, None),
    };
    if repository.split('/').count() > 2 {
        return Err(bad(
            "it has more than one '/'; a path begins with '/', '~/' or './'".to_owned()
        ));
    }
    for part in repository.split('/').chain(revision) {
        check_part(part).map_err(bad)?;
    }
    Ok(Name::Hub { repository, revision })
}

/// One part of a Hugging Face name: what the hub itself takes.
fn check_part(part: &str) -> Result<(), String> {
    if part.is_empty() {
        return Err("one of its parts is empty".to_owned());
    }
    if part.len() > PART_BYTES_MAX {
        return Err(format!("one of its parts has more than {PART_BYTES_MAX} bytes"));
    }
    if let Some(odd) = part.chars().find(|c| !(c.is_ascii_alphanumeric() || "-_.".contains(*c))) {
        return Err(format!(
            "it holds {odd:?} (U+{:04X}); names are made of a-z, A-Z, 0-9, '-', '_' and '.'",
            odd as u32
        ));
    }
    if part.starts_with('.') || part.contains("--") || part.contains("..") {
        return Err("no part begins with '.' or holds '--' or '..'".to_owned());
    }
    Ok(())
}

/// Whether a folder's name could be a part of a model's name.
pub(crate) fn is_part(part: &str) -> bool {
    check_part(part).is_ok()
}

/// The known name spelled most like `name`, when it is near enough to be meant. For callers that
/// know of names which the store does not.
pub fn nearest(name: &str, known: &[String]) -> Option<String> {
    const SIMILARITY_MIN: f64 = 0.7;
    let wanted = name.to_lowercase();
    let wanted_last = wanted.rsplit('/').next().unwrap_or(&wanted);
    known
        .iter()
        .map(|candidate| {
            let lower = candidate.to_lowercase();
            let last = lower.rsplit('/').next().unwrap_or(&lower);
            // An organisation that was left out or mistaken should not hide the model.
            let whole = strsim::normalized_damerau_levenshtein(&wanted, &lower);
            let end = strsim::normalized_damerau_levenshtein(wanted_last, last);
            (whole.max(end - 0.05), candidate)
        })
        .filter(|(similarity, _)| *similarity >= SIMILARITY_MIN)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_told_apart() {
        let hub = |repository, revision| Ok(Name::Hub { repository, revision });
        assert_eq!(parse("gpt2"), hub("gpt2", None));
        assert_eq!(
            parse("mlx-community/Qwen3-0.6B-4bit"),
            hub("mlx-community/Qwen3-0.6B-4bit", None)
        );
        assert_eq!(parse("o/n@v1.0"), hub("o/n", Some("v1.0")));
        assert_eq!(parse("/m/äöü"), Ok(Name::Path("/m/äöü")));
        assert_eq!(parse("~/m"), Ok(Name::Path("~/m")));
        assert_eq!(parse("./m"), Ok(Name::Path("./m")));
    }

    #[test]
    fn what_leaves_a_folder_or_deceives_is_refused() {
        for name in [
            "",
            "..",
            "../x",
            "a/../b",
            "/m/../../etc",
            "~/..",
            "a\\..\\b",
            "a\0b",
            "/m\0",
            "a\nb",
            "a/b/c",
            "a//b",
            "/../x",
            "a/",
            "a/.hidden",
            ".",
            "a--b",
            "models--o--n",
            "a b",
            "a@",
            "a@b/c",
            "a@../x",
            "qwеn",
            "o∕n",
            "o／n",
            "a\u{200b}",
            "a\u{202e}b",
            "/m/‥/x",
            "/m/\u{ff0e}\u{ff0e}",
            "C:\\m",
            "a%2f..",
            "a:b",
        ] {
            assert!(matches!(parse(name), Err(StoreError::BadName { .. })), "{name:?}");
        }
        assert!(parse(&"x".repeat(97)).is_err());
        assert!(parse(&format!("/{}", "x".repeat(600))).is_err());
    }

    #[test]
    fn a_look_alike_is_named_by_its_code_point() {
        let error = parse("qwеn").unwrap_err().to_string();
        assert!(error.contains("U+0435"), "{error}");
    }

    #[test]
    fn the_nearest_name_is_found_without_its_organisation() {
        let known = ["mlx-community/Qwen3-0.6B-4bit".to_owned(), "mlxd-demo".to_owned()];
        assert_eq!(
            nearest("qwen3-0.6b-4bit", &known).as_deref(),
            Some("mlx-community/Qwen3-0.6B-4bit")
        );
        assert_eq!(nearest("mlxd-dmeo", &known).as_deref(), Some("mlxd-demo"));
        assert_eq!(nearest("gpt-4o", &known), None);
    }
}
