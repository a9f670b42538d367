//! The wall clock, for comparison with the times in certificates, manifests and collateral.
//!
//! It may be set at any time, so it must never measure a duration.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The current time in Unix seconds. It is 0, at which no certificate is valid, if the clock is
/// before 1970.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

/// A time in Unix seconds as in RFC 3339, for logs.
pub(crate) fn readable_time(seconds: u64) -> String {
    // Later than the year 9999, which a certificate may name, has no such form.
    let time = UNIX_EPOCH + Duration::from_secs(seconds.min(LAST_READABLE));
    humantime::format_rfc3339_seconds(time).to_string()
}

/// 9999-12-31T23:59:59Z.
const LAST_READABLE: u64 = 253_402_300_799;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_has_a_readable_form() {
        assert_eq!(readable_time(1_800_000_000), "2027-01-15T08:00:00Z");
        assert_eq!(readable_time(u64::MAX), "9999-12-31T23:59:59Z");
    }
}
