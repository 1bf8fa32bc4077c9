//! What all routes share.

use crate::admin::FrontAdmin;
use crate::backend::Backend;
use crate::error::ApiError;
use crate::limits::{HttpLimits, RequestLimits};
use crate::metrics::{HttpMetrics, InFlight};
use crate::prepare::Preparer;
use crate::streams::registry::Streams;
use crate::tenants::Tenants;
use actix_web::web::Data;
use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Bodies longer than this are parsed on a blocking thread.
const PARSED_INLINE_BYTES_MAX: usize = 32 << 10;

/// Shared by all threads of both servers.
pub(crate) struct App<B> {
    pub(crate) backend: B,
    pub(crate) limits: HttpLimits,
    pub(crate) metrics: Arc<HttpMetrics>,
    pub(crate) preparer: Preparer,
    pub(crate) streams: Streams,
    pub(crate) tenants: Tenants,
    pub(crate) started_at: Instant,
    /// As `http://127.0.0.1:11440/v1`.
    pub(crate) base_url: String,
    /// Cancelled by an admin's `shutdown`; the front waits on it.
    pub(crate) shutdown: CancellationToken,
    /// For the admin's routes about the front as a whole.
    pub(crate) front: Arc<dyn FrontAdmin>,
}

impl<B: Backend> App<B> {
    pub(crate) fn new(
        limits: HttpLimits,
        backend: B,
        base_url: String,
        shutdown: CancellationToken,
        front: Arc<dyn FrontAdmin>,
    ) -> Self {
        let metrics = Arc::new(HttpMetrics::new(limits.streams_max));
        Self {
            tenants: Tenants::new(&limits.key_weights),
            streams: Streams::new(limits.streams.clone(), metrics.streams()),
            metrics,
            preparer: Preparer::new(&limits),
            started_at: Instant::now(),
            backend,
            limits,
            base_url,
            shutdown,
            front,
        }
    }

    /// A place for one more answer.
    pub(crate) fn start_answer(&self) -> Result<InFlight, ApiError> {
        self.metrics.start_answer().map_err(|(max, free)| ApiError::Overloaded {
            message: format!(
                "{max} answers are being made, which is the most at once; try again in a moment, \
                 or raise streams_max under [http] in mlxd.toml"
            ),
            retry_after_s: self.retry_after_s(free),
        })
    }

    /// What `Retry-After` says of a wait: whole seconds, within its limits.
    pub(crate) fn retry_after_s(&self, wait: Option<Duration>) -> u64 {
        let seconds = wait.map_or(0, |wait| wait.as_secs_f64().ceil() as u64);
        seconds.min(self.limits.retry_after_max_s).max(self.limits.retry_after_s)
    }
}

/// Reads and checks a body, a long one off the event loop.
pub(crate) async fn parse<B: Backend, R: Send + 'static>(
    app: &Data<App<B>>,
    body: Bytes,
    check: fn(&[u8], &RequestLimits) -> Result<R, ApiError>,
) -> Result<R, ApiError> {
    if body.len() <= PARSED_INLINE_BYTES_MAX {
        return check(&body, &app.limits.request);
    }
    let limits = app.clone();
    app.preparer.run(move || check(&body, &limits.limits.request)).await
}
