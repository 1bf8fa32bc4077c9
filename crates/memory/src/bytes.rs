//! Bytes as people read them.

use std::fmt;

/// A number of bytes, shown with three digits and the unit that fits: `4.81 GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut unit = 0;
        while value >= 1023.5 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        let digits = if value < 10.0 {
            2
        } else if value < 100.0 {
            1
        } else {
            0
        };
        write!(f, "{value:.digits$} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::Bytes;

    #[test]
    fn three_digits_and_a_unit() {
        let shown: Vec<String> =
            [0, 1023, 1024, 10 << 10, 1 << 20, (1 << 20) - 1, 5_164_000_000, 200 << 30]
                .map(|bytes| Bytes(bytes).to_string())
                .into();
        assert_eq!(
            shown,
            [
                "0 B", "1023 B", "1.00 KiB", "10.0 KiB", "1.00 MiB", "1.00 MiB", "4.81 GiB",
                "200 GiB"
            ]
        );
    }
}
