//! The catalogue of Prometheus metrics: names, units, help texts and registration.
//!
//! Every series exists from the start, with label values from closed lists. Counters that
//! change with every read and write have the label `shard`, so that no two cores write the
//! same cache line. Counters that change once per connection do not have it, because it would
//! multiply their series by the number of cores. docs/reference/metrics.md describes each
//! name; a test compares the two.

use attest::Policy;
use metrics::{Counter, Gauge, Histogram, Level, Metadata, Recorder, Unit, with_local_recorder};
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};

use crate::auth::client_auth::ClientAuth;
use crate::config::Config;
use crate::config::mode::Mode;
use crate::io::driver::IoDriver;
use crate::postgres::server::PostgresAuth;
use crate::telemetry::audit::event::Cause;
use crate::telemetry::close_reason::REASONS;

/// Bucket bounds in seconds. A login takes about 1 ms, half of it for the handshake, and may
/// take 5 s.
const LATENCY_BUCKETS: [f64; 14] = [
    0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 2.0, 5.0,
];
/// Bucket bounds in seconds. A verification takes 0.2 to 0.6 ms, and longer on a busy
/// machine, where its thread has a lower weight than the shards.
const VERIFICATION_BUCKETS: [f64; 9] = [
    0.000_1, 0.000_2, 0.000_4, 0.000_8, 0.001_6, 0.003_2, 0.01, 0.1, 1.0,
];

/// The metrics of this process.
pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    process: metrics_process::Collector,
    /// Values of the label `reason` that only this kind of process has.
    additional_reasons: Vec<&'static str>,
}

/// The metrics recorder cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("metrics: {0}")]
pub struct MetricsError(#[from] metrics_exporter_prometheus::BuildError);

impl Metrics {
    /// The metrics of a sidecar.
    ///
    /// # Errors
    /// The bucket bounds are invalid: a bug.
    pub(crate) fn new() -> Result<Self, MetricsError> {
        Self::with_reasons(Vec::new())
    }

    /// The metrics of a forwarder, which has additional reason codes.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(crate) fn for_forwarder() -> Result<Self, MetricsError> {
        let authority = attest::ita::ItaError::CODES.iter();
        let manifest = attest::manifest::ManifestError::CODES.iter();
        let custom = attest::Denial::VERIFIER_CODES.iter();
        Self::with_reasons(authority.chain(manifest).chain(custom).copied().collect())
    }

    fn with_reasons(additional_reasons: Vec<&'static str>) -> Result<Self, MetricsError> {
        let verification = Matcher::Full("teesql_verification_seconds".to_owned());
        let recorder = PrometheusBuilder::new()
            .set_buckets(&LATENCY_BUCKETS)?
            .set_buckets_for_metric(verification, &VERIFICATION_BUCKETS)?
            .build_recorder();
        let metrics = Self {
            handle: recorder.handle(),
            recorder,
            process: metrics_process::Collector::default(),
            additional_reasons,
        };
        metrics.describe();
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        metrics.gauge("teesql_build_info", &version).set(1.0);
        Ok(metrics)
    }

    /// Renders all metrics in Prometheus' text format.
    #[must_use]
    pub fn render(&self) -> String {
        with_local_recorder(&self.recorder, || self.process.collect());
        self.handle.run_upkeep();
        self.handle.render()
    }

    /// The same without the metrics of the process, for which files in `/proc` are read.
    pub(crate) fn sample(&self) -> String {
        self.handle.run_upkeep();
        self.handle.render()
    }

    /// Sums up the samples of histograms, which accumulate until this is called.
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

    /// All values of the label `reason`.
    pub(in crate::telemetry) fn reasons(&self) -> impl Iterator<Item = &'static str> {
        let denials = attest::Denial::CODES.iter();
        REASONS
            .iter()
            .chain(denials)
            .chain(&self.additional_reasons)
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

    /// Creates the series that belong to no shard, with the value 0.
    pub(super) fn register_process_series(&self) {
        for (name, _) in HISTOGRAMS {
            drop(self.histogram(name));
        }
        for outcome in ["ok", "failed"] {
            let labels = [("outcome", outcome)];
            drop(self.counter("teesql_collateral_refreshes_total", &labels));
            drop(self.counter("teesql_identity_renewals_total", &labels));
            drop(self.counter("teesql_config_reloads_total", &labels));
        }
    }

    /// Counts a reload of the configuration.
    pub(crate) fn config_reloaded(&self, ok: bool) {
        let labels = [("outcome", if ok { "ok" } else { "failed" })];
        self.counter("teesql_config_reloads_total", &labels)
            .increment(1);
    }

    /// Sets the gauges for what the policy weakens. A reload may change it.
    pub(crate) fn set_policy_info(&self, policy: Option<&Policy>) {
        let settings = policy.map(Policy::settings);
        let debug = settings.is_some_and(|settings| settings.allow_debug_td);
        let unpinned = policy.is_some_and(Policy::allows_unpinned_os);
        for (name, is) in [
            ("teesql_debug_td_allowed", debug),
            ("teesql_unpinned_os_allowed", unpinned),
        ] {
            self.gauge(name, &[]).set(f64::from(u8::from(is)));
        }
    }

    /// Sets the gauges whose values never change while the process runs.
    pub(crate) fn set_info(&self, driver: IoDriver, config: &Config) {
        // Only a sidecar has an audit log.
        drop(self.counter("teesql_audit_lines_total", &[]));
        drop(self.gauge("teesql_audit_failing", &[]));
        for cause in Cause::ALL {
            drop(self.counter("teesql_audit_lost_total", &[("cause", cause.code())]));
        }
        for known in [IoDriver::IoUring, IoDriver::Epoll] {
            let name = known.to_string();
            let used = self.gauge("teesql_driver_info", &[("driver", &name)]);
            used.set(f64::from(u8::from(known == driver)));
        }
        for known in Mode::ALL {
            let used = self.gauge("teesql_mode_info", &[("mode", known.name())]);
            used.set(f64::from(u8::from(known == config.mode)));
        }
        for (name, is) in [
            (
                "teesql_dangerous_tdx_root",
                config.dangerous_root().is_some(),
            ),
            (
                "teesql_client_auth_password",
                config.client_auth == ClientAuth::Password,
            ),
            (
                "teesql_postgres_auth_any",
                config.postgres.auth == PostgresAuth::Any,
            ),
            (
                "teesql_stored_role_settings_allowed",
                config.roles.sessions.allow_stored,
            ),
            (
                "teesql_other_databases_allowed",
                config.roles.options.allow_other_databases,
            ),
        ] {
            self.gauge(name, &[]).set(f64::from(u8::from(is)));
        }
        let attestation = config.attestation.as_ref();
        self.set_policy_info(attestation.map(|attestation| &attestation.policy));
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

/// Name, unit and help text.
type Description = (&'static str, Option<Unit>, &'static str);

const COUNTERS: &[Description] = &[
    (
        "teesql_connections_accepted_total",
        None,
        "Accepted connections, by shard",
    ),
    (
        "teesql_connections_dropped_total",
        None,
        "Connections closed immediately because no connection could be displaced for them",
    ),
    (
        "teesql_accept_failures_total",
        None,
        "Connections that could not be accepted, for want of descriptors or memory",
    ),
    (
        "teesql_logins_total",
        None,
        "Completed and refused logins, by outcome and reason",
    ),
    (
        "teesql_sessions_ended_total",
        None,
        "Ended sessions, by reason",
    ),
    (
        "teesql_verdicts_total",
        None,
        "Verdicts on client certificates, by outcome and source",
    ),
    (
        "teesql_bytes_total",
        Some(Unit::Bytes),
        "Plaintext bytes received from and sent to clients, by shard",
    ),
    (
        "teesql_cancel_requests_total",
        None,
        "CancelRequests forwarded to Postgres",
    ),
    (
        "teesql_links_opened_total",
        None,
        "Links that were opened, by direction and service",
    ),
    (
        "teesql_links_refused_total",
        None,
        "Links that were not opened, by direction and reason",
    ),
    (
        "teesql_links_ended_total",
        None,
        "Links that have ended, by direction and reason",
    ),
    (
        "teesql_link_bytes_total",
        Some(Unit::Bytes),
        "Plaintext bytes of links from and to the side that opened the connection, by direction, service, flow and shard",
    ),
    (
        "teesql_upstream_failures_total",
        None,
        "Logins that failed at Postgres, by reason",
    ),
    (
        "teesql_config_reloads_total",
        None,
        "Reloads of the configuration on SIGHUP, by outcome",
    ),
    (
        "teesql_panics_total",
        None,
        "Caught panics, each of which ended one connection",
    ),
    (
        "teesql_collateral_refreshes_total",
        None,
        "Attempts to fetch collateral, by outcome",
    ),
    (
        "teesql_identity_renewals_total",
        None,
        "Renewals and reloads of the certificate, by outcome",
    ),
    (
        "teesql_manifest_failures_total",
        None,
        "Leader manifests that could not be published, by reason",
    ),
    (
        "teesql_provision_repairs_total",
        None,
        "Repairs of the roles in Postgres, by what differed",
    ),
    (
        "teesql_attestation_reports_total",
        None,
        "Requests for /attestation, by outcome",
    ),
    (
        "teesql_audit_lines_total",
        None,
        "Lines written to the audit log",
    ),
    (
        "teesql_forward_target_attempts_total",
        None,
        "Attempts of a forwarder to connect to its servers, by the server's position and outcome",
    ),
    (
        "teesql_forward_target_failures_total",
        None,
        "Attempts of a forwarder to connect to its servers that failed, by reason",
    ),
    (
        "teesql_audit_lost_total",
        None,
        "Events without a line in the audit log, by cause",
    ),
    (
        "teesql_cluster_watch_errors_total",
        None,
        "Rounds in which the role of this member could not be learned, by reason",
    ),
    (
        "teesql_cluster_fences_total",
        None,
        "How often this member of a cluster was fenced, by cause",
    ),
];

const GAUGES: &[Description] = &[
    (
        "teesql_connections",
        None,
        "Current connections, by state and role",
    ),
    (
        "teesql_peer_sessions",
        None,
        "Current sessions, by the entry of the policy file that admits their clients",
    ),
    ("teesql_links", None, "Open links, by direction and service"),
    (
        "teesql_unattested_connections",
        None,
        "Current connections of clients that are not attested yet",
    ),
    (
        "teesql_collateral_expires_in_seconds",
        Some(Unit::Seconds),
        "Time until the first cached collateral expires; NaN if no collateral is cached",
    ),
    (
        "teesql_certificate_expires_in_seconds",
        Some(Unit::Seconds),
        "Time until the certificate of the sidecar expires; NaN before the first certificate",
    ),
    (
        "teesql_ready",
        None,
        "Whether a readiness check passes, by check",
    ),
    (
        "teesql_build_info",
        None,
        "Always 1, with the version as a label",
    ),
    ("teesql_driver_info", None, "1 for the I/O driver in use"),
    (
        "teesql_mode_info",
        None,
        "1 for the current mode: production, unattested or simulator",
    ),
    (
        "teesql_dangerous_tdx_root",
        None,
        "1 if quotes are verified against a root other than Intel's",
    ),
    (
        "teesql_stored_role_settings_allowed",
        None,
        "1 if settings that are stored in Postgres for a role decide in new sessions",
    ),
    (
        "teesql_other_databases_allowed",
        None,
        "1 if provisioning leaves other databases open to PUBLIC",
    ),
    (
        "teesql_debug_td_allowed",
        None,
        "1 if TDs in debug mode are accepted",
    ),
    (
        "teesql_client_auth_password",
        None,
        "1 if clients send their secret in cleartext inside TLS",
    ),
    (
        "teesql_postgres_socket_used",
        None,
        "1 while new sessions are opened on a Unix socket of Postgres, and 0 for TCP",
    ),
    (
        "teesql_postgres_auth_any",
        None,
        "1 if Postgres may ask for another authentication than SCRAM",
    ),
    (
        "teesql_any_server_allowed",
        None,
        "1 if a forwarder accepts a policy that names no application",
    ),
    (
        "teesql_unpinned_os_allowed",
        None,
        "1 if identities are accepted from operating systems that are not pinned",
    ),
    (
        "teesql_manifest_leading",
        None,
        "1 while this member leads the cluster, and has to publish the leader manifest",
    ),
    (
        "teesql_manifest_published_timestamp_seconds",
        Some(Unit::Seconds),
        "When this member last published the leader manifest, in Unix seconds",
    ),
    (
        "teesql_manifest_valid_until_timestamp_seconds",
        Some(Unit::Seconds),
        "When the leader manifest of this member's leadership expires, in Unix seconds; 0 if there is none",
    ),
    (
        "teesql_manifest_foreign_signer",
        None,
        "1 while another key has signed a valid leader manifest of this cluster",
    ),
    (
        "teesql_audit_failing",
        None,
        "1 while the audit log cannot be written",
    ),
    (
        "teesql_cluster_role",
        None,
        "1 for the role of this member of a cluster",
    ),
    (
        "teesql_cluster_has_leader",
        None,
        "1 while the cluster has a leader that takes writes",
    ),
    (
        "teesql_cluster_timeline",
        None,
        "The timeline of this member's Postgres",
    ),
    (
        "teesql_cluster_lag_bytes",
        Some(Unit::Bytes),
        "WAL that this member of a cluster has not replayed yet; NaN if it is not known",
    ),
    (
        "teesql_cluster_lag_seconds",
        Some(Unit::Seconds),
        "Age of the last transaction that this member has replayed; NaN if it is not known",
    ),
    (
        "teesql_cluster_fenced",
        None,
        "1 while this member of a cluster is fenced",
    ),
    (
        "teesql_cluster_carried_sessions",
        None,
        "Sessions that this member carries to the leader",
    ),
    (
        "teesql_cluster_waiting_logins",
        None,
        "Logins that wait for a leader",
    ),
];

/// Name and help text. The unit is the second.
const HISTOGRAMS: &[(&str, &str)] = &[
    (
        "teesql_handshake_seconds",
        "Time from accept to the end of the TLS handshake",
    ),
    ("teesql_login_seconds", "Time from accept to ReadyForQuery"),
    (
        "teesql_verification_seconds",
        "Duration of full verifications of client certificates",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

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
