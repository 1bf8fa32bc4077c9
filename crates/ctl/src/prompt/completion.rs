//! What Tab offers: commands, then what the command takes.

use super::MaybeFront;
use super::line::OWN_WORDS;
use crate::arguments::Arguments;
use clap::CommandFactory;
use mlxd_protocol::admin::{SignalName, Status};
use reedline::{Completer, Span, Suggestion};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// How long the names of models are believed.
const NAMES_FRESH: Duration = Duration::from_secs(2);
/// Nobody waits longer for a list to appear.
const NAMES_TIMEOUT: Duration = Duration::from_millis(500);

/// Names of models, asked of the front when they are needed.
pub(super) struct Names {
    runtime: Arc<Runtime>,
    front: MaybeFront,
    known: Vec<String>,
    groups: Vec<String>,
    asked_at: Option<Instant>,
}

impl Names {
    pub(super) fn new(runtime: Arc<Runtime>, front: MaybeFront) -> Self {
        Self { runtime, front, known: Vec::new(), groups: Vec::new(), asked_at: None }
    }

    /// Without a front that answers the list stays as it was.
    fn refresh(&mut self) {
        if self.asked_at.is_some_and(|at| at.elapsed() < NAMES_FRESH) {
            return;
        }
        self.asked_at = Some(Instant::now());
        let Some(front) = &self.front else {
            return;
        };
        let asked = async {
            tokio::time::timeout(NAMES_TIMEOUT, front.get::<Status>("/admin/v1/status")).await
        };
        if let Ok(Ok(status)) = self.runtime.block_on(asked) {
            let groups = status.models.iter().flat_map(|model| &model.groups);
            self.groups = groups.map(|group| format!("{group}:*")).collect();
            self.groups.sort();
            self.groups.dedup();
            self.known = status.models.into_iter().map(|model| model.name).collect();
        }
    }
}

impl Completer for Names {
    fn complete(&mut self, line: &str, pos: usize) -> Vec<Suggestion> {
        let before = &line[..pos];
        let start = before.rfind(char::is_whitespace).map_or(0, |blank| blank + 1);
        let words: Vec<&str> = before[..start].split_whitespace().collect();
        let begun = &before[start..];
        let kind = Kind::of(&words, begun);
        if kind.is_models() {
            self.refresh();
        }
        let offered = offered(&kind, &self.known, &self.groups);
        ranked(offered, begun)
            .into_iter()
            .map(|(value, description)| Suggestion {
                value,
                description,
                span: Span::new(start, pos),
                append_whitespace: true,
                ..Suggestion::default()
            })
            .collect()
    }
}

/// What may stand at the cursor.
#[derive(Debug, PartialEq)]
enum Kind {
    Commands,
    /// A model; with `many` also a group and `all`.
    Models {
        many: bool,
    },
    Signals,
    Shells,
    /// What to do with the service.
    Service,
    /// Flags of this command.
    Flags(String),
    Nothing,
}

impl Kind {
    fn of(words: &[&str], begun: &str) -> Self {
        let [command, given @ ..] = words else {
            return Self::Commands;
        };
        if begun.starts_with('-') {
            return Self::Flags((*command).to_owned());
        }
        let given = given.iter().filter(|word| !word.starts_with('-')).count();
        match (*command, given) {
            ("status" | "start" | "stop" | "restart" | "pid" | "pin" | "unpin", _) => {
                Self::Models { many: true }
            }
            ("signal", 0) => Self::Signals,
            ("signal", _) => Self::Models { many: true },
            ("ask" | "tail" | "why" | "estimate", 0) => Self::Models { many: false },
            ("help" | "man", 0) => Self::Commands,
            ("completions", 0) => Self::Shells,
            ("service", 0) => Self::Service,
            _ => Self::Nothing,
        }
    }

    fn is_models(&self) -> bool {
        matches!(self, Self::Models { .. })
    }
}

type Offer = (String, Option<String>);

fn offered(kind: &Kind, models: &[String], groups: &[String]) -> Vec<Offer> {
    let plain = |word: &str| (word.to_owned(), None);
    match kind {
        Kind::Commands => {
            described(&Arguments::command()).into_iter().chain(OWN_WORDS.map(plain)).collect()
        }
        Kind::Service => {
            Arguments::command().find_subcommand("service").map(described).unwrap_or_default()
        }
        Kind::Models { many: false } => models.iter().map(|name| plain(name)).collect(),
        Kind::Models { many: true } => {
            let more = groups.iter().map(|group| plain(group)).chain([plain("all")]);
            models.iter().map(|name| plain(name)).chain(more).collect()
        }
        Kind::Signals => SignalName::ALL.map(|signal| plain(signal.name())).into(),
        Kind::Shells => {
            ["bash", "elvish", "fish", "powershell", "zsh"].map(plain).into_iter().collect()
        }
        Kind::Flags(command) => flags(command),
        Kind::Nothing => Vec::new(),
    }
}

fn described(command: &clap::Command) -> Vec<Offer> {
    let offer = |command: &clap::Command| {
        let about = command.get_about().map(ToString::to_string);
        (command.get_name().to_owned(), about)
    };
    command.get_subcommands().map(offer).collect()
}

fn flags(name: &str) -> Vec<Offer> {
    let mut arguments = Arguments::command();
    arguments.build();
    let Some(command) = arguments.find_subcommand(name) else {
        return Vec::new();
    };
    let long = command.get_arguments().filter(|argument| !argument.is_hide_set());
    long.filter_map(|argument| {
        let about = argument.get_help().map(ToString::to_string);
        Some((format!("--{}", argument.get_long()?), about))
    })
    .collect()
}

/// What begins so comes first, then what has it somewhere: models are known by the end of their
/// names too.
fn ranked(offers: Vec<Offer>, begun: &str) -> Vec<Offer> {
    let begun = begun.to_lowercase();
    let (mut first, rest): (Vec<_>, Vec<_>) = offers
        .into_iter()
        .filter(|(word, _)| word.to_lowercase().contains(&begun))
        .partition(|(word, _)| word.to_lowercase().starts_with(&begun));
    first.extend(rest);
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offers(before: &str) -> Vec<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut names = Names::new(Arc::new(runtime), None);
        names.known = vec!["mlxd-demo".into(), "org/Tiny-demo".into(), "org/Big".into()];
        names.groups = vec!["chat:*".into()];
        names.complete(before, before.len()).into_iter().map(|s| s.value).collect()
    }

    #[test]
    fn commands_first_then_what_they_take() {
        assert_eq!(offers("sta"), ["status", "start", "restart"]);
        assert_eq!(offers("ex"), ["exit"]);
        assert_eq!(offers("start "), ["mlxd-demo", "org/Tiny-demo", "org/Big", "chat:*", "all"]);
        assert_eq!(offers("why big"), ["org/Big"]);
        assert_eq!(offers("why org/Big "), Vec::<String>::new());
        assert_eq!(offers("stop a demo"), ["mlxd-demo", "org/Tiny-demo"]);
        assert_eq!(offers("signal us"), ["USR1", "USR2"]);
        assert_eq!(offers("signal HUP cha"), ["chat:*"]);
        assert_eq!(offers("help to"), ["top", "stop"]);
        assert_eq!(offers("tail --fo"), ["--follow"]);
        assert_eq!(offers("tail -f Big"), ["org/Big"]);
        assert_eq!(offers("service unin"), ["uninstall"]);
        assert_eq!(offers("frobnicate "), Vec::<String>::new());
        assert_eq!(offers("frobnicate --"), Vec::<String>::new());
    }

    #[test]
    fn only_the_word_at_the_cursor_is_replaced() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut names = Names::new(Arc::new(runtime), None);
        names.known = vec!["ü".into()];
        let offered = names.complete("start ü x", "start ü".len());
        assert_eq!(offered[0].span, Span::new("start ".len(), "start ü".len()));
    }
}
