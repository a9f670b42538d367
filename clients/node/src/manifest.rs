//! Leader manifests.

use napi::bindgen_prelude::{BigInt, Buffer, Function};
use napi_derive::napi;
use teesql::{Error, LeaderOptions, Manifest};

use crate::error::{Arguments, Outcome, outcome};
use crate::executor;
use crate::options::{duration, signer};

#[napi(object)]
pub struct ManifestParts {
    pub cluster: String,
    pub leader_instance: String,
    pub leader_url: String,
    pub host: String,
    pub port: u16,
    pub epoch: BigInt,
    /// In seconds since 1970.
    pub valid_until: i64,
    pub canonical_body: String,
}

impl From<Manifest> for ManifestParts {
    fn from(manifest: Manifest) -> Self {
        Self {
            cluster: manifest.cluster,
            leader_instance: manifest.leader_instance,
            leader_url: manifest.leader_url,
            host: manifest.host,
            port: manifest.port,
            epoch: manifest.epoch.into(),
            valid_until: i64::try_from(manifest.valid_until).unwrap_or(i64::MAX),
            canonical_body: manifest.canonical_body,
        }
    }
}

#[napi(object)]
pub struct LeaderSettings {
    pub dns_server: Option<String>,
    pub timeout: Option<u32>,
    pub cluster: Option<String>,
}

impl LeaderSettings {
    /// # Errors
    /// `dns_server` is not an address with a port.
    fn into_options(self) -> napi::Result<LeaderOptions> {
        let mut options = LeaderOptions::default();
        if let Some(server) = self.dns_server {
            let wrong = |_| napi::Error::new(napi::Status::InvalidArg, "not an address");
            options = options.dns_server(server.parse().map_err(wrong)?);
        }
        if let Some(timeout) = self.timeout {
            options = options.timeout(duration(timeout));
        }
        if let Some(cluster) = self.cluster {
            options = options.cluster(cluster);
        }
        Ok(options)
    }
}

#[napi(catch_unwind)]
pub fn resolve_leader(
    domain: String,
    address: Buffer,
    settings: LeaderSettings,
    done: Function<'_, Arguments<ManifestParts>, ()>,
) -> napi::Result<()> {
    let signer = signer(&address);
    let options = settings.into_options()?;
    executor::run(&done, async move {
        let manifest = teesql::resolve_leader(&domain, signer?, &options).await?;
        Ok(manifest.into())
    })
}

/// `now` is in Unix seconds.
#[napi(catch_unwind)]
pub fn parse_manifest(text: String, address: Buffer, now: Option<i64>) -> Outcome<ManifestParts> {
    let now = now.map(|now| u64::try_from(now).unwrap_or_default());
    let parse = || -> Result<ManifestParts, Error> {
        Ok(teesql::parse_manifest(&text, signer(&address)?, now)?.into())
    };
    outcome(parse())
}
