//! Servers of every manner, and that nothing is said to them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ALL_VERSIONS, RootCertStore};
use socket2::{Domain, Socket, Type};

use crate::command::{Run, step, verify};
use crate::fixture::Case;
use crate::mock_server::{Manner, Server, tls};

/// The peer's chain, with the key `key`.
fn identity(case: &Case, key: &attest::mock::Key) -> CertifiedKey {
    let certificate = case.certificate();
    let chain = certificate.chain_der().map(<[u8]>::to_vec);
    let key = PrivateKeyDer::try_from(key.to_pkcs8_der().unwrap()).unwrap();
    CertifiedKey::new(
        chain.map(CertificateDer::from).into(),
        any_supported_type(&key).unwrap(),
    )
}

fn start(case: &Case, manner: Manner) -> Server {
    let identity = identity(case, &case.key());
    Server::start(manner, tls(identity, ALL_VERSIONS, None))
}

fn ask(case: &Case, name: &str, more: &[&str]) -> Run {
    let mut arguments = vec![name.to_owned(), "--format".into(), "json".into()];
    arguments.extend(case.flags());
    arguments.extend(more.iter().map(|flag| (*flag).to_owned()));
    verify(arguments)
}

#[test]
fn both_openings() {
    let case = Case::default();
    for (manner, flags, opening) in [
        (Manner::SslRequest, &[][..], "SSLRequest"),
        (Manner::SslRequest, &["--ssl-request"], "SSLRequest"),
        (Manner::RawTls, &["--raw-tls"], "raw TLS"),
        (Manner::RawTls, &[], "raw TLS"),
        (Manner::SilentRawTls, &["--timeout", "2s"], "raw TLS"),
    ] {
        let mut server = start(&case, manner);
        let name = format!("localhost:{}", server.address.port());
        let run = ask(&case, &name, flags);
        assert_eq!(run.code, 0, "{manner:?} {flags:?} {run:?}");
        let report = run.json();
        assert_eq!(report["input"]["kind"], "server");
        let facts = &step(&report, "server")["facts"];
        assert_eq!(facts["opening"], opening);
        assert_eq!(facts["tls_version"], "TLS 1.3");
        assert_eq!(facts["asked_for_certificate"], "no");
        let alpn = facts["alpn"].as_str();
        assert_eq!(alpn, (opening == "raw TLS").then_some("postgresql"));
        assert_eq!(server.heard(), Some(Vec::new()), "close_notify and no more");
    }
}

#[test]
fn versions() {
    let case = Case::default();
    for (version, name) in [(&TLS12, "TLS 1.2"), (&TLS13, "TLS 1.3")] {
        let config = tls(identity(&case, &case.key()), &[version], None);
        let mut server = Server::start(Manner::SslRequest, config);
        let run = ask(&case, &server.address.to_string(), &[]);
        assert_eq!(run.code, 0, "{run:?}");
        let report = run.json();
        assert_eq!(step(&report, "server")["facts"]["tls_version"], name);
        assert_eq!(server.heard(), Some(Vec::new()));
    }
}

#[test]
fn a_server_that_asks_for_a_certificate() {
    let case = Case::default();
    let cert = case.pem();
    let key = case.write("key.pem", case.key().to_pkcs8_pem().unwrap());
    for (flags, shown) in [
        (&[][..], "yes, and none was shown"),
        (
            &["--client-cert", &cert, "--client-key", &key],
            "yes, and one was shown",
        ),
    ] {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from(case.pki.kms_der().to_vec()))
            .unwrap();
        let config = tls(identity(&case, &case.key()), ALL_VERSIONS, Some(roots));
        let server = Server::start(Manner::SslRequest, config);
        let run = ask(&case, &server.address.to_string(), flags);
        assert_eq!(run.code, 0, "{run:?}");
        let report = run.json();
        assert_eq!(
            step(&report, "server")["facts"]["asked_for_certificate"],
            shown
        );
    }
}

/// A copied certificate is worth nothing without its key.
#[test]
fn a_server_without_its_certificates_key() {
    let case = Case::default();
    let other = attest::mock::Key::derive(&[9; 32], "other").unwrap();
    for version in [&TLS12, &TLS13] {
        let config = tls(identity(&case, &other), &[version], None);
        let server = Server::start(Manner::SslRequest, config);
        let run = ask(&case, &server.address.to_string(), &[]);
        assert_eq!(run.code, 1, "{run:?}");
        let report = run.json();
        assert_eq!(report["verdict"]["code"], "tls_certificate");
        assert_eq!(step(&report, "server")["code"], "tls_certificate");
        assert_eq!(step(&report, "certificate")["state"], "not_checked");
    }
}

#[test]
fn servers_without_tls() {
    let case = Case::default();
    for (manner, flags, what) in [
        (Manner::Plain, &["--ssl-request"][..], "answered N"),
        (Manner::Plain, &[], "answered N"),
        (Manner::Http, &["--ssl-request"], "0x48"),
        (Manner::Http, &["--raw-tls"], "something other than TLS"),
        (
            Manner::Closes,
            &["--ssl-request"],
            "closed the connection after an SSLRequest",
        ),
        (
            Manner::Closes,
            &["--raw-tls"],
            "closed the connection during the TLS handshake",
        ),
        (
            Manner::Closes,
            &[],
            "closed the connection during the TLS handshake",
        ),
        (
            Manner::RawTls,
            &["--ssl-request"],
            "closed the connection after an SSLRequest",
        ),
    ] {
        let server = start(&case, manner);
        let run = ask(&case, &server.address.to_string(), flags);
        assert_eq!(run.code, 69, "{manner:?} {flags:?} {run:?}");
        let report = run.json();
        assert_eq!(report["verdict"]["code"], "server_no_tls", "{run:?}");
        let text = report["verdict"]["text"].as_str().unwrap();
        assert!(text.contains(what), "{manner:?} {flags:?}: {text}");
    }
}

#[test]
fn a_server_that_hangs_meets_the_deadline() {
    let case = Case::default();
    for flags in [
        &["--timeout", "600ms"][..],
        &["--timeout", "600ms", "--raw-tls"],
        &["--timeout", "600ms", "--ssl-request"],
    ] {
        let server = start(&case, Manner::Hangs);
        let begun = Instant::now();
        let run = ask(&case, &server.address.to_string(), flags);
        assert_eq!(run.code, 69, "{run:?}");
        assert_eq!(run.json()["verdict"]["code"], "server_timeout");
        assert!(begun.elapsed() >= Duration::from_millis(600));
        assert!(begun.elapsed() < Duration::from_secs(10), "{flags:?}");
    }
}

#[test]
fn nobody_there() {
    let case = Case::default();
    // Bound, so that nobody else is there, and not listening.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let run = ask(&case, &address.to_string(), &[]);
    assert_eq!(run.code, 69, "{run:?}");
    assert_eq!(run.json()["verdict"]["code"], "server_unreachable");
    let unknown = ask(&case, "no-such-host.invalid:5433", &["--timeout", "2s"]);
    assert_eq!(unknown.code, 69, "{unknown:?}");
}

/// The verdict about a server is the verdict about its certificate.
#[test]
fn a_server_that_is_refused() {
    let case = crate::fixture::case(|case| case.evidence.report.debug = true);
    let server = start(&case, Manner::SslRequest);
    let run = ask(&case, &server.address.to_string(), &[]);
    assert_eq!(run.code, 1, "{run:?}");
    let report = run.json();
    assert_eq!(step(&report, "server")["state"], "ok");
    assert_eq!(report["verdict"]["code"], "debug_td");
}
