//! Times and rates as people read them.

/// `h:mm:ss`, with days before it from the first on, as supervisorctl shows uptimes.
pub(crate) fn duration(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let clock = format!("{}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60);
    if days == 0 { clock } else { format!("{days}d {clock}") }
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
    fn rates() {
        assert_eq!(
            (rate(0.0), rate(99.94), rate(241.6)),
            ("0.0".into(), "99.9".into(), "242".into())
        );
    }
}
