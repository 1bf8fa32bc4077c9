//! What an admin asks of the front as a whole: its log, its configuration, its deaths.

use mlxd_config::Folders;
use mlxd_http::{AdminAnswer, FrontAdmin};
use mlxd_protocol::admin::{AdminErrorBody, Reread, Why};
use std::path::PathBuf;

/// The front's own log in its folder.
pub const MAIN_LOG: &str = "mlxd.log";

/// Answers for one instance.
pub struct Administration {
    folders: Folders,
}

impl Administration {
    pub fn new(folders: Folders) -> Self {
        Self { folders }
    }
}

fn not_available<T: Send + 'static>(what: &'static str) -> AdminAnswer<T> {
    Box::pin(async move {
        Err(AdminErrorBody {
            code: "internal".into(),
            message: format!("{what} is not available in this mlxd"),
        })
    })
}

impl FrontAdmin for Administration {
    fn main_log(&self) -> Option<PathBuf> {
        let path = self.folders.logs.join(MAIN_LOG);
        path.is_file().then_some(path)
    }

    fn reread(&self) -> AdminAnswer<Reread> {
        not_available("reread")
    }

    fn update(&self) -> AdminAnswer<Reread> {
        not_available("update")
    }

    fn why(&self, _model: String) -> AdminAnswer<Why> {
        not_available("why")
    }
}
