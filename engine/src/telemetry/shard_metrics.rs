//! The metric handles of one shard.
//!
//! They are registered once, when the shard starts, so that counting needs no lookup in the registry.

use std::collections::HashMap;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};

use crate::auth::role::Role;
use crate::telemetry::close_reason::{CloseReason, ErrorOrigin};
use crate::telemetry::metrics::Metrics;

/// Creates every series with the value 0, so that they exist even while the process still
/// waits for the guest agent or Postgres.
pub(crate) fn register_all(metrics: &Metrics, shards: usize) {
    for shard in 0..shards {
        drop(ShardMetrics::new(metrics, shard));
    }
    metrics.register_process_series();
}

/// Where the verdict on a certificate came from.
#[derive(Clone, Copy)]
pub(crate) enum VerdictSource {
    /// The shard's cache.
    Cache,
    /// The cheap checks on the shard, one of which failed.
    Examination,
    /// A full verification.
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

/// The counters of verdicts: one pair of accepted and refused for each source.
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
        let [accepted_counter, refused_counter] = match source {
            VerdictSource::Cache => cache,
            VerdictSource::Examination => examination,
            VerdictSource::Verification => verification,
        };
        let counter = if accepted {
            accepted_counter
        } else {
            refused_counter
        };
        counter.increment(1);
    }
}

/// The metrics that one shard updates.
pub(crate) struct ShardMetrics {
    accepted: Counter,
    dropped: Counter,
    accept_failures: Counter,
    logging_in: Gauge,
    /// Connections of clients that are not attested yet.
    pub(crate) unattested: Gauge,
    /// In the order of [`Role::ALL`].
    sessions: [Gauge; 3],
    handshake: Histogram,
    login: Histogram,
    logged_in: Counter,
    refused: HashMap<&'static str, Counter>,
    ended: HashMap<&'static str, Counter>,
    upstream_failures: HashMap<&'static str, Counter>,
    cancel_requests: Counter,
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
            accept_failures: metrics.counter("teesql_accept_failures_total", &[]),
            logging_in: connections("login", "none"),
            unattested: metrics.gauge("teesql_unattested_connections", &[]),
            sessions: Role::ALL.map(|role| connections("session", role.name())),
            handshake: metrics.histogram("teesql_handshake_seconds"),
            login: metrics.histogram("teesql_login_seconds"),
            logged_in: logins("accepted", "none"),
            refused: metrics
                .reasons()
                .map(|reason| (reason, logins("refused", reason)))
                .collect(),
            ended: by_reason("teesql_sessions_ended_total", |_| true),
            upstream_failures: by_reason("teesql_upstream_failures_total", is_upstream),
            cancel_requests: metrics.counter("teesql_cancel_requests_total", &[]),
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

    /// A connection that was counted as one that logs in is a link.
    pub(crate) fn is_no_client(&self) {
        self.logging_in.decrement(1.0);
    }

    pub(crate) fn panicked(&self) {
        self.panics.increment(1);
    }

    pub(crate) fn dropped(&self) {
        self.dropped.increment(1);
    }

    pub(crate) fn accept_failed(&self) {
        self.accept_failures.increment(1);
    }

    pub(crate) fn handshake_done(&self, since_accept: Duration) {
        self.handshake.record(since_accept);
    }

    /// A connection became a session.
    pub(crate) fn session_started(&self, role: Option<Role>, since_accept: Duration) {
        self.login.record(since_accept);
        self.logged_in.increment(1);
        self.logging_in.decrement(1.0);
        if let Some(gauge) = self.session_gauge(role) {
            gauge.increment(1.0);
        }
    }

    /// A connection closed, as a session or before it became one.
    pub(crate) fn ended(&self, role: Option<Role>, was_session: bool, close_reason: &CloseReason) {
        let reason = close_reason.metric_code();
        if was_session {
            if let Some(gauge) = self.session_gauge(role) {
                gauge.decrement(1.0);
            }
            count(&self.ended, reason);
        } else {
            self.logging_in.decrement(1.0);
            match close_reason {
                CloseReason::Cancelled => self.cancel_requests.increment(1),
                _ => count(&self.refused, reason),
            }
            if close_reason.origin() == ErrorOrigin::Upstream {
                count(&self.upstream_failures, reason);
            }
        }
        if matches!(close_reason, CloseReason::Panic) {
            self.panicked();
        }
    }

    fn session_gauge(&self, role: Option<Role>) -> Option<&Gauge> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_exists_from_the_start() {
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
    fn gauges_return_to_zero_after_a_connection() {
        let metrics = Metrics::new().unwrap();
        let shard_metrics = ShardMetrics::new(&metrics, 0);
        let role = Some(Role::ReadWrite);
        let gauge = r#"teesql_connections{state="session",role="teesql_readwrite"}"#;
        shard_metrics.accepted();
        shard_metrics.session_started(role, Duration::from_millis(1));
        assert!(metrics.render().contains(&format!("{gauge} 1")));
        shard_metrics.ended(role, true, &CloseReason::ClientClosed);
        let text = metrics.render();
        assert!(text.contains(&format!("{gauge} 0")));
        assert!(text.contains(r#"teesql_connections{state="login",role="none"} 0"#));
        assert!(text.contains(r#"teesql_sessions_ended_total{reason="client_closed"} 1"#));
        assert!(text.contains(r#"teesql_login_seconds_bucket{le="0.001"} 1"#));
    }
}
