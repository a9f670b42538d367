//! Tests of forwarders embedded in a Rust program: two in one process, no signal handlers, and a
//! clean stop.

use engine::Forwarder;
use engine::config::ForwarderConfig;
use tokio_postgres::{Config, NoTls};

use crate::harness::READER;
use crate::harness::fixture::Fixture;
use crate::harness::process::{TIMEOUT, block_on};
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::TdxFixture;

pub(crate) fn add(suite: &mut Suite) {
    suite.add(
        "forwarder::embedded::two_in_one_process",
        two_in_one_process,
    );
}

fn two_in_one_process(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let sidecar = tdx.start_attested_sidecar(fixture);
    let target = sidecar.address().to_string();
    let pem = tdx.forwarder_settings(fixture);
    let (cert, key) = (pem.get("TEESQL_CLIENT_CERT"), pem.get("TEESQL_CLIENT_KEY"));
    let (root, pccs, socket) = (tdx.path("root.pem"), tdx.pccs.url(), tdx.path("s.sock"));
    let common = [
        ("target", target.as_str()),
        ("client_cert", &cert),
        ("client_key", &key),
        ("dangerous_tdx_root_ca", &root),
        ("pccs", &pccs),
        ("drain_timeout", "100ms"),
        ("allow_any_server", "true"),
    ];
    let handlers = caught_signals();
    let start = |extra: &[(&'static str, &str)]| {
        let settings = common.into_iter().chain(extra.iter().copied());
        let config = ForwarderConfig::from_settings(settings).unwrap_or_else(|e| panic!("{e}"));
        Forwarder::start(config).expect("the forwarder starts")
    };
    let (first, second) = (start(&[]), start(&[("forward_listen", &socket)]));
    let (host, port) = first.host_and_port();
    assert_eq!(current_user(&host, port), "teesql_read");
    second.stop().expect("the forwarder stops");
    assert!(
        !std::fs::exists(&socket).expect("a folder"),
        "the socket was not removed"
    );
    assert_eq!(
        current_user(&host, port),
        "teesql_read",
        "the other forwarder still runs"
    );
    drop(first);
    assert!(std::net::TcpStream::connect((host.as_str(), port)).is_err());
    assert_eq!(caught_signals(), handlers, "it installs no signal handlers");

    let Err(errors) = ForwarderConfig::from_settings([("verifier", "none"), ("nonsense", "1")])
    else {
        panic!("the mistakes are not reported");
    };
    assert!(errors.to_string().contains("nonsense"), "{errors}");
    let missing = [
        ("target", "db.example:5433"),
        ("client_cert", "/no"),
        ("client_key", "/no"),
    ];
    assert!(ForwarderConfig::from_settings(missing).is_err());
}

fn current_user(host: &str, port: u16) -> String {
    let query = async {
        let mut config = Config::new();
        config.host(host).port(port).dbname("via_scram");
        config.user(READER.0).password(READER.1);
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        let row = client.query_one("select current_user::text", &[]).await?;
        Ok::<_, tokio_postgres::Error>(row.get(0))
    };
    block_on(TIMEOUT, query).unwrap_or_else(|e| panic!("{e:?}"))
}

/// The `SigCgt` line of this process: the signals that it handles.
fn caught_signals() -> String {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("SigCgt:"));
    line.expect("SigCgt").to_owned()
}
