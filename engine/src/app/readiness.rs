//! The conditions of `/ready`.

use admin::{Latch, Readiness};

/// All of them, each set by whoever knows.
#[derive(Clone)]
pub(crate) struct Health {
    pub(crate) readiness: Readiness,
    /// A certificate that does not end soon.
    pub(crate) identity: Latch,
    /// Postgres answers.
    pub(crate) postgres: Latch,
    /// What clients are judged with is there and fresh.
    pub(crate) collateral: Latch,
    /// Started, and not draining.
    pub(crate) accepting: Latch,
}

impl Health {
    pub(crate) fn new() -> Self {
        let readiness = Readiness::new();
        Self {
            identity: readiness.latch("identity", "no certificate yet"),
            postgres: readiness.latch("postgres", "not asked yet"),
            collateral: readiness.latch("collateral", "not fetched yet"),
            accepting: readiness.latch("accepting", "starting"),
            readiness,
        }
    }
}
