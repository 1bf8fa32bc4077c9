//! `mlxctl top`: everything on one screen, kept up to date.
//!
//! [`screen`] holds what is shown and what the keys do to it, [`view`] draws it, [`feed`] asks the
//! front and carries out deeds beside the drawing, so that a slow front does not freeze the keys.

mod feed;
mod screen;
mod view;

use crate::client::{Failure, Front};
use crate::exit::Exit;
use crate::{events, output};
use feed::Feed;
use mlxd_protocol::admin::Status;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event as TerminalEvent};
use screen::{Screen, Wish};
use serde_json::json;
use std::io::{IsTerminal, stdin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use sysinfo::System;
use tokio::sync::mpsc;

/// How often the keyboard's thread looks whether the screen is still there.
const KEYS_LOOK: Duration = Duration::from_millis(50);
/// Keys pressed ahead of the drawing.
const KEYS_MAX: usize = 64;
/// Events asked for; what a tall screen shows.
const EVENTS_SHOWN_MAX: usize = 60;

/// Shows the screen until a key ends it. As JSON it is one look.
pub(crate) async fn top(front: Front, as_json: bool) -> Result<Exit, Failure> {
    if as_json {
        let status: Status = front.get("/admin/v1/status").await?;
        let events = events::last(&front, EVENTS_SHOWN_MAX).await?;
        output::json(&json!({"status": status, "events": events}))?;
        return Ok(Exit::Success);
    }
    if !output::is_terminal() || !stdin().is_terminal() {
        return Err(Failure::Broken(
            "top needs a terminal; `mlxctl status` and `mlxctl --json top` are for programs"
                .to_owned(),
        ));
    }
    let memory_bytes = System::new().map(|mut system| {
        system.refresh_memory();
        system.total_memory()
    });
    let screen = Screen::new(memory_bytes.unwrap_or(0));
    let keys = Keys::listen();
    let mut terminal = ratatui::try_init()?;
    let shown = show(&mut terminal, front, screen, keys).await;
    ratatui::try_restore()?;
    shown.map(|()| Exit::Success)
}

async fn show(
    terminal: &mut DefaultTerminal,
    front: Front,
    mut screen: Screen,
    mut keys: Keys,
) -> Result<(), Failure> {
    let mut feed = Feed::start(front);
    loop {
        terminal.draw(|frame| view::draw(frame, &mut screen))?;
        let wish = tokio::select! {
            Some(news) = feed.next() => screen.hear(news),
            event = keys.pressed.recv() => match event {
                // A resize needs only the next drawing.
                Some(TerminalEvent::Key(key)) if key.is_press() => screen.press(key),
                Some(_) => None,
                None => return Ok(()),
            },
        };
        match wish {
            None => {}
            Some(Wish::Leave) => return Ok(()),
            Some(Wish::Do(deed, model)) => feed.perform(deed, model),
            Some(Wish::ReadLog(model)) => feed.read_log(model),
        }
    }
}

/// The keyboard, on a thread of its own that ends with this.
struct Keys {
    pressed: mpsc::Receiver<TerminalEvent>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Keys {
    fn listen() -> Self {
        let (sender, pressed) = mpsc::channel(KEYS_MAX);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let pressed = match event::poll(KEYS_LOOK) {
                    Ok(false) => continue,
                    Ok(true) => event::read(),
                    Err(error) => Err(error),
                };
                // Without a terminal, or without a screen, there is nothing left to do.
                if pressed.ok().and_then(|event| sender.blocking_send(event).ok()).is_none() {
                    return;
                }
            }
        });
        Self { pressed, stop, thread: Some(thread) }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        // Else it would take the first key that is meant for whoever comes next.
        self.stop.store(true, Ordering::Relaxed);
        self.pressed.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
