//! One line of the prompt.

use crate::arguments::{Arguments, Command};
use crate::exit::Exit;
use clap::{CommandFactory, FromArgMatches};
use std::path::PathBuf;

/// What a line says.
pub(super) enum Line {
    /// It is empty, or a comment.
    Nothing,
    /// To leave the prompt.
    Leave,
    /// It was answered at once: help, or what is wrong with it.
    Told(Exit),
    /// A command.
    Command { command: Box<Command>, socket: Option<PathBuf>, as_json: bool },
}

/// Words that only the prompt knows.
pub(super) const OWN_WORDS: [&str; 3] = ["help", "exit", "quit"];

/// Reads a line, quoted as in a shell.
pub(super) fn read(text: &str) -> Line {
    let Some(words) = shlex::split(text) else {
        eprintln!("mlxctl: a quotation mark is missing");
        return Line::Told(Exit::Usage);
    };
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => return Line::Nothing,
        ["exit" | "quit"] => return Line::Leave,
        ["help" | "?"] => {
            print!("{}", overview());
            return Line::Told(Exit::Success);
        }
        _ => {}
    }
    let parsed = Arguments::command()
        .no_binary_name(true)
        .try_get_matches_from(words)
        .and_then(|matches| Arguments::from_arg_matches(&matches));
    match parsed {
        Ok(Arguments { command: Some(command), socket, json }) => {
            Line::Command { command: Box::new(command), socket, as_json: json }
        }
        Ok(_) => {
            eprintln!("mlxctl: there is no command on this line; `help` lists them");
            Line::Told(Exit::Usage)
        }
        Err(error) => {
            // Nobody is left to tell when this fails.
            let _ = error.print();
            Line::Told(if error.use_stderr() { Exit::Usage } else { Exit::Success })
        }
    }
}

/// Every command with one line.
fn overview() -> String {
    let mut text = String::new();
    for command in Arguments::command().get_subcommands() {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        text += &format!("{:12}{about}\n", command.get_name());
    }
    text + "help        Show this list; `help COMMAND` says more of one\n\
            exit        Leave; so do `quit` and Ctrl-D\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_command_lines() {
        assert!(matches!(read("  # nothing"), Line::Nothing));
        assert!(matches!(read(" \t\n"), Line::Nothing));
        assert!(matches!(read("quit\n"), Line::Leave));
        assert!(matches!(read("start 'a"), Line::Told(Exit::Usage)));
        assert!(matches!(read("start"), Line::Told(Exit::Usage)));
        assert!(matches!(read("--json"), Line::Told(Exit::Usage)));
        assert!(matches!(read("help start"), Line::Told(Exit::Success)));
        match read("ask m 'what is it?' --json") {
            Line::Command { command, as_json: true, .. } => match *command {
                Command::Ask(ask) => assert_eq!(ask.question.as_deref(), Some("what is it?")),
                other => panic!("{other:?}"),
            },
            _ => panic!("a command"),
        }
    }

    #[test]
    fn the_overview_has_every_command() {
        let text = overview();
        for name in ["status", "signal", "top", "exit"] {
            assert!(text.lines().any(|line| line.starts_with(name)), "{name}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    }
}
