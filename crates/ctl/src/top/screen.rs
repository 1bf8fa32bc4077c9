//! What is on the screen, and what the keys do to it.

use super::feed::News;
use crate::call::Deed;
use mlxd_protocol::admin::{Event, ModelStatus, Status};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::widgets::TableState;

/// What a key asks for beyond the screen.
#[derive(Debug, PartialEq)]
pub(super) enum Wish {
    /// To leave.
    Leave,
    /// To do something to a model.
    Do(Deed, String),
    /// To see a model's log.
    ReadLog(String),
}

/// A log being read.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) model: String,
    pub(super) text: String,
    /// Rows above the end that are looked at.
    pub(super) back: usize,
}

/// Everything that is shown.
#[derive(Debug)]
pub(super) struct Screen {
    /// The last answer; old once there is `trouble`.
    pub(super) status: Option<Status>,
    pub(super) events: Vec<Event>,
    /// Why the front says nothing.
    pub(super) trouble: Option<String>,
    /// What came of the last deed.
    pub(super) message: Option<String>,
    /// A deed that waits for a yes.
    pub(super) question: Option<(Deed, String)>,
    pub(super) log: Option<Log>,
    pub(super) table: TableState,
    /// The model that is selected, kept while others come and go.
    selected: Option<String>,
    /// Bytes that the machine has.
    pub(super) machine_bytes: u64,
}

impl Screen {
    pub(super) fn new(machine_bytes: u64) -> Self {
        Self {
            status: None,
            events: Vec::new(),
            trouble: None,
            message: None,
            question: None,
            log: None,
            table: TableState::default(),
            selected: None,
            machine_bytes,
        }
    }

    pub(super) fn models(&self) -> &[ModelStatus] {
        self.status.as_ref().map_or(&[], |status| &status.models)
    }

    /// The model that the keys are about.
    pub(super) fn selected(&self) -> Option<&ModelStatus> {
        self.table.selected().and_then(|index| self.models().get(index))
    }

    /// Takes in what came from the front. A log that is open is read again with every look.
    pub(super) fn hear(&mut self, news: News) -> Option<Wish> {
        let is_look = matches!(news, News::Look(Ok(_)));
        self.take(news);
        let log = self.log.as_ref().filter(|_| is_look)?;
        Some(Wish::ReadLog(log.model.clone()))
    }

    fn take(&mut self, news: News) {
        match news {
            News::Look(Ok((status, events))) => {
                self.status = Some(status);
                self.events = events;
                self.trouble = None;
                let index =
                    self.models().iter().position(|m| Some(&m.name) == self.selected.as_ref());
                self.select(index.unwrap_or(0));
            }
            News::Look(Err(trouble)) => self.trouble = Some(trouble),
            News::Log { model, text } => {
                // Another log, or none, may be wanted by now.
                if let Some(log) = self.log.as_mut().filter(|log| log.model == model) {
                    log.text = text.unwrap_or_else(|error| error);
                }
            }
            News::Done { deed, model, outcome } => {
                self.message = Some(match outcome {
                    Ok(()) => format!("{model}: {}", deed.done()),
                    Err(error) => format!("{model}: {error}"),
                });
            }
        }
    }

    /// What a key means.
    pub(super) fn press(&mut self, key: KeyEvent) -> Option<Wish> {
        // It has been seen.
        self.message = None;
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return (key.code == KeyCode::Char('c')).then_some(Wish::Leave);
        }
        if self.log.is_some() {
            return self.press_in_log(key.code);
        }
        if let Some((deed, model)) = self.question.take() {
            return match key.code {
                KeyCode::Char('y' | 'Y') | KeyCode::Enter => Some(self.begin(deed, model)),
                _ => None,
            };
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => Some(Wish::Leave),
            KeyCode::Up | KeyCode::Char('k') => self.step(-1),
            KeyCode::Down | KeyCode::Char('j') => self.step(1),
            KeyCode::Home => self.step(isize::MIN),
            KeyCode::End => self.step(isize::MAX),
            KeyCode::Char('s') => {
                let model = self.selected()?.name.clone();
                Some(self.begin(Deed::Start, model))
            }
            KeyCode::Char('x') => self.ask(Deed::Stop),
            KeyCode::Char('r') => self.ask(Deed::Restart),
            KeyCode::Char('t') | KeyCode::Enter => {
                let model = self.selected()?.name.clone();
                self.log = Some(Log { model: model.clone(), ..Log::default() });
                Some(Wish::ReadLog(model))
            }
            _ => None,
        }
    }

    fn press_in_log(&mut self, code: KeyCode) -> Option<Wish> {
        let log = self.log.as_mut()?;
        // A line may take several rows; drawing knows how far back there is anything.
        let most = log.text.len();
        match code {
            KeyCode::Char('q' | 't') | KeyCode::Esc => self.log = None,
            KeyCode::Up | KeyCode::Char('k') => log.back = (log.back + 1).min(most),
            KeyCode::Down | KeyCode::Char('j') => log.back = log.back.saturating_sub(1),
            KeyCode::PageUp => log.back = (log.back + 10).min(most),
            KeyCode::PageDown => log.back = log.back.saturating_sub(10),
            KeyCode::End => log.back = 0,
            _ => {}
        }
        None
    }

    /// What ends something is asked about first.
    fn ask(&mut self, deed: Deed) -> Option<Wish> {
        self.question = Some((deed, self.selected()?.name.clone()));
        None
    }

    fn begin(&mut self, deed: Deed, model: String) -> Wish {
        self.message = Some(format!("{model}: to be {}…", deed.done()));
        Wish::Do(deed, model)
    }

    fn step(&mut self, by: isize) -> Option<Wish> {
        let last = self.models().len().saturating_sub(1);
        let now = self.table.selected().unwrap_or(0);
        self.select(now.saturating_add_signed(by).min(last));
        None
    }

    fn select(&mut self, index: usize) {
        self.selected = self.models().get(index).map(|model| model.name.clone());
        self.table.select(self.selected.as_ref().map(|_| index));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::view::tests::look;

    fn screen(names: &[(&str, &str)]) -> Screen {
        let mut screen = Screen::new(0);
        screen.hear(News::Look(Ok(look(names))));
        screen
    }

    fn press(screen: &mut Screen, code: KeyCode) -> Option<Wish> {
        screen.press(code.into())
    }

    #[test]
    fn the_selected_model_stays_selected_while_others_come_and_go() {
        let mut screen = screen(&[("a", "RUNNING"), ("b", "RUNNING"), ("c", "RUNNING")]);
        press(&mut screen, KeyCode::Down);
        assert_eq!(screen.selected().unwrap().name, "b");
        screen.hear(News::Look(Ok(look(&[("0", "RUNNING"), ("a", "RUNNING"), ("b", "RUNNING")]))));
        assert_eq!(screen.selected().unwrap().name, "b");
        press(&mut screen, KeyCode::End);
        press(&mut screen, KeyCode::Down);
        assert_eq!(screen.selected().unwrap().name, "b");
        press(&mut screen, KeyCode::Home);
        press(&mut screen, KeyCode::Up);
        assert_eq!(screen.selected().unwrap().name, "0");
        screen.hear(News::Look(Ok(look(&[]))));
        assert!(screen.selected().is_none());
        for key in ['s', 'x', 'r', 't', 'j'] {
            assert_eq!(press(&mut screen, KeyCode::Char(key)), None, "{key}");
        }
        screen.hear(News::Look(Ok(look(&[("z", "RUNNING")]))));
        assert_eq!(screen.selected().unwrap().name, "z");
    }

    #[test]
    fn a_stop_wants_a_yes_and_a_start_does_not() {
        let mut screen = screen(&[("a", "RUNNING")]);
        let start = press(&mut screen, KeyCode::Char('s'));
        assert_eq!(start, Some(Wish::Do(Deed::Start, "a".into())));
        for (key, deed) in [('x', Deed::Stop), ('r', Deed::Restart)] {
            assert_eq!(press(&mut screen, KeyCode::Char(key)), None);
            assert_eq!(press(&mut screen, KeyCode::Char('n')), None, "any other key means no");
            assert!(screen.question.is_none());
            press(&mut screen, KeyCode::Char(key));
            let wish = press(&mut screen, KeyCode::Char('y'));
            assert_eq!(wish, Some(Wish::Do(deed, "a".into())));
        }
        let error = Err("it would not".to_owned());
        screen.hear(News::Done { deed: Deed::Stop, model: "a".into(), outcome: error });
        assert_eq!(screen.message.as_deref(), Some("a: it would not"));
    }

    #[test]
    fn keys_in_a_log_are_the_logs() {
        let mut screen = screen(&[("a", "RUNNING")]);
        assert_eq!(press(&mut screen, KeyCode::Char('t')), Some(Wish::ReadLog("a".into())));
        let text = |text: &str| Ok(text.to_owned());
        screen.hear(News::Log { model: "other".into(), text: text("not this") });
        screen.hear(News::Log { model: "a".into(), text: text("1\n2\n3") });
        let again = screen.hear(News::Look(Ok(look(&[("a", "RUNNING")]))));
        assert_eq!(again, Some(Wish::ReadLog("a".into())), "it is followed");
        press(&mut screen, KeyCode::PageUp);
        let log = screen.log.as_ref().unwrap();
        assert_eq!((log.text.as_str(), log.back), ("1\n2\n3", 5));
        assert_eq!(press(&mut screen, KeyCode::Char('q')), None, "leaves the log alone");
        assert!(screen.log.is_none());
        assert_eq!(screen.hear(News::Look(Ok(look(&[])))), None);
        assert_eq!(press(&mut screen, KeyCode::Char('q')), Some(Wish::Leave));
        let ctrl_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(screen.press(ctrl_c), Some(Wish::Leave));
    }
}
