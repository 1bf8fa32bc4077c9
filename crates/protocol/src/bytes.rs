//! Bytes as people read them, the same on every page and in every refusal.

/// In powers of 1000, as the systems' own tools show memory, with three digits: `4.81 GB`.
pub fn bytes_in_short(count: u64) -> String {
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
    let digits = match value {
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::bytes_in_short;

    #[test]
    fn three_digits_and_a_unit() {
        for (count, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.00 kB"),
            (9_994, "9.99 kB"),
            (9_995, "10.0 kB"),
            (52_428_800, "52.4 MB"),
            (99_950_000, "100 MB"),
            (999_499_999, "999 MB"),
            (999_500_000, "1.00 GB"),
            (11_340_000_000, "11.3 GB"),
            (512_000_000_000, "512 GB"),
            (u64::MAX, "18447 PB"),
        ] {
            assert_eq!(bytes_in_short(count), text);
        }
    }
}
