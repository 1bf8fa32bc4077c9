//! Standard output: whole lines for people or JSON for programs, and text from elsewhere made
//! harmless before a terminal sees it.

use crate::client::Failure;
use serde::Serialize;
use std::io::{IsTerminal, Write, stdout};

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

/// `text` without the control characters that could move the cursor or set the title; line ends
/// and tabs stay.
pub(crate) fn harmless(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() && !matches!(c, '\n' | '\t' | '\r') { '\u{FFFD}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::harmless;

    #[test]
    fn control_characters_are_shown_as_such() {
        assert_eq!(harmless("a\u{1b}[2Jb\u{9b}\tc\n"), "a\u{FFFD}[2Jb\u{FFFD}\tc\n");
    }
}
