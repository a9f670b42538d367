//! The harness that all tests share: programs under test, servers and clients to test them with, and
//! the [`Harness`] of a run, which owns the temporary folder, the certificates, the Postgres clusters
//! and one sidecar for each cluster and [`Variant`].

pub(crate) mod browser;
pub(crate) mod certificates;
pub(crate) mod client;
pub(crate) mod cluster;
pub(crate) mod daemon;
pub(crate) mod fake_patroni;
pub(crate) mod fake_server;
pub(crate) mod fixture;
pub(crate) mod forwarder;
pub(crate) mod http;
pub(crate) mod libpq;
pub(crate) mod message;
pub(crate) mod name_server;
pub(crate) mod process;
pub(crate) mod recording_server;
pub(crate) mod scram;
pub(crate) mod scrape;
pub(crate) mod settings;
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
use crate::harness::settings::{Settings, Variant};
use crate::harness::sidecar::Sidecar;

pub(crate) const READ_SECRET: &str =
    "5ead0000a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c";
pub(crate) const READWRITE_SECRET: &str =
    "3717e000c0ffee11c0ffee22c0ffee33c0ffee44c0ffee55c0ffee66c0ffee77";
/// A well-formed secret that no role has.
pub(crate) const WRONG_SECRET: &str =
    "bad00000bad11111bad22222bad33333bad44444bad55555bad66666bad77777";
/// SASLprep turns the no-break space into a space and the Roman numeral into `IX`:
/// a SCRAM login that does not prepare its password fails.
pub(crate) const READ_PASSWORD: &str = "lies\u{a0}mich, K\u{f6}nig \u{2168} '\"\\ $$";
pub(crate) const READWRITE_PASSWORD: &str = "schreib-nur-zu-4711";
pub(crate) const SUPERUSER_PASSWORD: &str = "operator-gKq2Zt8wLr";

/// Everything that must never appear in a log.
pub(crate) const SECRETS: [&str; 6] = [
    READ_SECRET,
    READWRITE_SECRET,
    WRONG_SECRET,
    READ_PASSWORD,
    READWRITE_PASSWORD,
    SUPERUSER_PASSWORD,
];

/// A role, and what a client presents to log in as that role.
pub(crate) type Credentials<'a> = (&'a str, &'a str);

pub(crate) const READER: Credentials<'static> = ("teesql_read", READ_SECRET);
pub(crate) const WRITER: Credentials<'static> = ("teesql_readwrite", READWRITE_SECRET);
pub(crate) const SUPERUSER: Credentials<'static> = ("postgres", SUPERUSER_PASSWORD);

/// How the shared sidecars authenticate clients, and Postgres them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum AuthSettings {
    /// The defaults: SCRAM on both sides.
    Scram,
    /// The weakest settings: `client_auth = password`, `postgres_auth = any`.
    Weak,
}

/// How a shared cluster stores its passwords. Postgres stores one verifier per role, either MD5 or
/// SCRAM, so that each server version has two shared clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum PasswordEncryption {
    Scram,
    Md5,
}

#[derive(Debug)]
struct SharedCluster {
    server: Server,
    encryption: PasswordEncryption,
    cluster: OnceLock<Cluster>,
}

/// What a shared sidecar is started with: the variant, PostgreSQL's major version, the password encryption and
/// the authentication settings.
type SidecarKey = (Variant, u32, PasswordEncryption, AuthSettings);

#[derive(Debug)]
pub(crate) struct Harness {
    /// Fields drop in this order: sidecars and clusters stop before the folder is removed.
    sidecars: Mutex<HashMap<SidecarKey, Arc<Sidecar>>>,
    clusters: Vec<SharedCluster>,
    pub(crate) certificates: Certificates,
    next_number: AtomicUsize,
    /// The Debian server, with all of its client programs.
    pub(crate) installed: Server,
    /// PostgreSQL 18, or why it is not available.
    pub(crate) postgres18: Result<Server, String>,
    folder: TempDir,
    cleaner: Child,
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
            .map_err(|e| format!("cannot create a temporary folder: {e}"))?;
        let mut clusters = Vec::new();
        for server in [Some(&installed), postgres18.as_ref().ok()]
            .into_iter()
            .flatten()
        {
            for encryption in [PasswordEncryption::Scram, PasswordEncryption::Md5] {
                clusters.push(SharedCluster {
                    server: server.clone(),
                    encryption,
                    cluster: OnceLock::new(),
                });
            }
        }
        Ok(Self {
            sidecars: Mutex::default(),
            clusters,
            certificates: Certificates::create(folder.path()),
            next_number: AtomicUsize::new(0),
            installed,
            postgres18,
            cleaner: spawn_cleaner(folder.path()).map_err(|e| format!("cannot start sh: {e}"))?,
            folder,
        })
    }

    /// The server versions to test with.
    pub(crate) fn servers(&self) -> Vec<Server> {
        let mut servers = vec![self.installed.clone()];
        servers.extend(self.postgres18.clone());
        servers
    }

    /// A name that is used once in this run, for folders, databases and markers.
    pub(crate) fn unique_name(&self, prefix: &str) -> String {
        format!(
            "{prefix}_{}",
            self.next_number.fetch_add(1, Ordering::Relaxed)
        )
    }

    /// A path that does not exist yet.
    pub(crate) fn unique_path(&self, prefix: &str) -> PathBuf {
        self.folder.path().join(self.unique_name(prefix))
    }

    /// The cluster that all tests share. The first call starts it.
    pub(crate) fn cluster(&self, server: &Server, encryption: PasswordEncryption) -> &Cluster {
        let shared = self
            .clusters
            .iter()
            .find(|s| s.server.major == server.major && s.encryption == encryption)
            .expect("the server is one of `servers()`");
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

    /// A new cluster for one test.
    pub(crate) fn private_cluster(&self, server: &Server, options: &ClusterOptions) -> Cluster {
        Cluster::create(server, self.unique_path("cluster"), options)
    }

    /// A streaming standby of `primary`, for one test.
    pub(crate) fn standby_of(&self, primary: &Cluster, port: u16) -> Cluster {
        primary.standby(self.unique_path("standby"), port)
    }

    /// The sidecar that all tests share, in front of the shared cluster.
    pub(crate) fn sidecar(
        &self,
        variant: Variant,
        server: &Server,
        encryption: PasswordEncryption,
        auth: AuthSettings,
    ) -> Arc<Sidecar> {
        let cluster = self.cluster(server, encryption);
        let mut sidecars = self
            .sidecars
            .lock()
            .unwrap_or_else(|poison| poison.into_inner());
        let key = (variant, server.major, encryption, auth);
        let sidecar = sidecars.entry(key).or_insert_with(|| {
            let upstream = cluster.address().to_string();
            let mut settings = Settings::for_sidecar(variant, &upstream, &self.certificates);
            if auth == AuthSettings::Weak {
                settings = settings.with_weak_auth();
            }
            Arc::new(Sidecar::start(&settings))
        });
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
        for shared in &mut self.clusters {
            drop(shared.cluster.take());
        }
        drop(self.cleaner.stdin.take());
        let _ = self.cleaner.wait();
    }
}

/// Starts a process that removes `folder` once the test process has ended, even if it was killed: it
/// waits for the end of its standard input. It retries, because servers may still be writing.
fn spawn_cleaner(folder: &Path) -> std::io::Result<Child> {
    let mut cleaner = Command::new("setsid");
    cleaner
        .args(["sh", "-c"])
        .arg(r#"cat; for i in 1 2 3 4 5; do rm -rf "$1" && break; sleep 1; done"#)
        .arg("sh")
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    spawn(cleaner)
}
