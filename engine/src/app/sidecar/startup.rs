//! Start-up prerequisites: certificate, derived passwords, roles.
//!
//! Each is retried with exponential back-off until the guest agent or Postgres is up;
//! `/ready` reports what is missing. An error that a retry cannot resolve
//! ends the process.

use attest::agent::Agent;
use tokio::time::sleep;

use crate::app::error::StartError;
use crate::app::lifecycle::start_backoff;
use crate::app::readiness::ReadinessChecks;
use crate::auth::cluster_secrets::ClusterSecrets;
use crate::auth::postgres_passwords::{DerivedPasswords, ResolvedPasswords};
use crate::config::Config;
use crate::io::backoff::Backoff;
use crate::postgres::provision::ProvisionTarget;
use crate::postgres::provision::blockers::BlockerWatch;
use crate::tls::certificate::Identity;
use crate::tls::certificate_source::{CertificateSource, CertificateSourceError};

/// Gets the first certificate, waiting for a guest agent that is not up yet.
///
/// # Errors
/// PEM files that cannot be used: an error in the configuration.
pub(super) async fn fetch_certificate(
    source: &CertificateSource,
    checks: &ReadinessChecks,
) -> Result<Identity, StartError> {
    let mut backoff = start_backoff();
    loop {
        let error = match source.obtain().await {
            Ok(identity) => return Ok(identity),
            Err(CertificateSourceError::Identity(error)) => return Err(error.into()),
            Err(CertificateSourceError::Agent(error)) => error,
        };
        checks.identity.set_not_ready(error.to_string());
        warn_and_wait(
            &mut backoff,
            &error,
            "no certificate from the guest agent yet",
        )
        .await;
    }
}

/// Gets the passwords that the cluster key or the guest agent derives, where the configuration needs them.
pub(super) async fn derive_passwords(
    config: &Config,
    agent: &Agent,
    checks: &ReadinessChecks,
) -> Option<DerivedPasswords> {
    let replication = config.provisions_replication();
    if let Some(key) = &config.passwords.cluster_key {
        return Some(DerivedPasswords::from_cluster_key(key, replication));
    }
    if !config.derives_passwords() {
        return None;
    }
    let mut backoff = start_backoff();
    loop {
        match DerivedPasswords::derive(agent, replication).await {
            Ok(derived) => return Some(derived),
            Err(error) => {
                checks.identity.set_not_ready(error.to_string());
                warn_and_wait(
                    &mut backoff,
                    &error,
                    "no passwords from the guest agent yet",
                )
                .await;
            }
        }
    }
}

/// Gets the cluster secrets that the guest agent derives, or the configured ones.
pub(super) async fn cluster_secrets(
    config: &Config,
    agent: &Agent,
    checks: &ReadinessChecks,
) -> ClusterSecrets {
    if !config.derive_secrets {
        return config.secrets.clone();
    }
    let mut backoff = start_backoff();
    loop {
        match ClusterSecrets::derive(agent).await {
            Ok(derived) => return derived,
            Err(error) => {
                checks.identity.set_not_ready(error.to_string());
                warn_and_wait(
                    &mut backoff,
                    &error,
                    "no cluster secrets from the guest agent yet",
                )
                .await;
            }
        }
    }
}

/// Sets up the two roles, waiting for a Postgres that is not up yet or still in recovery, and for sessions
/// that hold locks.
///
/// # Errors
/// Postgres refuses for another reason.
pub(super) async fn set_up_roles(
    target: &ProvisionTarget,
    config: &Config,
    passwords: &ResolvedPasswords,
    checks: &ReadinessChecks,
) -> Result<(), StartError> {
    let mut backoff = start_backoff();
    let mut watch = BlockerWatch::new(config.roles.blocker_timeout);
    let waits = |text| checks.roles.set_not_ready(text);
    loop {
        match target.establish(passwords, &mut watch, waits).await {
            Ok(report) => {
                for repaired in report.repaired {
                    tracing::info!(repaired, "provisioning repaired a difference");
                }
                checks.roles.set_ready();
                return Ok(());
            }
            Err(error) if error.is_temporary() => {
                checks.postgres.set_not_ready(error.to_string());
                if !watch.is_blocked() {
                    checks.roles.set_not_ready(error.to_string());
                }
                warn_and_wait(&mut backoff, &error, "roles not set up yet").await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

async fn warn_and_wait(backoff: &mut Backoff, error: &impl std::error::Error, what: &str) {
    let retry_in = backoff.next_delay();
    tracing::warn!(%error, ?retry_in, "{what}");
    sleep(retry_in).await;
}
