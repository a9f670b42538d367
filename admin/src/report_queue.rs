//! The queue of requests for reports: batching, a rate limit, and fairness by source address (max-min).
//!
//! A quote takes about 39 ms on TDX hardware and the machine makes them one after another, so unlimited requests
//! would starve the renewal of the sidecar's own certificate. So there is one quote at a time, and a minimum
//! interval between two. A quote covers any number of nonces: a request that arrives in the meantime waits, and
//! all that wait for the same kind of report, with or without nonces, get it from one quote. If too many wait, a
//! source with fewer requests takes a place from the one with the most.
//!
//! This is a sans-I/O state machine with the time as an argument; `reports` carries out its decisions. It must
//! never permit two quotes within the interval, whatever the requests and their outcomes are.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use hyper::body::Bytes;
use tokio::time::Instant;

use crate::nonce::Nonce;

/// Longest interval that a request waits for; after that, a client has to come back. A request waits for
/// at most two intervals and three quotes, which together is less than a connection's lifetime.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// The source that a client's requests and connections count for: an IPv4 address, or the first 64 bits of an IPv6 address, which is the
/// smallest network that a host gets. With each address on its own, one host could take all places.
#[must_use]
pub fn source_of(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

/// What to do with one request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision<T> {
    /// Respond with this report, which is younger than the interval.
    Cached(Bytes),
    /// The request waits.
    Queued {
        /// Whether nothing makes batches at the moment, so that it must be started.
        start: bool,
        /// The request that has lost its place, to be rejected as by [`Decision::RetryAfter`].
        displaced: Option<T>,
    },
    /// Reject the request; a retry makes sense after this time at the earliest.
    RetryAfter(Duration),
}

/// Requests that one quote answers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    /// What the quote must cover: each nonce once. Empty for a report without nonces.
    pub(crate) nonces: Vec<Nonce>,
}

struct Waiting<T> {
    nonce: Option<Nonce>,
    source: IpAddr,
    waiter: T,
}

enum State {
    Idle,
    InFlight {
        with_nonces: bool,
    },
    CoolingDown {
        since: Instant,
        /// The last report, unless it was made for nonces or failed.
        report: Option<Bytes>,
    },
}

/// Decides when a quote is made, and for which requests. `T` is how a request is answered.
pub(crate) struct ReportQueue<T> {
    interval: Duration,
    capacity: usize,
    state: State,
    /// Whether batches are being made: from the first request until the queue is empty.
    driven: bool,
    waiting: VecDeque<Waiting<T>>,
    /// The requests that the quote in flight answers.
    flying: Vec<Waiting<T>>,
}

impl<T> ReportQueue<T> {
    /// Creates an empty queue for `capacity` requests. `interval` is the minimum time between the end of one
    /// quote and the start of the next.
    pub(crate) fn new(interval: Duration, capacity: usize) -> Self {
        Self {
            interval,
            capacity,
            state: State::Idle,
            driven: false,
            waiting: VecDeque::new(),
            flying: Vec::new(),
        }
    }

    /// Decides on a request from `source`, for `nonce` if there is one. `is_gone` says whether a client has
    /// disconnected.
    pub(crate) fn request(
        &mut self,
        nonce: Option<Nonce>,
        source: IpAddr,
        waiter: T,
        now: Instant,
        is_gone: impl Fn(&T) -> bool,
    ) -> Decision<T> {
        let remaining = self.remaining_cooldown(now);
        if let (
            None,
            Some(_),
            State::CoolingDown {
                report: Some(report),
                ..
            },
        ) = (&nonce, remaining, &self.state)
        {
            return Decision::Cached(report.clone());
        }
        let joins = nonce.is_none() && matches!(self.state, State::InFlight { with_nonces: false });
        let wait = match self.state {
            State::InFlight { .. } if joins => Duration::ZERO,
            // When the flight will end is unknown, but the interval begins no earlier than now.
            State::InFlight { .. } => self.interval,
            State::Idle | State::CoolingDown { .. } => remaining.unwrap_or_default(),
        };
        if wait > MAX_WAIT {
            return Decision::RetryAfter(wait);
        }
        self.waiting.retain(|other| !is_gone(&other.waiter));
        self.flying.retain(|other| !is_gone(&other.waiter));
        let displaced = if self.waiting.len() + self.flying.len() < self.capacity {
            None
        } else {
            match self.displace_for(source) {
                Some(displaced) => Some(displaced.waiter),
                None => return Decision::RetryAfter(self.interval),
            }
        };
        let request = Waiting {
            nonce,
            source,
            waiter,
        };
        if joins {
            self.flying.push(request);
        } else {
            self.waiting.push_back(request);
        }
        Decision::Queued {
            start: !std::mem::replace(&mut self.driven, true),
            displaced,
        }
    }

    /// Removes the newest request of the source that has the most waiting, if that leaves it with no fewer than
    /// `source` then has.
    fn displace_for(&mut self, source: IpAddr) -> Option<Waiting<T>> {
        let mut counts = HashMap::<IpAddr, usize>::new();
        for request in self.waiting.iter().chain(&self.flying) {
            *counts.entry(request.source).or_default() += 1;
        }
        let own = counts.get(&source).copied().unwrap_or(0);
        let most = counts.values().copied().max()?;
        if own + 1 > most.saturating_sub(1) {
            return None;
        }
        let newest = |request: &Waiting<T>| counts.get(&request.source) == Some(&most);
        if let Some(position) = self.waiting.iter().rposition(newest) {
            return self.waiting.remove(position);
        }
        let position = self.flying.iter().rposition(newest)?;
        Some(self.flying.remove(position))
    }

    /// How long to wait before [`next_batch`](Self::next_batch).
    pub(crate) fn cooldown(&self, now: Instant) -> Duration {
        self.remaining_cooldown(now).unwrap_or_default()
    }

    /// Begins the next quote: for the request that has waited longest, and all others of its kind. `None` if no
    /// request waits; the next one has to start the making of batches again. Must be called after the cooldown.
    pub(crate) fn next_batch(&mut self) -> Option<Batch> {
        let Some(first) = self.waiting.front() else {
            self.driven = false;
            return None;
        };
        let with_nonces = first.nonce.is_some();
        let (batch, rest): (Vec<_>, _) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|request| request.nonce.is_some() == with_nonces);
        self.waiting = rest.into();
        let mut nonces: Vec<Nonce> = Vec::new();
        for nonce in batch.iter().filter_map(|request| request.nonce.as_ref()) {
            if !nonces.contains(nonce) {
                nonces.push(nonce.clone());
            }
        }
        self.flying = batch;
        self.state = State::InFlight { with_nonces };
        Some(Batch { nonces })
    }

    /// Records the end of the flight, successful (`report`) or failed, and returns the requests that it answers.
    /// Either way the interval begins.
    pub(crate) fn finish(&mut self, report: Option<Bytes>, now: Instant) -> Vec<T> {
        let shared = matches!(self.state, State::InFlight { with_nonces: false });
        self.state = State::CoolingDown {
            since: now,
            report: report.filter(|_| shared),
        };
        let flying = std::mem::take(&mut self.flying);
        flying.into_iter().map(|request| request.waiter).collect()
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
    const CAPACITY: usize = 8;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn nonce(byte: u8) -> Option<Nonce> {
        Some(Nonce::from_hex(&format!("{byte:02x}")).unwrap())
    }

    fn byte(number: u32) -> u8 {
        u8::try_from(number).unwrap()
    }

    fn report() -> Option<Bytes> {
        Some(Bytes::from_static(b"{}"))
    }

    fn source(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    /// A queue whose requests are numbers, at a time that the test sets.
    struct Test {
        queue: ReportQueue<u32>,
        now: Instant,
        gone: Vec<u32>,
    }

    impl Test {
        fn new(interval: Duration) -> Self {
            Self {
                queue: ReportQueue::new(interval, CAPACITY),
                now: Instant::now(),
                gone: Vec::new(),
            }
        }

        fn request(&mut self, number: u32, nonce: Option<Nonce>, from: u8) -> Decision<u32> {
            let gone = &self.gone;
            let is_gone = |waiter: &u32| gone.contains(waiter);
            self.queue
                .request(nonce, source(from), number, self.now, is_gone)
        }

        fn nonces(&mut self) -> Option<Vec<Nonce>> {
            assert_eq!(self.queue.cooldown(self.now), Duration::ZERO);
            self.queue.next_batch().map(|batch| batch.nonces)
        }

        fn finish(&mut self, report: Option<Bytes>) -> Vec<u32> {
            self.now += ms(40);
            self.queue.finish(report, self.now)
        }
    }

    const STARTS: Decision<u32> = Decision::Queued {
        start: true,
        displaced: None,
    };
    const WAITS: Decision<u32> = Decision::Queued {
        start: false,
        displaced: None,
    };

    #[test]
    fn nonces_that_wait_share_the_next_quote() {
        let mut test = Test::new(INTERVAL);
        assert_eq!(test.request(1, nonce(1), 1), STARTS);
        assert_eq!(test.nonces(), Some(vec![nonce(1).unwrap()]));
        for (number, byte) in [(2, 2), (3, 3), (4, 2)] {
            assert_eq!(test.request(number, nonce(byte), 1), WAITS);
        }
        // The same nonce as in flight: its quote has been requested already.
        assert_eq!(test.request(5, nonce(1), 1), WAITS);
        assert_eq!(test.finish(report()), [1]);
        assert_eq!(test.queue.cooldown(test.now), INTERVAL);
        test.now += INTERVAL;
        let covered = [2, 3, 1].map(|byte| nonce(byte).unwrap());
        assert_eq!(test.nonces().unwrap(), covered);
        assert_eq!(test.finish(report()), [2, 3, 4, 5]);
        test.now += INTERVAL;
        assert_eq!(test.nonces(), None);
        assert_eq!(test.request(6, nonce(9), 1), STARTS);
    }

    #[test]
    fn a_report_without_nonce_is_shared_and_cached_for_the_interval() {
        let mut test = Test::new(INTERVAL);
        assert_eq!(test.request(1, None, 1), STARTS);
        assert_eq!(test.nonces(), Some(vec![]));
        assert_eq!(test.request(2, None, 2), WAITS);
        assert_eq!(test.finish(report()), [1, 2]);
        let cached = Decision::Cached(Bytes::from_static(b"{}"));
        assert_eq!(test.request(3, None, 1), cached);
        test.now += ms(999);
        assert_eq!(test.request(4, None, 1), cached);
        test.now += ms(1);
        assert_eq!(test.request(5, None, 1), WAITS);
        assert_eq!(test.nonces(), Some(vec![]));
    }

    #[test]
    fn both_kinds_are_answered_in_the_order_of_their_first_request() {
        let mut test = Test::new(INTERVAL);
        assert_eq!(test.request(1, nonce(1), 1), STARTS);
        assert_eq!(test.nonces().unwrap().len(), 1);
        test.request(2, None, 1);
        test.request(3, nonce(3), 1);
        test.request(4, None, 1);
        // A report for nonces is not shown to others.
        assert_eq!(test.finish(report()), [1]);
        assert_eq!(test.request(5, None, 1), WAITS);
        test.now += INTERVAL;
        assert_eq!(test.nonces(), Some(vec![]));
        assert_eq!(test.request(6, nonce(6), 1), WAITS);
        assert_eq!(test.finish(report()), [2, 4, 5]);
        test.now += INTERVAL;
        let covered = [3, 6].map(|byte| nonce(byte).unwrap());
        assert_eq!(test.nonces().unwrap(), covered);
        assert_eq!(test.finish(None), [3, 6]);
    }

    #[test]
    fn a_failure_starts_the_interval_and_is_not_cached() {
        let mut test = Test::new(INTERVAL);
        test.request(1, None, 1);
        test.nonces();
        test.request(2, nonce(2), 1);
        assert_eq!(test.finish(None), [1]);
        assert_eq!(test.queue.cooldown(test.now + ms(1)), ms(999));
        assert_eq!(test.request(3, None, 1), WAITS);
    }

    #[test]
    fn long_intervals_are_not_waited_for() {
        let hour = Duration::from_secs(3_600);
        let mut test = Test::new(hour);
        assert_eq!(test.request(1, None, 1), STARTS);
        test.nonces();
        assert_eq!(test.request(2, None, 1), WAITS, "it joins the flight");
        assert_eq!(test.request(3, nonce(3), 1), Decision::RetryAfter(hour));
        assert_eq!(test.finish(None), [1, 2]);
        test.now += ms(1_000);
        let rest = hour - ms(1_000);
        assert_eq!(test.request(4, None, 1), Decision::RetryAfter(rest));
        test.now += rest - MAX_WAIT;
        assert_eq!(test.request(5, None, 1), WAITS);
        let mut test = Test::new(Duration::MAX);
        test.request(1, None, 1);
        test.nonces();
        test.finish(report());
        assert_eq!(
            test.request(2, nonce(2), 1),
            Decision::RetryAfter(Duration::MAX)
        );
    }

    #[test]
    fn a_full_queue_is_shared_by_sources() {
        let mut test = Test::new(INTERVAL);
        for number in 0..8 {
            let decision = test.request(number, nonce(byte(number)), 1);
            assert!(matches!(
                decision,
                Decision::Queued {
                    displaced: None,
                    ..
                }
            ));
        }
        assert_eq!(
            test.request(10, nonce(10), 1),
            Decision::RetryAfter(INTERVAL)
        );
        // Another source gets up to half of the places, from the newest requests of the first.
        for (number, lost) in [(20, 7), (21, 6), (22, 5)] {
            let displaced = Decision::Queued {
                start: false,
                displaced: Some(lost),
            };
            assert_eq!(test.request(number, nonce(byte(number)), 2), displaced);
        }
        let full = test.request(23, nonce(23), 2);
        assert_eq!(
            full,
            Decision::Queued {
                start: false,
                displaced: Some(4)
            }
        );
        assert_eq!(
            test.request(24, nonce(24), 2),
            Decision::RetryAfter(INTERVAL)
        );
        assert_eq!(
            test.request(11, nonce(11), 1),
            Decision::RetryAfter(INTERVAL)
        );
        // A third one still gets in.
        let third = test.request(30, nonce(30), 3);
        assert!(matches!(
            third,
            Decision::Queued {
                displaced: Some(_),
                ..
            }
        ));
        // A client that has left makes room.
        test.gone.push(0);
        assert_eq!(test.request(12, nonce(12), 1), WAITS);
    }

    #[test]
    fn a_network_of_ipv6_is_one_source() {
        let of = |text: &str| source_of(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:0:0:2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    #[test]
    fn those_that_join_a_flight_count() {
        let mut test = Test::new(INTERVAL);
        test.request(0, None, 1);
        test.nonces();
        for number in 1..8 {
            assert_eq!(test.request(number, None, 1), WAITS);
        }
        assert_eq!(test.request(8, None, 1), Decision::RetryAfter(INTERVAL));
        let displaced = Decision::Queued {
            start: false,
            displaced: Some(7),
        };
        assert_eq!(test.request(9, None, 2), displaced);
        assert_eq!(test.finish(report()), [0, 1, 2, 3, 4, 5, 6, 9]);
    }

    #[test]
    fn many_nonces_get_one_quote_per_interval() {
        let mut test = Test::new(INTERVAL);
        let (start, mut starts, mut ends_at) = (test.now, Vec::new(), None);
        // 200 requests per second for 10 s; a quote takes 40 ms.
        for tick in 0..2_000_u32 {
            test.now = start + ms(5) * tick;
            if ends_at.is_some_and(|end| test.now >= end) {
                test.queue.finish(report(), test.now);
                ends_at = None;
            }
            test.request(tick, nonce(byte(tick % 251)), 1);
            let ready = test.queue.cooldown(test.now).is_zero();
            if ends_at.is_none() && ready && test.queue.next_batch().is_some() {
                starts.push(test.now);
                ends_at = Some(test.now + ms(40));
            }
        }
        assert_eq!(starts.len(), 10);
        assert!(starts.windows(2).all(|pair| pair[1] - pair[0] == ms(1_040)));
    }

    #[test]
    fn handles_a_clock_step_backwards() {
        let mut test = Test::new(INTERVAL);
        test.request(1, None, 1);
        test.nonces();
        test.finish(None);
        assert_eq!(test.queue.cooldown(test.now - ms(30)), INTERVAL);
    }
}
