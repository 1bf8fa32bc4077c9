//! `GET /v1/streams/{id}`: reads a kept stream from one of its events on. `DELETE` ends it.

use crate::app::App;
use crate::backend::Backend;
use crate::error::ApiError;
use crate::routes::submit::event_stream;
use crate::streams::body::KeptBody;
use crate::streams::log::Gone;
use crate::streams::registry::not_there;
use actix_web::http::header::{HeaderMap, HeaderName};
use actix_web::web::{Data, Path, Query};
use actix_web::{HttpRequest, HttpResponse};
use serde::Deserialize;
use std::future::poll_fn;

/// The last event that came, as browsers' `EventSource` sends it when it connects again.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

#[derive(Debug, Deserialize)]
struct Wanted {
    from: Option<u64>,
}

/// Events from one on, live as long as the answer is being made.
pub(crate) async fn read_on<B: Backend>(
    app: Data<App<B>>,
    id: Path<String>,
    request: HttpRequest,
) -> Result<HttpResponse, ApiError> {
    let id = id.into_inner();
    let from = first_wanted(&request)?;
    let stream = app.streams.find(&id)?;
    let reader = match stream.attach(from) {
        Ok(reader) => reader,
        // 204 is what tells an EventSource not to come again.
        Err(why) => return not_there(&id, from, why).map_or(Ok(nothing_more()), Err),
    };
    app.streams.count_resumed();
    let ping = app.limits.stream_ping;
    // What cannot go on has a status of its own, if there is nothing to be read before.
    let first = tokio::time::timeout(ping, poll_fn(|cx| reader.poll_first(cx))).await;
    if let Ok(Err(error)) = first {
        return Err(error);
    }
    Ok(event_stream(None, stream.model().as_deref(), KeptBody::new(id, reader, ping)))
}

fn nothing_more() -> HttpResponse {
    HttpResponse::NoContent().finish()
}

/// The event after `Last-Event-ID`, else the query's `from`, else the first.
fn first_wanted(request: &HttpRequest) -> Result<u64, ApiError> {
    let number = |name: &str, text: &str| {
        text.trim().parse::<u64>().map_err(|_| {
            ApiError::field(name, format!("'{name}' must be an event's number, got {text:?}"))
        })
    };
    if let Some(last) = header(request.headers()) {
        return Ok(number("Last-Event-ID", &last?)?.saturating_add(1));
    }
    let query = Query::<Wanted>::from_query(request.query_string());
    let wanted = query.map_err(|error| {
        ApiError::field("from", format!("the query must be from=<an event's number>: {error}"))
    })?;
    Ok(wanted.from.unwrap_or(1))
}

fn header(headers: &HeaderMap) -> Option<Result<String, ApiError>> {
    let value = headers.get(&LAST_EVENT_ID).filter(|value| !value.is_empty())?;
    let text = value.to_str().map(str::to_owned);
    Some(
        text.map_err(|_| {
            ApiError::field("Last-Event-ID", "'Last-Event-ID' must be an event's number")
        }),
    )
}

/// Ends a stream: nothing of it is generated or kept any longer.
pub(crate) async fn end<B: Backend>(
    app: Data<App<B>>,
    id: Path<String>,
) -> Result<HttpResponse, ApiError> {
    let stream = app.streams.find(&id)?;
    app.streams.forget(&stream, Gone::Deleted);
    Ok(nothing_more())
}
