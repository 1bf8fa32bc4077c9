//! Numbers as people read them.

/// `h:mm:ss`, with days before it from the first on, as supervisorctl shows uptimes.
pub(crate) fn duration(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let clock = format!("{}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60);
    if days == 0 { clock } else { format!("{days}d {clock}") }
}

/// In powers of 1000, as the systems' own tools show memory: three digits.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1000.0;
    let mut unit = 0;
    // What would round to 1000 belongs to the next unit.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if value < 9.95 { 1 } else { 0 };
    let digits = if (9.95..99.95).contains(&value) && unit >= 2 { 1 } else { digits };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// Tokens a second.
pub(crate) fn rate(per_s: f32) -> String {
    if per_s < 99.95 { format!("{per_s:.1}") } else { format!("{per_s:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration(0), "0:00:00");
        assert_eq!(duration(3_725), "1:02:05");
        assert_eq!(duration(86_399), "23:59:59");
        assert_eq!(duration(3 * 86_400 + 61), "3d 0:01:01");
    }

    #[test]
    fn sizes() {
        for (count, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (52_428_800, "52 MB"),
            (999_600_000, "1.0 GB"),
            (11_340_000_000, "11.3 GB"),
            (512_000_000_000, "512 GB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn rates() {
        assert_eq!(
            (rate(0.0), rate(99.94), rate(241.6)),
            ("0.0".into(), "99.9".into(), "242".into())
        );
    }
}
