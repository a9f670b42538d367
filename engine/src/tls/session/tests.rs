//! Sessions against each other and against rustls.

use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::ConnectionState;
use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuite, ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};

use super::*;
use crate::io::buffer::Size;
use crate::tls::schedule::SecretCapture;

type Server = Session<UnbufferedServerConnection>;
type Client = Session<UnbufferedClientConnection>;

/// How the two ends of a session are set up.
#[derive(Clone, Copy, Debug)]
struct Plan {
    version: &'static SupportedProtocolVersion,
    suite: Option<CipherSuite>,
    /// Whether the end goes on with our own records after the handshake.
    server_is_ours: bool,
    client_is_ours: bool,
}

const OURS: Plan = Plan {
    version: &TLS13,
    suite: None,
    server_is_ours: true,
    client_is_ours: true,
};

impl Plan {
    fn configs(self) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        if let Some(wanted) = self.suite {
            let suites = &mut provider.cipher_suites;
            suites.retain(|suite| suite.suite() == wanted);
        }
        let provider = Arc::new(provider);
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let chain = vec![made.cert.der().clone()];
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
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
        if self.server_is_ours {
            server.send_tls13_tickets = 0;
            server.key_log = Arc::new(SecretCapture);
        }
        if self.client_is_ours {
            client.key_log = Arc::new(SecretCapture);
        }
        (Arc::new(server), Arc::new(client))
    }

    fn pair(self) -> (Server, Client) {
        let (server, client) = self.configs();
        let name = ServerName::try_from("localhost").unwrap();
        (
            Session::new(UnbufferedServerConnection::new(server).unwrap()),
            Session::new(UnbufferedClientConnection::new(client, name).unwrap()),
        )
    }

    /// Both, with the handshake behind them.
    fn established(self, piece: usize) -> (Server, Client) {
        let (mut server, mut client) = self.pair();
        handshake(&mut server, &mut client, piece);
        let records = |ours: bool| ours && self.version == &TLS13;
        let of_server = matches!(server.state, State::Records(_));
        let of_client = matches!(client.state, State::Records(_));
        assert_eq!(of_server, records(self.server_is_ours));
        assert_eq!(of_client, records(self.client_is_ours));
        (server, client)
    }
}

/// Feeds `bytes` to `to` in pieces of `piece` bytes; what it opens.
fn feed<E: TlsSide>(to: &mut Session<E>, bytes: &[u8], piece: usize) -> Result<Vec<u8>, TlsError> {
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

/// The client's first flight.
fn begin(client: &mut Client) {
    let nothing = &mut Buffer::take(Size::Small);
    client
        .open(nothing, &mut Buffer::take(Size::Small))
        .unwrap();
}

fn handshake(server: &mut Server, client: &mut Client, piece: usize) {
    begin(client);
    for _ in 0..4 {
        let flight = client.take_pending();
        feed(server, &flight, piece).unwrap();
        let flight = server.take_pending();
        feed(client, &flight, piece).unwrap();
    }
}

fn sealed<E: TlsSide>(from: &mut Session<E>, plain: &[u8]) -> Vec<u8> {
    let mut out = Buffer::take(Size::Large);
    from.seal(plain, &mut out).unwrap();
    out.filled().to_vec()
}

/// Each version and suite, with each end ours and rustls'.
fn every_plan() -> impl Iterator<Item = Plan> {
    let suites = [
        (&TLS12, None),
        (&TLS13, Some(CipherSuite::TLS13_AES_128_GCM_SHA256)),
        (&TLS13, Some(CipherSuite::TLS13_AES_256_GCM_SHA384)),
        (&TLS13, Some(CipherSuite::TLS13_CHACHA20_POLY1305_SHA256)),
    ];
    let ends = [(true, true), (true, false), (false, true), (false, false)];
    suites.into_iter().flat_map(move |(version, suite)| {
        ends.into_iter().map(move |ends| Plan {
            version,
            suite,
            server_is_ours: ends.0,
            client_is_ours: ends.1,
        })
    })
}

#[test]
fn bytes_survive_both_ways_in_any_pieces_and_both_versions() {
    for plan in every_plan() {
        for piece in [1, 7, 1000, 65_000] {
            let (mut server, mut client) = plan.established(piece);
            let up: Vec<u8> = (0..50_000_u32).map(|i| i as u8).collect();
            let down: Vec<u8> = (0..60_000_u32).map(|i| (i * 7) as u8).collect();
            let record = sealed(&mut client, &up);
            assert_eq!(feed(&mut server, &record, piece).unwrap(), up);
            let record = sealed(&mut server, &down);
            assert_eq!(feed(&mut client, &record, piece).unwrap(), down);
        }
    }
}

#[test]
fn a_full_large_read_fits_a_large_buffer_once_sealed() {
    let (mut server, _) = OURS.established(65_000);
    let plain = vec![1; crate::io::buffer::LARGE];
    let record = sealed(&mut server, &plain);
    assert_eq!(record.len(), plain.len() + 8 * 22);
}

#[test]
fn close_notify_reaches_the_peer_behind_the_data() {
    let (mut server, mut client) = OURS.established(65_000);
    let mut out = Buffer::take(Size::Small);
    server.seal(b"bye", &mut out).unwrap();
    server.close(&mut out).unwrap();
    assert_eq!(feed(&mut client, out.filled(), 1).unwrap(), b"bye");
    assert!(client.peer_closed());
    // The other direction is still open: a half-close.
    let record = sealed(&mut client, b"not done");
    assert_eq!(feed(&mut server, &record, 1000).unwrap(), b"not done");
}

const AGAINST_RUSTLS: Plan = Plan {
    client_is_ours: false,
    ..OURS
};

/// What is behind the handshake is not rustls', whatever it is.
#[test]
fn what_comes_with_the_last_of_the_handshake_is_opened_by_us() {
    let (mut server, mut client) = AGAINST_RUSTLS.pair();
    begin(&mut client);
    feed(&mut server, &client.take_pending(), 65_000).unwrap();
    feed(&mut client, &server.take_pending(), 65_000).unwrap();
    let mut bytes = client.take_pending();
    update_keys(&mut client);
    bytes.extend(sealed(&mut client, b"in one breath"));
    assert_eq!(feed(&mut server, &bytes, 65_000).unwrap(), b"in one breath");
    assert!(matches!(server.state, State::Records(_)));
    let answer = sealed(&mut server, b"and back");
    assert_eq!(feed(&mut client, &answer, 65_000).unwrap(), b"and back");
}

/// rustls has sealed the tickets with the keys that we would begin with.
#[test]
fn a_server_with_tickets_stays_with_rustls() {
    let (server, client) = OURS.configs();
    let mut server = Arc::unwrap_or_clone(server);
    server.send_tls13_tickets = 2;
    let name = ServerName::try_from("localhost").unwrap();
    let mut server = Session::new(UnbufferedServerConnection::new(Arc::new(server)).unwrap());
    let mut client = Session::new(UnbufferedClientConnection::new(client, name).unwrap());
    handshake(&mut server, &mut client, 65_000);
    assert!(matches!(server.state, State::Rustls(_)));
    let record = sealed(&mut server, b"behind two tickets");
    let opened = feed(&mut client, &record, 100).unwrap();
    assert_eq!(opened, b"behind two tickets");
}

#[test]
fn who_seals_before_the_end_is_told_stays_with_rustls() {
    let (mut server, mut client) = OURS.pair();
    begin(&mut client);
    feed(&mut server, &client.take_pending(), 65_000).unwrap();
    let mut incoming = Buffer::take(Size::Large);
    assert!(incoming.extend(&server.take_pending()));
    let nothing = &mut Buffer::take(Size::Small);
    client.open(&mut incoming, nothing).unwrap();
    let early = sealed(&mut client, b"early");
    assert!(client.finish().is_some());
    assert!(matches!(client.state, State::Rustls(_)));
    assert_eq!(feed(&mut server, &early, 65_000).unwrap(), b"early");
    let record = sealed(&mut client, b"and on");
    assert_eq!(feed(&mut server, &record, 65_000).unwrap(), b"and on");
}

/// Neither in the clear nor under the wrong key does anything pass.
#[test]
fn what_is_no_record_of_ours_behind_the_handshake_is_refused() {
    let behind: [&[u8]; 4] = [
        // A change_cipher_spec is only let through before.
        &[20, 3, 3, 0, 1, 1],
        // close_notify.
        &[21, 3, 3, 0, 2, 1, 0],
        &[
            23, 3, 3, 0, 20, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9,
        ],
        b"select 1 -- not TLS at all",
    ];
    for bytes in behind {
        let (mut server, mut client) = AGAINST_RUSTLS.pair();
        begin(&mut client);
        feed(&mut server, &client.take_pending(), 65_000).unwrap();
        feed(&mut client, &server.take_pending(), 65_000).unwrap();
        let mut flight = client.take_pending();
        flight.extend(bytes);
        assert!(feed(&mut server, &flight, 65_000).is_err(), "{bytes:?}");
        let alert = server.take_pending();
        let told = feed(&mut client, &alert, 65_000).unwrap_err().to_string();
        assert!(told.contains("received fatal alert"), "{bytes:?}: {told}");
    }
}

/// A record that was lost is not made good by looking again.
#[test]
fn a_session_that_has_failed_opens_nothing_more() {
    let (mut server, mut client) = OURS.established(65_000);
    let _lost = sealed(&mut client, b"lost");
    let mut incoming = Buffer::take(Size::Small);
    assert!(incoming.extend(&sealed(&mut client, b"second")));
    for _ in 0..3 {
        let mut plain = Buffer::take(Size::Small);
        assert!(server.open(&mut incoming, &mut plain).is_err());
        assert!(plain.is_empty());
    }
}

#[test]
fn sealing_without_room_ends_the_session() {
    let (mut server, _client) = OURS.established(65_000);
    let mut tiny = Buffer::take(Size::Tiny);
    assert!(server.seal(&[1; 20_000], &mut tiny).is_err());
    assert!(server.close(&mut Buffer::take(Size::Small)).is_err());
}

#[test]
fn tickets_of_a_server_are_no_matter() {
    let plan = Plan {
        server_is_ours: false,
        ..OURS
    };
    let (mut server, mut client) = plan.established(65_000);
    let record = sealed(&mut server, b"behind two tickets");
    assert_eq!(
        feed(&mut client, &record, 100).unwrap(),
        b"behind two tickets"
    );
}

/// Has rustls change its keys, and ask the peer to.
fn update_keys(client: &mut Client) {
    let State::Rustls(connection) = &mut client.state else {
        panic!("not rustls'");
    };
    match connection.endpoint.process(&mut []).state {
        Ok(ConnectionState::WriteTraffic(traffic)) => traffic.refresh_traffic_keys().unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_key_update_is_answered_with_the_next_data() {
    let (mut server, mut client) = AGAINST_RUSTLS.established(65_000);
    for _ in 0..3 {
        update_keys(&mut client);
        let record = sealed(&mut client, b"under the new key");
        assert_eq!(feed(&mut server, &record, 3).unwrap(), b"under the new key");
        let answer = sealed(&mut server, b"and back");
        assert!(answer.len() > b"and back".len() + 22, "carries a KeyUpdate");
        assert_eq!(feed(&mut client, &answer, 5).unwrap(), b"and back");
    }
}

#[test]
fn an_end_that_is_done_is_done_once() {
    let (mut server, _client) = OURS.established(65_000);
    assert!(server.finish().is_none());
    let (mut server, _) = OURS.pair();
    assert!(server.finish().is_none());
}

#[test]
fn a_flipped_bit_ends_the_session_with_an_alert() {
    let (mut server, mut client) = OURS.established(65_000);
    let mut record = sealed(&mut client, b"select 1");
    *record.last_mut().unwrap() ^= 1;
    let error = feed(&mut server, &record, 65_000).unwrap_err();
    assert!(matches!(
        error,
        TlsError::Rustls(rustls::Error::DecryptError)
    ));
    let alert = server.take_pending();
    assert!(matches!(
        feed(&mut client, &alert, 65_000).unwrap_err(),
        TlsError::Rustls(rustls::Error::AlertReceived(
            rustls::AlertDescription::BadRecordMac
        ))
    ));
    assert!(matches!(
        server.seal(b"x", &mut Buffer::take(Size::Small)),
        Err(TlsError::NotOpen)
    ));
}

#[test]
fn sealing_before_the_handshake_is_refused() {
    let (mut server, _) = OURS.pair();
    assert!(matches!(
        server.seal(b"x", &mut Buffer::take(Size::Small)),
        Err(TlsError::NotOpen)
    ));
}

/// For scripts/instructions: each does what its name says 100 times inside
/// `measured`, of which valgrind counts the instructions.
mod instructions {
    use super::*;

    #[inline(never)]
    fn measured(work: impl FnOnce()) {
        work();
    }

    fn established() -> (Server, Client) {
        OURS.established(65_000)
    }

    #[test]
    #[ignore = "for scripts/instructions"]
    fn tls_open_a_query() {
        let (mut server, mut client) = established();
        let queries: Vec<_> = (0..100).map(|_| sealed(&mut client, &[7; 60])).collect();
        measured(|| {
            for query in &queries {
                let mut incoming = Buffer::take(Size::Small);
                let mut plain = Buffer::take(Size::Small);
                assert!(incoming.extend(query));
                server.open(&mut incoming, &mut plain).unwrap();
                assert_eq!(plain.len(), 60);
            }
        });
    }

    #[test]
    #[ignore = "for scripts/instructions"]
    fn tls_seal_an_answer() {
        let (mut server, _client) = established();
        measured(|| {
            for _ in 0..100 {
                let mut out = Buffer::take(Size::Small);
                server.seal(&[7; 90], &mut out).unwrap();
            }
        });
    }

    #[test]
    #[ignore = "for scripts/instructions"]
    fn tls_seal_64_kib() {
        let (mut server, _client) = established();
        let plain = vec![7; 64 * 1024];
        measured(|| {
            for _ in 0..100 {
                let mut out = Buffer::take(Size::Large);
                server.seal(&plain, &mut out).unwrap();
            }
        });
    }
}
