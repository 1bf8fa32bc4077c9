//! The task of a kept stream: it turns the answer into events, once, whoever reads them.

use crate::app::App;
use crate::backend::{Backend, Tokens};
use crate::error::ApiError;
use crate::openai::answer::error_event;
use crate::respond::answer::Answer;
use crate::respond::events::{EventSink, Numbered, Written, write_news, write_opening};
use crate::streams::log::{Gone, Orders, Stream};
use actix_web::web::Data;
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use tokio::time::timeout_at;

/// What the task woke up for.
enum Wake {
    News,
    Orders,
}

/// Runs until the stream is forgotten.
pub(crate) async fn drive<B: Backend>(
    app: Data<App<B>>,
    stream: Arc<Stream>,
    mut answer: Answer<B::Tokens>,
) {
    let mut events = Numbered::new();
    let mut opened = false;
    let mut paused = false;
    let mut written = Written::GoesOn;
    while written == Written::GoesOn {
        let orders = poll_fn(|cx| Poll::Ready(stream.orders(cx))).await;
        if orders.gone {
            return;
        }
        if !orders.generate && !paused {
            answer.pause();
            paused = true;
        } else if orders.generate && paused {
            match resume(&app, &mut answer) {
                Ok(()) => paused = false,
                Err(error) => {
                    stream.refuse(error);
                    continue;
                }
            }
        }
        // What came before this task began is news too.
        let wake = match orders.write && !opened && answer.has_news() {
            true => Some(Wake::News),
            false => wait(&stream, orders, &mut answer).await,
        };
        match wake {
            None => return expire(&app, &stream),
            Some(Wake::Orders) => continue,
            Some(Wake::News) => {}
        }
        if !opened && let Some(error) = &answer.error {
            stream.note_stillborn(error.clone());
        } else if !opened {
            stream.note_queue_wait(answer.queue_wait());
            write_opening(&answer, &mut events);
        }
        opened = true;
        written = write_news(&mut answer, &mut events);
        stream.append(&mut events.events, written);
        app.streams.keep_within_budget();
    }
    drop(answer);
    linger(&app, &stream).await;
}

/// The same for an answer whose model is still being looked for. While it is, the stream is kept
/// whoever reads it.
pub(crate) async fn drive_when_begun<B: Backend>(
    app: Data<App<B>>,
    stream: Arc<Stream>,
    begun: impl Future<Output = Result<Answer<B::Tokens>, ApiError>>,
) {
    match begun.await {
        Ok(answer) => {
            stream.note_model(answer.model.as_str());
            app.streams.alias(&stream, &answer.head.id);
            drive(app, stream, answer).await;
        }
        Err(error) => {
            let mut events = Numbered::new();
            events.event(|out| error_event(out, &error.body()));
            stream.note_stillborn(error);
            stream.append(&mut events.events, Written::BrokenOff);
            linger(&app, &stream).await;
        }
    }
}

/// Waits for news, if they are wanted, and for new orders. `None`: nobody came back in time.
async fn wait<T: Tokens>(stream: &Stream, orders: Orders, answer: &mut Answer<T>) -> Option<Wake> {
    let wake = poll_fn(|cx| {
        if stream.poll_new_orders(cx, orders).is_ready() {
            return Poll::Ready(Wake::Orders);
        }
        if orders.write && answer.poll_news(cx).is_ready() {
            return Poll::Ready(Wake::News);
        }
        Poll::Pending
    });
    match orders.forget_at {
        Some(at) => timeout_at(at, wake).await.ok(),
        None => Some(wake.await),
    }
}

fn resume<B: Backend>(app: &App<B>, answer: &mut Answer<B::Tokens>) -> Result<(), ApiError> {
    let place = app.start_answer()?;
    tracing::debug!(answer = %answer.head.id, "a stream that stood still goes on");
    answer.resume(&app.backend, place)
}

/// Keeps a stream that has ended until nobody has read it for long enough.
async fn linger<B: Backend>(app: &App<B>, stream: &Stream) {
    loop {
        let orders = poll_fn(|cx| Poll::Ready(stream.orders(cx))).await;
        if orders.gone {
            return;
        }
        let changed = poll_fn(|cx| stream.poll_new_orders(cx, orders));
        match orders.forget_at {
            Some(at) => {
                if timeout_at(at, changed).await.is_err() {
                    return expire(app, stream);
                }
            }
            None => changed.await,
        }
    }
}

fn expire<B: Backend>(app: &App<B>, stream: &Stream) {
    app.streams.forget(stream, Gone::Expired(app.limits.streams.retention));
}
