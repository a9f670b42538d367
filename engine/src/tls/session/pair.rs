//! Two sessions of one process, connected by buffers: what the tests of sessions and the
//! comparison with rustls begin with.

#![cfg_attr(
    not(test),
    allow(dead_code, reason = "the unit tests use more than the fuzz targets")
)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "for tests and fuzz targets, which fail by panicking"
)]

use std::sync::{Arc, LazyLock};

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::ConnectionState;
use rustls::version::TLS13;
use rustls::{
    CipherSuite, CipherSuiteCommon, ClientConfig, RootCertStore, ServerConfig,
    SupportedCipherSuite, SupportedProtocolVersion, Tls13CipherSuite,
};

use super::*;
use crate::io::buffer::Size;
use crate::tls::record_layer::RecordLayer;

pub(super) type Server = Session<UnbufferedServerConnection>;
pub(super) type Client = Session<UnbufferedClientConnection>;

/// The configuration of both sides of a session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    pub(super) version: &'static SupportedProtocolVersion,
    pub(super) suite: Option<CipherSuite>,
    /// Records that a key may seal, if not as many as the suite allows (only TLS 1.3).
    pub(super) record_limit: Option<u64>,
    /// Whether a server that stays with rustls sends tickets.
    pub(super) tickets: bool,
    /// Whether the side continues with our own record layer after the handshake.
    pub(super) server_is_own: bool,
    pub(super) client_is_own: bool,
}

pub(super) const BOTH_OWN: Setup = Setup {
    version: &TLS13,
    suite: None,
    record_limit: None,
    tickets: true,
    server_is_own: true,
    client_is_own: true,
};

impl Setup {
    pub(super) fn configs(self) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        if let Some(wanted) = self.suite {
            let suites = &mut provider.cipher_suites;
            suites.retain(|suite| suite.suite() == wanted);
        }
        if let Some(limit) = self.record_limit {
            for suite in &mut provider.cipher_suites {
                *suite = limited(*suite, limit);
            }
        }
        let provider = Arc::new(provider);
        let (certificate, key) = &*CERTIFICATE;
        let chain = vec![certificate.clone()];
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.clone()));
        let mut roots = RootCertStore::empty();
        roots.add(chain[0].clone()).unwrap();
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[self.version])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[self.version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        if self.server_is_own || !self.tickets {
            server.send_tls13_tickets = 0;
        }
        // For `differential::peer`. The sessions themselves do not depend on it.
        server.enable_secret_extraction = true;
        client.enable_secret_extraction = true;
        server.key_log = layer(self.server_is_own).key_log();
        client.key_log = layer(self.client_is_own).key_log();
        (Arc::new(server), Arc::new(client))
    }

    pub(super) fn pair(self) -> (Server, Client) {
        let (server, client) = self.configs();
        let name = ServerName::try_from("localhost").unwrap();
        (
            Session::new(UnbufferedServerConnection::new(server).unwrap()),
            Session::new(UnbufferedClientConnection::new(client, name).unwrap()),
        )
    }

    /// Both sides, with the handshake complete.
    pub(super) fn established(self, piece: usize) -> (Server, Client) {
        let (mut server, mut client) = self.pair();
        handshake(&mut server, &mut client, piece);
        let records = |own: bool| own && self.version == &TLS13;
        let of_server = matches!(server.state, State::Records(_));
        let of_client = matches!(client.state, State::Records(_));
        assert_eq!(of_server, records(self.server_is_own));
        assert_eq!(of_client, records(self.client_is_own));
        if let Some(limit) = self.record_limit {
            limit_records(&mut server, limit);
            limit_records(&mut client, limit);
        }
        (server, client)
    }
}

/// The certificate of all servers, and its key in PKCS #8.
static CERTIFICATE: LazyLock<(CertificateDer<'static>, Vec<u8>)> = LazyLock::new(|| {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    (made.cert.der().clone(), made.signing_key.serialize_der())
});

/// The suite with another limit for rustls. Leaks it: rustls wants a static reference.
fn limited(suite: SupportedCipherSuite, records: u64) -> SupportedCipherSuite {
    let Some(suite) = suite.tls13() else {
        return suite;
    };
    SupportedCipherSuite::Tls13(Box::leak(Box::new(Tls13CipherSuite {
        common: CipherSuiteCommon {
            suite: suite.common.suite,
            hash_provider: suite.common.hash_provider,
            confidentiality_limit: records,
        },
        hkdf_provider: suite.hkdf_provider,
        aead_alg: suite.aead_alg,
        quic: None,
    })))
}

/// Sets the limit of the record layer `own`.
fn limit_records<E>(session: &mut Session<E>, limit: u64) {
    if let State::Records(records) = &mut session.state {
        records.limit_records(limit);
    }
}

pub(super) fn layer(is_own: bool) -> RecordLayer {
    match is_own {
        true => RecordLayer::Own,
        false => RecordLayer::Rustls,
    }
}

/// Passes `bytes` to `to` in pieces of `piece` bytes. Returns the plaintext.
pub(super) fn feed<E: TlsSide>(
    to: &mut Session<E>,
    bytes: &[u8],
    piece: usize,
) -> Result<Vec<u8>, TlsError> {
    let mut incoming = Buffer::take(Size::Large);
    let mut opened = Vec::new();
    for chunk in bytes.chunks(piece) {
        assert!(incoming.extend(chunk));
        let mut plain = Buffer::take(Size::Large);
        to.open(&mut incoming, &mut plain)?;
        if to.finish().is_some() {
            to.open(&mut incoming, &mut plain)?;
        }
        opened.extend_from_slice(plain.filled());
        incoming = incoming.make_room();
    }
    assert!(incoming.is_empty() || to.peer_closed());
    Ok(opened)
}

/// Makes the client's first flight pending.
pub(super) fn begin(client: &mut Client) {
    let nothing = &mut Buffer::take(Size::Small);
    client
        .open(nothing, &mut Buffer::take(Size::Small))
        .unwrap();
}

pub(super) fn handshake(server: &mut Server, client: &mut Client, piece: usize) {
    begin(client);
    for _ in 0..4 {
        let flight = client.take_pending();
        feed(server, &flight, piece).unwrap();
        let flight = server.take_pending();
        feed(client, &flight, piece).unwrap();
    }
}

pub(super) fn sealed<E: TlsSide>(from: &mut Session<E>, plain: &[u8]) -> Vec<u8> {
    let mut out = Buffer::take(Size::Large);
    from.seal(plain, &mut out).unwrap();
    out.filled().to_vec()
}

/// Makes rustls update its keys and request an update from the peer.
pub(super) fn update_keys<E: TlsSide>(session: &mut Session<E>) {
    let State::Rustls(connection) = &mut session.state else {
        panic!("not the state of rustls");
    };
    loop {
        match connection.rustls.process(&mut []).state.unwrap() {
            ConnectionState::WriteTraffic(traffic) => {
                return traffic.refresh_traffic_keys().unwrap();
            }
            // An earlier update, which was not sent yet.
            ConnectionState::EncodeTlsData(mut data) => {
                let mut update = [0; 64];
                let length = data.encode(&mut update).unwrap();
                session.pending.extend_from_slice(&update[..length]);
            }
            ConnectionState::TransmitTlsData(sent) => sent.done(),
            _ => panic!("not established"),
        }
    }
}
