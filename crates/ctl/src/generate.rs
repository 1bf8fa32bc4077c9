//! Completion scripts and manual pages, made from the command line's own description.

use crate::arguments::{Arguments, Man};
use crate::client::Failure;
use crate::exit::Exit;
use crate::output;
use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man as Page;

/// Prints the completion script of a shell.
pub(crate) fn completions(shell: Shell) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "mlxctl", &mut script);
    output::piece(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Success)
}

/// Prints a manual page, or writes them all.
pub(crate) fn man(arguments: &Man) -> Result<Exit, Failure> {
    let mut command = Arguments::command();
    if let Some(folder) = &arguments.out {
        std::fs::create_dir_all(folder)?;
        clap_mangen::generate_to(command.disable_help_subcommand(true), folder)?;
        return Ok(Exit::Success);
    }
    // Fills in the names of the commands' own pages.
    command.build();
    let page = match &arguments.command {
        None => command,
        Some(name) => {
            let found = command.get_subcommands().find(|known| known.get_name() == name).cloned();
            found.ok_or_else(|| {
                Failure::Broken(format!("{name} is no command; `mlxctl help` lists them"))
            })?
        }
    };
    let mut text = Vec::new();
    Page::new(page).render(&mut text)?;
    output::piece(&String::from_utf8_lossy(&text))?;
    Ok(Exit::Success)
}
