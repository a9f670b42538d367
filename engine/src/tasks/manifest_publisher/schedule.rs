//! When the leader manifest is published: a state machine without I/O, with the time as an argument.
//!
//! A manifest is due at once when this member begins to lead, or leads with another timeline; then after a third of its
//! validity. After a failure it is tried again with exponential back-off, so that there are many attempts
//! before the record expires. A member that does not lead publishes nothing, and withdraws nothing: the
//! next leader has a higher epoch.

use std::time::Duration;

use tokio::time::Instant;

use crate::io::backoff::Backoff;

/// How long a manifest is valid.
pub(super) const VALIDITY: Duration = Duration::from_secs(600);
/// When it is replaced, so that two thirds of the validity remain for a name server that is down.
pub(super) const RENEW_AFTER: Duration = Duration::from_secs(200);
/// Delays between attempts.
const RETRY: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));

/// The state of the publication.
#[derive(Debug)]
pub(super) struct Schedule {
    leads: Option<Leading>,
    backoff: Backoff,
}

/// What is known while this member leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Leading {
    timeline: u64,
    due: Instant,
    /// Whether a manifest of this timeline was published.
    published: bool,
}

impl Schedule {
    pub(super) fn new() -> Self {
        Self {
            leads: None,
            backoff: RETRY,
        }
    }

    /// Takes over whether this member leads, and with which timeline. Returns whether that is new.
    pub(super) fn set_leading(&mut self, timeline: Option<u64>, now: Instant) -> bool {
        if self.leads.map(|leading| leading.timeline) == timeline {
            return false;
        }
        self.backoff.reset();
        self.leads = timeline.map(|timeline| Leading {
            timeline,
            due: now,
            published: false,
        });
        true
    }

    /// The timeline to publish, and when; `None` while this member does not lead.
    pub(super) fn next_attempt(&self) -> Option<(u64, Instant)> {
        self.leads.map(|leading| (leading.timeline, leading.due))
    }

    /// The attempt has succeeded. Returns whether it is the first one of this timeline.
    pub(super) fn succeeded(&mut self, now: Instant) -> bool {
        self.backoff.reset();
        let Some(leading) = &mut self.leads else {
            return false;
        };
        leading.due = now + RENEW_AFTER;
        !std::mem::replace(&mut leading.published, true)
    }

    /// The attempt has failed. Returns the delay before the next one.
    pub(super) fn failed(&mut self, now: Instant) -> Duration {
        let delay = self.backoff.next_delay();
        if let Some(leading) = &mut self.leads {
            leading.due = now + delay;
        }
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    #[test]
    fn a_manifest_is_due_at_once_and_then_after_a_third_of_its_validity() {
        assert_eq!(RENEW_AFTER * 3, VALIDITY);
        let start = Instant::now();
        let mut schedule = Schedule::new();
        assert_eq!(schedule.next_attempt(), None);
        schedule.set_leading(Some(3), start);
        assert_eq!(schedule.next_attempt(), Some((3, start)));
        assert!(schedule.succeeded(start));
        assert_eq!(schedule.next_attempt(), Some((3, start + RENEW_AFTER)));
        // The watcher says the same again.
        schedule.set_leading(Some(3), start + seconds(5));
        assert_eq!(schedule.next_attempt(), Some((3, start + RENEW_AFTER)));
        assert!(!schedule.succeeded(start + RENEW_AFTER), "a renewal");
        assert_eq!(schedule.next_attempt(), Some((3, start + 2 * RENEW_AFTER)));
    }

    #[test]
    fn a_promotion_is_published_at_once() {
        let start = Instant::now();
        let mut schedule = Schedule::new();
        schedule.set_leading(Some(3), start);
        schedule.succeeded(start);
        let promoted = start + seconds(7);
        schedule.set_leading(Some(4), promoted);
        assert_eq!(schedule.next_attempt(), Some((4, promoted)));
        assert!(schedule.succeeded(promoted));
    }

    #[test]
    fn nothing_is_published_without_leadership() {
        let start = Instant::now();
        let mut schedule = Schedule::new();
        schedule.set_leading(Some(3), start);
        schedule.failed(start);
        schedule.set_leading(None, start + seconds(1));
        assert_eq!(schedule.next_attempt(), None);
        // An attempt that ends late changes nothing.
        assert!(!schedule.succeeded(start + seconds(2)));
        schedule.failed(start + seconds(2));
        assert_eq!(schedule.next_attempt(), None);
        // The same timeline again: this member may have been away for longer than the record was valid.
        let again = start + seconds(900);
        schedule.set_leading(Some(3), again);
        assert_eq!(schedule.next_attempt(), Some((3, again)));
    }

    #[test]
    fn failures_are_retried_often_before_the_record_expires() {
        let start = Instant::now();
        let mut schedule = Schedule::new();
        schedule.set_leading(Some(1), start);
        schedule.succeeded(start);
        let mut attempts = 0;
        while let Some((_, due)) = schedule.next_attempt()
            && due < start + VALIDITY
        {
            attempts += 1;
            schedule.failed(due);
        }
        // After 1, 2, 4 … 32 s and then each minute, of the 400 s that remain.
        assert_eq!(attempts, 12);
        let now = start + VALIDITY;
        assert!(!schedule.succeeded(now));
        assert_eq!(schedule.failed(now), seconds(1), "starts again");
    }
}
