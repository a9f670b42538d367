//! Publishes the leader manifest while this member leads its cluster: a renewal loop with exponential back-off.
//!
//! Clients find the leader by a signed TXT record. Its epoch is Postgres' timeline, which grows with each promotion
//! and is the same on all members, so that no publisher needs to know another. A member that does not lead must never
//! publish, also not the end of an attempt that began while it did: the attempt is dropped. Nothing is withdrawn.

mod command;
mod error;
mod rfc2136;
mod schedule;
mod standing;
#[cfg(test)]
mod tests;

use std::future::pending;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use admin::Latch;
use attest::agent::Agent;
use attest::manifest::{EthAddress, LeaderInstance, LeaderUrl, SigningKey, UnsignedManifest};
use hickory_proto::rr::{Name, TSigner};
use metrics::Gauge;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::attestation::verifier::QuoteVerifier;
use crate::config::{DnsUpdateConfig, ManifestConfig, ManifestDestination};
use crate::io::clock::{readable_time, unix_now};
use crate::telemetry::metrics::Metrics;
use crate::tls::certificate::Identity;
use error::PublishError;
use rfc2136::UpdateServer;
use schedule::Schedule;

/// The TTL of the record in seconds: how long a resolver may keep an old leader.
const TTL: u32 = 30;
/// The largest difference of the clocks that TSIG allows, in seconds. [RFC 8945, section 10]
const TSIG_FUDGE: u16 = 300;
/// The `path` and the `purpose` of the signing key in the guest agent's `GetKey`. They must not change: clients trust
/// the address of this key.
const KEY_PATH: &str = "manifest";
const KEY_PURPOSE: &str = "teesql-manifest-sign";

const FAILURES: &str = "teesql_manifest_failures_total";

/// The leader manifest of a cluster, and where it goes.
pub(crate) struct ManifestPublisher {
    name: Name,
    cluster: Option<EthAddress>,
    epoch_offset: u64,
    leader_url: LeaderUrl,
    destination: Destination,
    key: KeySource,
    instance: InstanceSource,
    latch: Latch,
    metrics: Arc<Metrics>,
    gauges: Gauges,
    /// The other signer that was reported last.
    foreign_signer: Option<EthAddress>,
}

enum Destination {
    Update(UpdateServer),
    Command(PathBuf),
}

/// Where the signing key comes from.
enum KeySource {
    Known(SigningKey),
    /// It has not been derived yet.
    Agent(Agent),
}

/// Where this member's instance id comes from.
pub(crate) enum InstanceSource {
    /// The event log in the own certificate, judged as a peer would.
    Evidence {
        verifier: Arc<QuoteVerifier>,
        own: watch::Receiver<Identity>,
    },
    /// The guest agent's word, where this sidecar verifies no quotes.
    Agent(Agent),
    #[cfg(test)]
    Known(LeaderInstance),
}

struct Gauges {
    leading: Gauge,
    published: Gauge,
    valid_until: Gauge,
    foreign_signer: Gauge,
}

/// What was published.
struct Published {
    epoch: u64,
    valid_until: u64,
    foreign_signer: Option<EthAddress>,
}

impl ManifestPublisher {
    /// # Errors
    /// The TSIG algorithm is not supported: a bug.
    pub(crate) fn new(
        config: ManifestConfig,
        agent: &Agent,
        instance: InstanceSource,
        latch: Latch,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
        let destination = match config.destination {
            ManifestDestination::Command(program) => Destination::Command(program),
            ManifestDestination::Update(update) => Destination::Update(update_server(*update)?),
        };
        latch.set_ready();
        Ok(Self {
            name: config.name,
            cluster: config.cluster,
            epoch_offset: config.epoch_offset,
            leader_url: config.leader_url,
            destination,
            key: match config.key {
                Some(key) => KeySource::Known(key),
                None => KeySource::Agent(agent.clone()),
            },
            instance,
            latch,
            gauges: Gauges::new(&metrics),
            metrics,
            foreign_signer: None,
        })
    }

    /// Publishes while `leading` has the timeline that this member leads with. Runs until its sender is dropped.
    pub(crate) async fn run(mut self, mut leading: watch::Receiver<Option<u64>>) {
        let mut schedule = Schedule::new();
        loop {
            let timeline = *leading.borrow_and_update();
            if schedule.set_leading(timeline, Instant::now()) {
                self.show_leading(timeline);
            }
            let attempt = async {
                match schedule.next_attempt() {
                    None => pending().await,
                    Some((timeline, due)) => {
                        sleep_until(due).await;
                        self.publish(timeline).await
                    }
                }
            };
            tokio::select! {
                biased;
                // The sender may repeat itself, which must not end an attempt.
                changed = leading.wait_for(|current| *current != timeline) => match changed {
                    Ok(_) => {}
                    Err(_) => return,
                },
                result = attempt => self.report(result, &mut schedule),
            }
        }
    }

    async fn publish(&mut self, timeline: u64) -> Result<Published, PublishError> {
        let offset = self.epoch_offset;
        let epoch = timeline
            .checked_add(offset)
            .ok_or(PublishError::Epoch { timeline, offset })?;
        let leader_instance = self.instance.get().await?;
        let key = self.key.get().await?;
        let now = unix_now();
        let manifest = UnsignedManifest {
            cluster: self.cluster.unwrap_or_else(|| key.address()),
            leader_instance,
            leader_url: self.leader_url.clone(),
            epoch,
            valid_until: now.saturating_add(schedule::VALIDITY.as_secs()),
        };
        let text = manifest.sign(key);
        let text = text.map_err(|error| PublishError::Key(error.to_string()))?;
        let foreign_signer = match &self.destination {
            Destination::Update(server) => {
                let standing = server.standing(&self.name).await?;
                let plan = {
                    let strings = standing.iter().map(|text| text.txt_data.iter());
                    let records = strings.map(|strings| strings.map(AsRef::as_ref).collect());
                    let records: Vec<Vec<&[u8]>> = records.collect();
                    standing::plan(&records, &manifest, key.address(), now)?
                };
                let old = standing.into_iter().enumerate();
                let old = old.filter(|(position, _)| plan.replace.contains(position));
                let old = old.map(|(_, text)| text);
                server.replace(&self.name, old, &text, TTL, now).await?;
                plan.foreign_signer
            }
            Destination::Command(program) => {
                let variables = self.variables(&manifest, &text);
                command::run(program, &variables, command::DEADLINE).await?;
                None
            }
        };
        Ok(Published {
            epoch,
            valid_until: manifest.valid_until,
            foreign_signer,
        })
    }

    /// What `manifest_command` gets.
    fn variables(&self, manifest: &UnsignedManifest, text: &str) -> [(&'static str, String); 5] {
        let name = self.name.to_ascii();
        [
            (
                "TEESQL_MANIFEST_NAME",
                name.trim_end_matches('.').to_owned(),
            ),
            ("TEESQL_MANIFEST_RECORD", text.to_owned()),
            ("TEESQL_MANIFEST_TTL", TTL.to_string()),
            ("TEESQL_MANIFEST_EPOCH", manifest.epoch.to_string()),
            (
                "TEESQL_MANIFEST_VALID_UNTIL",
                manifest.valid_until.to_string(),
            ),
        ]
    }

    fn show_leading(&mut self, timeline: Option<u64>) {
        self.gauges.leading.set(flag(timeline.is_some()));
        // What another member has published meanwhile is not known here.
        self.gauges.valid_until.set(0.0);
        self.gauges.foreign_signer.set(0.0);
        self.foreign_signer = None;
        self.latch.set_ready();
    }

    fn report(&mut self, result: Result<Published, PublishError>, schedule: &mut Schedule) {
        let now = Instant::now();
        match result {
            Ok(published) => {
                let first = schedule.succeeded(now);
                self.gauges.published.set(seconds(unix_now()));
                self.gauges.valid_until.set(seconds(published.valid_until));
                let valid_until = readable_time(published.valid_until);
                let (epoch, name) = (published.epoch, &self.name);
                if first {
                    tracing::info!(epoch, valid_until, %name, leader = self.leader_url.as_str(), "published the leader manifest");
                } else {
                    tracing::debug!(epoch, valid_until, %name, "renewed the leader manifest");
                }
                self.report_foreign_signer(published.foreign_signer);
            }
            Err(error) => {
                let retry_in = schedule.failed(now);
                let (code, remedy) = (error.code(), error.remedy());
                let labels = [("reason", code)];
                self.metrics.counter(FAILURES, &labels).increment(1);
                tracing::warn!(code, %error, remedy, ?retry_in, "the leader manifest was not published");
                self.latch.set_ready_despite(format!(
                    "{code}: the leader manifest was not published: {error}: {remedy}"
                ));
            }
        }
    }

    fn report_foreign_signer(&mut self, signer: Option<EthAddress>) {
        self.gauges.foreign_signer.set(flag(signer.is_some()));
        match signer {
            None => self.latch.set_ready(),
            Some(signer) => {
                if self.foreign_signer != Some(signer) {
                    tracing::warn!(code = FOREIGN_SIGNER, %signer, name = %self.name, "another key signs manifests of this cluster");
                }
                self.latch.set_ready_despite(format!(
                    "{FOREIGN_SIGNER}: {signer} also signs manifests of this cluster: do all members have the same key?"
                ));
            }
        }
        self.foreign_signer = signer;
    }
}

/// The warning about a valid record of the same cluster that another key has signed.
const FOREIGN_SIGNER: &str = "manifest_foreign_signer";

impl KeySource {
    async fn get(&mut self) -> Result<&SigningKey, PublishError> {
        if let Self::Agent(agent) = self {
            *self = Self::Known(derive_key(agent).await.map_err(PublishError::Key)?);
        }
        match self {
            Self::Known(key) => Ok(key),
            // It was replaced above.
            Self::Agent(_) => Err(PublishError::Key(String::new())),
        }
    }
}

/// Requests the signing key from the guest agent.
///
/// # Errors
/// The guest agent cannot be reached or refuses.
pub(crate) async fn derive_key(agent: &Agent) -> Result<SigningKey, String> {
    let key = agent.key(KEY_PATH, KEY_PURPOSE).await;
    let key = key.map_err(|error| error.to_string())?;
    SigningKey::from_hex(&key.to_hex()).map_err(|error| error.to_string())
}

impl InstanceSource {
    async fn get(&self) -> Result<LeaderInstance, PublishError> {
        let unknown = PublishError::Instance;
        let instance = match self {
            Self::Evidence { verifier, own } => {
                let chain = own.borrow().certified().cert.clone();
                let peer = verifier.judge_own(&chain);
                peer.map_err(|denial| unknown(format!("{}: {denial}", denial.code())))?
                    .instance_id()
            }
            Self::Agent(agent) => {
                let info = agent.info().await;
                info.map_err(|error| unknown(error.to_string()))?
                    .instance_id
            }
            #[cfg(test)]
            Self::Known(instance) => return Ok(instance.clone()),
        };
        let instance = instance.ok_or_else(|| unknown("it has none".to_owned()))?;
        let instance = instance.to_string().parse();
        instance.map_err(|_| unknown("it is not hex".to_owned()))
    }
}

fn update_server(config: DnsUpdateConfig) -> io::Result<UpdateServer> {
    let tsig = config.tsig;
    let signer = TSigner::new(
        tsig.secret.as_bytes().to_vec(),
        tsig.algorithm,
        tsig.name,
        TSIG_FUDGE,
    );
    Ok(UpdateServer {
        server: config.server,
        zone: config.zone,
        signer: signer.map_err(io::Error::other)?,
    })
}

impl Gauges {
    fn new(metrics: &Metrics) -> Self {
        let gauge = |name| metrics.gauge(name, &[]);
        Self {
            leading: gauge("teesql_manifest_leading"),
            published: gauge("teesql_manifest_published_timestamp_seconds"),
            valid_until: gauge("teesql_manifest_valid_until_timestamp_seconds"),
            foreign_signer: gauge("teesql_manifest_foreign_signer"),
        }
    }
}

fn flag(is: bool) -> f64 {
    f64::from(u8::from(is))
}

/// Unix seconds as a metric has them: exact for millions of years.
fn seconds(time: u64) -> f64 {
    time as f64
}

/// Creates the series of a sidecar with the value 0.
pub(crate) fn register(metrics: &Metrics) {
    drop(Gauges::new(metrics));
    for code in PublishError::CODES {
        drop(metrics.counter(FAILURES, &[("reason", code)]));
    }
}
