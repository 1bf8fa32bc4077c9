//! What comes from the front: looks at regular times, logs, and the outcomes of deeds.

use crate::call::Deed;
use crate::client::{Failure, Front};
use crate::events;
use mlxd_protocol::admin::{Event, Status};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// News that wait for the screen.
const NEWS_MAX: usize = 16;
/// Bytes of a log that a screen may want.
const LOG_BYTES: &str = "16384";

/// Something for the screen.
#[derive(Debug)]
pub(super) enum News {
    /// What the front says now, or why it says nothing.
    Look(Result<(Status, Vec<Event>), String>),
    /// The end of a model's log.
    Log { model: String, text: Result<String, String> },
    /// A deed is done, or was refused.
    Done { deed: Deed, model: String, outcome: Result<(), String> },
}

/// Tasks that ask the front. They end with this.
pub(super) struct Feed {
    front: Front,
    tasks: JoinSet<()>,
    sender: mpsc::Sender<News>,
    news: mpsc::Receiver<News>,
}

impl Feed {
    pub(super) fn start(front: Front) -> Self {
        let (sender, news) = mpsc::channel(NEWS_MAX);
        let mut tasks = JoinSet::new();
        tasks.spawn(looks(front.clone(), sender.clone()));
        Self { front, tasks, sender, news }
    }

    pub(super) async fn next(&mut self) -> Option<News> {
        self.news.recv().await
    }

    /// Starts a deed; its outcome comes as news.
    pub(super) fn perform(&mut self, deed: Deed, model: String) {
        // Those that are over make room.
        while self.tasks.try_join_next().is_some() {}
        let (front, sender) = (self.front.clone(), self.sender.clone());
        self.tasks.spawn(async move {
            let outcome = deed.perform(&front, &model).await.map(drop).map_err(|f| f.to_string());
            // The screen may be gone.
            let _ = sender.send(News::Done { deed, model, outcome }).await;
        });
    }

    /// Reads the end of a model's log.
    pub(super) fn read_log(&mut self, model: String) {
        // Those that are over make room.
        while self.tasks.try_join_next().is_some() {}
        let (front, sender) = (self.front.clone(), self.sender.clone());
        self.tasks.spawn(async move {
            let query = [("model", model.as_str()), ("bytes", LOG_BYTES)];
            let text = front.get_text("/admin/v1/log", &query).await.map_err(|f| f.to_string());
            let _ = sender.send(News::Log { model, text }).await;
        });
    }
}

async fn looks(front: Front, sender: mpsc::Sender<News>) {
    loop {
        let look = look(&front).await.map_err(|failure| failure.to_string());
        if sender.send(News::Look(look)).await.is_err() {
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn look(front: &Front) -> Result<(Status, Vec<Event>), Failure> {
    // Tells in better words why nobody answers.
    front.reach()?;
    let status = front.get("/admin/v1/status").await?;
    let events = events::last(front, super::EVENTS_SHOWN_MAX).await?;
    Ok((status, events))
}
