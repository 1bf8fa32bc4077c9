//! Reads a request's body within its limits.

use crate::error::ApiError;
use crate::limits::HttpLimits;
use crate::metrics::HttpMetrics;
use actix_web::HttpRequest;
use actix_web::http::header::{self, HeaderMap};
use actix_web::web::Payload;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;

/// The whole body, or the reason why not.
pub(crate) async fn read(
    request: &HttpRequest,
    payload: Payload,
    limits: &HttpLimits,
    metrics: &HttpMetrics,
) -> Result<Bytes, ApiError> {
    check_content_type(request.headers())?;
    let bytes_max = limits.body_bytes_max;
    let announced = announced_length(request.headers());
    if announced.is_some_and(|length| length > bytes_max as u64) {
        return Err(ApiError::BodyTooLarge { bytes_max });
    }
    let reading = read_within(payload, announced.unwrap_or(0) as usize, bytes_max);
    let body = tokio::time::timeout(limits.body_timeout, reading)
        .await
        .map_err(|_| ApiError::BodyTimeout { seconds: limits.body_timeout.as_secs() })??;
    metrics.count_request_bytes(body.len());
    Ok(body)
}

/// Memory is taken as bytes arrive: what a client announces is not believed beyond this.
const RESERVED_AT_ONCE_BYTES: usize = 64 << 10;

async fn read_within(
    mut payload: Payload,
    announced: usize,
    bytes_max: usize,
) -> Result<Bytes, ApiError> {
    let mut body = BytesMut::with_capacity(announced.min(RESERVED_AT_ONCE_BYTES));
    while let Some(piece) = payload.next().await {
        let piece = piece.map_err(|_| ApiError::BodyCut)?;
        if body.len() + piece.len() > bytes_max {
            return Err(ApiError::BodyTooLarge { bytes_max });
        }
        body.extend_from_slice(&piece);
    }
    Ok(body.freeze())
}

fn announced_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// A page of any web site can make a browser send a request here, as long as its content type is
/// one of the few that need no leave. Such a request names its `Origin`; JSON needs leave, which
/// is never given. Programs name no origin and may leave the content type out.
fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    if !headers.contains_key(header::ORIGIN) {
        return Ok(());
    }
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = kind.and_then(|kind| kind.split(';').next()).unwrap_or("").trim();
    match essence.eq_ignore_ascii_case("application/json") {
        true => Ok(()),
        false => Err(ApiError::NotJson),
    }
}
