//! Command line, listener and TLS configuration of the baselines: the straightforward TLS proxies
//! that this crate builds, one on tokio and one on monoio. What differs between them, the runtime,
//! the TLS stream and the copy loop, is in their own files.
//!
//! A baseline has one thread, does not take part in the login, and must never listen on anything
//! but loopback.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use clap::{Arg, Command};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, version::TLS13};

use super::relay::listener;
use crate::error::{Error, Result};

/// Length of an SSLRequest, and of the part of a connection that tells which opening it has.
pub const OPENING_LEN: usize = 8;
/// First byte of a TLS connection: the content type of a handshake record.
const TLS_HANDSHAKE_RECORD: u8 = 0x16;

/// What a baseline is told by its command line.
pub struct Baseline {
    /// Listens on a loopback address.
    pub listener: TcpListener,
    /// Address of Postgres.
    pub upstream: SocketAddr,
    /// TLS 1.3, with the certificate of all arms and the ALPN protocol of direct TLS.
    pub tls: Arc<ServerConfig>,
}

impl Baseline {
    /// Reads `--listen`, `--upstream`, `--cert` and `--key`, and starts to listen. Invalid flags end
    /// the process with a message.
    ///
    /// # Errors
    /// A file cannot be read, the address is not loopback or cannot be listened on.
    pub fn from_args(name: &'static str) -> Result<Self> {
        let flag = |name| Arg::new(name).long(name).required(true);
        let flags = Command::new(name)
            .args(["listen", "upstream", "cert", "key"].map(flag))
            .get_matches();
        let text = |name| flags.get_one::<String>(name).map_or("", String::as_str);
        let address = |name| {
            let invalid = |_| Error::Usage(format!("--{name}: expected IP:PORT"));
            text(name).parse::<SocketAddr>().map_err(invalid)
        };
        Ok(Self {
            listener: listener(address("listen")?)?,
            upstream: address("upstream")?,
            tls: Arc::new(server_config(text("cert"), text("key"))?),
        })
    }
}

fn server_config(cert: &str, key: &str) -> Result<ServerConfig> {
    let invalid = |file: &str| {
        let file = file.to_owned();
        move |error| Error::Usage(format!("{file}: {error}"))
    };
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect)
        .map_err(invalid(cert))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(invalid(key))?;
    let mut config = ServerConfig::builder_with_protocol_versions(&[&TLS13])
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(config)
}

/// Returns whether the first byte of a connection begins a TLS handshake, i.e. direct TLS.
#[must_use]
pub fn is_direct_tls(first: u8) -> bool {
    first == TLS_HANDSHAKE_RECORD
}
