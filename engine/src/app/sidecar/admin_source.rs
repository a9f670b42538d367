//! What `:8080` is told: the report with its quote, and the metrics that are
//! read off when somebody asks.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, UNIX_EPOCH};

use admin::{Nonce, ReportFuture, Stats, Unavailable};
use attest::agent::{Agent, AgentError, Info, Quote};
use attest::values::Fingerprint;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::app::readiness::Health;
use crate::attestation::verifier::QuoteVerifier;
use crate::config::Config;
use crate::config::mode::Mode;
use crate::io::clock::unix_now;
use crate::io::stream::PgAddress;
use crate::postgres::superuser::Superuser;
use crate::postgres::superuser::query::Unreadable;
use crate::postgres::superuser::state::PostgresState;
use crate::shard::live_config::LiveConfig;
use crate::tasks::certificate_renewal::RenewalMetrics;
use crate::telemetry::metrics::Metrics;

/// The source of the admin admin_source.
pub(crate) struct AdminSource {
    mode: Mode,
    dangerous_root: Option<Fingerprint>,
    agent: Agent,
    postgres: PgAddress,
    database: String,
    metrics: Arc<Metrics>,
    readiness: admin::Readiness,
    renewal_metrics: RenewalMetrics,
    /// Once there is a certificate and connections are accepted.
    running: OnceLock<Running>,
}

/// What is there only then.
pub(crate) struct Running {
    pub(crate) live: Arc<LiveConfig>,
    pub(crate) quote_verifier: Option<Arc<QuoteVerifier>>,
}

impl admin::Source for AdminSource {
    fn mode(&self) -> &'static str {
        self.mode.name()
    }

    fn metrics(&self, own: &Stats) -> String {
        self.sample_gauges(own);
        self.metrics.render()
    }

    fn attestation(self: Arc<Self>, nonce: Option<Nonce>) -> ReportFuture {
        Box::pin(async move {
            let report = self.report(nonce).await?;
            Ok(report.to_string())
        })
    }
}

impl AdminSource {
    pub(crate) fn new(
        config: &Config,
        agent: &Agent,
        metrics: &Arc<Metrics>,
        health: &Health,
    ) -> Arc<Self> {
        Arc::new(Self {
            mode: config.mode,
            dangerous_root: config.dangerous_root(),
            agent: agent.clone(),
            postgres: config.postgres.clone(),
            database: config.database.clone(),
            renewal_metrics: RenewalMetrics::new(metrics),
            metrics: Arc::clone(metrics),
            readiness: health.readiness.clone(),
            running: OnceLock::new(),
        })
    }

    pub(crate) fn renewal_metrics(&self) -> RenewalMetrics {
        self.renewal_metrics.clone()
    }

    /// From here on there is more to report. Once.
    pub(crate) fn set_running(&self, running: Running) {
        // The second time would be a bug without consequence.
        let _ = self.running.set(running);
    }

    async fn report(&self, nonce: Option<Nonce>) -> Result<Value, Unavailable> {
        let failed = |error: AgentError| Unavailable::new(error.to_string());
        let info = self.agent.info().await.map_err(failed)?;
        let facts = ReportFields::of(self.postgres_state().await, unix_now());
        let data = facts.report_data(nonce.as_ref());
        let quote = self.agent.quote(&data).await.map_err(failed)?;
        Ok(self.document(&info, &facts, &quote, nonce.as_ref()))
    }

    /// By a login of the superuser's; whatever fails is said in the report.
    async fn postgres_state(&self) -> Result<PostgresState, String> {
        let running = self.running.get().ok_or("not started yet")?;
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

    fn document(
        &self,
        info: &Info,
        facts: &ReportFields,
        quote: &Quote,
        nonce: Option<&Nonce>,
    ) -> Value {
        let report = quote.quote.report();
        let [rtmr0, rtmr1, rtmr2, rtmr3] = report.rtmrs();
        json!({
            "mode": self.mode.name(),
            "dangerous_tdx_root": self.dangerous_root.map(|root| root.to_string()),
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
            "postgres_state": facts.postgres,
            "timestamp": facts.timestamp,
            "nonce": nonce.map(|nonce| hex::encode(nonce.as_bytes())),
            "report_data_is": match nonce {
                None => "SHA-256(wal_lsn || controldata_hash || timestamp), then zeros",
                Some(_) => "SHA-256(wal_lsn || controldata_hash || timestamp || nonce bytes), then zeros",
            },
        })
    }

    /// What is not counted but is as it is now.
    fn sample_gauges(&self, own: &Stats) {
        let left = |until: u64| until as f64 - unix_now() as f64;
        let certificate = match self.renewal_metrics.not_after() {
            0 => f64::NAN,
            until => left(until),
        };
        let gauge = |name, value: f64| self.metrics.gauge(name, &[]).set(value);
        gauge("teesql_certificate_expires_in_seconds", certificate);
        gauge("teesql_collateral_expires_in_seconds", self.collateral());
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

    fn collateral(&self) -> f64 {
        let quote_verifier = self
            .running
            .get()
            .and_then(|running| running.quote_verifier.as_ref());
        let left = quote_verifier
            .and_then(|quote_verifier| quote_verifier.seconds_until_collateral_expiry(unix_now()));
        left.map_or(f64::NAN, |left| left as f64)
    }
}

/// What the quote is over, in the words of the document.
struct ReportFields {
    wal_lsn: String,
    controldata_hash: String,
    timestamp: String,
    postgres: Value,
}

impl ReportFields {
    /// A value that could not be read is null in the document, and the empty
    /// text in the report data.
    fn of(state: Result<PostgresState, String>, now: u64) -> Self {
        let timestamp = UNIX_EPOCH + Duration::from_secs(now);
        let timestamp = humantime::format_rfc3339_seconds(timestamp).to_string();
        let state = match state {
            Ok(state) => state,
            Err(error) => {
                return Self {
                    wal_lsn: String::new(),
                    controldata_hash: String::new(),
                    timestamp,
                    postgres: json!({
                        "wal_lsn": null,
                        "controldata_hash": null,
                        "controldata_source": null,
                        "pg_version": null,
                        "in_recovery": null,
                        "error": error,
                    }),
                };
            }
        };
        let mut errors = Vec::new();
        let mut read = |value: Result<String, Unreadable>| match value {
            Ok(value) => Some(value),
            Err(error) => {
                errors.push(error.to_string());
                None
            }
        };
        let wal_lsn = read(state.wal_lsn);
        let pg_version = read(state.pg_version);
        let (hash, source) = match state.controldata {
            Ok(data) => (Some(data.hash), Some(data.source.name())),
            Err(error) => (read(Err(error)), None),
        };
        let postgres = json!({
            "wal_lsn": wal_lsn,
            "controldata_hash": hash,
            "controldata_source": source,
            "pg_version": pg_version,
            "in_recovery": state.in_recovery.ok(),
            "error": (!errors.is_empty()).then(|| errors.join("; ")),
        });
        Self {
            wal_lsn: wal_lsn.unwrap_or_default(),
            controldata_hash: hash.unwrap_or_default(),
            timestamp,
            postgres,
        }
    }

    /// The first 32 of the 64 bytes; the guest agent adds the zeros.
    fn report_data(&self, nonce: Option<&Nonce>) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(&self.wal_lsn);
        hash.update(&self.controldata_hash);
        hash.update(&self.timestamp);
        hash.update(nonce.map(Nonce::as_bytes).unwrap_or_default());
        hash.finalize().into()
    }
}
