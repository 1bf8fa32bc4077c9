//! `mlxctl` without a command: commands are asked for, one a line, as `supervisorctl` does.
//!
//! At a terminal with completion and history; from a pipe plainly, so that a script may hand over
//! many commands at once. Each line is a command line without the word `mlxctl`.

mod completion;
mod line;
mod terminal;

use crate::arguments::Command;
use crate::client::{Failure, Front};
use crate::commands;
use crate::exit::Exit;
use crate::output;
use line::{Line, read};
use std::io::{IsTerminal, stdin};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::runtime::Runtime;

/// Who the commands go to, and how.
pub(crate) struct Prompt {
    runtime: Arc<Runtime>,
    socket: Option<PathBuf>,
    as_json: bool,
}

impl Prompt {
    pub(crate) fn new(runtime: Runtime, socket: Option<PathBuf>, as_json: bool) -> Self {
        Self { runtime: Arc::new(runtime), socket, as_json }
    }

    /// Reads and does commands until the end. The exit is the last failure's; at a terminal
    /// leaving is success.
    pub(crate) fn run(&self) -> Result<Exit, Failure> {
        if stdin().is_terminal() {
            return self.converse();
        }
        let mut exit = Exit::Success;
        let mut text = String::new();
        // Not locked between lines: a command may read standard input too.
        while stdin().read_line(&mut text)? > 0 {
            match self.obey(&text, |_| Ok(true)) {
                Some(Exit::Success) => {}
                Some(failed) => exit = failed,
                None => break,
            }
            text.clear();
        }
        Ok(exit)
    }

    fn converse(&self) -> Result<Exit, Failure> {
        let mut editor = terminal::Editor::new(completion::Names::new(
            Arc::clone(&self.runtime),
            commands::front(self.socket.clone()).ok(),
        ));
        self.obey("status", output::confirmed);
        while let Some(text) = editor.next()? {
            if self.obey(&text, output::confirmed).is_none() {
                break;
            }
        }
        Ok(Exit::Success)
    }

    /// Does what a line says, after a yes of `confirmed` where it would end mlxd; `None` when it
    /// says to leave.
    fn obey(&self, text: &str, confirmed: impl Fn(&str) -> Result<bool, Failure>) -> Option<Exit> {
        match read(text) {
            Line::Nothing => Some(Exit::Success),
            Line::Leave => None,
            Line::Told(exit) => Some(exit),
            Line::Command { command, socket, as_json } => {
                if matches!(*command, Command::Shutdown)
                    && !confirmed("Really shut mlxd down?").unwrap_or(false)
                {
                    return Some(Exit::Generic);
                }
                let socket = socket.or_else(|| self.socket.clone());
                Some(self.perform(*command, socket, as_json || self.as_json))
            }
        }
    }

    fn perform(&self, command: Command, socket: Option<PathBuf>, as_json: bool) -> Exit {
        // A pull is called off by Ctrl-C, which takes a call of its own.
        let minds_interrupts = matches!(command, Command::Pull(_));
        let done = self.runtime.block_on(async {
            tokio::select! {
                biased;
                done = commands::run(command, socket, as_json) => done,
                // Ends the command, not the prompt.
                _ = tokio::signal::ctrl_c(), if !minds_interrupts => Ok(Exit::Generic),
            }
        });
        done.unwrap_or_else(|failure| {
            failure.tell(as_json);
            failure.exit()
        })
    }
}

/// A front to ask for names, if there is one.
type MaybeFront = Option<Front>;

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_shutdown_waits_for_a_yes_and_nothing_else_does() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let nowhere = Some(PathBuf::from("/nonexistent/s"));
        let prompt = Prompt::new(runtime, nowhere, false);
        let asked = Cell::new(0);
        let says = |yes| {
            let asked = &asked;
            move |_: &str| {
                asked.set(asked.get() + 1);
                Ok(yes)
            }
        };
        assert_eq!(prompt.obey("shutdown", says(false)), Some(Exit::Generic));
        // It was tried: there is no mlxd.
        assert_eq!(prompt.obey("shutdown", says(true)), Some(Exit::NotRunning));
        assert_eq!(asked.get(), 2);
        assert_eq!(prompt.obey("stop all", says(false)), Some(Exit::NotRunning));
        assert_eq!(asked.get(), 2);
    }
}
