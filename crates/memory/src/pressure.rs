//! How hard memory is pressed: single readings, and a level that does not flutter.

use serde::Deserialize;
use std::time::Duration;

/// How hard memory is pressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// There is enough.
    #[default]
    Normal,
    /// The system begins to look for some: caches are to go.
    Warning,
    /// The system is about to kill: idle models are to go, and nothing new comes.
    Critical,
}

impl Level {
    /// The name shown to people and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// What the operating system says at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Reading {
    /// The system's own level, where it has one (macOS).
    pub level: Option<Level>,
    /// Percent of the last ten seconds in which some process waited for memory (Linux PSI).
    pub stalled_some: Option<f64>,
    /// Percent in which all did.
    pub stalled_full: Option<f64>,
    /// How often our control group hit its limit since it was made.
    pub limit_hits: Option<u64>,
    /// Percent of the memory that could be taken, what only caches files included.
    pub available: Option<f64>,
}

/// From where on a reading is a warning, or critical.
#[derive(Debug, Clone, PartialEq)]
pub struct Thresholds {
    /// [`Reading::stalled_some`] from which on it is a warning.
    pub warning_stalled_some: f64,
    /// [`Reading::stalled_full`] from which on it is critical.
    pub critical_stalled_full: f64,
    /// [`Reading::available`] from which on stalls and limits say nothing: who waits there waits
    /// for cached files to be dropped, as everybody does while a large one is copied.
    pub roomy_available: f64,
    /// A level is left for a lower one only after the readings were lower for so long.
    pub calm: Duration,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            warning_stalled_some: 10.0,
            critical_stalled_full: 10.0,
            roomy_available: 20.0,
            calm: Duration::from_secs(10),
        }
    }
}

/// The level, from readings one after the other. It rises at once and falls one step at a time.
#[derive(Debug, Clone, Default)]
pub struct Pressure {
    thresholds: Thresholds,
    level: Level,
    /// Since when (on the caller's clock) readings have been lower than the level.
    lower_since: Option<Duration>,
    limit_hits: Option<u64>,
}

impl Pressure {
    /// Normal until told otherwise.
    pub fn new(thresholds: Thresholds) -> Self {
        Self { thresholds, ..Self::default() }
    }

    /// Other thresholds for the readings to come.
    pub fn set_thresholds(&mut self, thresholds: Thresholds) {
        self.thresholds = thresholds;
    }

    /// The level now.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Takes in a reading made at `now`, on any clock that only goes forward. Gives the level
    /// that comes of it.
    pub fn read(&mut self, reading: &Reading, now: Duration) -> Level {
        let seen = self.level_of(reading);
        if seen >= self.level {
            self.lower_since = None;
            self.level = seen;
            return self.level;
        }
        let since = *self.lower_since.get_or_insert(now);
        if now.saturating_sub(since) >= self.thresholds.calm {
            self.level = match self.level {
                Level::Critical => Level::Warning,
                Level::Warning | Level::Normal => Level::Normal,
            };
            // Each step down waits anew.
            self.lower_since = (seen < self.level).then_some(now);
        }
        self.level
    }

    fn level_of(&mut self, reading: &Reading) -> Level {
        let before = std::mem::replace(&mut self.limit_hits, reading.limit_hits);
        let hit = matches!((before, reading.limit_hits), (Some(before), Some(now)) if now > before);
        let from = |percent: Option<f64>, threshold: f64| percent.is_some_and(|p| p >= threshold);
        let stalled = if from(reading.available, self.thresholds.roomy_available) {
            Level::Normal
        } else if from(reading.stalled_full, self.thresholds.critical_stalled_full) {
            Level::Critical
        } else if from(reading.stalled_some, self.thresholds.warning_stalled_some) || hit {
            Level::Warning
        } else {
            Level::Normal
        };
        stalled.max(reading.level.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn said(level: Level) -> Reading {
        Reading { level: Some(level), ..Reading::default() }
    }

    #[test]
    fn it_rises_at_once_and_falls_slowly_one_step_at_a_time() {
        use Level::{Critical, Normal, Warning};
        let mut pressure = Pressure::new(Thresholds::default());
        assert_eq!(pressure.read(&said(Normal), seconds(0)), Normal);
        assert_eq!(pressure.read(&said(Critical), seconds(1)), Critical);
        assert_eq!(pressure.read(&said(Normal), seconds(2)), Critical);
        assert_eq!(pressure.read(&said(Normal), seconds(11)), Critical);
        // A relapse starts the wait anew.
        assert_eq!(pressure.read(&said(Critical), seconds(12)), Critical);
        assert_eq!(pressure.read(&said(Warning), seconds(13)), Critical);
        assert_eq!(pressure.read(&said(Normal), seconds(23)), Warning);
        assert_eq!(pressure.read(&said(Normal), seconds(32)), Warning);
        assert_eq!(pressure.read(&said(Normal), seconds(33)), Normal);
    }

    #[test]
    fn stalls_and_limits_are_levels_too() {
        let stalled = |some, full| Reading {
            stalled_some: Some(some),
            stalled_full: Some(full),
            ..Reading::default()
        };
        let once = |reading| Pressure::new(Thresholds::default()).read(&reading, seconds(0));
        assert_eq!(once(stalled(9.9, 0.0)), Level::Normal);
        assert_eq!(once(stalled(10.0, 1.0)), Level::Warning);
        assert_eq!(once(stalled(30.0, 12.0)), Level::Critical);
        let hits = |hits| Reading { limit_hits: Some(hits), ..Reading::default() };
        let mut pressure = Pressure::new(Thresholds::default());
        // A copy of a large file stalls everybody too, and there is room for a model.
        let copying = |available| Reading {
            limit_hits: Some(1),
            available: Some(available),
            ..stalled(60.0, 50.0)
        };
        assert_eq!(once(copying(95.0)), Level::Normal);
        assert_eq!(once(copying(20.0)), Level::Normal);
        assert_eq!(once(copying(19.9)), Level::Critical);
        let critical = Reading { level: Some(Level::Critical), ..copying(95.0) };
        assert_eq!(once(critical), Level::Critical, "the system's own level counts always");
        // Hits from before we looked say nothing.
        assert_eq!(pressure.read(&hits(70), seconds(0)), Level::Normal);
        assert_eq!(pressure.read(&hits(70), seconds(1)), Level::Normal);
        assert_eq!(pressure.read(&hits(71), seconds(2)), Level::Warning);
    }

    proptest! {
        /// However the readings flutter, the level never falls within the calm, and is never
        /// below the reading.
        #[test]
        fn no_flutter(readings in proptest::collection::vec((0u8..3, 0u64..8), 1..80)) {
            let levels = [Level::Normal, Level::Warning, Level::Critical];
            let mut pressure = Pressure::new(Thresholds::default());
            let (mut now, mut raised) = (0, 0);
            let mut before = Level::Normal;
            for (index, after) in readings {
                now += after;
                let seen = levels[index as usize];
                let level = pressure.read(&said(seen), seconds(now));
                prop_assert!(level >= seen);
                if level < before {
                    prop_assert!(now - raised >= 10);
                }
                if seen >= before {
                    raised = now;
                }
                before = level;
            }
        }
    }
}
