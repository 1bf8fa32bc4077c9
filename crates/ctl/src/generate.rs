//! Completion scripts and manual pages, made from the command line's own description.

use crate::arguments::{Arguments, Man};
use crate::client::Failure;
use crate::exit::Exit;
use crate::output;
use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man as Page;
use std::io::{self, Write};
use std::path::Path;

/// Prints the completion script of a shell.
pub(crate) fn completions(shell: Shell) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "mlxctl", &mut script);
    output::piece(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Success)
}

/// Prints a manual page, or writes them all.
pub(crate) fn man(arguments: &Man) -> Result<Exit, Failure> {
    let mut command = Arguments::command().disable_help_subcommand(arguments.out.is_some());
    // Fills in the names of the commands' own pages.
    command.build();
    if let Some(folder) = &arguments.out {
        std::fs::create_dir_all(folder)?;
        write_pages(&command, folder)?;
        return Ok(Exit::Success);
    }
    let found = match &arguments.command {
        None => &command,
        Some(name) => {
            let found = command.get_subcommands().find(|known| known.get_name() == name);
            found.ok_or_else(|| {
                Failure::Broken(format!("{name} is no command; `mlxctl help` lists them"))
            })?
        }
    };
    output::piece(&String::from_utf8_lossy(&page(found)?))?;
    Ok(Exit::Success)
}

/// The pages of a command and of all below it.
fn write_pages(command: &Command, folder: &Path) -> io::Result<()> {
    let shown = command.get_subcommands().filter(|below| !below.is_hide_set());
    shown.into_iter().try_for_each(|below| write_pages(below, folder))?;
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    std::fs::write(folder.join(format!("{name}.1")), page(command)?)
}

/// One page. `clap_mangen` heads what follows the help EXTRA, and gives a version to the first
/// page alone.
fn page(command: &Command) -> io::Result<Vec<u8>> {
    let page = Page::new(command.clone()).source(concat!("mlxctl ", env!("CARGO_PKG_VERSION")));
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    if command.has_subcommands() {
        page.render_subcommands_section(&mut text)?;
    }
    if let Some(codes) = command.get_after_help() {
        let escaped = [('\\', "\\e"), ('-', "\\-"), ('\'', "\\(aq")];
        let codes =
            escaped.iter().fold(codes.to_string(), |text, (c, roff)| text.replace(*c, roff));
        // Lines as they are, for it is a table; none begins as a roff request would.
        let lines: String = codes.lines().map(|line| format!("\\&{line}\n")).collect();
        write!(text, ".SH \"EXIT STATUS\"\n.nf\n{lines}.fi\n")?;
    }
    Ok(text)
}
