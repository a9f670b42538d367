//! What all trials share: the folder, the certificates, the Postgres clusters
//! and one sidecar for each pair of driver and cluster.

pub(crate) mod certificates;
pub(crate) mod client;
pub(crate) mod cluster;
pub(crate) mod fake_server;
pub(crate) mod forwarder;
pub(crate) mod http;
pub(crate) mod message;
pub(crate) mod name_server;
pub(crate) mod process;
pub(crate) mod recording_server;
pub(crate) mod scrape;
pub(crate) mod sidecar;
pub(crate) mod suite;
pub(crate) mod tdx_fixture;
pub(crate) mod unverified_tls;

use std::collections::HashMap;
use std::env;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use tempfile::TempDir;

use crate::harness::certificates::Certificates;
use crate::harness::cluster::{Cluster, ClusterOptions, Server};
use crate::harness::process::spawn;
use crate::harness::sidecar::{IoDriver, Settings, Sidecar};

pub(crate) const READ_SECRET: &str =
    "5ead0000a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c";
pub(crate) const READWRITE_SECRET: &str =
    "3717e000c0ffee11c0ffee22c0ffee33c0ffee44c0ffee55c0ffee66c0ffee77";
/// No secret of anybody.
pub(crate) const WRONG_SECRET: &str =
    "bad00000bad11111bad22222bad33333bad44444bad55555bad66666bad77777";
/// SASLprep turns the no-break space into a space and the Roman numeral into `IX`:
/// a login by SCRAM that does not prepare its password fails.
pub(crate) const READ_PASSWORD: &str = "lies\u{a0}mich, K\u{f6}nig \u{2168} '\"\\ $$";
pub(crate) const READWRITE_PASSWORD: &str = "schreib-nur-zu-4711";
pub(crate) const SUPERUSER_PASSWORD: &str = "operator-gKq2Zt8wLr";

/// Everything that must never be seen in a log.
pub(crate) const SECRETS: [&str; 6] = [
    READ_SECRET,
    READWRITE_SECRET,
    WRONG_SECRET,
    READ_PASSWORD,
    READWRITE_PASSWORD,
    SUPERUSER_PASSWORD,
];

/// Which of a version's two shared clusters: Postgres keeps one encryption per role,
/// either MD5 or SCRAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum PasswordEncryption {
    Scram,
    Md5,
}

#[derive(Debug)]
struct Shared {
    server: Server,
    encryption: PasswordEncryption,
    cluster: OnceLock<Cluster>,
}

#[derive(Debug)]
pub(crate) struct Harness {
    /// Clusters and sidecars end before the folder goes: fields drop in this order.
    sidecars: Mutex<HashMap<(IoDriver, u32, PasswordEncryption), Arc<Sidecar>>>,
    shared: Vec<Shared>,
    pub(crate) certificates: Certificates,
    numbers: AtomicUsize,
    /// The Debian server, with all of its client programs.
    pub(crate) installed: Server,
    /// PostgreSQL 18's, or why it is not there.
    pub(crate) postgres18: Result<Server, String>,
    folder: TempDir,
    broom: Child,
}

impl Harness {
    pub(crate) fn new() -> Result<Self, String> {
        let installed = Server::installed()?;
        let postgres18 = match env::var_os("TEESQL_TEST_PG18") {
            Some(bin) => Server::in_folder(Path::new(&bin)),
            None => Err("TEESQL_TEST_PG18 does not name PostgreSQL 18's bin folder".to_owned()),
        };
        let folder = tempfile::Builder::new()
            .prefix("teesql-e2e-")
            .permissions(Permissions::from_mode(0o755))
            .tempdir()
            .map_err(|e| format!("no temporary folder: {e}"))?;
        let mut shared = Vec::new();
        for server in [Some(&installed), postgres18.as_ref().ok()]
            .into_iter()
            .flatten()
        {
            for encryption in [PasswordEncryption::Scram, PasswordEncryption::Md5] {
                let server = server.clone();
                shared.push(Shared {
                    server,
                    encryption,
                    cluster: OnceLock::new(),
                });
            }
        }
        Ok(Self {
            sidecars: Mutex::default(),
            shared,
            certificates: Certificates::create(folder.path()),
            numbers: AtomicUsize::new(0),
            installed,
            postgres18,
            broom: broom(folder.path()).map_err(|e| format!("no sh: {e}"))?,
            folder,
        })
    }

    /// The versions to test with.
    pub(crate) fn servers(&self) -> Vec<Server> {
        let mut servers = vec![self.installed.clone()];
        servers.extend(self.postgres18.clone());
        servers
    }

    /// A name that nobody in this run has used, for folders, databases and markers.
    pub(crate) fn unique_name(&self, prefix: &str) -> String {
        format!("{prefix}_{}", self.numbers.fetch_add(1, Ordering::Relaxed))
    }

    /// The cluster that all trials share, started by whoever asks first.
    pub(crate) fn cluster(&self, server: &Server, encryption: PasswordEncryption) -> &Cluster {
        let mut all = self.shared.iter();
        let shared = all
            .find(|s| s.server.major == server.major && s.encryption == encryption)
            .expect("only servers of `servers()` are asked for");
        shared.cluster.get_or_init(|| {
            let options = match encryption {
                PasswordEncryption::Scram => ClusterOptions {
                    databases: vec!["via_trust", "via_password", "via_scram"],
                    ..ClusterOptions::default()
                },
                PasswordEncryption::Md5 => ClusterOptions {
                    settings: vec!["password_encryption=md5"],
                    databases: vec!["via_md5"],
                    ..ClusterOptions::default()
                },
            };
            let name = format!("{}-{encryption:?}", server.label());
            Cluster::create(server, self.folder.path().join(name), &options)
        })
    }

    /// A cluster of a trial's own.
    pub(crate) fn private_cluster(&self, server: &Server, options: &ClusterOptions) -> Cluster {
        Cluster::create(server, self.unique_path("cluster"), options)
    }

    /// A path that does not exist yet.
    pub(crate) fn unique_path(&self, prefix: &str) -> PathBuf {
        self.folder.path().join(self.unique_name(prefix))
    }

    /// The sidecar that all trials share, in front of the shared cluster.
    pub(crate) fn sidecar(
        &self,
        driver: IoDriver,
        server: &Server,
        encryption: PasswordEncryption,
    ) -> Arc<Sidecar> {
        let cluster = self.cluster(server, encryption);
        let mut sidecars = self
            .sidecars
            .lock()
            .unwrap_or_else(|poison| poison.into_inner());
        let key = (driver, server.major, encryption);
        let start = || {
            let upstream = cluster.address().to_string();
            Arc::new(Sidecar::start(&Settings::new(
                driver,
                &upstream,
                &self.certificates,
            )))
        };
        let sidecar = sidecars.entry(key).or_insert_with(start);
        sidecar.assert_running();
        sidecar.clone()
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        self.sidecars
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
            .clear();
        for shared in &mut self.shared {
            drop(shared.cluster.take());
        }
        drop(self.broom.stdin.take());
        let _ = self.broom.wait();
    }
}

/// Removes the folder once our end of its standard input closes: it does so even
/// when the tests are killed. The servers write for a moment longer, so it repeats.
fn broom(folder: &Path) -> std::io::Result<Child> {
    let mut sweep = Command::new("setsid");
    sweep
        .args(["sh", "-c"])
        .arg(r#"cat; for i in 1 2 3 4 5; do rm -rf "$1" && break; sleep 1; done"#)
        .arg("sh")
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    spawn(sweep)
}
