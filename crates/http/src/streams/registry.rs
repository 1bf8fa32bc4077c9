//! The kept streams by their ids, and why one is kept no longer.

use crate::error::ApiError;
use crate::limits::StreamLimits;
use crate::metrics::StreamMetrics;
use crate::openai::common::Keep;
use crate::streams::budget::Budget;
use crate::streams::log::{Gone, NotThere, Reader, Stream};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// For each stream that may be kept, so many that are not are remembered.
const REMEMBERED_EACH: usize = 4;

/// A stream that is gone.
#[derive(Debug)]
struct Grave {
    id: Arc<str>,
    alias: Option<Arc<str>>,
    why: Gone,
    at: Instant,
}

#[derive(Debug, Default)]
struct Known {
    streams: HashMap<Arc<str>, Arc<Stream>>,
    /// The answer's own id, which every chunk carries, to the request's.
    aliases: HashMap<Arc<str>, Arc<str>>,
    graves: VecDeque<Grave>,
}

/// All kept streams.
#[derive(Debug)]
pub(crate) struct Streams {
    limits: StreamLimits,
    budget: Arc<Budget>,
    known: Mutex<Known>,
    metrics: StreamMetrics,
}

impl Streams {
    pub(crate) fn new(limits: StreamLimits, metrics: StreamMetrics) -> Self {
        let budget = Arc::new(Budget::new(limits.bytes_max, limits.kept_max));
        Self { limits, budget, known: Mutex::default(), metrics }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Keeps a stream under this id, and reads it from its beginning.
    pub(crate) fn open(
        &self,
        id: &Arc<str>,
        keep: Keep,
    ) -> Result<(Arc<Stream>, Reader), ApiError> {
        let mut known = self.known();
        if let Some(old) = known.streams.get(id).cloned() {
            // One that came to nothing may be tried again under its id.
            if !old.is_stillborn() {
                return Err(ApiError::StreamExists { id: id.to_string() });
            }
            self.bury(&mut known, &old, Gone::Displaced);
        }
        if known.streams.len() >= self.limits.kept_max && !self.displace_one(&mut known) {
            let max = self.limits.kept_max;
            return Err(ApiError::Overloaded {
                message: format!(
                    "{max} resumable streams are being read, which is the most at once; try again \
                     in a moment, without 'resumable', or raise kept_max under [streams] in \
                     mlxd.toml"
                ),
                retry_after_s: 1,
            });
        }
        let readers = self.metrics.readers.clone();
        let stream = Stream::new(id.clone(), keep, &self.limits, self.budget.clone(), readers);
        let stream = Arc::new(stream);
        let reader = stream.read();
        known.graves.retain(|grave| grave.id != *id);
        known.streams.insert(id.clone(), stream.clone());
        self.metrics.kept.set(known.streams.len() as i64);
        Ok((stream, reader))
    }

    /// Lets the stream be asked for by the answer's own id too.
    pub(crate) fn alias(&self, stream: &Stream, answer: &str) {
        self.known().aliases.insert(answer.into(), stream.id.clone());
    }

    /// The stream of this id, the request's or the answer's.
    pub(crate) fn find(&self, id: &str) -> Result<Arc<Stream>, ApiError> {
        let known = self.known();
        let request = known.aliases.get(id).map_or(id, |request| request);
        if let Some(stream) = known.streams.get(request) {
            return Ok(stream.clone());
        }
        let buried = |grave: &&Grave| &*grave.id == id || grave.alias.as_deref() == Some(id);
        match known.graves.iter().rfind(buried) {
            Some(grave) => Err(gone(id, grave.why, Some(grave.at.elapsed()))),
            None => Err(ApiError::UnknownStream {
                message: format!(
                    "no stream with the id {id} is kept; a stream is kept when its request has \
                     'resumable': true, and its id is that answer's x-request-id header"
                ),
            }),
        }
    }

    /// Forgets a stream, and drops what it has.
    pub(crate) fn forget(&self, stream: &Stream, why: Gone) {
        let mut known = self.known();
        self.bury(&mut known, stream, why);
    }

    /// Forgets a stream that came to nothing, without a trace.
    pub(crate) fn withdraw(&self, stream: &Stream) {
        let mut known = self.known();
        self.bury(&mut known, stream, Gone::Deleted);
        known.graves.retain(|grave| grave.id != stream.id);
    }

    fn bury(&self, known: &mut Known, stream: &Stream, why: Gone) {
        // Another may have its id by now.
        let same = known.streams.get(&stream.id).is_some_and(|k| std::ptr::eq(&**k, stream));
        if same {
            known.streams.remove(&stream.id);
            let alias = known.aliases.iter().find(|(_, request)| **request == stream.id);
            let alias = alias.map(|(alias, _)| alias.clone());
            if let Some(alias) = &alias {
                known.aliases.remove(alias);
            }
            if known.graves.len() >= self.limits.kept_max.saturating_mul(REMEMBERED_EACH) {
                known.graves.pop_front();
            }
            let (id, at) = (stream.id.clone(), Instant::now());
            known.graves.push_back(Grave { id, alias, why, at });
            self.metrics.kept.set(known.streams.len() as i64);
            self.metrics.dropped(why);
        }
        stream.drop_for(why);
        self.metrics.bytes.set(self.budget.taken() as i64);
    }

    /// Makes a place by dropping the stream that can best be spared. False if all are being read.
    fn displace_one(&self, known: &mut Known) -> bool {
        match self.sparable(known).into_iter().next() {
            Some(stream) => {
                self.bury(known, &stream, Gone::Displaced);
                true
            }
            None => false,
        }
    }

    /// Those that nobody reads, in the order in which they go.
    fn sparable(&self, known: &Known) -> Vec<Arc<Stream>> {
        let ranked = known.streams.values().filter_map(|s| Some((s.rank()?, s.clone())));
        let mut ranked: Vec<_> = ranked.collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        ranked.into_iter().map(|(_, stream)| stream).collect()
    }

    /// Drops what can be spared, as long as all together have too many bytes.
    pub(crate) fn keep_within_budget(&self) {
        self.metrics.bytes.set(self.budget.taken() as i64);
        if !self.budget.is_over() {
            return;
        }
        let mut known = self.known();
        for stream in self.sparable(&known) {
            if !self.budget.is_over() {
                return;
            }
            self.bury(&mut known, &stream, Gone::OverBudget);
        }
        for stream in known.streams.values() {
            if !self.budget.is_over() {
                return;
            }
            stream.drop_what_was_read();
        }
    }

    /// A stream was read on.
    pub(crate) fn count_resumed(&self) {
        self.metrics.resumed.inc();
    }
}

/// Why the stream cannot be read.
pub(crate) fn gone(id: &str, why: Gone, ago: Option<Duration>) -> ApiError {
    let ago = ago.map_or(String::new(), |ago| format!(" {} s ago", ago.as_secs()));
    let (code, message) = match why {
        Gone::Expired(after) => (
            "stream_expired",
            format!(
                "nobody read the stream {id} for {} s, so it was dropped{ago}; retention_s under \
                 [streams] in mlxd.toml says how long one is kept. Send the request again",
                after.as_secs()
            ),
        ),
        Gone::OverBudget => (
            "stream_dropped",
            format!(
                "the stream {id} was dropped{ago} while nobody read it, to make room for others; \
                 bytes_max under [streams] in mlxd.toml says how much is kept. Send the request \
                 again"
            ),
        ),
        Gone::Displaced => (
            "stream_dropped",
            format!(
                "the stream {id} was dropped{ago} while nobody read it, to make a place for \
                 another; kept_max under [streams] in mlxd.toml says how many are kept. Send the \
                 request again"
            ),
        ),
        Gone::Deleted => {
            ("stream_deleted", format!("the stream {id} was ended by a DELETE request{ago}"))
        }
    };
    ApiError::StreamGone { code, message }
}

/// Why the stream cannot be read from event `from` on; `None` when there is nothing more to read.
pub(crate) fn not_there(id: &str, from: u64, why: NotThere) -> Option<ApiError> {
    match why {
        NotThere::NoMore => None,
        NotThere::Gone(why) => Some(gone(id, why, None)),
        NotThere::Ahead { events } => Some(ApiError::field(
            "from",
            format!(
                "the stream {id} has had {events} events so far, so it cannot be read from event \
                 {from} on; Last-Event-ID is the id of the last event that came"
            ),
        )),
        NotThere::Dropped { oldest } => Some(ApiError::StreamGone {
            code: "stream_events_dropped",
            message: format!(
                "the stream {id} is kept from event {oldest} on; those before it were dropped \
                 once they were read, since a stream has room for stream_bytes_max bytes ([streams] \
                 in mlxd.toml), and all together for bytes_max"
            ),
        }),
    }
}
