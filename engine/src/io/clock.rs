//! The wall clock, for comparison with the times in certificates, manifests and collateral.
//!
//! It may be set at any time, so it must never measure a duration.

use std::time::{SystemTime, UNIX_EPOCH};

/// The current time in Unix seconds. It is 0, at which no certificate is valid, if the clock is
/// before 1970.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}
