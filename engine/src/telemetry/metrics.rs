//! What Prometheus may know: every series, from the start, with label values
//! from closed lists.
//!
//! A shard has handles of its own. What is counted for every read and write has
//! the shard as a label, so that no two cores write the same cache line; what
//! is counted once a connection has not, or each series would be there once a
//! core. docs/reference/metrics.md describes each name, and a test compares the two.

use std::collections::HashMap;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Level, Metadata, Recorder, Unit, with_local_recorder};
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};

use crate::auth::role::Role;
use crate::config::Config;
use crate::config::mode::Mode;
use crate::io::driver::IoDriver;
use crate::telemetry::close_reason::{CloseReason, ErrorOrigin, REASONS};

/// Upper bounds in seconds: a login takes about 1 ms, of which the handshake is
/// half, and 5 s are allowed.
const LATENCIES: [f64; 14] = [
    0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 2.0, 5.0,
];
/// Upper bounds in seconds: one verification takes 0.2 to 0.6 ms, and the thread
/// stands back where the machine is busy.
const VERIFICATIONS: [f64; 9] = [
    0.000_1, 0.000_2, 0.000_4, 0.000_8, 0.001_6, 0.003_2, 0.01, 0.1, 1.0,
];

/// All series of this process.
pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    process: metrics_process::Collector,
    /// Label values of `reason` that only this kind of process has.
    more_reasons: Vec<&'static str>,
}

/// The recorder could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("metrics: {0}")]
pub struct MetricsError(#[from] metrics_exporter_prometheus::BuildError);

impl Metrics {
    /// # Errors
    /// Bounds that are no histogram's: a bug.
    pub(crate) fn new() -> Result<Self, MetricsError> {
        Self::with_reasons(Vec::new())
    }

    /// For a forwarder, which has more ways to fail.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(crate) fn for_forwarder() -> Result<Self, MetricsError> {
        let authority = attest::ita::ItaError::CODES.iter();
        let manifest = attest::manifest::ManifestError::CODES.iter();
        Self::with_reasons(authority.chain(manifest).copied().collect())
    }

    fn with_reasons(more_reasons: Vec<&'static str>) -> Result<Self, MetricsError> {
        let verification = Matcher::Full("teesql_verification_seconds".to_owned());
        let recorder = PrometheusBuilder::new()
            .set_buckets(&LATENCIES)?
            .set_buckets_for_metric(verification, &VERIFICATIONS)?
            .build_recorder();
        let metrics = Self {
            handle: recorder.handle(),
            recorder,
            process: metrics_process::Collector::default(),
            more_reasons,
        };
        metrics.describe();
        Ok(metrics)
    }

    /// Everything in Prometheus' text format.
    #[must_use]
    pub fn render(&self) -> String {
        with_local_recorder(&self.recorder, || self.process.collect());
        self.handle.run_upkeep();
        self.handle.render()
    }

    /// Histograms keep their samples until this is called.
    pub(crate) fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    fn describe(&self) {
        for (name, unit, help) in COUNTERS {
            self.recorder
                .describe_counter((*name).into(), *unit, (*help).into());
        }
        for (name, unit, help) in GAUGES {
            self.recorder
                .describe_gauge((*name).into(), *unit, (*help).into());
        }
        for (name, help) in HISTOGRAMS {
            let unit = Some(Unit::Seconds);
            self.recorder
                .describe_histogram((*name).into(), unit, (*help).into());
        }
        with_local_recorder(&self.recorder, || self.process.describe());
    }

    /// All label values of `reason`.
    fn reasons(&self) -> impl Iterator<Item = &'static str> {
        let denials = attest::Denial::CODES.iter();
        REASONS
            .iter()
            .chain(denials)
            .chain(&self.more_reasons)
            .copied()
    }

    pub(crate) fn counter(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Counter {
        self.recorder
            .register_counter(&key(name, labels), &METADATA)
    }

    pub(crate) fn gauge(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Gauge {
        self.recorder.register_gauge(&key(name, labels), &METADATA)
    }

    pub(crate) fn histogram(&self, name: &'static str) -> Histogram {
        self.recorder.register_histogram(&key(name, &[]), &METADATA)
    }

    /// Makes every series of so many shards and of the control thread, at 0: they
    /// are there while a guest agent or Postgres is still waited for, too.
    pub(crate) fn register_all(&self, shards: usize) {
        for shard in 0..shards {
            drop(ShardMetrics::new(self, shard));
        }
        for (name, _) in HISTOGRAMS {
            drop(self.histogram(name));
        }
        for outcome in ["ok", "failed"] {
            let labels = [("outcome", outcome)];
            drop(self.counter("teesql_collateral_refreshes_total", &labels));
            drop(self.counter("teesql_identity_renewals_total", &labels));
        }
    }

    /// What holds for as long as the process runs.
    pub(crate) fn set_info(&self, driver: IoDriver, config: &Config) {
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        self.gauge("teesql_build_info", &version).set(1.0);
        for known in [IoDriver::IoUring, IoDriver::Epoll] {
            let name = known.to_string();
            let used = self.gauge("teesql_driver_info", &[("driver", &name)]);
            used.set(f64::from(u8::from(known == driver)));
        }
        for known in Mode::ALL {
            let used = self.gauge("teesql_mode_info", &[("mode", known.name())]);
            used.set(f64::from(u8::from(known == config.mode)));
        }
        let debug = config.attestation.as_ref();
        let debug = debug.is_some_and(|attestation| attestation.policy.settings().allow_debug_td);
        for (name, is) in [
            (
                "teesql_dangerous_tdx_root",
                config.dangerous_root().is_some(),
            ),
            ("teesql_debug_td_allowed", debug),
        ] {
            self.gauge(name, &[]).set(f64::from(u8::from(is)));
        }
    }
}

const METADATA: Metadata<'static> = Metadata::new("engine", Level::INFO, None);

fn key(name: &'static str, labels: &[(&'static str, &str)]) -> metrics::Key {
    let labels: Vec<_> = labels
        .iter()
        .map(|(name, value)| metrics::Label::new(*name, (*value).to_owned()))
        .collect();
    metrics::Key::from_parts(name, labels)
}

type Described = (&'static str, Option<Unit>, &'static str);

const COUNTERS: &[Described] = &[
    (
        "teesql_connections_accepted_total",
        None,
        "Connections accepted, by shard",
    ),
    (
        "teesql_connections_dropped_total",
        None,
        "Connections closed at once, far past the limit",
    ),
    (
        "teesql_logins_total",
        None,
        "Connections that asked to log in, by outcome and reason",
    ),
    (
        "teesql_sessions_ended_total",
        None,
        "Sessions that ended, by reason",
    ),
    (
        "teesql_verdicts_total",
        None,
        "VerdictCounters on client certificates, by outcome and source",
    ),
    (
        "teesql_bytes_total",
        Some(Unit::Bytes),
        "Plaintext bytes from (received) and to (sent) clients, by shard",
    ),
    (
        "teesql_cancel_requests_total",
        None,
        "CancelRequests forwarded",
    ),
    (
        "teesql_upstream_failures_total",
        None,
        "Logins that failed at Postgres, by reason",
    ),
    (
        "teesql_panics_total",
        None,
        "Panics caught, each of which ended one connection",
    ),
    (
        "teesql_collateral_refreshes_total",
        None,
        "Fetches of collateral, by outcome",
    ),
    (
        "teesql_identity_renewals_total",
        None,
        "Renewals and reloads of the sidecar's certificate, by outcome",
    ),
    (
        "teesql_attestation_reports_total",
        None,
        "Requests for /attestation, by outcome",
    ),
];

const GAUGES: &[Described] = &[
    (
        "teesql_connections",
        None,
        "Connections now, by state and role",
    ),
    (
        "teesql_collateral_expires_in_seconds",
        Some(Unit::Seconds),
        "Time until the first collateral held expires; NaN when none is held",
    ),
    (
        "teesql_certificate_expires_in_seconds",
        Some(Unit::Seconds),
        "Time until the sidecar's certificate expires; NaN when there is none",
    ),
    ("teesql_ready", None, "Whether a check of /ready passes"),
    ("teesql_build_info", None, "Always 1, by version"),
    ("teesql_driver_info", None, "1 for the driver in use"),
    (
        "teesql_mode_info",
        None,
        "1 for the mode: production, unattested or simulator",
    ),
    (
        "teesql_dangerous_tdx_root",
        None,
        "1 when quotes are trusted under another root than Intel's",
    ),
    (
        "teesql_debug_td_allowed",
        None,
        "1 when TDs under debug may enter",
    ),
];

const HISTOGRAMS: &[(&str, &str)] = &[
    (
        "teesql_handshake_seconds",
        "From accept to the end of the TLS handshake",
    ),
    ("teesql_login_seconds", "From accept to ReadyForQuery"),
    (
        "teesql_verification_seconds",
        "Full verifications of client certificates",
    ),
];

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
        metrics.register_all(1);
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

    #[test]
    fn every_name_is_documented() {
        let page = include_str!("../../../docs/reference/metrics.md");
        let described = COUNTERS.iter().chain(GAUGES).map(|(name, _, _)| *name);
        let names = described.chain(HISTOGRAMS.iter().map(|(name, _)| *name));
        for name in names {
            assert!(page.contains(&format!("`{name}`")), "{name}");
        }
    }
}
