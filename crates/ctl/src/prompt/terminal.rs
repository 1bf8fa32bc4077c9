//! The line editor: keys, the completion menu, history in the state folder.

use super::completion::Names;
use crate::client::Failure;
use crate::socket;
use reedline::{
    ColumnarMenu, DefaultHinter, Emacs, FileBackedHistory, KeyCode, KeyModifiers, MenuBuilder,
    Prompt, PromptEditMode, PromptHistorySearch, Reedline, ReedlineEvent, ReedlineMenu, Signal,
    default_emacs_keybindings,
};
use std::borrow::Cow;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;

/// Lines of history that are kept.
const HISTORY_LINES_MAX: usize = 1000;
const MENU: &str = "completion";

/// Reads lines from a terminal.
pub(super) struct Editor {
    reader: Reedline,
}

impl Editor {
    pub(super) fn new(names: Names) -> Self {
        let mut keys = default_emacs_keybindings();
        let open = ReedlineEvent::Menu(MENU.to_owned());
        let tab = ReedlineEvent::UntilFound(vec![open, ReedlineEvent::MenuNext]);
        keys.add_binding(KeyModifiers::NONE, KeyCode::Tab, tab);
        keys.add_binding(KeyModifiers::SHIFT, KeyCode::BackTab, ReedlineEvent::MenuPrevious);
        let menu = Box::new(ColumnarMenu::default().with_name(MENU));
        let mut reader = Reedline::create()
            .with_completer(Box::new(names))
            .with_menu(ReedlineMenu::EngineCompleter(menu))
            .with_quick_completions(true)
            .with_partial_completions(true)
            .with_edit_mode(Box::new(Emacs::new(keys)))
            .with_hinter(Box::new(DefaultHinter::default()))
            .with_ansi_colors(std::env::var_os("NO_COLOR").is_none());
        if let Some(history) = history() {
            reader = reader.with_history(Box::new(history));
        }
        Self { reader }
    }

    /// The next line; `None` when the user leaves.
    pub(super) fn next(&mut self) -> Result<Option<String>, Failure> {
        loop {
            match self.reader.read_line(&Words)? {
                Signal::Success(line) => {
                    // Kept now: nobody knows how the prompt ends.
                    let _ = self.reader.sync_history();
                    return Ok(Some(line));
                }
                Signal::CtrlD => return Ok(None),
                // Ctrl-C drops the line.
                _ => {}
            }
        }
    }
}

/// History that only its owner reads. Without a folder for it there is none.
fn history() -> Option<FileBackedHistory> {
    let path = socket::state_folder()?.join("mlxctl-history");
    std::fs::create_dir_all(path.parent()?).ok()?;
    OpenOptions::new().create(true).append(true).mode(0o600).open(&path).ok()?;
    FileBackedHistory::with_file(HISTORY_LINES_MAX, path).ok()
}

/// `mlxctl> `.
struct Words;

impl Prompt for Words {
    fn render_prompt_left(&self) -> Cow<'_, str> {
        "mlxctl".into()
    }

    fn render_prompt_right(&self) -> Cow<'_, str> {
        "".into()
    }

    fn render_prompt_indicator(&self, _mode: PromptEditMode) -> Cow<'_, str> {
        "> ".into()
    }

    fn render_prompt_multiline_indicator(&self) -> Cow<'_, str> {
        "... ".into()
    }

    fn render_prompt_history_search_indicator(&self, search: PromptHistorySearch) -> Cow<'_, str> {
        format!(" (history: {}) ", search.term).into()
    }
}
