//! Verification without a forwarder.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use teesql::{
    Acceptance, ErrorKind, Identity, Policy, Refusal, ServerOptions, verifier_fn, verify,
    verify_certificate, verify_server,
};
use tokio::net::{TcpListener, UnixStream};

use crate::harness::{env, no_threads, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "a_server_its_certificate_and_its_quote",
            a_server_its_certificate_and_its_quote,
        ),
        trial("what_is_refused", what_is_refused),
        trial("a_verifier_for_one_server", a_verifier_for_one_server),
        trial(
            "one_limit_for_the_certificate_and_the_server",
            one_limit_for_the_certificate_and_the_server,
        ),
        trial("nothing_is_left_behind", nothing_is_left_behind),
    ]
}

fn port() -> u16 {
    env("PGPORT").parse().unwrap()
}

async fn a_server_its_certificate_and_its_quote() {
    let policy = Policy::from_env();
    let options = ServerOptions::default();
    let server = verify_server("127.0.0.1", port(), &policy, &options).await;
    let server = server.unwrap();
    let claims = &server.claims;
    assert_eq!(claims.app_id, Some(env("TEESQL_ALLOWED_APP_ID")));
    assert_eq!(claims.tcb_status.as_deref(), Some("UpToDate"));
    assert_eq!(claims.compose_hash.as_ref().unwrap().len(), 64);
    assert_eq!(claims.instance_id.as_ref().unwrap().len(), 40);
    assert!(server.valid_until > std::time::SystemTime::now());
    assert_eq!(server.fingerprint, teesql::fingerprint(&server.chain[0]));
    // With a client certificate the same.
    let agent = Identity::guest_agent_at(env("TEESQL_GUEST_AGENT"));
    let again = verify_server("localhost", port(), &policy, &options.identity(agent)).await;
    assert_eq!(again.unwrap().claims, *claims);
    let certificate = verify_certificate(&server.chain, &policy).await.unwrap();
    assert_eq!(certificate.claims, *claims);
    assert_eq!(certificate.quote, server.quote);
    let bound = teesql::bound_quote(&server.chain[0]).unwrap();
    assert_eq!(bound, server.quote);
    // A quote alone does not prove who sent it.
    let root = env("TEESQL_DANGEROUS_TDX_ROOT_CA");
    let policy = Policy::new()
        .mrtd(&claims.mrtd)
        .setting("dangerous_tdx_root_ca", root)
        .setting("pccs", env("TEESQL_PCCS"));
    let quote = verify(&server.quote, &policy).await.unwrap();
    assert_eq!(quote.claims.mrtd, claims.mrtd);
    assert_eq!(quote.claims.rtmr, claims.rtmr);
    assert_eq!(quote.claims.app_id, None);
    assert!(quote.chain.is_empty());
    let read = teesql::read_quote(&server.quote).unwrap();
    assert_eq!(read.report_data, claims.report_data);
    assert_eq!(read.tcb_status, None);
}

async fn what_is_refused() {
    let policy = Policy::from_env();
    let options = ServerOptions::default();
    let server = verify_server("127.0.0.1", port(), &policy, &options).await;
    let server = server.unwrap();
    let code = |error: teesql::Error| (error.code(), error.kind());
    // A bit of the quote's signed body.
    let mut forged = server.quote.clone();
    forged[60] ^= 1;
    let error = verify(&forged, &policy).await.unwrap_err();
    assert_eq!(code(error), ("bad_signature", ErrorKind::Refused));
    let error = verify(b"no quote", &policy).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    // The quote of this server in the certificate of another key, which anybody can make.
    let client = std::fs::read(env("PGSSLCERT")).unwrap();
    let client = teesql::certificates_from_pem(&client).unwrap();
    let bound = teesql::bound_quote(&client[0]).unwrap();
    assert_ne!(bound, server.quote);
    let ca = std::fs::read(env("PGSSLROOTCERT")).unwrap();
    let ca = teesql::certificates_from_pem(&ca).unwrap();
    let error = verify_certificate(&ca, &policy).await.unwrap_err();
    assert_eq!(code(error), ("no_evidence", ErrorKind::Refused));
    let error = verify_certificate(&[], &policy).await.unwrap_err();
    assert_eq!(code(error), ("no_certificate", ErrorKind::Refused));
    let other = Policy::from_env().setting("allowed_app_id", "12".repeat(20));
    let error = verify_server("127.0.0.1", port(), &other, &options).await;
    assert_eq!(
        code(error.unwrap_err()),
        ("app_not_allowed", ErrorKind::Refused)
    );
    let error = verify_server("127.0.0.1", 1, &policy, &options).await;
    let unreachable = ("server_unreachable", ErrorKind::Network);
    assert_eq!(code(error.unwrap_err()), unreachable);
    let error = verify(&server.quote, &Policy::new().setting("pccs", "ftp://x")).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Configuration);
}

async fn a_verifier_for_one_server() {
    let policy = Policy::from_env();
    let refuse = verifier_fn(|_| Err(Refusal::Refused("no".to_owned())));
    let options = ServerOptions::default().verifier(refuse);
    let error = verify_server("127.0.0.1", port(), &policy, &options).await;
    assert_eq!(error.unwrap_err().code(), "verifier_refused");
    let accept = verifier_fn(|_| Ok(Acceptance::default()));
    let options = ServerOptions::default().dangerous_verifier_instead_of_dcap(accept);
    let off = Policy::from_env().setting("pccs", "off");
    let server = verify_server("127.0.0.1", port(), &off, &options).await;
    assert_eq!(
        server.unwrap().claims.tcb_status.as_deref(),
        Some("UpToDate")
    );
}

/// The address of a guest agent that answers as the cluster's does, later.
async fn slow_agent(delay: Duration) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                let agent = env("TEESQL_GUEST_AGENT");
                let path = agent.strip_prefix("unix:").unwrap_or(&agent);
                let mut agent = UnixStream::connect(path).await.unwrap();
                let copied = tokio::io::copy_bidirectional(&mut client, &mut agent).await;
                drop(copied);
            });
        }
    });
    format!("http://{address}")
}

async fn one_limit_for_the_certificate_and_the_server() {
    let (delay, limit) = (Duration::from_secs(2), Duration::from_secs(4));
    let identity = Identity::guest_agent_at(slow_agent(delay).await);
    let options = ServerOptions::default().identity(identity).timeout(limit);
    // Accepted by the kernel, and never answered.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let begun = Instant::now();
    let error = verify_server("127.0.0.1", port, &Policy::from_env(), &options).await;
    let (error, elapsed) = (error.unwrap_err(), begun.elapsed());
    assert_eq!(error.code(), "server_timeout", "{error}");
    // With a limit for each it would be this at least.
    assert!(elapsed < delay + limit, "{elapsed:?}");
}

async fn nothing_is_left_behind() {
    let policy = Policy::from_env();
    let options = ServerOptions::default();
    let result = tokio::task::spawn_blocking(move || {
        teesql::verify_server_blocking("127.0.0.1", port(), &policy, &options)
    });
    result.await.unwrap().unwrap();
    no_threads().await;
}
