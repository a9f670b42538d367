//! The process-wide connection limit: a counting semaphore that refuses instead of queueing.
//!
//! It is touched when a connection is accepted and when it closes, never on the data path.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Connections over the limit that may open TLS, to receive the refusal (53300) or to send a
/// CancelRequest. Further ones are closed at once.
const REJECT_HEADROOM: usize = 64;

/// The connections of a process, and their maximum.
pub(crate) struct ConnectionLimit {
    max: usize,
    live: AtomicUsize,
}

/// One connection's share of the limit, given back when dropped.
pub(crate) struct ConnectionPermit {
    limit: Arc<ConnectionLimit>,
    granted: bool,
}

impl ConnectionLimit {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            live: AtomicUsize::new(0),
        })
    }

    /// Counts a connection. `None` if it is to be closed at once.
    pub(super) fn enter(self: &Arc<Self>) -> Option<ConnectionPermit> {
        let others = self.live.fetch_add(1, Ordering::Relaxed);
        let permit = ConnectionPermit {
            limit: Arc::clone(self),
            granted: others < self.max,
        };
        (others < self.max.saturating_add(REJECT_HEADROOM)).then_some(permit)
    }
}

impl ConnectionPermit {
    /// Whether this connection may become a session.
    pub(crate) fn is_granted(&self) -> bool {
        self.granted
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.limit.live.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_over_the_limit_are_told_and_the_rest_are_refused() {
        let limit = ConnectionLimit::new(2);
        let mut inside: Vec<_> = (0..2).map(|_| limit.enter().unwrap()).collect();
        assert!(inside.iter().all(ConnectionPermit::is_granted));
        let told: Vec<_> = (0..REJECT_HEADROOM)
            .map(|_| limit.enter().unwrap())
            .collect();
        assert!(!told.iter().any(ConnectionPermit::is_granted));
        assert!(limit.enter().is_none());
        assert_eq!(limit.live.load(Ordering::Relaxed), 2 + REJECT_HEADROOM);
        drop(told);
        inside.pop();
        assert!(limit.enter().unwrap().is_granted());
    }
}
