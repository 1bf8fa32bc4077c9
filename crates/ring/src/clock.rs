//! The clock that both processes read.

use nix::time::clock_gettime;

use crate::os;

/// Nanoseconds on a clock that is the same in every process of the machine, never goes back and
/// stands still while the machine sleeps: `CLOCK_MONOTONIC` on Linux, `CLOCK_UPTIME_RAW` on macOS.
pub fn monotonic_ns() -> u64 {
    // Reading a clock that the system has cannot fail; 0 would read as "long ago", the safe side.
    clock_gettime(os::MONOTONIC).map_or(0, |time| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        let nanos = u64::try_from(time.tv_nsec()).unwrap_or(0);
        seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
    })
}

#[cfg(test)]
mod tests {
    use super::monotonic_ns;

    #[test]
    fn the_clock_runs_forward() {
        let first = monotonic_ns();
        assert!(first > 0);
        while monotonic_ns() == first {
            std::hint::spin_loop();
        }
        assert!(monotonic_ns() > first);
    }
}
