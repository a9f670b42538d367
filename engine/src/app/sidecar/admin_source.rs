//! The data that the sidecar's HTTP server shows: the attestation report with its quote, and the
//! metrics.
//!
//! The report must never contain a secret, since it needs no authentication.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use admin::status::Status;
use admin::{Nonce, ReportFuture, Stats, Unavailable};
use attest::Policy;
use attest::agent::{Agent, AgentError, Info, Quote};
use attest::values::Fingerprint;
use serde_json::{Value, json};

use crate::app::readiness::ReadinessChecks;
use crate::app::sidecar::cluster_report;
use crate::app::sidecar::report::{PLAIN, ReportFields, ServiceState, WITH_NONCES};
use crate::app::status::StatusHistory;
use crate::attestation::verifier::QuoteVerifier;
use crate::auth::client_auth::ClientAuth;
use crate::cluster::state::ClusterState;
use crate::config::Config;
use crate::config::mode::Mode;
use crate::io::clock::unix_now;
use crate::postgres::server::PostgresServer;
use crate::postgres::superuser::Superuser;
use crate::postgres::superuser::state::PostgresState;
use crate::shard::live_config::LiveConfig;
use crate::tasks::certificate_renewal::RenewalMetrics;
use crate::telemetry::metrics::Metrics;

/// Implements [`admin::Source`] for a sidecar.
pub(crate) struct AdminSource {
    mode: Mode,
    dangerous_root: Option<Fingerprint>,
    agent: Agent,
    client_auth: ClientAuth,
    /// `allow_stored_role_settings` and `allow_other_databases`.
    allow_stored_settings: bool,
    allow_other_databases: bool,
    postgres: PostgresServer,
    database: String,
    metrics: Arc<Metrics>,
    readiness: admin::Readiness,
    renewal_metrics: RenewalMetrics,
    /// For the status page.
    status: Arc<StatusHistory>,
    /// The names of policy entries that have a series.
    shown_peers: Mutex<HashSet<Arc<str>>>,
    /// Set when the shards have started.
    running: OnceLock<RunningState>,
}

/// The state that exists only while the shards run.
pub(crate) struct RunningState {
    pub(crate) live: Arc<LiveConfig>,
    pub(crate) quote_verifier: Option<Arc<QuoteVerifier>>,
    pub(crate) cluster: Option<Arc<ClusterState>>,
}

impl admin::Source for AdminSource {
    fn mode(&self) -> &'static str {
        self.mode.name()
    }

    fn metrics(&self, own: &Stats) -> String {
        self.sample_gauges(own);
        self.metrics.render()
    }

    fn status(&self, own: &Stats) -> Option<Status> {
        Some(self.status.status(&self.metrics(own)))
    }

    fn cluster(&self) -> Option<admin::ClusterStatus> {
        let state = self.running.get()?.cluster.as_ref()?;
        Some(cluster_report::status(state, Instant::now()))
    }

    fn attestation(self: Arc<Self>, nonces: Vec<Nonce>) -> ReportFuture {
        Box::pin(async move {
            let report = self.report(&nonces).await?;
            Ok(report.to_string())
        })
    }
}

impl AdminSource {
    pub(crate) fn new(
        config: &Config,
        agent: &Agent,
        metrics: &Arc<Metrics>,
        checks: &ReadinessChecks,
    ) -> Arc<Self> {
        Arc::new(Self {
            mode: config.mode,
            dangerous_root: config.dangerous_root(),
            agent: agent.clone(),
            client_auth: config.client_auth,
            allow_stored_settings: config.roles.sessions.allow_stored,
            allow_other_databases: config.roles.options.allow_other_databases,
            postgres: config.postgres.clone(),
            database: config.database.clone(),
            renewal_metrics: RenewalMetrics::new(metrics),
            metrics: Arc::clone(metrics),
            readiness: checks.readiness.clone(),
            status: StatusHistory::new("teesql-sidecar"),
            shown_peers: Mutex::default(),
            running: OnceLock::new(),
        })
    }

    /// Takes the samples of the status page.
    pub(crate) fn spawn_status(&self) {
        let status = Arc::clone(&self.status);
        tokio::spawn(status.sample(Arc::clone(&self.metrics)));
    }

    pub(crate) fn renewal_metrics(&self) -> RenewalMetrics {
        self.renewal_metrics.clone()
    }

    /// Adds the state of the running shards to what is reported. Must be called once.
    pub(crate) fn set_running(&self, running: RunningState) {
        // A second call would have no effect.
        let _ = self.running.set(running);
    }

    async fn report(&self, nonces: &[Nonce]) -> Result<Value, Unavailable> {
        let failed = |error: AgentError| Unavailable::new(error.to_string());
        let info = self.agent.info().await.map_err(failed)?;
        let fields = ReportFields::new(
            self.postgres_state().await,
            self.service_state(),
            unix_now(),
        );
        let quote = self.agent.quote(&fields.report_data(nonces)).await;
        Ok(self.document(&info, &fields, &quote.map_err(failed)?, nonces))
    }

    /// What the report says about this process.
    fn service_state(&self) -> ServiceState {
        let snapshot = self.running.get().map(|running| running.live.read());
        ServiceState {
            mode: self.mode.name(),
            dangerous_tdx_root: self.dangerous_root.map(|root| root.to_string()),
            tls_key: snapshot.map(|snapshot| snapshot.tls_key.to_string()),
        }
    }

    /// Logs in as the superuser and reads the state. An error becomes a part of the report.
    async fn postgres_state(&self) -> Result<PostgresState, String> {
        let running = self.running.get().ok_or("the sidecar is still starting")?;
        let snapshot = running.live.read();
        let password = snapshot.authenticator.superuser_credential();
        let password = password.map(|credential| &credential.password);
        let superuser = Superuser::connect(&self.postgres, password, &self.database)
            .await
            .map_err(|error| error.to_string())?;
        let state = superuser.state(None).await;
        superuser.close().await;
        Ok(state)
    }

    /// The policy for clients; `None` if they are not attested, or while the process starts.
    fn policy(&self) -> Option<Arc<Policy>> {
        let verifier = self.running.get()?.quote_verifier.as_ref()?;
        Some(Arc::clone(&verifier.policy()))
    }

    /// The settings in use that weaken attestation, or the separation of clients inside Postgres.
    fn weakenings(&self) -> Vec<&'static str> {
        let policy = self.policy();
        let policy = policy.as_deref();
        let root = self.dangerous_root.is_some();
        let debug = policy.is_some_and(|policy| policy.settings().allow_debug_td);
        let unpinned = policy.is_some_and(Policy::allows_unpinned_os);
        [
            (self.mode == Mode::Unattested, "allow_unattested_clients"),
            (root, "dangerous_tdx_root_ca"),
            (debug, "allow_debug_td"),
            (unpinned, "allow_unpinned_os"),
            (self.allow_stored_settings, "allow_stored_role_settings"),
            (self.allow_other_databases, "allow_other_databases"),
        ]
        .into_iter()
        .filter_map(|(is_set, name)| is_set.then_some(name))
        .collect()
    }

    fn document(
        &self,
        info: &Info,
        fields: &ReportFields,
        quote: &Quote,
        nonces: &[Nonce],
    ) -> Value {
        let report = quote.quote.report();
        let [rtmr0, rtmr1, rtmr2, rtmr3] = report.rtmrs();
        json!({
            "mode": fields.service.mode,
            "client_auth": self.client_auth.name(),
            "postgres_auth": self.postgres.auth.name(),
            "policy": self.policy().map(|policy| policy.epoch().full()),
            "weakened_by": self.weakenings(),
            "dangerous_tdx_root": fields.service.dangerous_tdx_root,
            "tls_key": fields.service.tls_key,
            "app_id": info.app_id.to_string(),
            "compose_hash": info.compose_hash.to_string(),
            "instance_id": info.instance_id.map(|id| id.to_string()),
            "quote": hex::encode(quote.quote.as_bytes()),
            "event_log": serde_json::from_str::<Value>(&quote.event_log).unwrap_or_default(),
            "report_data": hex::encode(quote.report_data),
            "tcb_info": {
                "mrtd": report.mrtd().to_string(),
                "rtmr0": rtmr0.to_string(),
                "rtmr1": rtmr1.to_string(),
                "rtmr2": rtmr2.to_string(),
                "rtmr3": rtmr3.to_string(),
            },
            "postgres_state": fields.postgres,
            "cluster": self.running.get().and_then(|running| running.cluster.as_deref()).map(|state| cluster_report::member(state, &state.view())),
            "timestamp": fields.timestamp,
            "nonces": nonces.iter().map(Nonce::to_string).collect::<Vec<_>>(),
            "report_data_is": if nonces.is_empty() { PLAIN } else { WITH_NONCES },
        })
    }

    /// Sets the gauges that are computed when the metrics are requested.
    fn sample_gauges(&self, own: &Stats) {
        let seconds_until = |time: u64| time as f64 - unix_now() as f64;
        let certificate = match self.renewal_metrics.not_after() {
            0 => f64::NAN,
            not_after => seconds_until(not_after),
        };
        let gauge = |name, value: f64| self.metrics.gauge(name, &[]).set(value);
        if let Some(policy) = self.policy() {
            self.metrics.set_policy_info(Some(&policy));
        }
        gauge("teesql_certificate_expires_in_seconds", certificate);
        gauge(
            "teesql_collateral_expires_in_seconds",
            self.seconds_until_collateral_expiry(),
        );
        self.sample_peers();
        for (check, ready) in self.readiness.states() {
            let gauge = self.metrics.gauge("teesql_ready", &[("check", check)]);
            gauge.set(f64::from(u8::from(ready)));
        }
        for (outcome, count) in [
            ("made", own.reports_made()),
            ("shared", own.reports_shared()),
            ("limited", own.reports_limited()),
            ("failed", own.reports_failed()),
        ] {
            let labels = [("outcome", outcome)];
            let counter = "teesql_attestation_reports_total";
            self.metrics.counter(counter, &labels).absolute(count);
        }
    }

    /// The sessions of each entry of the policy. One that a reload has removed has none.
    fn sample_peers(&self) {
        let running = self.running.get();
        let Some(verifier) = running.and_then(|running| running.quote_verifier.as_ref()) else {
            return;
        };
        let set = |name: &str, sessions: u32| {
            let labels = [("peer", name)];
            let gauge = self.metrics.gauge("teesql_peer_sessions", &labels);
            gauge.set(f64::from(sessions));
        };
        let counts = verifier.sessions().counts();
        let mut shown = self
            .shown_peers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        shown.extend(counts.iter().map(|(name, _)| Arc::clone(name)));
        for name in &*shown {
            let found = counts.iter().find(|(known, _)| known == name);
            set(name, found.map_or(0, |(_, sessions)| *sessions));
        }
    }

    /// NaN if no collateral is cached.
    fn seconds_until_collateral_expiry(&self) -> f64 {
        let quote_verifier = self
            .running
            .get()
            .and_then(|running| running.quote_verifier.as_ref());
        let seconds = quote_verifier
            .and_then(|quote_verifier| quote_verifier.seconds_until_collateral_expiry(unix_now()));
        seconds.map_or(f64::NAN, |seconds| seconds as f64)
    }
}
