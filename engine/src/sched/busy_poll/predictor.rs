//! Whether it pays to look for more: what has followed on what lately.

use std::time::{Duration, Instant};

/// What comes within this time comes soon: about as long as a core takes to fall asleep
/// and to wake. Longer to look would cost more than it saves.
pub(super) const SOON: Duration = Duration::from_micros(100);
/// Sessions that take turns. With more, a shard that wakes has several to serve, and
/// spends less asleep than looking.
const FEW: usize = 2;
/// More bytes at a time are a stream's, which waits in its own way.
const STREAM: usize = 4 * 1024;
/// How much one that came soon, and one that did not, changes: where fewer than four in
/// five come soon, nobody looks.
const UP: u8 = 1;
const DOWN: u8 = 4;
const ENOUGH: u8 = 8;
const MOST: u8 = 16;
/// How long nobody looks after an interruption, at first and at most: a poller that
/// others want the core from is kept waiting for whole slices of time.
const HOLD: Duration = Duration::from_millis(100);
const HOLD_MOST: Duration = Duration::from_secs(10);

/// Which way bytes went.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    /// A question: the next thing is its answer.
    ToServer,
    /// An answer: the next thing is another question.
    ToClient,
}

/// Bytes that went on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moved {
    /// Whose: any number that is its own.
    pub(crate) session: usize,
    pub(crate) way: Way,
    pub(crate) bytes: usize,
}

/// A shard's.
#[derive(Default)]
pub(super) struct Habit {
    /// Those that moved bytes last.
    sessions: [usize; FEW],
    last: Option<(Instant, Way)>,
    /// That something comes soon, after a question and after an answer.
    trust: [u8; 2],
    hold: Duration,
    /// Nobody looks before.
    held: Option<Instant>,
}

impl Habit {
    /// Takes note; `true` where it pays to look for what comes next.
    pub(super) fn saw(&mut self, moved: Moved, now: Instant) -> bool {
        let few = self.knows(moved.session);
        if let Some((then, way)) = self.last.replace((now, moved.way)) {
            let soon = few && moved.bytes < STREAM && now - then <= SOON;
            let trust = self.trust(way);
            *trust = match soon {
                true => trust.saturating_add(UP).min(MOST),
                false => trust.saturating_sub(DOWN),
            };
        }
        few && *self.trust(moved.way) >= ENOUGH && self.held.is_none_or(|held| now >= held)
    }

    /// Others wanted the core while this shard looked: it stops for a while, and for
    /// longer where that happens again.
    pub(super) fn interrupted(&mut self, now: Instant) {
        let lately = self
            .held
            .is_some_and(|held| now.saturating_duration_since(held) < self.hold);
        self.hold = match lately {
            true => (self.hold * 2).min(HOLD_MOST),
            false => HOLD,
        };
        self.held = Some(now + self.hold);
    }

    fn trust(&mut self, way: Way) -> &mut u8 {
        let [question, answer] = &mut self.trust;
        match way {
            Way::ToServer => question,
            Way::ToClient => answer,
        }
    }

    /// Whether it is one of the last, which it is from here on.
    fn knows(&mut self, session: usize) -> bool {
        let [last, before] = self.sessions;
        if session != last {
            self.sessions = [session, last];
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
        habit: Habit,
        now: Instant,
    }

    impl Shard {
        fn new() -> Self {
            Self {
                habit: Habit::default(),
                now: Instant::now(),
            }
        }

        fn moves(&mut self, after: Duration, session: usize, way: Way, bytes: usize) -> bool {
            self.now += after;
            let moved = Moved {
                session,
                way,
                bytes,
            };
            self.habit.saw(moved, self.now)
        }

        /// Rounds of a question and an answer; what was said of the last ones.
        fn exchanges(&mut self, rounds: usize, think: Duration, work: Duration) -> [bool; 2] {
            let mut said = [false; 2];
            for _ in 0..rounds {
                said = [
                    self.moves(think, 1, Way::ToServer, 50),
                    self.moves(work, 1, Way::ToClient, 90),
                ];
            }
            said
        }
    }

    #[test]
    fn who_asks_at_once_when_answered_is_looked_for() {
        let mut shard = Shard::new();
        assert_eq!(shard.exchanges(4, SHORT, SHORT), [false, false]);
        assert_eq!(shard.exchanges(20, SHORT, SHORT), [true, true]);
    }

    #[test]
    fn a_question_now_and_then_is_only_looked_at_for_its_answer() {
        let mut shard = Shard::new();
        assert_eq!(shard.exchanges(30, LONG, SHORT), [true, false]);
        assert_eq!(shard.exchanges(30, LONG, LONG), [false, false]);
        assert_eq!(shard.exchanges(30, SHORT, LONG), [false, true]);
    }

    #[test]
    fn one_that_is_late_does_not_end_it_and_one_in_two_does() {
        let mut shard = Shard::new();
        shard.exchanges(30, SHORT, SHORT);
        shard.moves(LONG, 1, Way::ToServer, 50);
        assert!(shard.moves(SHORT, 1, Way::ToClient, 50));
        for _ in 0..20 {
            shard.exchanges(1, SHORT, SHORT);
            shard.exchanges(1, LONG, SHORT);
        }
        assert_eq!(shard.exchanges(1, SHORT, SHORT), [true, false]);
    }

    #[test]
    fn two_sessions_are_few_and_three_are_not() {
        for (sessions, looked) in [(2, true), (3, false)] {
            let mut shard = Shard::new();
            let mut said = false;
            for _ in 0..30 {
                for session in 1..=sessions {
                    shard.moves(SHORT, session, Way::ToServer, 50);
                }
                for session in 1..=sessions {
                    said = shard.moves(SHORT, session, Way::ToClient, 50);
                }
            }
            assert_eq!(said, looked, "{sessions}");
        }
    }

    #[test]
    fn a_stream_is_not_looked_for() {
        let mut shard = Shard::new();
        for _ in 0..30 {
            assert!(!shard.moves(SHORT, 1, Way::ToClient, 8192));
        }
    }

    #[test]
    fn whoever_is_interrupted_stops_and_for_longer_each_time() {
        let mut shard = Shard::new();
        shard.exchanges(30, SHORT, SHORT);
        for hold in [HOLD, HOLD * 2, HOLD * 4] {
            shard.habit.interrupted(shard.now);
            assert_eq!(shard.exchanges(30, SHORT, SHORT), [false, false]);
            shard.now += hold;
            assert_eq!(shard.exchanges(1, SHORT, SHORT), [true, true]);
        }
        for _ in 0..20 {
            shard.habit.interrupted(shard.now);
        }
        assert_eq!(shard.habit.hold, HOLD_MOST);
        shard.now += HOLD_MOST * 3;
        shard.habit.interrupted(shard.now);
        assert_eq!(shard.habit.hold, HOLD);
    }
}
