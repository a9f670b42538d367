//! The name server of `dev --members --dns`: Debian's knot, with a zone in which the leader publishes its manifest by dynamic
//! update, configured as `docs/how-to/publish-the-leader.md` says.
//!
//! It runs in the network of the whole, like a name server outside of the cluster, and can be killed like a member.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use attest::agent::{Agent, AgentAddresses, AgentOptions};
use attest::manifest::EthAddress;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::crypto::aws_lc_rs::default_provider;
use tokio::process::Command;
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

use super::super::cluster::write;
use super::super::error::DevError;
use super::address::BRIDGE;
use super::files::{self, Folder};
use super::process::keep_running;
use crate::tasks::manifest_publisher::derive_key;

/// The cluster's domain, which is a zone.
pub(super) const DOMAIN: &str = "dev.example";
/// Its name in requests. Members have one letter.
pub(super) const NAME: &str = "dns";
/// Where it listens.
pub(super) const ADDRESS: Ipv4Addr = BRIDGE;
pub(super) const PORT: u16 = 53;

/// The program in Debian's package `knot`, in a folder that is in the `PATH` of root only.
const PROGRAM: &str = "/usr/sbin/knotd";
const TSIG_NAME: &str = "teesql";
/// File names in its folder.
const CONFIG: &str = "knot.conf";
const ZONE: &str = "zone";
const TSIG_KEY: &str = "tsig";

/// The name server, which runs or was killed.
pub(super) struct NameServer {
    folder: PathBuf,
    running: Option<JoinHandle<()>>,
}

/// What members and clients are told about the record.
pub(super) struct Publication {
    tsig_key: PathBuf,
    /// The address that signs it.
    pub(super) signer: EthAddress,
}

/// Whether knot is installed.
pub(super) fn is_installed() -> bool {
    Path::new(PROGRAM).exists()
}

impl Publication {
    /// Writes the files of the name server, with a new TSIG key. `agent` is the guest agent of an instance of the
    /// application.
    pub(super) async fn create(
        folder: &Folder,
        agent: &attest::mock::Agent,
    ) -> Result<Self, DevError> {
        let addresses = AgentAddresses::only(agent.endpoint());
        let agent = Agent::new(addresses, AgentOptions::default())?;
        let signer = derive_key(&agent).await.map_err(DevError::Members)?;
        let secret = tsig_secret()?;
        let folder = folder.name_server();
        files::create(&folder, None)?;
        let tsig_key = folder.join(TSIG_KEY);
        write(&tsig_key, &secret, 0o600)?;
        write(&folder.join(CONFIG), &config(&folder, &secret), 0o600)?;
        write(&folder.join(ZONE), &zone(), 0o644)?;
        Ok(Self {
            tsig_key,
            signer: signer.address(),
        })
    }

    /// Settings of a member's sidecar.
    pub(super) fn sidecar(&self) -> [(&'static str, OsString); 5] {
        [
            ("TEESQL_MANIFEST_PUBLISH", "rfc2136".into()),
            ("TEESQL_MANIFEST_DOMAIN", DOMAIN.into()),
            ("TEESQL_MANIFEST_SERVER", ADDRESS.to_string().into()),
            ("TEESQL_MANIFEST_TSIG_NAME", TSIG_NAME.into()),
            (
                "TEESQL_MANIFEST_TSIG_KEY_FILE",
                self.tsig_key.clone().into_os_string(),
            ),
        ]
    }

    /// Settings of a forwarder that follows the leader.
    pub(super) fn forwarder(&self) -> [(&'static str, OsString); 4] {
        [
            ("TEESQL_CLUSTER", DOMAIN.into()),
            ("TEESQL_MANIFEST_SIGNER", self.signer.to_string().into()),
            ("TEESQL_DNS_SERVER", ADDRESS.to_string().into()),
            ("TEESQL_FOLLOW", "true".into()),
        ]
    }
}

impl NameServer {
    /// Its files exist.
    pub(super) fn new(folder: &Folder) -> Self {
        Self {
            folder: folder.name_server(),
            running: None,
        }
    }

    /// Starts it, unless it runs.
    pub(super) fn start(&mut self) {
        let config = self.folder.join(CONFIG);
        self.running.get_or_insert_with(|| {
            keep_running(self.folder.join("knotd.log"), move || {
                let mut command = Command::new(PROGRAM);
                command.arg("-c").arg(&config);
                command.process_group(0).stdin(Stdio::null());
                command
            })
        });
    }

    /// Kills it with SIGKILL. What it was told stays on its disk.
    pub(super) async fn kill(&mut self) {
        if let Some(task) = self.running.take() {
            task.abort();
            // The process is killed when the task has been dropped.
            let _ = task.await;
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }
}

fn tsig_secret() -> Result<Zeroizing<String>, DevError> {
    let mut bytes = Zeroizing::new([0_u8; 32]);
    let random = default_provider().secure_random;
    random.fill(bytes.as_mut()).map_err(|_| DevError::Random)?;
    Ok(Zeroizing::new(STANDARD.encode(bytes.as_slice())))
}

fn zone() -> String {
    format!(
        "@ 30 SOA ns.{DOMAIN}. hostmaster.{DOMAIN}. 1 3600 600 86400 1\n@ 30 NS ns.{DOMAIN}.\nns 30 A {ADDRESS}\n"
    )
}

/// The databases of the default configuration have up to 20 GB.
fn config(folder: &Path, secret: &str) -> Zeroizing<String> {
    let folder = folder.display();
    Zeroizing::new(format!(
        r#"server:
    rundir: "{folder}"
    listen: {ADDRESS}@{PORT}
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
log:
  - target: stderr
    any: info
database:
    storage: "{folder}"
    journal-db-max-size: 8M
    timer-db-max-size: 1M
    kasp-db-max-size: 5M
key:
  - id: {TSIG_NAME}
    algorithm: hmac-sha256
    secret: {secret}
acl:
  - id: leader
    key: {TSIG_NAME}
    action: update
    update-type: [TXT]
    update-owner: name
    update-owner-match: equal
    update-owner-name: [_teesql-leader]
zone:
  - domain: {DOMAIN}
    storage: "{folder}"
    file: {ZONE}
    acl: leader
    journal-max-usage: 4M
"#
    ))
}
