//! Who has to be ready before clients may be sent here.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

/// The latches, all of which have to be ready. Cheap to clone.
///
/// Without any latch it is not ready: nobody has said so.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<Vec<Latch>>>);

/// One condition. Cheap to clone, and set from any thread; never from a shard's data path, since it
/// locks. Dropping it leaves it as it was.
#[derive(Clone, Debug)]
pub struct Latch {
    name: &'static str,
    /// Why it is not ready; `None` when it is.
    reason: Arc<Mutex<Option<String>>>,
}

/// A latch as `/ready` shows it.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) ready: bool,
    pub(crate) reason: Option<String>,
}

impl Readiness {
    /// No latches, and so not ready.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A further condition, not ready for this `reason`, which anybody may read.
    pub fn latch(&self, name: &'static str, reason: impl Into<String>) -> Latch {
        let latch = Latch {
            name,
            reason: Arc::new(Mutex::new(Some(reason.into()))),
        };
        lock(&self.0).push(latch.clone());
        latch
    }

    /// Whether there are latches, and all are ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        all_ready(&self.checks())
    }

    /// Each latch with whether it is ready.
    #[must_use]
    pub fn states(&self) -> Vec<(&'static str, bool)> {
        let checks = self.checks().into_iter();
        checks.map(|check| (check.name, check.ready)).collect()
    }

    pub(crate) fn checks(&self) -> Vec<Check> {
        lock(&self.0).iter().map(Latch::check).collect()
    }
}

pub(crate) fn all_ready(checks: &[Check]) -> bool {
    !checks.is_empty() && checks.iter().all(|check| check.ready)
}

impl Latch {
    /// From now on it is ready.
    pub fn set_ready(&self) {
        *lock(&self.reason) = None;
    }

    /// From now on it is not, for this `reason`, which anybody may read.
    pub fn set_not_ready(&self, reason: impl Into<String>) {
        *lock(&self.reason) = Some(reason.into());
    }

    fn check(&self) -> Check {
        let reason = lock(&self.reason).clone();
        Check {
            name: self.name,
            ready: reason.is_none(),
            reason,
        }
    }
}

/// No code that holds one of these locks can leave its content half-changed.
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
        let postgres = readiness.clone().latch("postgres", "not asked yet");
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
        let check = |name, reason: Option<&str>| Check {
            name,
            ready: reason.is_none(),
            reason: reason.map(str::to_owned),
        };
        let expected = [check("identity", None), check("postgres", Some("refused"))];
        assert_eq!(readiness.checks(), expected);
    }
}
