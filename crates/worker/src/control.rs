//! The `control` thread: the front's messages, and the front's end.

use crate::inbox::{Event, Outbox};
use crate::os;
use ipc_channel::ipc::IpcReceiver;
use mlxd_protocol::{ToWorker, exit_code};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set once the worker has said everything: the front may then go without that being an accident.
pub(crate) type Finished = Arc<AtomicBool>;

/// Starts the thread. It ends the process at once when the front says so or is gone, whatever
/// the main thread is doing.
pub(crate) fn spawn(
    from_front: IpcReceiver<ToWorker>,
    outbox: Outbox,
    finished: Finished,
) -> io::Result<()> {
    std::thread::Builder::new().name("control".into()).spawn(move || {
        loop {
            match from_front.recv() {
                Ok(ToWorker::Shutdown) => os::leave(exit_code::DONE),
                Ok(message) => outbox.put(Event::Control(message)),
                Err(_) if finished.load(Ordering::Acquire) => os::leave(exit_code::DONE),
                Err(error) => {
                    tracing::warn!("the front is gone ({error}), leaving");
                    os::leave(exit_code::FRONT_GONE);
                }
            }
        }
    })?;
    Ok(())
}
