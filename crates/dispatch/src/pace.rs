//! How fast places come free, measured, and when a client that was refused one should come back.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Ends that the pace is the mean of.
const ENDS_MAX: usize = 32;

/// The pace at which something that is full comes free. Shared by all threads.
#[derive(Debug, Default)]
pub struct Pace(Mutex<Ends>);

#[derive(Debug, Default)]
struct Ends {
    /// From one end to the next, while there was anything to end.
    gaps: VecDeque<Duration>,
    /// The last end, or when something began after a rest.
    since: Option<Instant>,
    /// Who was sent away since the last end.
    refused: u32,
}

impl Pace {
    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Something begins where nothing was: what comes before is no part of a gap.
    pub fn begin(&self, now: Instant) {
        self.ends().since = Some(now);
    }

    /// Something ended.
    pub fn end(&self, now: Instant) {
        let mut ends = self.ends();
        if let Some(since) = ends.since.replace(now) {
            if ends.gaps.len() == ENDS_MAX {
                ends.gaps.pop_front();
            }
            ends.gaps.push_back(now.saturating_duration_since(since));
        }
        ends.refused = 0;
    }

    /// Somebody is sent away for want of a place: when one comes free for him, behind those who
    /// were sent away before him. `None` when nothing has ended yet.
    pub fn refuse(&self, now: Instant) -> Option<Duration> {
        let mut ends = self.ends();
        ends.refused = ends.refused.saturating_add(1);
        let count = u32::try_from(ends.gaps.len()).ok().filter(|count| *count > 0)?;
        let mean = ends.gaps.iter().sum::<Duration>() / count;
        let waited =
            ends.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        // An end that is overdue is due any moment, and says that the pace is slower than it was.
        let gap = mean.max(waited / 2);
        Some((gap * ends.refused).saturating_sub(waited.min(mean)).max(mean / 2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn a_place_comes_free_at_the_measured_pace() {
        let start = Instant::now();
        let pace = Pace::default();
        assert_eq!(pace.refuse(start), None, "nothing is known yet");
        pace.begin(start);
        for second in 1..=10 {
            pace.end(at(start, second * 2000));
        }
        let told = |ms| pace.refuse(at(start, ms)).unwrap().as_millis();
        // Right after an end the next is two seconds away; who is refused next waits for the
        // one after that.
        assert_eq!([told(20_000), told(20_000), told(20_000)], [2000, 4000, 6000]);
        assert_eq!(told(21_000), 7000, "a second has passed");
        pace.end(at(start, 22_000));
        assert_eq!(told(22_000), 2000, "those who were refused may come now");
    }

    #[test]
    fn a_rest_is_no_part_of_the_pace() {
        let start = Instant::now();
        let pace = Pace::default();
        for hour in 0..4 {
            let begun = at(start, hour * 3_600_000);
            pace.begin(begun);
            pace.end(begun + Duration::from_secs(3));
        }
        let end = at(start, 3 * 3_600_000 + 3000);
        assert_eq!(pace.refuse(end), Some(Duration::from_secs(3)));
    }

    #[test]
    fn a_pace_that_slows_down_is_not_promised_any_more() {
        let start = Instant::now();
        let pace = Pace::default();
        pace.begin(start);
        pace.end(at(start, 100));
        pace.end(at(start, 200));
        assert_eq!(pace.refuse(at(start, 200)), Some(Duration::from_millis(100)));
        let later = pace.refuse(at(start, 20_200)).unwrap();
        assert!(later >= Duration::from_secs(10), "{later:?}");
    }

    #[test]
    fn only_the_last_ends_count() {
        let start = Instant::now();
        let pace = Pace::default();
        pace.begin(start);
        pace.end(at(start, 1_000_000));
        for number in 1..=ENDS_MAX as u64 {
            pace.end(at(start, 1_000_000 + number * 10));
        }
        let end = at(start, 1_000_000 + ENDS_MAX as u64 * 10);
        assert_eq!(pace.refuse(end), Some(Duration::from_millis(10)));
    }
}
