//! What the HTTP side counts, as Prometheus families.

use crate::streams::log::Gone;
use mlxd_dispatch::Pace;
use mlxd_text::SegmentFigures;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByStatus {
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRoute {
    route: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByWhy {
    why: &'static str,
}

/// Those of kept streams. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct StreamMetrics {
    /// Streams that can be read again.
    pub(crate) kept: Gauge,
    /// Bytes of their events.
    pub(crate) bytes: Gauge,
    /// Responses that read one.
    pub(crate) readers: Gauge,
    /// Times that one was read on.
    pub(crate) resumed: Counter,
    dropped: Family<ByWhy, Counter>,
}

impl StreamMetrics {
    /// One is kept no longer.
    pub(crate) fn dropped(&self, why: Gone) {
        let why = match why {
            Gone::Expired(_) => "expired",
            Gone::OverBudget => "over_budget",
            Gone::Displaced => "displaced",
            Gone::Deleted => "deleted",
        };
        self.dropped.get_or_create(&ByWhy { why }).inc();
    }

    fn register(&self, registry: &mut Registry) {
        registry.register("streams_kept", "Streams that can be read again", self.kept.clone());
        registry.register("streams_readers", "Responses that read one", self.readers.clone());
        let bytes = self.bytes.clone();
        registry.register_with_unit("streams_kept", "Of their events", Unit::Bytes, bytes);
        registry.register("streams_resumed", "Times one was read on", self.resumed.clone());
        registry.register("streams_dropped", "Those kept no longer, by why", self.dropped.clone());
    }
}

/// HTTP's Prometheus families, shared by all threads.
#[derive(Debug)]
pub(crate) struct HttpMetrics {
    registry: Registry,
    requests: Family<ByStatus, Counter>,
    seconds: Family<ByRoute, Histogram, fn() -> Histogram>,
    request_bytes: Counter,
    reused_text: Counter,
    encoded_text: Counter,
    kept_text: Gauge,
    streams: StreamMetrics,
    in_flight: Gauge,
    places: Arc<Semaphore>,
    places_max: usize,
    pace: Arc<Pace>,
}

/// An answer being made: one of the places, counted while it is held.
#[derive(Debug)]
pub(crate) struct InFlight {
    gauge: Gauge,
    pace: Arc<Pace>,
    _place: OwnedSemaphorePermit,
}

impl HttpMetrics {
    pub(crate) fn new(streams_max: usize) -> Self {
        let mut registry = Registry::with_prefix("mlxd_http");
        let requests = Family::<ByStatus, Counter>::default();
        let seconds = Family::<ByRoute, Histogram, fn() -> Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.001, 4.0, 9))
        });
        let request_bytes = Counter::default();
        let in_flight = Gauge::default();
        registry.register("requests", "Requests answered, by route and status", requests.clone());
        registry.register_with_unit(
            "response_start",
            "From a request's head to its response's head, by route",
            Unit::Seconds,
            seconds.clone(),
        );
        registry.register("request_body_bytes", "Bytes of bodies read", request_bytes.clone());
        registry.register("answers_in_flight", "Answers being made", in_flight.clone());
        let (reused_text, encoded_text) = (Counter::default(), Counter::default());
        let kept_text = Gauge::default();
        registry.register(
            "conversation_reused_bytes",
            "Bytes of conversations whose tokens were there from an earlier turn",
            reused_text.clone(),
        );
        registry.register(
            "conversation_encoded_bytes",
            "Bytes of conversations that were tokenised",
            encoded_text.clone(),
        );
        registry.register_with_unit(
            "conversation_kept",
            "Held of conversations for their next turn",
            Unit::Bytes,
            kept_text.clone(),
        );
        let streams = StreamMetrics::default();
        streams.register(&mut registry);
        Self {
            registry,
            requests,
            seconds,
            request_bytes,
            reused_text,
            encoded_text,
            kept_text,
            streams,
            in_flight,
            places: Arc::new(Semaphore::new(streams_max)),
            places_max: streams_max,
            pace: Arc::default(),
        }
    }

    /// Those of kept streams.
    pub(crate) fn streams(&self) -> StreamMetrics {
        self.streams.clone()
    }

    /// A response's head is ready. `route` is a pattern, so that there are few of them.
    pub(crate) fn responded(&self, route: &str, status: u16, after: Duration) {
        let route = route.to_owned();
        self.requests.get_or_create(&ByStatus { route: route.clone(), status }).inc();
        self.seconds.get_or_create(&ByRoute { route }).observe(after.as_secs_f64());
    }

    pub(crate) fn count_request_bytes(&self, bytes: usize) {
        self.request_bytes.inc_by(bytes as u64);
    }

    /// What became of conversations' text so far.
    pub(crate) fn note_segments(&self, figures: SegmentFigures) {
        let raise = |counter: &Counter, to: u64| counter.inc_by(to.saturating_sub(counter.get()));
        raise(&self.reused_text, figures.reused_bytes);
        raise(&self.encoded_text, figures.encoded_bytes);
        self.kept_text.set(figures.held_bytes as i64);
    }

    /// A place for one more answer; where there is none, how many there are and when one is
    /// likely to be free.
    pub(crate) fn start_answer(&self) -> Result<InFlight, (usize, Option<Duration>)> {
        let now = Instant::now();
        let place = self.places.clone().try_acquire_owned();
        let place = place.map_err(|_| (self.places_max, self.pace.refuse(now)))?;
        if self.in_flight.inc() == 0 {
            self.pace.begin(now);
        }
        Ok(InFlight { gauge: self.in_flight.clone(), pace: self.pace.clone(), _place: place })
    }

    /// All families in the text format, with the closing `# EOF`.
    pub(crate) fn encode_after(&self, mut text: String) -> String {
        encode_registry(&mut text, &self.registry).expect("writing to a String cannot fail");
        text.push_str("# EOF\n");
        text
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.gauge.dec();
        self.pace.end(Instant::now());
    }
}
