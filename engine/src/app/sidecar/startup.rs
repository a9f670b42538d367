//! What has to be had before anybody can be let in, from an agent and a
//! Postgres that may come up later than the sidecar: asked again and again, with
//! `/ready` telling why.

use std::time::Duration;

use attest::agent::Agent;
use tokio::time::sleep;

use super::Error;
use crate::app::readiness::Health;
use crate::auth::postgres_passwords::{DerivedPasswords, ResolvedPasswords};
use crate::config::Config;
use crate::postgres::provision;
use crate::tls::certificate::Identity;
use crate::tls::certificate_source::{CertificateSource, CertificateSourceError};

/// Between questions to a guest agent or a Postgres that does not answer at
/// start: the first, doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The first certificate. A guest agent that is not there yet is waited for;
/// files that cannot be used are a mistake.
pub(super) async fn obtain(
    certificate_source: &CertificateSource,
    health: &Health,
) -> Result<Identity, Error> {
    let mut pause = Pause::default();
    loop {
        let error = match certificate_source.obtain().await {
            Ok(identity) => return Ok(identity),
            Err(CertificateSourceError::Identity(error)) => return Err(error.into()),
            Err(CertificateSourceError::Agent(error)) => error,
        };
        health.identity.not_ready(error.to_string());
        pause.complain(&error, "no certificate yet").await;
    }
}

/// What the guest agent derives, where it is asked for that.
pub(super) async fn derive(
    config: &Config,
    agent: &Agent,
    health: &Health,
) -> Option<DerivedPasswords> {
    if !config.derives_passwords() {
        return None;
    }
    let mut pause = Pause::default();
    loop {
        match DerivedPasswords::ask(agent).await {
            Ok(derived) => return Some(derived),
            Err(error) => {
                health.identity.not_ready(error.to_string());
                pause.complain(&error, "no passwords yet").await;
            }
        }
    }
}

/// Brings up the two roles, once Postgres takes changes.
pub(super) async fn set_up_roles(
    config: &Config,
    passwords: &ResolvedPasswords,
    health: &Health,
) -> Result<(), Error> {
    let mut pause = Pause::default();
    loop {
        match provision::at_start(&config.postgres, &config.database, passwords).await {
            Ok(report) => {
                for repaired in report.repaired {
                    tracing::info!(repaired, "provisioned");
                }
                return Ok(());
            }
            Err(error) if error.is_of_startup() => {
                health.postgres.not_ready(error.to_string());
                pause.complain(&error, "roles not set up yet").await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Between attempts at start.
struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(FIRST_PAUSE)
    }
}

impl Pause {
    async fn complain(&mut self, error: &impl std::error::Error, what: &str) {
        tracing::warn!(%error, again_in = ?self.0, "{what}");
        sleep(self.0).await;
        self.0 = LONGEST_PAUSE.min(self.0 * 2);
    }
}
