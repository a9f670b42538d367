//! `postgres = auto`: sessions use Postgres' Unix socket if it lets all roles in, and TCP otherwise and meanwhile.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use nix::sys::signal::Signal;

use crate::harness::cluster::{Cluster, ClusterOptions};
use crate::harness::fixture::Fixture;
use crate::harness::scrape::Scrape;
use crate::harness::settings::Settings;
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::{READ_SECRET, READWRITE_SECRET, SUPERUSER_PASSWORD};

pub(super) fn add(suite: &mut Suite) {
    suite.add("upstream::auto_uses_the_socket", uses_the_socket);
    suite.add("upstream::auto_leaves_the_socket", leaves_the_socket);
    suite.add("upstream::auto_falls_back_to_tcp", falls_back_to_tcp);
}

const SOCKET: &str = "new sessions use Postgres' Unix socket";
const TCP: &str = "new sessions use TCP to Postgres";
const LEFT: &str = "Postgres' Unix socket no longer lets a role in: new sessions use TCP";

/// A link to the cluster's socket in a directory where the sidecar looks. It is removed when dropped.
struct StandardSocket(PathBuf);

impl StandardSocket {
    fn of(cluster: &Cluster) -> Self {
        let socket = cluster.socket();
        let name = socket.file_name().expect("a name");
        let link = PathBuf::from("/tmp").join(name);
        // One that an earlier run left.
        let _ = fs::remove_file(&link);
        symlink(&socket, &link).expect("a link in /tmp");
        Self(link)
    }
}

impl Drop for StandardSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn cluster(fixture: &Fixture) -> Cluster {
    let options = ClusterOptions {
        databases: vec!["app"],
        ..ClusterOptions::default()
    };
    let installed = &fixture.harness.installed;
    fixture.harness.private_cluster(installed, &options)
}

fn settings(fixture: &Fixture, cluster: &Cluster) -> Settings {
    let upstream = format!("auto:{}", cluster.address().port());
    let settings = fixture.settings_for(&upstream);
    settings
        .set("TEESQL_PG_DATABASE", "app")
        .set("TEESQL_ADMIN_LISTEN", "127.0.0.1:0")
}

fn start(fixture: &Fixture, cluster: &Cluster) -> Sidecar {
    Sidecar::start(&settings(fixture, cluster))
}

/// Over what a new session of each role reaches Postgres.
fn transports(fixture: &Fixture, sidecar: &Sidecar) -> Vec<String> {
    [
        ("teesql_read", READ_SECRET),
        ("teesql_readwrite", READWRITE_SECRET),
        ("postgres", SUPERUSER_PASSWORD),
    ]
    .into_iter()
    .map(|(role, secret)| transport(fixture, sidecar, role, secret).expect("the login succeeds"))
    .collect()
}

fn transport(
    fixture: &Fixture,
    sidecar: &Sidecar,
    role: &str,
    secret: &str,
) -> Result<String, String> {
    let mut client = fixture.client(sidecar.address());
    let login = client.login(role, "app", secret);
    login.map_err(|error| error.to_string())?;
    // NULL on a Unix socket.
    Ok(client.query_value("select coalesce(host(inet_client_addr()), 'socket')"))
}

fn socket_used(sidecar: &Sidecar) -> f64 {
    Scrape::fetch(sidecar.admin_address()).value("teesql_postgres_socket_used")
}

fn uses_the_socket(fixture: &Fixture) {
    let cluster = cluster(fixture);
    let standard = StandardSocket::of(&cluster);
    let sidecar = start(fixture, &cluster);
    let line = sidecar.await_message(SOCKET);
    assert_eq!(line["socket"], standard.0.to_str().expect("UTF-8"));
    assert_eq!(transports(fixture, &sidecar), ["socket"; 3]);
    // After a restart the socket is another file, and is tried again.
    cluster.stop(Signal::SIGINT);
    cluster.start();
    sidecar.await_messages(SOCKET, 2);
    assert_eq!(socket_used(&sidecar), 1.0);
    assert_eq!(transports(fixture, &sidecar), ["socket"; 3]);
    // Without the socket no login fails, not even the first one.
    drop(standard);
    assert_eq!(transports(fixture, &sidecar), ["127.0.0.1"; 3]);
    let line = sidecar.await_message(TCP);
    assert_eq!(line["reason"], "no socket was found");
    assert_eq!(socket_used(&sidecar), 0.0);
    assert_eq!(transports(fixture, &sidecar), ["127.0.0.1"; 3]);
}

/// `pg_hba.conf` is changed while the sidecar runs.
fn leaves_the_socket(fixture: &Fixture) {
    let cluster = cluster(fixture);
    let _standard = StandardSocket::of(&cluster);
    let sidecar = start(fixture, &cluster);
    sidecar.await_message(SOCKET);
    cluster.prepend_to_hba("local app teesql_read reject\n");
    let refused = transport(fixture, &sidecar, "teesql_read", READ_SECRET);
    assert!(refused.is_err(), "{refused:?}");
    sidecar.await_message(LEFT);
    assert_eq!(transports(fixture, &sidecar), ["127.0.0.1"; 3]);
    assert_eq!(sidecar.count_messages(SOCKET), 1);
}

fn falls_back_to_tcp(fixture: &Fixture) {
    let cluster = cluster(fixture);
    let _standard = StandardSocket::of(&cluster);
    // As Debian's: another user of the operating system cannot enter.
    cluster.prepend_to_hba("local app teesql_readwrite peer\n");
    let sidecar = start(fixture, &cluster);
    let line = sidecar.await_message(TCP);
    let reason = line["reason"].as_str().expect("a reason");
    assert!(reason.contains("teesql_readwrite: "), "{reason}");
    assert_eq!(transports(fixture, &sidecar), ["127.0.0.1"; 3]);
    // The listener is not the user that Postgres has to run as.
    let sidecar = Sidecar::start(&settings(fixture, &cluster).set("TEESQL_POSTGRES_UID", "12345"));
    let line = sidecar.await_message(TCP);
    let reason = line["reason"].as_str().expect("a reason");
    assert!(reason.contains("runs as"), "{reason}");
}
