//! Watches the audit log for `/ready` and the metrics: the audit thread may be blocked in a write, and
//! shards must not take the lock of a readiness latch.

use std::time::Duration;

use admin::Latch;

use crate::tasks::coalesced_sleep::sleep;
use crate::telemetry::audit::{AuditHandle, AuditState};

/// Between two looks, roughly. A failure is visible at most that much later.
const INTERVAL: Duration = Duration::from_millis(500);

/// Runs until the process ends.
pub(crate) async fn run(audit: AuditHandle, latch: Latch) {
    loop {
        report(audit.state(), &latch);
        sleep(INTERVAL).await;
    }
}

fn report(state: AuditState, latch: &Latch) {
    match state.failure {
        None => latch.set_ready(),
        Some(cause) if state.required => latch.set_not_ready(format!(
            "the audit log cannot be written ({cause}), new sessions are refused"
        )),
        Some(cause) => latch.set_ready_despite(format!(
            "the audit log cannot be written ({cause}), sessions continue without it"
        )),
    }
}
