//! Whole sessions against each other and against rustls, from the handshake to the close.

use std::sync::Arc;

use rustls::CipherSuite;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::version::{TLS12, TLS13};

use super::pair::{BOTH_OWN, Server, Setup, begin, feed, handshake, sealed, update_keys};
use super::*;
use crate::io::buffer::Size;

/// Each version and suite, with either record layer on each side.
fn every_setup() -> impl Iterator<Item = Setup> {
    let suites = [
        (&TLS12, None),
        (&TLS13, Some(CipherSuite::TLS13_AES_128_GCM_SHA256)),
        (&TLS13, Some(CipherSuite::TLS13_AES_256_GCM_SHA384)),
        (&TLS13, Some(CipherSuite::TLS13_CHACHA20_POLY1305_SHA256)),
    ];
    let ends = [(true, true), (true, false), (false, true), (false, false)];
    suites.into_iter().flat_map(move |(version, suite)| {
        ends.into_iter().map(move |ends| Setup {
            version,
            suite,
            server_is_own: ends.0,
            client_is_own: ends.1,
            ..BOTH_OWN
        })
    })
}

#[test]
fn transfers_data_both_ways_in_pieces_of_any_size() {
    for setup in every_setup() {
        for piece in [1, 7, 1000, 65_000] {
            let (mut server, mut client) = setup.established(piece);
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
    let (mut server, _) = BOTH_OWN.established(65_000);
    let plain = vec![1; crate::io::buffer::LARGE];
    let record = sealed(&mut server, &plain);
    assert_eq!(record.len(), plain.len() + 8 * 22);
}

#[test]
fn close_notify_arrives_after_the_data() {
    let (mut server, mut client) = BOTH_OWN.established(65_000);
    let mut out = Buffer::take(Size::Small);
    server.seal(b"bye", &mut out).unwrap();
    server.close(&mut out).unwrap();
    assert_eq!(feed(&mut client, out.filled(), 1).unwrap(), b"bye");
    assert!(client.peer_closed());
    // A half-close: the other direction is still open.
    let record = sealed(&mut client, b"still open");
    assert_eq!(feed(&mut server, &record, 1000).unwrap(), b"still open");
}

const AGAINST_RUSTLS: Setup = Setup {
    client_is_own: false,
    ..BOTH_OWN
};

/// Records that arrive with the last flight of the handshake must not reach rustls.
#[test]
fn own_layer_opens_records_that_arrive_with_the_last_flight() {
    let (mut server, mut client) = AGAINST_RUSTLS.pair();
    begin(&mut client);
    feed(&mut server, &client.take_pending(), 65_000).unwrap();
    feed(&mut client, &server.take_pending(), 65_000).unwrap();
    let mut bytes = client.take_pending();
    update_keys(&mut client);
    bytes.extend(sealed(&mut client, b"right after it"));
    assert_eq!(
        feed(&mut server, &bytes, 65_000).unwrap(),
        b"right after it"
    );
    assert!(matches!(server.state, State::Records(_)));
    let answer = sealed(&mut server, b"answer");
    assert_eq!(feed(&mut client, &answer, 65_000).unwrap(), b"answer");
}

/// rustls has sealed the tickets with the keys that our record layer would start with.
#[test]
fn a_server_that_sends_tickets_stays_with_rustls() {
    let (server, client) = BOTH_OWN.configs();
    let mut server = Arc::unwrap_or_clone(server);
    server.send_tls13_tickets = 2;
    let name = ServerName::try_from("localhost").unwrap();
    let mut server = Session::new(UnbufferedServerConnection::new(Arc::new(server)).unwrap());
    let mut client = Session::new(UnbufferedClientConnection::new(client, name).unwrap());
    handshake(&mut server, &mut client, 65_000);
    assert!(matches!(server.state, State::Rustls(_)));
    let record = sealed(&mut server, b"after two tickets");
    let opened = feed(&mut client, &record, 100).unwrap();
    assert_eq!(opened, b"after two tickets");
}

#[test]
fn a_client_that_seals_before_finish_stays_with_rustls() {
    let (mut server, mut client) = BOTH_OWN.pair();
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
    let record = sealed(&mut client, b"more data");
    assert_eq!(feed(&mut server, &record, 65_000).unwrap(), b"more data");
}

/// Records with the beginning of a handshake message stay in the input, and are counted until it is complete.
#[test]
fn presented_counts_the_records_of_an_incomplete_message() {
    let (mut server, mut client) = BOTH_OWN.pair();
    begin(&mut client);
    let hello = client.take_pending();
    let (header, message) = hello.split_at(5);
    let (first, second) = message.split_at(100);
    let record = |part: &[u8]| {
        let length = u16::try_from(part.len()).unwrap().to_be_bytes();
        [&header[..3], &length, part].concat()
    };
    let (first, second) = (record(first), record(second));
    let mut incoming = Buffer::take(Size::Large);
    let nothing = &mut Buffer::take(Size::Small);
    assert!(incoming.extend(&first));
    server.open(&mut incoming, nothing).unwrap();
    assert_eq!(server.presented(), first.len());
    assert_eq!(incoming.len(), first.len());
    // A part of a record changes nothing.
    assert!(incoming.extend(&second[..7]));
    server.open(&mut incoming, nothing).unwrap();
    assert_eq!(server.presented(), first.len());
    assert!(incoming.extend(&second[7..]));
    server.open(&mut incoming, nothing).unwrap();
    assert_eq!((server.presented(), incoming.len()), (0, 0));
    feed(&mut client, &server.take_pending(), 65_000).unwrap();
    feed(&mut server, &client.take_pending(), 65_000).unwrap();
    assert!(matches!(server.state, State::Records(_)));
}

/// Nothing is accepted in plaintext or under another key.
#[test]
fn refuses_unauthenticated_bytes_after_the_handshake() {
    let cases: [&[u8]; 4] = [
        // change_cipher_spec is only allowed during the handshake (RFC 8446, 5).
        &[20, 3, 3, 0, 1, 1],
        // close_notify in plaintext.
        &[21, 3, 3, 0, 2, 1, 0],
        &[
            23, 3, 3, 0, 20, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9,
        ],
        b"select 1 -- not TLS at all",
    ];
    for bytes in cases {
        let (mut server, mut client) = AGAINST_RUSTLS.pair();
        begin(&mut client);
        feed(&mut server, &client.take_pending(), 65_000).unwrap();
        feed(&mut client, &server.take_pending(), 65_000).unwrap();
        let mut flight = client.take_pending();
        flight.extend(bytes);
        assert!(feed(&mut server, &flight, 65_000).is_err(), "{bytes:?}");
        let alert = server.take_pending();
        let error = feed(&mut client, &alert, 65_000).unwrap_err().to_string();
        assert!(error.contains("received fatal alert"), "{bytes:?}: {error}");
    }
}

#[test]
fn a_failed_session_opens_nothing_more() {
    let (mut server, mut client) = BOTH_OWN.established(65_000);
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
fn sealing_without_room_fails_the_session() {
    let (mut server, _client) = BOTH_OWN.established(65_000);
    let mut tiny = Buffer::take(Size::Tiny);
    assert!(server.seal(&[1; 20_000], &mut tiny).is_err());
    assert!(server.close(&mut Buffer::take(Size::Small)).is_err());
}

#[test]
fn a_client_ignores_tickets() {
    let setup = Setup {
        server_is_own: false,
        ..BOTH_OWN
    };
    let (mut server, mut client) = setup.established(65_000);
    let record = sealed(&mut server, b"after two tickets");
    assert_eq!(
        feed(&mut client, &record, 100).unwrap(),
        b"after two tickets"
    );
}

#[test]
fn answers_a_key_update_request_before_the_next_data() {
    let (mut server, mut client) = AGAINST_RUSTLS.established(65_000);
    for _ in 0..3 {
        update_keys(&mut client);
        let record = sealed(&mut client, b"under the new key");
        assert_eq!(feed(&mut server, &record, 3).unwrap(), b"under the new key");
        let answer = sealed(&mut server, b"answer");
        assert!(answer.len() > b"answer".len() + 22, "contains a KeyUpdate");
        assert_eq!(feed(&mut client, &answer, 5).unwrap(), b"answer");
    }
}

#[test]
fn finish_returns_the_summary_once() {
    let (mut server, _client) = BOTH_OWN.established(65_000);
    assert!(server.finish().is_none());
    let (mut server, _) = BOTH_OWN.pair();
    assert!(server.finish().is_none());
}

#[test]
fn a_flipped_bit_fails_the_session_with_an_alert() {
    let (mut server, mut client) = BOTH_OWN.established(65_000);
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
fn refuses_to_seal_before_the_handshake() {
    let (mut server, _) = BOTH_OWN.pair();
    assert!(matches!(
        server.seal(b"x", &mut Buffer::take(Size::Small)),
        Err(TlsError::NotOpen)
    ));
}

/// For scripts/instructions: each test performs its operation 100 times inside `measured`,
/// where valgrind counts the instructions. The same operations with rustls are for
/// comparison (docs/adr/0013-own-tls-record-layer.md).
mod instructions {
    use super::*;

    #[inline(never)]
    fn measured(work: impl FnOnce()) {
        work();
    }

    const RUSTLS: Setup = Setup {
        server_is_own: false,
        tickets: false,
        ..BOTH_OWN
    };

    fn open(setup: Setup, length: usize, size: Size) {
        let (mut server, mut client) = setup.established(65_000);
        let data = vec![7; length];
        let records: Vec<_> = (0..100).map(|_| sealed(&mut client, &data)).collect();
        measured(|| {
            for record in &records {
                let mut incoming = Buffer::take(size);
                let mut plain = Buffer::take(size);
                assert!(incoming.extend(record));
                server.open(&mut incoming, &mut plain).unwrap();
                assert_eq!(plain.len(), length);
            }
        });
    }

    fn seal(setup: Setup, length: usize, size: Size) {
        let (mut server, _client) = setup.established(65_000);
        let plain = vec![7; length];
        measured(|| {
            for _ in 0..100 {
                let mut out = Buffer::take(size);
                server.seal(&plain, &mut out).unwrap();
            }
        });
    }

    macro_rules! instructions {
        ($($name:ident: $operation:ident($setup:expr, $length:expr, $size:ident);)*) => {$(
            #[test]
            #[ignore = "for scripts/instructions"]
            fn $name() {
                $operation($setup, $length, Size::$size);
            }
        )*};
    }

    instructions! {
        tls_open_a_query: open(BOTH_OWN, 60, Small);
        tls_seal_an_answer: seal(BOTH_OWN, 90, Small);
        tls_open_16_kib: open(BOTH_OWN, 16 * 1024, Large);
        tls_seal_16_kib: seal(BOTH_OWN, 16 * 1024, Large);
        tls_open_64_kib: open(BOTH_OWN, 64 * 1024, Large);
        tls_seal_64_kib: seal(BOTH_OWN, 64 * 1024, Large);
        rustls_open_a_query: open(RUSTLS, 60, Small);
        rustls_seal_an_answer: seal(RUSTLS, 90, Small);
        rustls_open_16_kib: open(RUSTLS, 16 * 1024, Large);
        rustls_seal_16_kib: seal(RUSTLS, 16 * 1024, Large);
        rustls_open_64_kib: open(RUSTLS, 64 * 1024, Large);
        rustls_seal_64_kib: seal(RUSTLS, 64 * 1024, Large);
    }
}

/// The memory of idle sessions of each record layer, for the same decision record.
mod memory {
    use std::fs;
    use std::mem::size_of;

    use super::*;

    const SESSIONS: usize = 4_000;

    /// Resident bytes of this process.
    fn resident() -> usize {
        let statm = fs::read_to_string("/proc/self/statm").unwrap();
        let pages = statm.split(' ').nth(1).unwrap();
        pages.parse::<usize>().unwrap() * 4096
    }

    /// Makes many sessions of a server that have moved data in both directions. Returns them,
    /// so that their memory is not used again, and the bytes that each takes.
    fn idle_sessions(own: bool) -> (Vec<Server>, usize) {
        let setup = Setup {
            server_is_own: own,
            client_is_own: false,
            tickets: false,
            ..BOTH_OWN
        };
        let session = || {
            let (mut server, mut client) = setup.established(65_000);
            let query = sealed(&mut client, &[7; 60]);
            assert_eq!(feed(&mut server, &query, 65_000).unwrap(), [7; 60]);
            sealed(&mut server, &[7; 90]);
            server
        };
        // What the first sessions allocate once.
        let mut sessions: Vec<_> = (0..100).map(|_| session()).collect();
        sessions.reserve(SESSIONS);
        let before = resident();
        sessions.extend((0..SESSIONS).map(|_| session()));
        let bytes = (resident() - before) / SESSIONS;
        (sessions, bytes)
    }

    #[test]
    #[ignore = "takes seconds, and is of this process only if it runs alone"]
    #[allow(clippy::print_stderr, reason = "figures for the decision record")]
    fn idle_sessions_take_less_memory_than_with_rustls() {
        let (_own_sessions, own) = idle_sessions(true);
        let (_rustls_sessions, rustls) = idle_sessions(false);
        // Two boxed secrets of 48 bytes, at least.
        assert!(own > 96, "{own}");
        eprintln!(
            "bytes for each session: {own} own, {rustls} rustls; of which state: {} own, {} rustls",
            size_of::<Server>() + size_of::<Records>(),
            size_of::<Server>() + size_of::<Connection<UnbufferedServerConnection>>(),
        );
        assert!(own * 2 < rustls);
    }
}
