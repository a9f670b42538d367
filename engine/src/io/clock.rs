//! The wall clock, for comparison with the times in certificates, manifests and collateral, with a floor.
//!
//! The host sets a guest's clock. A clock that is set back makes expired certificates and collateral valid again.
//! So the time is never taken to be before what must have passed: the date of the build, and the newest date on
//! collateral that verified under the trusted root. Dates of certificates do not count, because each TD chooses
//! those of its own certificate. The floor moves on with the monotonic clock, so that time passes while the clock is
//! behind: back-offs end, and cached verdicts expire.
//!
//! It may be set at any time, so it must never measure a duration.

use std::fmt;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use attest::certificate::CLOCK_SKEW;

/// The date of this source, 2026-11-01: the floor of builds without `SOURCE_DATE_EPOCH`. Raise it with each release, to
/// its date or earlier: a test compares it with the newest release in CHANGELOG.md.
const SOURCE_DATE: u64 = 1_793_491_200;

/// The date of the build, in Unix seconds: `SOURCE_DATE_EPOCH` at compile time, which reproducible builds set to the
/// date of the sources. [reproducible-builds.org]
const BUILD_DATE: u64 = match option_env!("SOURCE_DATE_EPOCH") {
    Some(text) => later(parse(text.as_bytes()), SOURCE_DATE),
    None => SOURCE_DATE,
};

static FLOOR: TimeFloor = TimeFloor::new(BUILD_DATE);

/// When the clock was read first.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The current time in Unix seconds: that of the system, or the floor if that is later.
pub(crate) fn unix_now() -> u64 {
    FLOOR.now(system_now(), START.elapsed())
}

/// Raises the floor to `time`, in Unix seconds, which must have been proved to have passed.
pub(crate) fn raise_floor(time: u64) {
    FLOOR.raise(time, START.elapsed());
}

/// How far the system's clock is behind the floor; `None` if it is not, or by no more than [`CLOCK_SKEW`].
pub(crate) fn clock_behind_floor() -> Option<ClockBehind> {
    FLOOR.behind(system_now(), START.elapsed())
}

/// The system's time, in Unix seconds; 0 if it is before 1970.
fn system_now() -> u64 {
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
pub(crate) const LAST_READABLE: u64 = 253_402_300_799;

/// A time that must have passed, as it was at [`START`]. It only rises.
struct TimeFloor(AtomicU64);

/// A clock that is behind the floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClockBehind {
    clock: u64,
    floor: u64,
}

impl TimeFloor {
    const fn new(time: u64) -> Self {
        Self(AtomicU64::new(time))
    }

    /// The floor when `elapsed` has passed since [`START`].
    fn after(&self, elapsed: Duration) -> u64 {
        let at_start = self.0.load(Ordering::Relaxed);
        at_start.saturating_add(elapsed.as_secs())
    }

    fn now(&self, system: u64, elapsed: Duration) -> u64 {
        system.max(self.after(elapsed))
    }

    fn raise(&self, time: u64, elapsed: Duration) {
        // The same second as in `after`, so that the floor is `time` at once. It may be a second ahead afterwards.
        let at_start = time.saturating_sub(elapsed.as_secs());
        self.0.fetch_max(at_start, Ordering::Relaxed);
    }

    fn behind(&self, system: u64, elapsed: Duration) -> Option<ClockBehind> {
        let floor = self.after(elapsed);
        (system.saturating_add(CLOCK_SKEW) < floor).then_some(ClockBehind {
            clock: system,
            floor,
        })
    }
}

impl fmt::Display for ClockBehind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the clock of this machine says {}, but it is {} or later",
            readable_time(self.clock),
            readable_time(self.floor)
        )
    }
}

const fn later(one: u64, other: u64) -> u64 {
    if one > other { one } else { other }
}

/// The number in decimal digits; 0 for any other text.
const fn parse(mut digits: &[u8]) -> u64 {
    let mut number = 0_u64;
    while let [digit @ b'0'..=b'9', rest @ ..] = digits {
        number = number
            .saturating_mul(10)
            .saturating_add((*digit - b'0') as u64);
        digits = rest;
    }
    if digits.is_empty() { number } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_has_a_readable_form() {
        assert_eq!(readable_time(1_800_000_000), "2027-01-15T08:00:00Z");
        assert_eq!(readable_time(u64::MAX), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_make_time_go_back() {
        let floor = TimeFloor::new(1_000_000);
        let none = Duration::ZERO;
        assert_eq!(floor.now(0, none), 1_000_000);
        assert_eq!(floor.now(1_000_001, none), 1_000_001);
        floor.raise(2_000_000, none);
        assert_eq!(floor.now(1_999_999, none), 2_000_000);
        floor.raise(1_500_000, none);
        assert_eq!(floor.now(0, none), 2_000_000, "it only rises");
    }

    /// Otherwise no back-off would end while the clock is behind.
    #[test]
    fn time_passes_while_the_clock_is_behind() {
        let floor = TimeFloor::new(1_000_000);
        let after = Duration::from_millis;
        assert_eq!(floor.now(0, after(59_999)), 1_000_059);
        assert_eq!(floor.now(0, after(60_000)), 1_000_060);
        floor.raise(2_000_000, after(60_500));
        assert_eq!(floor.now(0, after(60_500)), 2_000_000, "at once");
        assert_eq!(floor.now(0, after(62_000)), 2_000_002);
        // What has passed since cannot be raised again.
        floor.raise(2_000_000, after(100_000));
        assert_eq!(floor.now(0, after(100_000)), 2_000_040);
        assert_eq!(floor.now(3_000_000, after(100_000)), 3_000_000);
        let behind = floor.behind(1_000_000, after(100_000)).unwrap();
        assert_eq!(behind.floor, 2_000_040);
    }

    #[test]
    fn a_clock_behind_the_floor_is_reported_with_both_dates() {
        let floor = TimeFloor::new(1_764_374_400);
        let behind = |system| floor.behind(system, Duration::ZERO);
        assert_eq!(behind(1_764_374_400), None);
        assert_eq!(behind(1_764_374_400 - CLOCK_SKEW), None);
        assert_eq!(
            behind(1_577_836_800).unwrap().to_string(),
            "the clock of this machine says 2020-01-01T00:00:00Z, but it is 2025-11-29T00:00:00Z or later"
        );
        assert!(behind(1_764_374_399 - CLOCK_SKEW).is_some());
    }

    #[test]
    fn the_date_of_the_build_is_a_decimal_number() {
        assert_eq!(parse(b"1764374400"), 1_764_374_400);
        for wrong in [&b""[..], b"-1", b"1764374400 ", b"0x10", b"today"] {
            assert_eq!(parse(wrong), 0, "{wrong:?}");
        }
        assert!(unix_now() >= SOURCE_DATE);
    }

    /// The date of the newest release in a changelog, in Unix seconds; `None` before the first.
    fn newest_release(changelog: &str) -> Option<u64> {
        let heads = changelog
            .lines()
            .filter_map(|line| line.strip_prefix("## ["));
        let mut dates = heads.filter_map(|head| head.split_once("] - ").map(|(_, date)| date));
        let date = format!("{}T00:00:00Z", dates.next()?.trim());
        let time = humantime::parse_rfc3339(&date).expect("a date in a heading of the changelog");
        Some(
            time.duration_since(UNIX_EPOCH)
                .expect("after 1970")
                .as_secs(),
        )
    }

    /// Whether the floor of a release is neither too old to be of use, nor ahead of it.
    fn is_date_of(source: u64, release: u64) -> bool {
        const MAX_AGE: u64 = 60 * 86_400;
        source <= release && release - source <= MAX_AGE
    }

    #[test]
    fn the_date_of_the_source_is_raised_with_each_release() {
        let changelog = "## [Unreleased]\n\n## [1.1.0] - 2027-01-15\n\n## [1.0.0] - 2026-11-20\n";
        let release = newest_release(changelog).unwrap();
        assert_eq!(readable_time(release), "2027-01-15T00:00:00Z");
        assert_eq!(newest_release("## [Unreleased]\n"), None);
        let day = 86_400;
        assert!(is_date_of(release, release) && is_date_of(release - 60 * day, release));
        assert!(!is_date_of(release - 61 * day, release) && !is_date_of(release + day, release));
        if let Some(release) = newest_release(include_str!("../../../CHANGELOG.md")) {
            assert!(
                is_date_of(SOURCE_DATE, release),
                "SOURCE_DATE is {}: set it to the date of the release, {}",
                readable_time(SOURCE_DATE),
                readable_time(release)
            );
        }
    }
}
