//! The forwarder inside a Rust service: two at once, no signals, nothing left.

use engine::Forwarder;
use engine::config::Forward;
use tokio_postgres::{Config, NoTls};

use super::drivers::READER;
use crate::harness::process::TIMEOUT;
use crate::harness::suite::{Fixture, Suite};
use crate::harness::tdx_fixture::TdxFixture;

pub(crate) fn add(suite: &mut Suite) {
    suite.add("forward::embedded", embedded);
}

fn embedded(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let sidecar = tdx.sidecar(fixture);
    let target = sidecar.address().to_string();
    let pem = tdx.settings(fixture);
    let (cert, key) = (pem.get("TEESQL_CLIENT_CERT"), pem.get("TEESQL_CLIENT_KEY"));
    let (root, pccs, socket) = (tdx.path("root.pem"), tdx.pccs.url(), tdx.path("s.sock"));
    let usual = [
        ("target", target.as_str()),
        ("client_cert", &cert),
        ("client_key", &key),
        ("dangerous_tdx_root_ca", &root),
        ("pccs", &pccs),
        ("drain_timeout", "100ms"),
    ];
    let handlers = caught_signals();
    let start = |more: &[(&'static str, &str)]| {
        let settings = usual.into_iter().chain(more.iter().copied());
        let config = Forward::from_settings(settings).unwrap_or_else(|e| panic!("{e}"));
        Forwarder::start(config).expect("it starts")
    };
    let (one, two) = (start(&[]), start(&[("forward_listen", &socket)]));
    let (host, port) = one.host_and_port();
    assert_eq!(ask(&host, port), "teesql_read");
    two.stop().expect("it ends");
    assert!(
        !std::fs::exists(&socket).expect("a folder"),
        "the socket is left"
    );
    assert_eq!(ask(&host, port), "teesql_read", "the other one runs on");
    drop(one);
    assert!(std::net::TcpStream::connect((host.as_str(), port)).is_err());
    assert_eq!(caught_signals(), handlers, "it minds no signals");

    let Err(errors) = Forward::from_settings([("verifier", "none"), ("nonsense", "1")]) else {
        panic!("mistakes are told");
    };
    assert!(errors.to_string().contains("nonsense"), "{errors}");
    let missing = [
        ("target", "db.example:5433"),
        ("client_cert", "/no"),
        ("client_key", "/no"),
    ];
    assert!(Forward::from_settings(missing).is_err());
}

fn ask(host: &str, port: u16) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let asked = async {
        let mut config = Config::new();
        config.host(host).port(port).dbname("via_scram");
        config.user(READER.0).password(READER.1);
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        let row = client.query_one("select current_user::text", &[]).await?;
        Ok::<_, tokio_postgres::Error>(row.get(0))
    };
    let outcome = runtime.block_on(async { tokio::time::timeout(TIMEOUT, asked).await });
    outcome
        .expect("in time")
        .unwrap_or_else(|e| panic!("{e:?}"))
}

/// `SigCgt` of this process.
fn caught_signals() -> String {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("SigCgt:"));
    line.expect("SigCgt").to_owned()
}
