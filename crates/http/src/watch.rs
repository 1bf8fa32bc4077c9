//! Around every request: its id, who serves it, its metrics, its line in the log.

use crate::app::App;
use crate::backend::Backend;
use crate::request_id::{self, TraceId};
use crate::routes::MODEL_HEADER;
use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{HeaderValue, SERVER};
use actix_web::middleware::Next;
use actix_web::web::Data;
use actix_web::{Error, HttpMessage};
use std::time::Instant;

/// What this server calls itself.
const NAME: HeaderValue = HeaderValue::from_static(concat!("mlxd/", env!("CARGO_PKG_VERSION")));

/// Gives the request an id, and its response the same one and the server's name.
pub(crate) async fn watch<B: Backend>(
    app: Data<App<B>>,
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let began = Instant::now();
    let trace = TraceId::of(request.headers());
    request.extensions_mut().insert(trace.clone());
    let mut response = next.call(request).await?;
    response.headers_mut().insert(request_id::HEADER, trace.header_value());
    response.headers_mut().insert(SERVER, NAME);

    let status = response.status();
    let elapsed = began.elapsed();
    let pattern = response.request().match_pattern();
    let route = pattern.as_deref().unwrap_or("unmatched");
    app.metrics.responded(route, status.as_u16(), elapsed);
    let method = response.request().method().as_str();
    let elapsed_ms = elapsed.as_millis() as u64;
    let id: &str = &trace.0;
    // Who answers, where that is known; of a stream its head's time, and its end has another line.
    let model = response.headers().get(MODEL_HEADER).and_then(|model| model.to_str().ok());
    match response.response().error() {
        Some(error) if status.is_server_error() => {
            tracing::warn!(id, method, route, model, status = status.as_u16(), elapsed_ms, %error, "answered");
        }
        Some(error) => {
            tracing::info!(id, method, route, model, status = status.as_u16(), elapsed_ms, %error, "answered");
        }
        None if route.starts_with("/v1/") => {
            tracing::info!(
                id,
                method,
                route,
                model,
                status = status.as_u16(),
                elapsed_ms,
                "answered"
            );
        }
        None => {
            tracing::debug!(id, method, route, status = status.as_u16(), elapsed_ms, "answered");
        }
    }
    Ok(response)
}
