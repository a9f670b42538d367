//! The readiness checks that `/ready` of a sidecar reports.

use admin::{Latch, Readiness};

/// One latch for each check. The code that does the work sets it.
#[derive(Clone)]
pub(crate) struct ReadinessChecks {
    pub(crate) readiness: Readiness,
    /// A certificate is in use and does not expire soon.
    pub(crate) identity: Latch,
    /// Postgres answers.
    pub(crate) postgres: Latch,
    /// The roles in Postgres are as provisioning sets them up, if that is on.
    pub(crate) roles: Latch,
    /// The collateral that quotes are verified with is cached and valid.
    pub(crate) collateral: Latch,
    /// The evidence in the own certificate is genuine, if clients are attested.
    pub(crate) evidence: Latch,
    /// The clock is not behind what must have passed.
    pub(crate) clock: Latch,
    /// The process has started and is not draining.
    pub(crate) accepting: Latch,
}

impl ReadinessChecks {
    pub(crate) fn new() -> Self {
        let readiness = Readiness::new();
        Self {
            identity: readiness.latch("identity", "no certificate yet"),
            postgres: readiness.latch("postgres", "not probed yet"),
            roles: readiness.latch("roles", "not set up yet"),
            collateral: readiness.latch("collateral", "not fetched yet"),
            evidence: readiness.latch("evidence", "not judged yet"),
            clock: readiness.latch("clock", "not read yet"),
            accepting: readiness.latch("accepting", "starting"),
            readiness,
        }
    }
}
