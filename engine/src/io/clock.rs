//! The wall clock, for code that compares times with certificates and manifests.

use std::time::{SystemTime, UNIX_EPOCH};

/// The current time in Unix seconds. A clock before 1970 reads as 0, at which no
/// certificate is valid.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}
