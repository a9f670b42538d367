//! Which platform families have sessions: a counter for each, shared between threads (reference counting).
//!
//! Any genuine machine can make this process fetch the collateral of its family. Only of families that have sessions is it
//! an error if the collateral expires, so that a visitor of long ago cannot make a sidecar unready.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The use of one family's collateral. Clones share the counter.
#[derive(Clone, Debug, Default)]
pub struct FamilyUsage(Arc<Counter>);

#[derive(Debug, Default)]
struct Counter {
    sessions: AtomicUsize,
    /// When a session last began, in Unix seconds.
    last_used: AtomicU64,
}

/// A session of a peer of the family, until it is dropped.
#[derive(Debug)]
pub struct FamilySession {
    usage: FamilyUsage,
}

impl FamilyUsage {
    /// Counts a session that begins at `now`, in Unix seconds.
    #[must_use]
    pub fn begin(&self, now: u64) -> FamilySession {
        self.0.sessions.fetch_add(1, Ordering::Relaxed);
        self.0.last_used.fetch_max(now, Ordering::Relaxed);
        FamilySession {
            usage: self.clone(),
        }
    }

    /// The number of sessions.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.0.sessions.load(Ordering::Relaxed)
    }

    /// When the last session began, in Unix seconds; 0 if there was none.
    pub(super) fn last_used(&self) -> u64 {
        self.0.last_used.load(Ordering::Relaxed)
    }
}

impl Drop for FamilySession {
    fn drop(&mut self) {
        self.usage.0.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}
