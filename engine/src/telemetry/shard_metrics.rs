//! The metric handles of one shard.

use std::collections::HashMap;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};

use crate::auth::role::Role;
use crate::telemetry::close_reason::{CloseReason, ErrorOrigin};
use crate::telemetry::metrics::Metrics;

/// Creates every series of `shards` shards and of the control thread, at 0. They exist
/// even while the process still waits for the guest agent or Postgres.
pub(crate) fn register_all(metrics: &Metrics, shards: usize) {
    for shard in 0..shards {
        drop(ShardMetrics::new(metrics, shard));
    }
    metrics.register_control_thread();
}

/// Where a verdict came from.
#[derive(Clone, Copy)]
pub(crate) enum VerdictSource {
    /// The shard's own cache.
    Cache,
    /// The cheap part, which refused.
    Examination,
    /// The verify thread.
    Verification,
}

impl VerdictSource {
    const ALL: [Self; 3] = [Self::Cache, Self::Examination, Self::Verification];

    fn name(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::Examination => "examination",
            Self::Verification => "verification",
        }
    }
}

/// VerdictCounters by source: accepted, refused.
#[derive(Clone)]
pub(crate) struct VerdictCounters([[Counter; 2]; 3]);

impl VerdictCounters {
    fn new(metrics: &Metrics) -> Self {
        Self(VerdictSource::ALL.map(|source| {
            ["accepted", "refused"].map(|outcome| {
                let labels = [("source", source.name()), ("outcome", outcome)];
                metrics.counter("teesql_verdicts_total", &labels)
            })
        }))
    }

    pub(crate) fn count(&self, source: VerdictSource, accepted: bool) {
        let [cache, examination, verification] = &self.0;
        let [yes, no] = match source {
            VerdictSource::Cache => cache,
            VerdictSource::Examination => examination,
            VerdictSource::Verification => verification,
        };
        if accepted { yes } else { no }.increment(1);
    }
}

/// A shard's handles.
pub(crate) struct ShardMetrics {
    accepted: Counter,
    dropped: Counter,
    logging_in: Gauge,
    sessions: [Gauge; 3],
    handshake: Histogram,
    login: Histogram,
    entered: Counter,
    refused: HashMap<&'static str, Counter>,
    ended: HashMap<&'static str, Counter>,
    upstream: HashMap<&'static str, Counter>,
    cancels: Counter,
    panics: Counter,
    pub(crate) received: Counter,
    pub(crate) sent: Counter,
    pub(crate) verdicts: VerdictCounters,
}

impl ShardMetrics {
    pub(crate) fn new(metrics: &Metrics, shard: usize) -> Self {
        let shard = shard.to_string();
        let logins = |outcome, reason| {
            let labels = [("outcome", outcome), ("reason", reason)];
            metrics.counter("teesql_logins_total", &labels)
        };
        let by_reason = |name, wanted: fn(&str) -> bool| {
            let reasons = metrics.reasons().filter(|reason| wanted(reason));
            reasons
                .map(|reason| (reason, metrics.counter(name, &[("reason", reason)])))
                .collect()
        };
        let connections =
            |state, role| metrics.gauge("teesql_connections", &[("state", state), ("role", role)]);
        let bytes = |direction| {
            let labels = [("direction", direction), ("shard", shard.as_str())];
            metrics.counter("teesql_bytes_total", &labels)
        };
        Self {
            accepted: metrics.counter("teesql_connections_accepted_total", &[("shard", &shard)]),
            dropped: metrics.counter("teesql_connections_dropped_total", &[]),
            logging_in: connections("login", "none"),
            sessions: Role::ALL.map(|role| connections("session", role.name())),
            handshake: metrics.histogram("teesql_handshake_seconds"),
            login: metrics.histogram("teesql_login_seconds"),
            entered: logins("accepted", "none"),
            refused: metrics
                .reasons()
                .map(|reason| (reason, logins("refused", reason)))
                .collect(),
            ended: by_reason("teesql_sessions_ended_total", |_| true),
            upstream: by_reason("teesql_upstream_failures_total", is_upstream),
            cancels: metrics.counter("teesql_cancel_requests_total", &[]),
            panics: metrics.counter("teesql_panics_total", &[]),
            received: bytes("received"),
            sent: bytes("sent"),
            verdicts: VerdictCounters::new(metrics),
        }
    }

    pub(crate) fn accepted(&self) {
        self.accepted.increment(1);
        self.logging_in.increment(1.0);
    }

    pub(crate) fn dropped(&self) {
        self.dropped.increment(1);
    }

    pub(crate) fn handshake_done(&self, since_accept: Duration) {
        self.handshake.record(since_accept);
    }

    /// A login became a session.
    pub(crate) fn entered(&self, role: Option<Role>, since_accept: Duration) {
        self.login.record(since_accept);
        self.entered.increment(1);
        self.logging_in.decrement(1.0);
        if let Some(gauge) = self.session(role) {
            gauge.increment(1.0);
        }
    }

    /// A connection ended, as a session or before it was one.
    pub(crate) fn ended(&self, role: Option<Role>, was_session: bool, end: &CloseReason) {
        let reason = metric_reason(end);
        if was_session {
            if let Some(gauge) = self.session(role) {
                gauge.decrement(1.0);
            }
            count(&self.ended, reason);
        } else {
            self.logging_in.decrement(1.0);
            match end {
                CloseReason::Cancelled => self.cancels.increment(1),
                _ => count(&self.refused, reason),
            }
            if end.origin() == ErrorOrigin::Upstream {
                count(&self.upstream, reason);
            }
        }
        if matches!(end, CloseReason::Panic) {
            self.panics.increment(1);
        }
    }

    fn session(&self, role: Option<Role>) -> Option<&Gauge> {
        let position = Role::ALL.iter().position(|known| Some(*known) == role)?;
        self.sessions.get(position)
    }
}

fn count(counters: &HashMap<&'static str, Counter>, reason: &str) {
    if let Some(counter) = counters.get(reason) {
        counter.increment(1);
    }
}

fn is_upstream(reason: &str) -> bool {
    reason.starts_with("postgres_") || reason.starts_with("upstream_") || reason == "overloaded"
}

/// A session's end by a new policy is one reason, whatever the denial.
fn metric_reason(end: &CloseReason) -> &'static str {
    match end {
        CloseReason::Revoked(_) => "attestation_revoked",
        end => end.code(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_is_there_from_the_start() {
        let metrics = Metrics::new().unwrap();
        register_all(&metrics, 1);
        let text = metrics.render();
        for series in [
            r#"teesql_logins_total{outcome="accepted",reason="none"} 0"#,
            r#"teesql_logins_total{outcome="refused",reason="unbound_key"} 0"#,
            r#"teesql_sessions_ended_total{reason="attestation_revoked"} 0"#,
            r#"teesql_connections{state="session",role="teesql_read"} 0"#,
            r#"teesql_verdicts_total{source="cache",outcome="accepted"} 0"#,
            r#"teesql_bytes_total{direction="sent",shard="0"} 0"#,
            r#"teesql_upstream_failures_total{reason="upstream_unreachable"} 0"#,
            r#"teesql_collateral_refreshes_total{outcome="failed"} 0"#,
            "teesql_login_seconds_count 0",
            "teesql_verification_seconds_sum 0",
            "process_resident_memory_bytes ",
        ] {
            assert!(text.contains(series), "{series} is not in\n{text}");
        }
    }

    #[test]
    fn a_connection_leaves_the_gauges_as_they_were() {
        let metrics = Metrics::new().unwrap();
        let shard_metrics = ShardMetrics::new(&metrics, 0);
        let role = Some(Role::ReadWrite);
        let gauge = r#"teesql_connections{state="session",role="teesql_readwrite"}"#;
        shard_metrics.accepted();
        shard_metrics.entered(role, Duration::from_millis(1));
        assert!(metrics.render().contains(&format!("{gauge} 1")));
        shard_metrics.ended(role, true, &CloseReason::ClientClosed);
        let text = metrics.render();
        assert!(text.contains(&format!("{gauge} 0")));
        assert!(text.contains(r#"teesql_connections{state="login",role="none"} 0"#));
        assert!(text.contains(r#"teesql_sessions_ended_total{reason="client_closed"} 1"#));
        assert!(text.contains(r#"teesql_login_seconds_bucket{le="0.001"} 1"#));
    }
}
