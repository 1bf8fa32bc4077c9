//! What reaches the main thread from outside, besides the commands ring.

use mlxd_protocol::ToWorker;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

/// One thing that happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// The front says something.
    Control(ToWorker),
    /// SIGTERM: finish what runs, then end.
    Terminate,
}

/// The main thread's end: a queue, and a descriptor that is readable while it may hold something.
#[derive(Debug)]
pub(crate) struct Inbox {
    events: Receiver<Event>,
    wake: UnixStream,
}

/// The other threads' end.
#[derive(Debug, Clone)]
pub(crate) struct Outbox {
    events: Sender<Event>,
    wake: Arc<UnixStream>,
}

/// Both ends.
pub(crate) fn pair() -> io::Result<(Outbox, Inbox)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    let (sender, receiver) = mpsc::channel();
    let outbox = Outbox { events: sender, wake: Arc::new(theirs) };
    Ok((outbox, Inbox { events: receiver, wake: ours }))
}

impl Outbox {
    /// Puts an event in and wakes the main thread if it sleeps.
    pub(crate) fn put(&self, event: Event) {
        // The inbox lives as long as the process; a full socket holds wakes enough.
        let _ = self.events.send(event);
        let _ = (&*self.wake).write(&[1]);
    }
}

impl Inbox {
    /// The next event, if there is one.
    pub(crate) fn try_next(&self) -> Option<Event> {
        self.events.try_recv().ok()
    }

    /// Waits for the next event. `None`: every other thread is gone.
    pub(crate) fn next(&self) -> Option<Event> {
        self.events.recv().ok()
    }

    /// To be called after a sleep on the descriptor, before [`try_next`](Self::try_next).
    pub(crate) fn woken(&self) {
        let mut bytes = [0; 64];
        // Ends with WouldBlock, or short of a full buffer.
        while matches!((&self.wake).read(&mut bytes), Ok(64)) {}
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
