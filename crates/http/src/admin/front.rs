//! What an admin asks of the front as a whole.

use super::ModelShelf;
use futures_util::future::BoxFuture;
use mlxd_protocol::admin::{AdminErrorBody, Reread, Why};
use std::path::PathBuf;

/// An answer that takes its time.
pub type AdminAnswer<T> = BoxFuture<'static, Result<T, AdminErrorBody>>;

/// What an admin asks of the front as a whole: its own log, its configuration, what it wrote down
/// about deaths, the models on disk.
pub trait FrontAdmin: ModelShelf {
    /// The front's own log file; `None` when it writes none.
    fn main_log(&self) -> Option<PathBuf>;

    /// What the configuration on disk would change. Changes nothing.
    fn reread(&self) -> AdminAnswer<Reread>;

    /// Checks the configuration on disk and puts to work what changed.
    fn update(&self) -> AdminAnswer<Reread>;

    /// A model's last death.
    fn why(&self, model: String) -> AdminAnswer<Why>;
}
