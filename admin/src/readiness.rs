//! Readiness as a set of named conditions ("latches"): `/ready` succeeds once all of them hold.
//!
//! Each component of the process owns one latch and explains why it is not ready, so that `/ready`
//! can tell an operator what is missing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

/// The set of latches, ready when every latch is. Cheap to clone.
///
/// An empty set is not ready.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<Vec<Latch>>>);

/// One readiness condition. Cheap to clone, and settable from any thread. Must not be set from a
/// shard's data path, because setting it takes a lock. Dropping a handle leaves the condition as it
/// was.
#[derive(Clone, Debug)]
pub struct Latch {
    name: &'static str,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    ready: bool,
    /// Why the condition does not hold, or what is wrong although it does.
    reason: Option<String>,
}

/// A latch in the response of `/ready`.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) ready: bool,
    pub(crate) reason: Option<String>,
}

impl Readiness {
    /// Creates an empty set, which is not ready.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a latch that is not ready for `reason`. `/ready` publishes the reason.
    pub fn latch(&self, name: &'static str, reason: impl Into<String>) -> Latch {
        let latch = Latch {
            name,
            state: Arc::new(Mutex::new(State {
                ready: false,
                reason: Some(reason.into()),
            })),
        };
        lock(&self.0).push(latch.clone());
        latch
    }

    /// Whether there is at least one latch and all latches are ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        all_ready(&self.checks())
    }

    /// The name of each latch and whether it is ready.
    #[must_use]
    pub fn states(&self) -> Vec<(&'static str, bool)> {
        let checks = self.checks().into_iter();
        checks.map(|check| (check.name, check.ready)).collect()
    }

    /// The reason that each latch shows, in the order of their creation.
    #[must_use]
    pub fn reasons(&self) -> Vec<Option<String>> {
        let checks = self.checks().into_iter();
        checks.map(|check| check.reason).collect()
    }

    pub(crate) fn checks(&self) -> Vec<Check> {
        lock(&self.0).iter().map(Latch::check).collect()
    }
}

pub(crate) fn all_ready(checks: &[Check]) -> bool {
    !checks.is_empty() && checks.iter().all(|check| check.ready)
}

impl Latch {
    /// Marks the condition as ready.
    pub fn set_ready(&self) {
        self.set(true, None);
    }

    /// Marks the condition as not ready. `/ready` publishes the reason.
    pub fn set_not_ready(&self, reason: impl Into<String>) {
        self.set(false, Some(reason.into()));
    }

    /// Marks the condition as ready although something is wrong that does not concern clients.
    /// `/ready` publishes the reason.
    pub fn set_ready_despite(&self, reason: impl Into<String>) {
        self.set(true, Some(reason.into()));
    }

    fn set(&self, ready: bool, reason: Option<String>) {
        *lock(&self.state) = State { ready, reason };
    }

    fn check(&self) -> Check {
        let state = lock(&self.state);
        Check {
            name: self.name,
            ready: state.ready,
            reason: state.reason.clone(),
        }
    }
}

/// Ignores poisoning: no code that holds one of these locks can leave its content half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_all_latches_are_ready() {
        let readiness = Readiness::new();
        assert!(!readiness.is_ready());
        let identity = readiness.latch("identity", "no certificate yet");
        let postgres = readiness.clone().latch("postgres", "not probed yet");
        identity.set_ready();
        assert!(!readiness.is_ready());
        let elsewhere = postgres.clone();
        std::thread::spawn(move || elsewhere.set_ready())
            .join()
            .unwrap();
        assert!(readiness.is_ready());
        postgres.set_not_ready("refused");
        drop(postgres);
        assert!(!readiness.is_ready());
        let audit = readiness.latch("audit", "not opened yet");
        audit.set_ready_despite("disk full");
        let check = |name, reason: Option<&str>| Check {
            name,
            ready: reason.is_none(),
            reason: reason.map(str::to_owned),
        };
        let expected = [
            check("identity", None),
            check("postgres", Some("refused")),
            Check {
                ready: true,
                ..check("audit", Some("disk full"))
            },
        ];
        assert_eq!(readiness.checks(), expected);
    }
}
