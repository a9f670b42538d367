//! Single flight plus rate limit for quotes: one at a time, and a minimum interval between two.
//!
//! A quote takes about 39 ms on TDX hardware and the machine makes them one after another, so
//! unlimited requests would starve the renewal of the sidecar's own certificate. This is a sans-I/O
//! state machine with the time as an argument; `reports` carries out its decisions. It must never
//! permit two quotes within the interval, whatever the requests and their outcomes are.

use std::time::Duration;

use hyper::body::Bytes;
use tokio::time::Instant;

use crate::nonce::Nonce;

/// What to do with one request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Respond with this report, which is younger than the interval.
    Cached(Bytes),
    /// Wait for the quote in flight, which answers this request too.
    Join,
    /// Make a quote, and call [`QuoteLimiter::finish`] whether it succeeds or fails.
    Start,
    /// Reject the request; a retry makes sense after this time at the earliest.
    RetryAfter(Duration),
}

enum State {
    Idle,
    InFlight {
        nonce: Option<Nonce>,
    },
    CoolingDown {
        since: Instant,
        /// The last report, unless it was made for a nonce or failed.
        report: Option<Bytes>,
    },
}

/// Decides when a quote may be made.
pub(crate) struct QuoteLimiter {
    interval: Duration,
    state: State,
}

impl QuoteLimiter {
    /// Creates an idle limiter. `interval` is the minimum time between the end of one quote and the
    /// start of the next.
    pub(crate) fn new(interval: Duration) -> Self {
        Self {
            interval,
            state: State::Idle,
        }
    }

    /// Decides on a request for a report, made for `nonce` if there is one.
    pub(crate) fn request(&mut self, nonce: Option<&Nonce>, now: Instant) -> Decision {
        match (&self.state, self.remaining_cooldown(now)) {
            (
                State::InFlight {
                    nonce: in_flight_nonce,
                },
                _,
            ) if in_flight_nonce.as_ref() == nonce => Decision::Join,
            // When the flight will end is unknown, but the interval begins no earlier than now.
            (State::InFlight { .. }, _) => Decision::RetryAfter(self.interval),
            (State::CoolingDown { report, .. }, Some(remaining)) => match (nonce, report) {
                (None, Some(report)) => Decision::Cached(report.clone()),
                _ => Decision::RetryAfter(remaining),
            },
            (State::Idle | State::CoolingDown { .. }, _) => {
                self.state = State::InFlight {
                    nonce: nonce.cloned(),
                };
                Decision::Start
            }
        }
    }

    /// Records the end of the flight, successful (`report`) or failed. Either way the interval
    /// begins.
    pub(crate) fn finish(&mut self, report: Option<Bytes>, now: Instant) {
        let shared = matches!(self.state, State::InFlight { nonce: None });
        self.state = State::CoolingDown {
            since: now,
            report: report.filter(|_| shared),
        };
    }

    /// The rest of the interval; `None` once it is over.
    fn remaining_cooldown(&self, now: Instant) -> Option<Duration> {
        let State::CoolingDown { since, .. } = self.state else {
            return None;
        };
        let remaining = self
            .interval
            .saturating_sub(now.saturating_duration_since(since));
        (!remaining.is_zero()).then_some(remaining)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(1_000);

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn nonce(byte: u8) -> Nonce {
        Nonce::from_hex(&format!("{byte:02x}")).unwrap()
    }

    fn report() -> Option<Bytes> {
        Some(Bytes::from_static(b"{}"))
    }

    /// A limiter whose flight for this nonce has just ended.
    fn cooling_down(
        in_flight_nonce: Option<&Nonce>,
        made: Option<Bytes>,
    ) -> (QuoteLimiter, Instant) {
        let (mut limiter, start) = (QuoteLimiter::new(INTERVAL), Instant::now());
        assert_eq!(limiter.request(in_flight_nonce, start), Decision::Start);
        let end = start + ms(40);
        limiter.finish(made, end);
        (limiter, end)
    }

    #[test]
    fn equal_requests_join_the_flight_and_others_are_limited() {
        let now = Instant::now();
        for (in_flight, other) in [(None, Some(nonce(1))), (Some(nonce(1)), None)] {
            let mut limiter = QuoteLimiter::new(INTERVAL);
            assert_eq!(limiter.request(in_flight.as_ref(), now), Decision::Start);
            assert_eq!(limiter.request(in_flight.as_ref(), now), Decision::Join);
            assert_eq!(
                limiter.request(other.as_ref(), now),
                Decision::RetryAfter(INTERVAL)
            );
            let another = nonce(2);
            assert_eq!(
                limiter.request(Some(&another), now),
                Decision::RetryAfter(INTERVAL)
            );
        }
    }

    #[test]
    fn a_report_without_nonce_is_cached_for_the_interval() {
        let (mut limiter, end) = cooling_down(None, report());
        let cached = Decision::Cached(Bytes::from_static(b"{}"));
        assert_eq!(limiter.request(None, end), cached);
        assert_eq!(limiter.request(None, end + ms(999)), cached);
        assert_eq!(limiter.request(None, end + ms(1_000)), Decision::Start);
    }

    #[test]
    fn a_report_for_a_nonce_is_never_cached() {
        let (mut limiter, end) = cooling_down(Some(&nonce(1)), report());
        for requested in [None, Some(nonce(2)), Some(nonce(1))] {
            let decision = limiter.request(requested.as_ref(), end + ms(400));
            assert_eq!(decision, Decision::RetryAfter(ms(600)));
        }
        assert_eq!(
            limiter.request(Some(&nonce(1)), end + INTERVAL),
            Decision::Start
        );
    }

    #[test]
    fn a_failure_starts_the_interval() {
        let (mut limiter, end) = cooling_down(None, None);
        let decision = limiter.request(None, end + ms(1));
        assert_eq!(decision, Decision::RetryAfter(ms(999)));
        assert_eq!(limiter.request(None, end + INTERVAL), Decision::Start);
    }

    #[test]
    fn a_hanging_flight_blocks_other_quotes() {
        let (mut limiter, start) = (QuoteLimiter::new(INTERVAL), Instant::now());
        assert_eq!(limiter.request(None, start), Decision::Start);
        for seconds in [1, 5, 14] {
            let now = start + Duration::from_secs(seconds);
            assert_eq!(limiter.request(None, now), Decision::Join);
            assert_eq!(
                limiter.request(Some(&nonce(1)), now),
                Decision::RetryAfter(INTERVAL)
            );
        }
    }

    #[test]
    fn many_nonces_get_one_quote_per_interval() {
        let (mut limiter, start) = (QuoteLimiter::new(INTERVAL), Instant::now());
        let (mut starts, mut ends_at) = (Vec::new(), None);
        // 200 requests per second for 10 s; a quote takes 40 ms.
        for tick in 0..2_000_u64 {
            let now = start + ms(5 * tick);
            if ends_at.is_some_and(|end| now >= end) {
                limiter.finish(report(), now);
                ends_at = None;
            }
            let requested = nonce(u8::try_from(tick % 251).unwrap());
            if limiter.request(Some(&requested), now) == Decision::Start {
                starts.push(now);
                ends_at = Some(now + ms(40));
            }
        }
        assert_eq!(starts.len(), 10);
        assert!(starts.windows(2).all(|pair| pair[1] - pair[0] == ms(1_040)));
    }

    #[test]
    fn handles_a_clock_step_backwards_and_an_infinite_interval() {
        let (mut limiter, end) = cooling_down(None, None);
        let decision = limiter.request(None, end - ms(30));
        assert_eq!(decision, Decision::RetryAfter(INTERVAL));
        let mut limiter = QuoteLimiter::new(Duration::MAX);
        assert_eq!(limiter.request(None, end), Decision::Start);
        limiter.finish(None, end);
        assert_eq!(
            limiter.request(None, end),
            Decision::RetryAfter(Duration::MAX)
        );
    }
}
