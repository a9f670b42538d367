//! Saturating-counter predictor, as branch predictors use it: whether more bytes arrive soon
//! after a transfer, from what followed the last ones.

use std::time::{Duration, Instant};

use crate::io::backoff::Backoff;
use crate::io::buffer;

/// How long a shard polls after a transfer, and what counts as soon: about the time that
/// falling asleep and waking take. Polling longer costs more than it saves.
pub(super) const POLL_WINDOW: Duration = Duration::from_micros(100);
/// Sessions that moved bytes last. With more, a shard that wakes has several to serve, and
/// sleeping costs less than polling.
const RECENT_SESSIONS: usize = 2;
/// The counter's maximum. The shard polls from half of it.
const MAX_CONFIDENCE: u8 = 16;
/// What an arrival that was not soon takes from the counter; one that was adds 1. If fewer
/// than four in five are soon, the shard does not poll.
const MISS: u8 = 4;
/// Initial and maximum back-off after the poller was preempted: another thread wants this
/// core, and would delay the shard by a whole time slice for each poll.
const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// Where bytes were moved to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Direction {
    /// A query; its answer follows.
    ToServer,
    /// An answer; another query may follow.
    ToClient,
}

/// Bytes that a session has moved.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    /// A number that distinguishes the session from the shard's others.
    pub(crate) session: usize,
    pub(crate) direction: Direction,
    pub(crate) bytes: usize,
}

/// The predictor of one shard.
pub(super) struct ArrivalPredictor {
    /// The sessions that moved bytes last, the latest first.
    recent_sessions: [usize; RECENT_SESSIONS],
    last: Option<(Instant, Direction)>,
    /// That something arrives soon, after a query and after an answer.
    confidence: [u8; 2],
    backoff: Backoff,
    /// The end of the last back-off, and its length.
    backed_off: Option<(Instant, Duration)>,
}

impl ArrivalPredictor {
    pub(super) fn new() -> Self {
        Self {
            recent_sessions: Default::default(),
            last: None,
            confidence: [0; 2],
            backoff: Backoff::new(MIN_BACKOFF, MAX_BACKOFF),
            backed_off: None,
        }
    }

    /// Records a transfer. Returns whether polling for the next one is worth it.
    pub(super) fn observe(&mut self, transfer: Transfer, now: Instant) -> bool {
        let is_recent = self.is_recent(transfer.session);
        if let Some((then, direction)) = self.last.replace((now, transfer.direction)) {
            // A larger one belongs to a stream, whose reads are coalesced instead.
            let soon = is_recent && transfer.bytes < buffer::SMALL && now - then <= POLL_WINDOW;
            let confidence = self.confidence(direction);
            *confidence = match soon {
                true => confidence.saturating_add(1).min(MAX_CONFIDENCE),
                false => confidence.saturating_sub(MISS),
            };
        }
        is_recent
            && *self.confidence(transfer.direction) >= MAX_CONFIDENCE / 2
            && self.backed_off.is_none_or(|(end, _)| now >= end)
    }

    /// Backs off, since the shard was preempted while it polled: for longer if the last
    /// back-off has ended only recently.
    pub(super) fn preempted(&mut self, now: Instant) {
        let again = self
            .backed_off
            .is_some_and(|(end, length)| now.saturating_duration_since(end) < length);
        if !again {
            self.backoff.reset();
        }
        let length = self.backoff.next_delay();
        self.backed_off = Some((now + length, length));
    }

    /// The counter of what follows a transfer in this direction.
    fn confidence(&mut self, direction: Direction) -> &mut u8 {
        let [after_query, after_answer] = &mut self.confidence;
        match direction {
            Direction::ToServer => after_query,
            Direction::ToClient => after_answer,
        }
    }

    /// Whether the session is one of the last that moved bytes; it is from now on.
    fn is_recent(&mut self, session: usize) -> bool {
        let [last, before] = self.recent_sessions;
        if session != last {
            self.recent_sessions = [session, last];
        }
        session == last || session == before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_micros(40);
    const LONG: Duration = Duration::from_millis(1);

    struct Shard {
        predictor: ArrivalPredictor,
        now: Instant,
    }

    impl Shard {
        fn new() -> Self {
            Self {
                predictor: ArrivalPredictor::new(),
                now: Instant::now(),
            }
        }

        fn moves(
            &mut self,
            after: Duration,
            session: usize,
            direction: Direction,
            bytes: usize,
        ) -> bool {
            self.now += after;
            let transfer = Transfer {
                session,
                direction,
                bytes,
            };
            self.predictor.observe(transfer, self.now)
        }

        /// Rounds of a query and an answer; the predictions after the last two.
        fn exchanges(&mut self, rounds: usize, think: Duration, work: Duration) -> [bool; 2] {
            let mut predicted = [false; 2];
            for _ in 0..rounds {
                predicted = [
                    self.moves(think, 1, Direction::ToServer, 50),
                    self.moves(work, 1, Direction::ToClient, 90),
                ];
            }
            predicted
        }
    }

    #[test]
    fn polls_after_back_to_back_queries() {
        let mut shard = Shard::new();
        assert_eq!(shard.exchanges(4, SHORT, SHORT), [false, false]);
        assert_eq!(shard.exchanges(20, SHORT, SHORT), [true, true]);
    }

    #[test]
    fn queries_and_answers_are_predicted_separately() {
        let mut shard = Shard::new();
        assert_eq!(shard.exchanges(30, LONG, SHORT), [true, false]);
        assert_eq!(shard.exchanges(30, LONG, LONG), [false, false]);
        assert_eq!(shard.exchanges(30, SHORT, LONG), [false, true]);
    }

    #[test]
    fn one_late_arrival_does_not_end_polling_and_one_in_two_does() {
        let mut shard = Shard::new();
        shard.exchanges(30, SHORT, SHORT);
        shard.moves(LONG, 1, Direction::ToServer, 50);
        assert!(shard.moves(SHORT, 1, Direction::ToClient, 50));
        for _ in 0..20 {
            shard.exchanges(1, SHORT, SHORT);
            shard.exchanges(1, LONG, SHORT);
        }
        assert_eq!(shard.exchanges(1, SHORT, SHORT), [true, false]);
    }

    #[test]
    fn polls_for_two_alternating_sessions_and_not_for_three() {
        for (sessions, polls) in [(2, true), (3, false)] {
            let mut shard = Shard::new();
            let mut predicted = false;
            for _ in 0..30 {
                for session in 1..=sessions {
                    shard.moves(SHORT, session, Direction::ToServer, 50);
                }
                for session in 1..=sessions {
                    predicted = shard.moves(SHORT, session, Direction::ToClient, 50);
                }
            }
            assert_eq!(predicted, polls, "{sessions}");
        }
    }

    #[test]
    fn does_not_poll_for_a_stream() {
        let mut shard = Shard::new();
        for _ in 0..30 {
            assert!(!shard.moves(SHORT, 1, Direction::ToClient, buffer::SMALL));
        }
    }

    #[test]
    fn preemption_stops_polling_and_for_longer_each_time() {
        let mut shard = Shard::new();
        shard.exchanges(30, SHORT, SHORT);
        for length in [MIN_BACKOFF, MIN_BACKOFF * 2, MIN_BACKOFF * 4] {
            shard.predictor.preempted(shard.now);
            assert_eq!(shard.exchanges(30, SHORT, SHORT), [false, false]);
            shard.now += length;
            assert_eq!(shard.exchanges(1, SHORT, SHORT), [true, true]);
        }
        let length = |shard: &Shard| shard.predictor.backed_off.unwrap().1;
        for _ in 0..20 {
            shard.predictor.preempted(shard.now);
        }
        assert_eq!(length(&shard), MAX_BACKOFF);
        shard.now += MAX_BACKOFF * 3;
        shard.predictor.preempted(shard.now);
        assert_eq!(length(&shard), MIN_BACKOFF);
    }
}
