//! sqlx's options for a connection through a forwarder, and the verification of a server.

use std::sync::Arc;

use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::dstack::{self, DstackClientCert};
use super::error::Error;
use super::forwarder::RaTlsForwarder;
use super::native::Native;
use super::types::{RaTlsVerifier, VerifyError, VerifyOptions};

pub use super::options::RaTlsOptions;
use crate::{Identity, Policy, ServerOptions};

/// The roles of a sidecar.
const ROLES: [&str; 2] = ["teesql_read", "teesql_readwrite"];
/// Hex digits of a cluster secret.
const SECRET_DIGITS: usize = 64;

/// A server that was verified.
#[derive(Debug, Clone)]
pub struct VerifiedServer {
    /// Its certificate.
    pub leaf_cert_der: Vec<u8>,
    /// SHA-256 of that in hex.
    pub leaf_fingerprint: String,
    /// Its quote; `None` if it is a simulator.
    pub quote: Option<Vec<u8>>,
}

/// sqlx's options for `dsn`, through a forwarder that runs until the process ends. Keep a
/// [`Forwarder`](crate::Forwarder) to stop it earlier.
///
/// # Errors
/// [`Error::BadDsn`] and [`Error::BadCredentials`] before anything else.
pub async fn pg_connect_opts_ra_tls(
    dsn: &str,
    verifier: Arc<dyn RaTlsVerifier>,
    opts: RaTlsOptions,
) -> Result<PgConnectOptions, Error> {
    let options: PgConnectOptions = dsn
        .parse()
        .map_err(|error: sqlx::Error| Error::BadDsn(error.to_string()))?;
    if options.get_socket().is_some() {
        return Err(Error::BadDsn(
            "a Unix socket leads around the forwarder: name a host".to_owned(),
        ));
    }
    check_credentials(dsn, &options)?;
    let (host, port) = (options.get_host().to_owned(), options.get_port());
    let identity = match &opts.client_cert_override {
        Some(own) => own.identity(),
        None => {
            dstack::require_dstack_endpoint()?;
            match dstack::simulator() {
                Some(address) => Identity::guest_agent_at(address),
                None => Identity::guest_agent(),
            }
        }
    };
    let forwarder = RaTlsForwarder::start_with(host, port, identity, verifier, &opts).await?;
    let address = forwarder.local_addr;
    // The returned options cannot hold it, and dropping it would stop it.
    std::mem::forget(forwarder);
    Ok(options
        .host(&address.ip().to_string())
        .port(address.port())
        .ssl_mode(PgSslMode::Disable))
}

/// Checks role and secret, which a sidecar would refuse otherwise.
fn check_credentials(dsn: &str, options: &PgConnectOptions) -> Result<(), Error> {
    let user = options.get_username();
    if !ROLES.contains(&user) {
        return Err(Error::BadCredentials(format!(
            "the role must be teesql_read or teesql_readwrite, not {user:?}"
        )));
    }
    // sqlx does not show the password, and it is hex: nothing in it is percent-encoded.
    let authority = dsn.split_once("://").map_or("", |(_, rest)| rest);
    let login = authority.split(['/', '?']).next().unwrap_or_default();
    let login = login.rsplit_once('@').map_or("", |(login, _)| login);
    let secret = login.split_once(':').map_or("", |(_, secret)| secret);
    let is_secret =
        secret.len() == SECRET_DIGITS && secret.bytes().all(|byte| byte.is_ascii_hexdigit());
    match is_secret {
        true => Ok(()),
        false => Err(Error::BadCredentials(
            "the password must be the cluster secret, 64 hex digits".to_owned(),
        )),
    }
}

/// Connects to a server, verifies it, and closes the connection.
///
/// # Errors
/// [`Error`].
pub async fn verify_server(
    host: &str,
    port: u16,
    client_cert: &DstackClientCert,
    verifier: &dyn RaTlsVerifier,
    opts: &RaTlsOptions,
) -> Result<VerifiedServer, Error> {
    let server = ServerOptions::default().identity(client_cert.identity());
    let chain = crate::server_certificates(host, port, &server).await?;
    let leaf = chain.first().cloned().unwrap_or_default();
    let fingerprint = crate::fingerprint(&leaf);
    let quote = match crate::bound_quote(&leaf) {
        Ok(quote) => Some(quote),
        Err(error) if error.code() == "no_evidence" && opts.allow_simulator => None,
        Err(error) => return Err(error.into()),
    };
    if let Some(quote) = &quote {
        verify_chain(&chain, quote, verifier, &opts.verify_options()).await?;
    }
    Ok(VerifiedServer {
        leaf_cert_der: leaf,
        leaf_fingerprint: fingerprint,
        quote,
    })
}

async fn verify_chain(
    chain: &[Vec<u8>],
    quote: &[u8],
    verifier: &dyn RaTlsVerifier,
    options: &VerifyOptions,
) -> Result<(), Error> {
    let native = verifier.native();
    if let Native::Dcap(_) | Native::TrustAuthority(..) = native {
        let settings = native
            .settings(&options.allowed_mr_td, options.allow_debug_mode)
            .into_iter();
        let policy = settings.fold(Policy::new(), |policy, (name, value)| {
            policy.setting(name, value)
        });
        crate::verify_certificate(chain, &policy).await?;
        return Ok(());
    }
    let leaf = chain.first().map(Vec::as_slice).unwrap_or_default();
    let verified = verifier.verify_with_pubkey(quote, options, leaf).await;
    verified
        .map(drop)
        .map_err(|error: VerifyError| error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(dsn: &str) -> Result<(), Error> {
        check_credentials(dsn, &dsn.parse().unwrap())
    }

    #[test]
    fn only_roles_and_secrets_of_a_sidecar_are_accepted() {
        let secret = "0123456789abcdef".repeat(4);
        let dsn = |user: &str, secret: &str| format!("postgres://{user}:{secret}@db:5433/x");
        check(&dsn("teesql_readwrite", &secret)).unwrap();
        check(&dsn("teesql_read", &secret)).unwrap();
        for bad in [
            dsn("postgres", &secret),
            dsn("teesql_read", "short"),
            "postgres://teesql_read@db:5433/x".to_owned(),
        ] {
            let error = check(&bad).unwrap_err();
            assert!(matches!(error, Error::BadCredentials(_)), "{bad}");
            assert!(!error.to_string().contains(&secret));
        }
    }
}
