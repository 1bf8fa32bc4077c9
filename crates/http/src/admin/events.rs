//! What happened and what happens, one JSON object a line.

use bytes::Bytes;
use futures_util::stream::{Stream, StreamExt, iter, unfold};
use mlxd_dispatch::EventLog;
use mlxd_protocol::admin::Event;
use std::convert::Infallible;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio_util::sync::CancellationToken;

/// The last `count` events. With `follow` also every later one, until that is cancelled.
pub(super) fn lines(
    log: &EventLog,
    count: usize,
    follow: Option<CancellationToken>,
) -> impl Stream<Item = Result<Bytes, Infallible>> + use<> {
    let (last, live) = match follow {
        Some(stop) => {
            let (last, live) = log.follow(count);
            (last, Some((live, stop)))
        }
        None => (log.last(count), None),
    };
    let live = iter(live).flat_map(|(live, stop)| Box::pin(following(live, stop)));
    iter(last).chain(live).map(|event| Ok(line(&event)))
}

/// A listener that lagged goes on with the oldest event still there; the numbers show the gap.
fn following(live: Receiver<Event>, stop: CancellationToken) -> impl Stream<Item = Event> {
    unfold((live, stop), |(mut live, stop)| async move {
        loop {
            // What happened before the end is told before it.
            let next = tokio::select! {
                biased;
                next = live.recv() => next,
                () = stop.cancelled() => return None,
            };
            match next {
                Ok(event) => return Some((event, (live, stop))),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    })
}

fn line(event: &Event) -> Bytes {
    let mut line = serde_json::to_vec(event).expect("an event has string keys and finite numbers");
    line.push(b'\n');
    line.into()
}
