//! `strftime_now(format)`: the local date and time, as Python's `datetime.now().strftime`.

use std::time::SystemTime;

use jiff::fmt::strtime;
use jiff::{Timestamp, Zoned, tz::TimeZone};
use minijinja::{Error, ErrorKind, Value};

/// The function for a template, telling this time.
pub(super) fn strftime_now(now: SystemTime) -> Value {
    Value::from_function(move |format: &str| -> Result<String, Error> {
        let now = Timestamp::try_from(now).unwrap_or(Timestamp::UNIX_EPOCH);
        write(format, &now.to_zoned(TimeZone::system())).map_err(|reason| {
            Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {reason}"))
        })
    })
}

fn write(format: &str, now: &Zoned) -> Result<String, jiff::Error> {
    strtime::format(format, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_the_usual_formats() {
        let now = Timestamp::from_second(1_756_900_805).unwrap();
        let now = now.to_zoned(TimeZone::UTC);
        for (format, expected) in [
            ("%d %b %Y", "03 Sep 2025"),
            ("%Y-%m-%d", "2025-09-03"),
            ("%A, %B %d, %Y", "Wednesday, September 03, 2025"),
            ("%-d/%-m/%y %H:%M:%S %p %j", "3/9/25 12:00:05 PM 246"),
        ] {
            assert_eq!(write(format, &now).unwrap(), expected);
        }
    }
}
