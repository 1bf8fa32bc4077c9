//! Waiting for what must come, with an end to it.

use std::time::{Duration, Instant};

/// How long anything may take in a test before it counts as never. Far above what it does take,
/// for machines that are busy.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Between two looks at a condition that nothing announces.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Looks until `look` gives something. Panics with `what` after [`DEADLINE`].
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(LOOK_EVERY);
    }
}
