//! The names of sqlx-ra-tls.

use std::sync::Arc;

use async_trait::async_trait;
use libtest_mimic::Trial;
use sqlx::postgres::PgPoolOptions;
use teesql::ErrorKind;
use teesql::sqlx_ra_tls::{
    DcapVerifier, DstackClientCert, Error, NoopVerifier, RaTlsForwarder, RaTlsOptions,
    RaTlsVerifier, VerificationResult, VerifyError, VerifyOptions, pg_connect_opts_ra_tls,
    verify_server,
};

use crate::harness::{SOON, env, trial, trial_that_leaks};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_verifier_of_sqlx_ra_tls", a_verifier_of_sqlx_ra_tls),
        trial(
            "a_verifier_whose_service_fails",
            a_verifier_whose_service_fails,
        ),
        trial("a_server_for_sqlx_ra_tls", a_server_for_sqlx_ra_tls),
        trial("wrong_credentials_come_first", wrong_credentials_come_first),
        trial_that_leaks(
            "the_pages_snippet_for_development",
            the_pages_snippet_for_development,
        ),
    ]
}

fn dsn() -> String {
    let secret = env("TEESQL_DEV_READWRITE_SECRET");
    format!(
        "postgres://teesql_readwrite:{secret}@127.0.0.1:{}/postgres",
        env("PGPORT")
    )
}

async fn certificate() -> DstackClientCert {
    let agent = env("TEESQL_GUEST_AGENT");
    let issued = teesql::request_client_certificate(Some(&agent), SOON).await;
    let issued = issued.unwrap();
    DstackClientCert {
        key_pem: issued.key_pem.to_string(),
        chain_pem: issued.chain_pem,
    }
}

async fn options() -> RaTlsOptions {
    RaTlsOptions {
        client_cert_override: Some(certificate().await),
        ..Default::default()
    }
}

async fn the_pages_snippet_for_development() {
    let opts = RaTlsOptions {
        allow_simulator: true,
        allow_debug_mode: true,
        ..options().await
    };
    let opts = pg_connect_opts_ra_tls(&dsn(), Arc::new(NoopVerifier::new()), opts).await;
    let pool = PgPoolOptions::new()
        .max_connections(5)
        .connect_with(opts.unwrap())
        .await
        .unwrap();
    let (one,): (i32,) = sqlx::query_as("SELECT 1").fetch_one(&pool).await.unwrap();
    assert_eq!(one, 1);
    pool.close().await;
}

/// Accepts one MRTD.
struct Known(String);

#[async_trait]
impl RaTlsVerifier for Known {
    async fn verify(
        &self,
        quote: &[u8],
        _: &VerifyOptions,
    ) -> Result<VerificationResult, VerifyError> {
        let claims = teesql::read_quote(quote).unwrap();
        match claims.mrtd == self.0 {
            true => Ok(VerificationResult::from(claims)),
            false => Err(VerifyError::MrtdNotAllowed { mrtd: claims.mrtd }),
        }
    }
}

async fn a_verifier_of_sqlx_ra_tls() {
    let policy = teesql::Policy::from_env();
    let port = env("PGPORT").parse().unwrap();
    let server = teesql::verify_server("127.0.0.1", port, &policy, &Default::default()).await;
    let mrtd = server.unwrap().claims.mrtd;
    for (mrtd, code) in [(mrtd, None), ("0".repeat(96), Some("verifier_refused"))] {
        let verifier = Arc::new(Known(mrtd));
        let forwarder = RaTlsForwarder::start(
            "127.0.0.1",
            port,
            certificate().await,
            verifier,
            RaTlsOptions::default(),
        );
        let forwarder = forwarder.await.unwrap();
        let url = forwarder.forwarder().rewrite(&dsn()).unwrap();
        let client = crate::harness::connect_by(&url.parse().unwrap()).await;
        let failure = forwarder.forwarder().last_failure();
        assert_eq!(failure.map(|failure| failure.code), code);
        assert_eq!(client.is_ok(), code.is_none());
    }
}

/// Has no service to ask.
struct Unreachable;

#[async_trait]
impl RaTlsVerifier for Unreachable {
    async fn verify(&self, _: &[u8], _: &VerifyOptions) -> Result<VerificationResult, VerifyError> {
        Err(VerifyError::Service("no connection".to_owned()))
    }
}

async fn a_verifier_whose_service_fails() {
    let forwarder = RaTlsForwarder::start(
        "127.0.0.1",
        env("PGPORT").parse().unwrap(),
        certificate().await,
        Arc::new(Unreachable),
        RaTlsOptions::default(),
    );
    let forwarder = forwarder.await.unwrap();
    let url = forwarder.forwarder().rewrite(&dsn()).unwrap();
    let client = crate::harness::connect_by(&url.parse().unwrap()).await;
    assert!(client.is_err());
    let failure = forwarder.forwarder().last_failure().unwrap();
    assert_eq!(failure.code, "verifier_failed");
    assert_eq!(failure.to_error().kind(), ErrorKind::Unavailable);
}

async fn a_server_for_sqlx_ra_tls() {
    let (own, port) = (certificate().await, env("PGPORT").parse().unwrap());
    let opts = RaTlsOptions::default();
    let noop = NoopVerifier::new();
    let server = verify_server("127.0.0.1", port, &own, &noop, &opts).await;
    let server = server.unwrap();
    assert_eq!(
        server.leaf_fingerprint,
        teesql::fingerprint(&server.leaf_cert_der)
    );
    let quote = teesql::extract_tdx_quote(&server.leaf_cert_der);
    assert_eq!(server.quote, quote);
    // Intel has not signed the quotes of this cluster.
    let dcap = DcapVerifier::with_pccs_url(env("TEESQL_PCCS"));
    let error = verify_server("127.0.0.1", port, &own, &dcap, &opts).await;
    let error = error.unwrap_err();
    assert!(matches!(error, Error::VerificationFailed(_)), "{error}");
    let error = dcap
        .verify(&server.quote.unwrap(), &VerifyOptions::default())
        .await;
    assert!(matches!(error, Err(VerifyError::Other(_))), "{error:?}");
}

async fn wrong_credentials_come_first() {
    let verifier = || Arc::new(NoopVerifier::new());
    let opts = RaTlsOptions::default;
    let dsn = "postgres://postgres:x@192.0.2.1:5433/db";
    let error = pg_connect_opts_ra_tls(dsn, verifier(), opts()).await;
    assert!(matches!(error, Err(Error::BadCredentials(_))));
    let error = pg_connect_opts_ra_tls("nonsense", verifier(), opts()).await;
    assert!(matches!(error, Err(Error::BadDsn(_))));
    let secret = "0".repeat(64);
    let dsn = format!("postgres://teesql_read:{secret}@192.0.2.1/db?host=/tmp");
    let error = pg_connect_opts_ra_tls(&dsn, verifier(), opts()).await;
    assert!(matches!(error, Err(Error::BadDsn(_))));
}
