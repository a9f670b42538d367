//! Who gets a quote, and when: one at a time, and never two within the interval.
//!
//! Bytes and the time in, a decision out; [`crate::reports`] does what it says.

use std::time::Duration;

use hyper::body::Bytes;
use tokio::time::Instant;

use crate::nonce::Nonce;

/// The decision on one request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// This report is young enough.
    Held(Bytes),
    /// What it asks for is being made: wait for it.
    Join,
    /// Have it made, and say [`Desk::ended`] whatever becomes of it.
    Begin,
    /// Come back after this time at the earliest.
    Later(Duration),
}

enum State {
    Free,
    Busy {
        nonce: Option<Nonce>,
    },
    Resting {
        since: Instant,
        /// What was made last, unless it was for a nonce or failed.
        report: Option<Bytes>,
    },
}

/// The one place where quotes are given out.
pub(crate) struct Desk {
    interval: Duration,
    state: State,
}

impl Desk {
    /// Free, with this time between the end of one quote and the start of the next.
    pub(crate) fn new(interval: Duration) -> Self {
        Self {
            interval,
            state: State::Free,
        }
    }

    /// Somebody asks.
    pub(crate) fn ask(&mut self, nonce: Option<&Nonce>, now: Instant) -> Decision {
        match (&self.state, self.rest(now)) {
            (State::Busy { nonce: made_for }, _) if made_for.as_ref() == nonce => Decision::Join,
            // When it will end is not known: not before now.
            (State::Busy { .. }, _) => Decision::Later(self.interval),
            (State::Resting { report, .. }, Some(left)) => match (nonce, report) {
                (None, Some(report)) => Decision::Held(report.clone()),
                _ => Decision::Later(left),
            },
            (State::Free | State::Resting { .. }, _) => {
                self.state = State::Busy {
                    nonce: nonce.cloned(),
                };
                Decision::Begin
            }
        }
    }

    /// The quote has been made (`report`) or has failed. Either way the interval begins.
    pub(crate) fn ended(&mut self, report: Option<Bytes>, now: Instant) {
        let shared = matches!(self.state, State::Busy { nonce: None });
        self.state = State::Resting {
            since: now,
            report: report.filter(|_| shared),
        };
    }

    /// What is left of the interval.
    fn rest(&self, now: Instant) -> Option<Duration> {
        let State::Resting { since, .. } = self.state else {
            return None;
        };
        let left = self
            .interval
            .saturating_sub(now.saturating_duration_since(since));
        (!left.is_zero()).then_some(left)
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

    /// A desk whose flight for `made_for` has just ended.
    fn rested(made_for: Option<&Nonce>, made: Option<Bytes>) -> (Desk, Instant) {
        let (mut desk, start) = (Desk::new(INTERVAL), Instant::now());
        assert_eq!(desk.ask(made_for, start), Decision::Begin);
        let end = start + ms(40);
        desk.ended(made, end);
        (desk, end)
    }

    #[test]
    fn a_flight_is_joined_by_those_who_ask_for_the_same() {
        let now = Instant::now();
        for (flying, other) in [(None, Some(nonce(1))), (Some(nonce(1)), None)] {
            let mut desk = Desk::new(INTERVAL);
            assert_eq!(desk.ask(flying.as_ref(), now), Decision::Begin);
            assert_eq!(desk.ask(flying.as_ref(), now), Decision::Join);
            assert_eq!(desk.ask(other.as_ref(), now), Decision::Later(INTERVAL));
            let another = nonce(2);
            assert_eq!(desk.ask(Some(&another), now), Decision::Later(INTERVAL));
        }
    }

    #[test]
    fn a_report_without_nonce_is_shared_while_it_is_young() {
        let (mut desk, end) = rested(None, report());
        let held = Decision::Held(Bytes::from_static(b"{}"));
        assert_eq!(desk.ask(None, end), held);
        assert_eq!(desk.ask(None, end + ms(999)), held);
        assert_eq!(desk.ask(None, end + ms(1_000)), Decision::Begin);
    }

    #[test]
    fn a_report_for_a_nonce_is_nobody_elses() {
        let (mut desk, end) = rested(Some(&nonce(1)), report());
        for asked in [None, Some(nonce(2)), Some(nonce(1))] {
            let decision = desk.ask(asked.as_ref(), end + ms(400));
            assert_eq!(decision, Decision::Later(ms(600)));
        }
        assert_eq!(desk.ask(Some(&nonce(1)), end + INTERVAL), Decision::Begin);
    }

    #[test]
    fn a_failure_uses_the_interval_up() {
        let (mut desk, end) = rested(None, None);
        let decision = desk.ask(None, end + ms(1));
        assert_eq!(decision, Decision::Later(ms(999)));
        assert_eq!(desk.ask(None, end + INTERVAL), Decision::Begin);
    }

    #[test]
    fn a_flight_that_hangs_keeps_its_place() {
        let (mut desk, start) = (Desk::new(INTERVAL), Instant::now());
        assert_eq!(desk.ask(None, start), Decision::Begin);
        for seconds in [1, 5, 14] {
            let now = start + Duration::from_secs(seconds);
            assert_eq!(desk.ask(None, now), Decision::Join);
            assert_eq!(desk.ask(Some(&nonce(1)), now), Decision::Later(INTERVAL));
        }
    }

    #[test]
    fn a_crowd_of_nonces_gets_one_quote_an_interval() {
        let (mut desk, start) = (Desk::new(INTERVAL), Instant::now());
        let (mut begun, mut ends) = (Vec::new(), None);
        // 200 requests a second for 10 s; a quote takes 40 ms.
        for tick in 0..2_000_u64 {
            let now = start + ms(5 * tick);
            if ends.is_some_and(|end| now >= end) {
                desk.ended(report(), now);
                ends = None;
            }
            let asked = nonce(u8::try_from(tick % 251).unwrap());
            if desk.ask(Some(&asked), now) == Decision::Begin {
                begun.push(now);
                ends = Some(now + ms(40));
            }
        }
        assert_eq!(begun.len(), 10);
        assert!(begun.windows(2).all(|pair| pair[1] - pair[0] == ms(1_040)));
    }

    #[test]
    fn a_clock_that_steps_back_and_an_endless_interval_do_no_harm() {
        let (mut desk, end) = rested(None, None);
        let decision = desk.ask(None, end - ms(30));
        assert_eq!(decision, Decision::Later(INTERVAL));
        let mut desk = Desk::new(Duration::MAX);
        assert_eq!(desk.ask(None, end), Decision::Begin);
        desk.ended(None, end);
        assert_eq!(desk.ask(None, end), Decision::Later(Duration::MAX));
    }
}
