//! What happened lately, for whoever asks, and what happens, for whoever listens.
//!
//! Writing never waits: the oldest event makes room, and a listener that is too slow misses some
//! and sees so from the numbers.

use mlxd_protocol::admin::{Event, Happening};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::broadcast;

/// The events of one front. Clones share them.
#[derive(Debug, Clone)]
pub struct EventLog(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    recent: Mutex<Recent>,
    live: broadcast::Sender<Event>,
}

#[derive(Debug)]
struct Recent {
    events: VecDeque<Event>,
    kept_max: usize,
    next_sequence: u64,
}

impl EventLog {
    /// Keeps the last `kept_max` events, one at the least.
    pub fn new(kept_max: usize) -> Self {
        let kept_max = kept_max.max(1);
        let recent = Recent { events: VecDeque::new(), kept_max, next_sequence: 1 };
        Self(Arc::new(Shared {
            recent: Mutex::new(recent),
            live: broadcast::Sender::new(kept_max),
        }))
    }

    /// Something happened, to `model` or to the front as a whole.
    pub fn push(&self, model: Option<&str>, happening: Happening) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut recent = self.recent();
        let event = Event {
            sequence: recent.next_sequence,
            unix_ms: now.as_millis() as u64,
            model: model.map(str::to_owned),
            happening,
        };
        recent.next_sequence += 1;
        if recent.events.len() == recent.kept_max {
            recent.events.pop_front();
        }
        recent.events.push_back(event.clone());
        // Under the lock, so that listeners get them in order. That nobody listens is no matter.
        let _ = self.0.live.send(event);
    }

    /// The last events, oldest first, `count` at the most.
    pub fn last(&self, count: usize) -> Vec<Event> {
        self.recent().last(count)
    }

    /// The last events, and every one after them.
    pub fn follow(&self, count: usize) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let recent = self.recent();
        (recent.last(count), self.0.live.subscribe())
    }

    /// How many follow now.
    pub fn listeners(&self) -> usize {
        self.0.live.receiver_count()
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.0.recent.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Recent {
    fn last(&self, count: usize) -> Vec<Event> {
        let left_out = self.events.len().saturating_sub(count);
        self.events.iter().skip(left_out).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::broadcast::error::TryRecvError;

    fn sequences(events: &[Event]) -> Vec<u64> {
        events.iter().map(|event| event.sequence).collect()
    }

    #[test]
    fn the_oldest_make_room_and_a_listener_misses_none_between_the_last_and_the_next() {
        let log = EventLog::new(3);
        for _ in 0..5 {
            log.push(Some("m"), Happening::ShuttingDown);
        }
        assert_eq!(sequences(&log.last(100)), [3, 4, 5]);
        assert_eq!(sequences(&log.last(2)), [4, 5]);
        let (last, mut live) = log.follow(1);
        assert_eq!(sequences(&last), [5]);
        log.push(None, Happening::ShuttingDown);
        let next = live.try_recv().unwrap();
        assert_eq!((next.sequence, next.model), (6, None));
        assert_eq!(live.try_recv(), Err(TryRecvError::Empty));
    }

    #[test]
    fn a_slow_listener_is_told_that_it_missed_some() {
        let log = EventLog::new(4);
        let (_, mut live) = log.follow(0);
        for _ in 0..100 {
            log.push(None, Happening::ShuttingDown);
        }
        assert!(matches!(live.try_recv(), Err(TryRecvError::Lagged(_))));
        assert_eq!(live.try_recv().unwrap().sequence, 97);
    }
}
