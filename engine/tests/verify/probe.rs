//! Servers that answer in different ways. After the handshake they receive close_notify only.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ALL_VERSIONS, RootCertStore};
use socket2::{Domain, Socket, Type};

use crate::command::{Run, step, verify};
use crate::fixture::CommandFixture;
use crate::mock_server::{Behaviour, Server, tls};

/// The peer's chain, with the key `key`.
fn identity(fixture: &CommandFixture, key: &attest::mock::Key) -> CertifiedKey {
    let certificate = fixture.peer.certificate();
    let chain = certificate.chain_der().map(<[u8]>::to_vec);
    let key = PrivateKeyDer::try_from(key.to_pkcs8_der().unwrap()).unwrap();
    CertifiedKey::new(
        chain.map(CertificateDer::from).into(),
        any_supported_type(&key).unwrap(),
    )
}

fn start(fixture: &CommandFixture, behaviour: Behaviour) -> Server {
    let identity = identity(fixture, &fixture.peer.key("peer"));
    Server::start(behaviour, tls(identity, ALL_VERSIONS, None))
}

fn verify_server(fixture: &CommandFixture, name: &str, more: &[&str]) -> Run {
    let mut arguments = vec![name.to_owned(), "--format".into(), "json".into()];
    arguments.extend(fixture.flags());
    arguments.extend(more.iter().map(|flag| (*flag).to_owned()));
    verify(arguments)
}

#[test]
fn ssl_request_and_raw_tls() {
    let fixture = CommandFixture::default();
    for (behaviour, flags, opening) in [
        (Behaviour::SslRequest, &[][..], "SSLRequest"),
        (Behaviour::SslRequest, &["--ssl-request"], "SSLRequest"),
        (Behaviour::RawTls, &["--raw-tls"], "raw TLS"),
        (Behaviour::RawTls, &[], "raw TLS"),
        (Behaviour::RawTlsOrSilent, &["--timeout", "2s"], "raw TLS"),
    ] {
        let mut server = start(&fixture, behaviour);
        let name = format!("localhost:{}", server.address.port());
        let run = verify_server(&fixture, &name, flags);
        assert_eq!(run.code, 0, "{behaviour:?} {flags:?} {run:?}");
        let report = run.json();
        assert_eq!(report["input"]["kind"], "server");
        let facts = &step(&report, "server")["facts"];
        assert_eq!(facts["opening"], opening);
        assert_eq!(facts["tls_version"], "TLS 1.3");
        assert_eq!(facts["asked_for_certificate"], "no");
        let alpn = facts["alpn"].as_str();
        assert_eq!(alpn, (opening == "raw TLS").then_some("postgresql"));
        assert_eq!(
            server.received(),
            Some(Vec::new()),
            "only close_notify after the handshake"
        );
    }
}

#[test]
fn tls_versions() {
    let fixture = CommandFixture::default();
    for (version, name) in [(&TLS12, "TLS 1.2"), (&TLS13, "TLS 1.3")] {
        let config = tls(
            identity(&fixture, &fixture.peer.key("peer")),
            &[version],
            None,
        );
        let mut server = Server::start(Behaviour::SslRequest, config);
        let run = verify_server(&fixture, &server.address.to_string(), &[]);
        assert_eq!(run.code, 0, "{run:?}");
        let report = run.json();
        assert_eq!(step(&report, "server")["facts"]["tls_version"], name);
        assert_eq!(server.received(), Some(Vec::new()));
    }
}

#[test]
fn server_that_requests_a_certificate() {
    let fixture = CommandFixture::default();
    let cert = fixture.pem();
    let key = fixture.write("key.pem", fixture.peer.key("peer").to_pkcs8_pem().unwrap());
    for (flags, shown) in [
        (&[][..], "yes, and none was shown"),
        (
            &["--client-cert", &cert, "--client-key", &key],
            "yes, and one was shown",
        ),
    ] {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from(fixture.peer.pki.kms_der().to_vec()))
            .unwrap();
        let config = tls(
            identity(&fixture, &fixture.peer.key("peer")),
            ALL_VERSIONS,
            Some(roots),
        );
        let server = Server::start(Behaviour::SslRequest, config);
        let run = verify_server(&fixture, &server.address.to_string(), flags);
        assert_eq!(run.code, 0, "{run:?}");
        let report = run.json();
        assert_eq!(
            step(&report, "server")["facts"]["asked_for_certificate"],
            shown
        );
    }
}

#[test]
fn server_without_the_key_of_its_certificate() {
    let fixture = CommandFixture::default();
    let other = attest::mock::Key::derive(&[9; 32], "other").unwrap();
    for version in [&TLS12, &TLS13] {
        let config = tls(identity(&fixture, &other), &[version], None);
        let server = Server::start(Behaviour::SslRequest, config);
        let run = verify_server(&fixture, &server.address.to_string(), &[]);
        assert_eq!(run.code, 1, "{run:?}");
        let report = run.json();
        assert_eq!(report["verdict"]["code"], "tls_certificate");
        assert_eq!(step(&report, "server")["code"], "tls_certificate");
        assert_eq!(step(&report, "certificate")["state"], "not_checked");
    }
}

#[test]
fn servers_without_tls() {
    let fixture = CommandFixture::default();
    for (behaviour, flags, what) in [
        (Behaviour::Plain, &["--ssl-request"][..], "answered N"),
        (Behaviour::Plain, &[], "answered N"),
        (Behaviour::Http, &["--ssl-request"], "0x48"),
        (Behaviour::Http, &["--raw-tls"], "something other than TLS"),
        (
            Behaviour::Closes,
            &["--ssl-request"],
            "closed the connection after an SSLRequest",
        ),
        (
            Behaviour::Closes,
            &["--raw-tls"],
            "closed the connection during the TLS handshake",
        ),
        (
            Behaviour::Closes,
            &[],
            "closed the connection during the TLS handshake",
        ),
        (
            Behaviour::RawTls,
            &["--ssl-request"],
            "closed the connection after an SSLRequest",
        ),
    ] {
        let server = start(&fixture, behaviour);
        let run = verify_server(&fixture, &server.address.to_string(), flags);
        assert_eq!(run.code, 69, "{behaviour:?} {flags:?} {run:?}");
        let report = run.json();
        assert_eq!(report["verdict"]["code"], "server_no_tls", "{run:?}");
        let text = report["verdict"]["text"].as_str().unwrap();
        assert!(text.contains(what), "{behaviour:?} {flags:?}: {text}");
    }
}

#[test]
fn timeout_of_a_server_that_does_not_answer() {
    let fixture = CommandFixture::default();
    for flags in [
        &["--timeout", "600ms"][..],
        &["--timeout", "600ms", "--raw-tls"],
        &["--timeout", "600ms", "--ssl-request"],
    ] {
        let server = start(&fixture, Behaviour::Silent);
        let started = Instant::now();
        let run = verify_server(&fixture, &server.address.to_string(), flags);
        assert_eq!(run.code, 69, "{run:?}");
        assert_eq!(run.json()["verdict"]["code"], "server_timeout");
        assert!(started.elapsed() >= Duration::from_millis(600));
        assert!(started.elapsed() < Duration::from_secs(10), "{flags:?}");
    }
}

#[test]
fn unreachable_server() {
    let fixture = CommandFixture::default();
    // Bound, so that no other process listens there, and not listening.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let run = verify_server(&fixture, &address.to_string(), &[]);
    assert_eq!(run.code, 69, "{run:?}");
    assert_eq!(run.json()["verdict"]["code"], "server_unreachable");
    let unknown = verify_server(&fixture, "no-such-host.invalid:5433", &["--timeout", "2s"]);
    assert_eq!(unknown.code, 69, "{unknown:?}");
}

/// A server is refused if its certificate is.
#[test]
fn refused_server() {
    let fixture = CommandFixture::with(|peer| peer.evidence.report.debug = true);
    let server = start(&fixture, Behaviour::SslRequest);
    let run = verify_server(&fixture, &server.address.to_string(), &[]);
    assert_eq!(run.code, 1, "{run:?}");
    let report = run.json();
    assert_eq!(step(&report, "server")["state"], "ok");
    assert_eq!(report["verdict"]["code"], "debug_td");
}
