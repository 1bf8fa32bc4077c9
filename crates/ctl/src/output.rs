//! Standard output: whole lines for people or JSON for programs, and text from elsewhere made
//! harmless before a terminal sees it.

use crate::client::Failure;
use serde::Serialize;
use std::io::{IsTerminal, Write, stderr, stdin, stdout};

/// Writes a line.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    writeln!(stdout().lock(), "{text}")?;
    Ok(())
}

/// Writes text as it is and lets it be seen at once.
pub(crate) fn piece(text: &str) -> Result<(), Failure> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Writes JSON.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    line(&serde_json::to_string_pretty(value).map_err(no_json)?)
}

/// Writes JSON on one line.
pub(crate) fn json_line(value: &impl Serialize) -> Result<(), Failure> {
    line(&serde_json::to_string(value).map_err(no_json)?)
}

/// What cannot be written as JSON.
pub(crate) fn no_json(error: serde_json::Error) -> Failure {
    Failure::Broken(format!("cannot write JSON: {error}"))
}

/// Columns of the terminal, `None` when the output goes elsewhere.
pub(crate) fn columns() -> Option<usize> {
    terminal_size::terminal_size_of(stdout()).map(|(width, _)| usize::from(width.0))
}

/// Whether a person's terminal shows the output.
pub(crate) fn is_terminal() -> bool {
    stdout().is_terminal()
}

/// Asks on standard error whoever sits at the terminal; anything but a yes is a no.
pub(crate) fn confirmed(question: &str) -> Result<bool, Failure> {
    eprint!("{} [y/N] ", harmless(question));
    stderr().flush()?;
    let mut answer = String::new();
    stdin().read_line(&mut answer)?;
    Ok(is_yes(&answer))
}

fn is_yes(answer: &str) -> bool {
    ["y", "yes"].contains(&answer.trim().to_lowercase().as_str())
}

/// `text` without the control characters that could move the cursor or set the title; line ends
/// and tabs stay.
pub(crate) fn harmless(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() && !matches!(c, '\n' | '\t' | '\r') { '\u{FFFD}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{harmless, is_yes};

    #[test]
    fn only_a_yes_is_one() {
        assert!(["y\n", "Y\n", " yes \n"].into_iter().all(is_yes));
        // Ctrl-D gives nothing at all.
        assert!(!["", "\n", "n\n", "yy\n", "shutdown\n"].into_iter().any(is_yes));
    }

    #[test]
    fn control_characters_are_shown_as_such() {
        assert_eq!(harmless("a\u{1b}[2Jb\u{9b}\tc\n"), "a\u{FFFD}[2Jb\u{FFFD}\tc\n");
    }
}
