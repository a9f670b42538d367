//! Decides by measurement whether to poll for the next message, and for how long: an A/B test of
//! polling and sleeping that is repeated with exponential back-off.
//!
//! What polling saves is the time to wake a core, and what it costs is the time to the next message.
//! Both depend on the machine, on the query, and on what else runs, so neither is assumed: a shard
//! compares the times to the next message that it sees when it polls with those that it sees when it
//! sleeps. It polls while that saves enough (competitive spinning, Karlin et al., "Empirical Studies
//! of Competitive Spinning for a Shared-Memory Multiprocessor", 1991).

use std::time::{Duration, Instant};

use crate::io::backoff::Backoff;
use crate::io::buffer;

/// The longest that a shard polls for one message, and the longest time that counts: waking a core
/// takes less than 100 µs, so that a poll of more than 200 is not worth it.
const MAX_WINDOW: Duration = Duration::from_micros(200);
/// What polling may cost, as a multiple of the time that it saves.
const MAX_COST: f64 = 2.0;
/// Sessions that moved bytes last. With more, a shard that wakes has several to serve, and
/// sleeping costs less than polling.
const RECENT_SESSIONS: usize = 2;
/// Messages without polling at the beginning of a trial, and then with it.
const TRIAL: u32 = 32;
/// Messages without polling in a trial that confirms the decision to poll. Each of them is slow, so that they have to be few;
/// those of the trials before still count.
const CONFIRMATION: u32 = 8;
/// Polls after which a decision is checked. Among fewer, a single late message outweighs what the others save.
const CHECK: u32 = 128;
/// Messages until the next trial, at first and at most. It grows while trials change nothing.
const MIN_INTERVAL: u32 = 64;
const MAX_INTERVAL: u32 = 16_384;
/// By which factor: faster while the shard polls, since a poll that is not worth it any more is noticed without a trial.
const GROWTH: u32 = 2;
const GROWTH_POLLING: u32 = 8;
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
    last: Option<LastTransfer>,
    /// After a query, and after an answer. A trial includes both: a shard that polls after queries
    /// changes where and when its peers run, and so the times after answers.
    waits: [WaitTimes; 2],
    phase: Phase,
    /// Messages until the end of the phase.
    left: u32,
    /// Messages between the last trial and the next one.
    interval: u32,
    backoff: Backoff,
    /// The end of the last back-off, and its length.
    backed_off: Option<(Instant, Duration)>,
}

/// What the shard does at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The first half of a trial: it sleeps.
    Sleep,
    /// The second half: it polls.
    Poll,
    /// It does what has proved better.
    Decided,
}

struct LastTransfer {
    at: Instant,
    direction: Direction,
    /// How long the shard was to poll after it.
    window: Option<Duration>,
}

impl ArrivalPredictor {
    pub(super) fn new() -> Self {
        Self {
            recent_sessions: Default::default(),
            last: None,
            waits: Default::default(),
            phase: Phase::Sleep,
            left: MIN_INTERVAL,
            interval: MIN_INTERVAL,
            backoff: Backoff::new(MIN_BACKOFF, MAX_BACKOFF),
            backed_off: None,
        }
    }

    /// Records a transfer. Returns until when to poll for the next one, if that is worth it.
    pub(super) fn observe(
        &mut self,
        transfer: Transfer,
        clock: impl FnOnce() -> Instant,
    ) -> Option<Instant> {
        let is_recent = self.is_recent(transfer.session);
        let last = self.last.take();
        if !is_recent && last.as_ref().is_none_or(|last| last.window.is_none()) {
            // With many busy sessions, most transfers are of this kind: they should not read the clock. The time to the
            // next message is then not known.
            return None;
        }
        let now = clock();
        // A larger one belongs to a stream, whose reads are coalesced instead.
        let counts = is_recent && transfer.bytes < buffer::SMALL;
        if let Some(last) = last {
            let took = now.saturating_duration_since(last.at);
            let wait = self.wait_after(last.direction);
            if counts {
                wait.record(took, last.window);
                self.advance();
            } else if let Some(window) = last.window {
                wait.record_in_vain(took, window);
            }
        }
        let may_poll = counts && self.backed_off.is_none_or(|(end, _)| now >= end);
        let window = match may_poll {
            true => self.window_after(transfer.direction),
            false => None,
        };
        self.last = Some(LastTransfer {
            at: now,
            direction: transfer.direction,
            window,
        });
        window.map(|window| now + window)
    }

    /// Backs off, since the shard was preempted while it polled: for longer if the last
    /// back-off has ended only recently.
    pub(super) fn preempted(&mut self, now: Instant) {
        // The time to the next message will contain that of the other thread.
        self.last = None;
        let again = self
            .backed_off
            .is_some_and(|(end, length)| now.saturating_duration_since(end) < length);
        if !again {
            self.backoff.reset();
        }
        let length = self.backoff.next_delay();
        self.backed_off = Some((now + length, length));
    }

    /// Counts a message towards the end of the phase, and checks the decisions.
    fn advance(&mut self) {
        self.left = self.left.saturating_sub(1);
        if self.phase == Phase::Decided && self.waits.iter_mut().any(WaitTimes::gives_up) {
            self.interval = MIN_INTERVAL;
            self.left = self.left.min(MIN_INTERVAL);
        }
        if self.left > 0 {
            return;
        }
        (self.phase, self.left) = match self.phase {
            Phase::Decided => {
                let messages = if self.polls() { CONFIRMATION } else { TRIAL };
                self.waits.iter_mut().for_each(WaitTimes::begin_sleeping);
                (Phase::Sleep, messages)
            }
            Phase::Sleep => {
                self.waits.iter_mut().for_each(WaitTimes::begin_polling);
                (Phase::Poll, TRIAL)
            }
            Phase::Poll => {
                // Not `any`: each of them decides.
                let decided = self.waits.iter_mut().map(WaitTimes::decide);
                let has_changed = decided.fold(false, |changed, next| changed | next);
                let growth = if self.polls() { GROWTH_POLLING } else { GROWTH };
                self.interval = match has_changed {
                    true => MIN_INTERVAL,
                    false => (growth * self.interval).min(MAX_INTERVAL),
                };
                (Phase::Decided, self.interval)
            }
        };
    }

    /// Whether it polls after queries and after answers.
    fn polls(&self) -> bool {
        self.waits.iter().all(|wait| wait.polls)
    }

    fn window_after(&mut self, direction: Direction) -> Option<Duration> {
        let phase = self.phase;
        let wait = self.wait_after(direction);
        let polls = match phase {
            Phase::Sleep => false,
            Phase::Poll => true,
            Phase::Decided => wait.polls,
        };
        polls.then(|| wait.window()).flatten()
    }

    /// What is known of the messages that follow a transfer in this direction.
    fn wait_after(&mut self, direction: Direction) -> &mut WaitTimes {
        let [after_query, after_answer] = &mut self.waits;
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

/// Times to the messages that follow those of one direction, and what was decided for them.
#[derive(Default)]
struct WaitTimes {
    /// When the shard slept: they contain its wake-up.
    slept: Mean,
    /// When the shard polled and did not miss the message.
    polled: Mean,
    /// What a poll cost, and by how much sooner its message was seen.
    cost: Mean,
    saved: Mean,
    polls: bool,
}

impl WaitTimes {
    /// Records the time to a message, and for how long the shard was to poll for it.
    fn record(&mut self, took: Duration, window: Option<Duration>) {
        let took = took.min(MAX_WINDOW).as_secs_f64();
        let Some(window) = window.map(|window| window.as_secs_f64()) else {
            self.slept.add(took);
            return;
        };
        let hit = took < window;
        self.cost.add(took.min(window));
        self.saved.add(match hit {
            true => self.slept.get() - took,
            false => 0.0,
        });
        if hit {
            self.polled.add(took);
        }
    }

    /// Records a poll that ended with a message that it was not for: of another session, or a part of
    /// a stream.
    fn record_in_vain(&mut self, took: Duration, window: Duration) {
        self.cost.add(took.min(window).as_secs_f64());
        self.saved.add(0.0);
    }

    /// Begins a trial. While the shard slept, the times are of all messages since the last trial, and say nothing about today's
    /// queries; while it polled, they are those of few messages of former trials, which count by half each time.
    fn begin_sleeping(&mut self) {
        match self.polls {
            true => self.slept.halve(),
            false => self.slept = Mean::default(),
        }
    }

    /// Forgets the polls of the last trial: they say nothing about today's queries.
    fn begin_polling(&mut self) {
        (self.polled, self.cost, self.saved) = Default::default();
    }

    /// Decides after a trial. Returns whether the decision has changed.
    fn decide(&mut self) -> bool {
        let polls = self.is_worth_it();
        std::mem::replace(&mut self.polls, polls) != polls
    }

    /// Stops polling if the last polls were not worth it. Returns whether it has.
    fn gives_up(&mut self) -> bool {
        if !self.polls || self.cost.count < CHECK {
            return false;
        }
        self.polls = self.is_worth_it();
        (self.cost, self.saved) = Default::default();
        !self.polls
    }

    fn is_worth_it(&self) -> bool {
        self.saved.get() > 0.0 && self.cost.get() <= MAX_COST * self.saved.get()
    }

    /// The time within which nearly every message arrives: twice the mean.
    fn window(&self) -> Option<Duration> {
        let seen = match self.polled.count {
            0 => self.slept.get(),
            _ => self.polled.get(),
        };
        // Neither can messages be polled for that have not been seen, nor those that take as long as counts.
        let may_poll = seen > 0.0 && seen < MAX_WINDOW.as_secs_f64();
        may_poll.then(|| Duration::from_secs_f64(2.0 * seen).min(MAX_WINDOW))
    }
}

#[derive(Default)]
struct Mean {
    sum: f64,
    count: u32,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.count = self.count.saturating_add(1);
    }

    /// Lets the values so far count by half.
    fn halve(&mut self) {
        let mean = self.get();
        self.count /= 2;
        self.sum = mean * f64::from(self.count);
    }

    /// The mean; 0 without values.
    fn get(&self) -> f64 {
        self.sum / f64::from(self.count.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_micros(40);
    const LONG: Duration = Duration::from_millis(5);
    /// What waking this core takes.
    const WAKE: Duration = Duration::from_micros(30);
    /// Enough for a trial.
    const MANY: u32 = MIN_INTERVAL + TRIAL;

    struct Shard {
        predictor: ArrivalPredictor,
        now: Instant,
        window: Option<Duration>,
        wake: Duration,
        polled: u32,
    }

    impl Shard {
        fn new() -> Self {
            Self {
                predictor: ArrivalPredictor::new(),
                now: Instant::now(),
                window: None,
                wake: WAKE,
                polled: 0,
            }
        }

        /// A message that arrives after this time. It is seen at once by a shard that still polls.
        fn moves(&mut self, after: Duration, session: usize, direction: Direction, bytes: usize) {
            let polls = self.window.is_some_and(|window| after < window);
            self.polled += u32::from(polls);
            self.now += match polls {
                true => after,
                false => after + self.wake,
            };
            let transfer = Transfer {
                session,
                direction,
                bytes,
            };
            let until = self.predictor.observe(transfer, || self.now);
            self.window = until.map(|until| until - self.now);
        }

        /// Rounds of a query and an answer. Returns whether it polls after a query, and after an answer.
        fn exchanges(&mut self, rounds: u32, think: Duration, work: Duration) -> [bool; 2] {
            for _ in 0..rounds {
                self.moves(think, 1, Direction::ToServer, 50);
                self.moves(work, 1, Direction::ToClient, 90);
            }
            self.decisions()
        }

        fn decisions(&self) -> [bool; 2] {
            let [after_query, after_answer] = &self.predictor.waits;
            [after_query.polls, after_answer.polls]
        }
    }

    #[test]
    fn polls_after_back_to_back_queries() {
        let mut shard = Shard::new();
        assert_eq!(shard.exchanges(10, SHORT, SHORT), [false, false]);
        assert_eq!(shard.polled, 0);
        assert_eq!(shard.exchanges(MANY, SHORT, SHORT), [true, true]);
    }

    #[test]
    fn queries_and_answers_are_decided_separately() {
        let mut shard = Shard::new();
        assert_eq!(shard.exchanges(MANY, LONG, SHORT), [true, false]);
        assert_eq!(shard.exchanges(MANY, LONG, LONG), [false, false]);
        assert_eq!(shard.exchanges(4 * MANY, SHORT, LONG), [false, true]);
    }

    #[test]
    fn does_not_poll_where_it_saves_nothing() {
        let mut shard = Shard::new();
        shard.wake = Duration::ZERO;
        assert_eq!(shard.exchanges(100 * MANY, SHORT, SHORT), [false, false]);
        // Trials become rare.
        assert!(shard.polled < 10 * TRIAL, "{}", shard.polled);
    }

    #[test]
    fn does_not_poll_for_long_to_save_little() {
        for (work, polls) in [(3 * WAKE / 2, true), (3 * WAKE, false)] {
            let mut shard = Shard::new();
            let [after_query, _] = shard.exchanges(MANY, LONG, work);
            assert_eq!(after_query, polls, "{work:?}");
        }
    }

    #[test]
    fn the_window_follows_the_time_to_the_next_message() {
        for work in [10, 50, 100].map(Duration::from_micros) {
            let mut shard = Shard::new();
            shard.wake = work;
            shard.exchanges(MANY, LONG, work);
            while shard.predictor.phase != Phase::Decided {
                shard.exchanges(1, LONG, work);
            }
            shard.moves(LONG, 1, Direction::ToServer, 50);
            let window = shard.window.unwrap();
            assert!((work..=4 * work).contains(&window), "{work:?}: {window:?}");
        }
    }

    #[test]
    fn one_late_message_does_not_end_polling_and_many_do() {
        let mut shard = Shard::new();
        shard.exchanges(MANY, LONG, WAKE / 2);
        assert_eq!(shard.exchanges(1, LONG, LONG), [true, false]);
        assert_eq!(shard.exchanges(2 * CHECK, LONG, LONG), [false, false]);
    }

    #[test]
    fn few_messages_wait_for_a_trial_while_it_polls() {
        let mut shard = Shard::new();
        shard.exchanges(10 * MANY, SHORT, SHORT);
        let (before, rounds) = (shard.polled, MAX_INTERVAL);
        shard.exchanges(rounds, SHORT, SHORT);
        let slept = 2 * rounds - (shard.polled - before);
        assert!((1..=3 * CONFIRMATION).contains(&slept), "{slept}");
    }

    #[test]
    fn polls_for_two_alternating_sessions_and_not_for_three() {
        for (sessions, polls) in [(2, true), (3, false)] {
            let mut shard = Shard::new();
            for _ in 0..MANY {
                for session in 1..=sessions {
                    shard.moves(SHORT, session, Direction::ToServer, 50);
                }
                for session in 1..=sessions {
                    shard.moves(SHORT, session, Direction::ToClient, 50);
                }
            }
            assert_eq!(shard.decisions(), [polls; 2], "{sessions}");
            assert_eq!(shard.polled > 0, polls);
        }
    }

    #[test]
    fn the_clock_is_read_for_the_last_sessions_only() {
        let (mut predictor, mut reads) = (ArrivalPredictor::new(), 0);
        let now = Instant::now();
        for session in (1..=100).chain([100, 99]) {
            let transfer = Transfer {
                session,
                direction: Direction::ToServer,
                bytes: 50,
            };
            predictor.observe(transfer, || {
                reads += 1;
                now
            });
        }
        assert_eq!(reads, 2);
    }

    #[test]
    fn does_not_poll_when_another_session_is_often_first() {
        let mut shard = Shard::new();
        // Four sessions in a random order: the next message is of one of the last two half of the time.
        let mut random = 1_u32;
        for _ in 0..20 * MANY {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let session = usize::try_from(random >> 30).unwrap() + 1;
            shard.moves(SHORT, session, Direction::ToServer, 50);
        }
        assert_eq!(shard.decisions(), [false; 2]);
        assert!(shard.polled < 10 * MANY, "{}", shard.polled);
    }

    #[test]
    fn does_not_poll_for_a_stream() {
        let mut shard = Shard::new();
        for _ in 0..MANY {
            shard.moves(SHORT, 1, Direction::ToClient, buffer::SMALL);
        }
        assert_eq!(shard.polled, 0);
    }

    #[test]
    fn preemption_stops_polling_and_for_longer_each_time() {
        let mut shard = Shard::new();
        shard.exchanges(MANY, SHORT, SHORT);
        let polls = |shard: &mut Shard| {
            let before = shard.polled;
            shard.exchanges(10, SHORT, SHORT);
            shard.polled > before
        };
        for length in [MIN_BACKOFF, MIN_BACKOFF * 2, MIN_BACKOFF * 4] {
            shard.predictor.preempted(shard.now);
            shard.window = None;
            assert!(!polls(&mut shard));
            shard.now += length;
            assert!(polls(&mut shard));
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
