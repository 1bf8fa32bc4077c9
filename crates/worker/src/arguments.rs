//! The command line that the front writes.

use mlxd_protocol::{Incarnation, arguments};
use std::os::fd::RawFd;

/// What a worker is told when it is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Arguments {
    pub(crate) bootstrap: String,
    pub(crate) segment: String,
    pub(crate) commands_fd: RawFd,
    pub(crate) tokens_fd: RawFd,
    pub(crate) incarnation: Incarnation,
}

/// What a command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Invocation {
    Run(Arguments),
    Version,
    /// Anything else; says what is missing or wrong.
    Wrong(String),
}

/// Reads a command line, the program's name left out.
pub(crate) fn parse(line: impl IntoIterator<Item = String>) -> Invocation {
    let mut line = line.into_iter();
    let mut given: [(&str, Option<String>); 5] = [
        (arguments::BOOTSTRAP, None),
        (arguments::SEGMENT, None),
        (arguments::COMMANDS_FD, None),
        (arguments::TOKENS_FD, None),
        (arguments::INCARNATION, None),
    ];
    while let Some(name) = line.next() {
        if name == "--version" || name == "-V" {
            return Invocation::Version;
        }
        let Some((_, slot)) = given.iter_mut().find(|(known, _)| *known == name) else {
            return Invocation::Wrong(format!("{name} is not known"));
        };
        *slot = line.next();
    }
    match from_given(given) {
        Ok(arguments) => Invocation::Run(arguments),
        Err(wrong) => Invocation::Wrong(wrong),
    }
}

fn from_given(given: [(&str, Option<String>); 5]) -> Result<Arguments, String> {
    let [bootstrap, segment, commands_fd, tokens_fd, incarnation] =
        given.map(|(name, value)| value.ok_or_else(|| format!("{name} is missing")));
    Ok(Arguments {
        bootstrap: bootstrap?,
        segment: segment?,
        commands_fd: number(arguments::COMMANDS_FD, &commands_fd?)?,
        tokens_fd: number(arguments::TOKENS_FD, &tokens_fd?)?,
        incarnation: Incarnation(number(arguments::INCARNATION, &incarnation?)?),
    })
}

fn number<N: std::str::FromStr>(name: &str, value: &str) -> Result<N, String> {
    value.parse().map_err(|_| format!("{name} is {value:?}, which is not a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Invocation {
        parse(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn a_whole_line_is_read_in_any_order() {
        let wanted = Invocation::Run(Arguments {
            bootstrap: "b".into(),
            segment: "/mlxd-1".into(),
            commands_fd: 3,
            tokens_fd: 4,
            incarnation: Incarnation(9),
        });
        let text = "--incarnation 9 --segment /mlxd-1 --commands-fd 3 --tokens-fd 4 --bootstrap b";
        assert_eq!(line(text), wanted);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |text, part: &str| match line(text) {
            Invocation::Wrong(message) => assert!(message.contains(part), "{message}"),
            other => panic!("{other:?}"),
        };
        wrong("", "--bootstrap");
        wrong("--bootstrap", "--bootstrap");
        wrong("--model x", "--model");
        wrong(
            "--bootstrap b --segment s --commands-fd x --tokens-fd 4 --incarnation 1",
            "--commands-fd",
        );
        assert_eq!(line("--version"), Invocation::Version);
    }
}
