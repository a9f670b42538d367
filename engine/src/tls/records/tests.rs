use super::super::schedule::tests::{CLIENT_SECRET, FOUR_RECORDS, secret};
use super::*;
use crate::io::buffer::Size;
use rustls::CipherSuite;

fn suite(of: CipherSuite) -> &'static Suite {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let mut suites = provider.cipher_suites.into_iter();
    Suite::of(suites.find(|suite| suite.suite() == of).unwrap()).unwrap()
}

fn records(side: Side) -> Records {
    let secrets = Secrets {
        client: secret(CLIENT_SECRET),
        server: secret(&"5a".repeat(32)),
    };
    let suite = suite(CipherSuite::TLS13_AES_128_GCM_SHA256);
    Records::new(suite, side, secrets).unwrap()
}

/// The two ends of a session.
fn pair() -> (Records, Records) {
    (records(Side::Client), records(Side::Server))
}

/// A record of `kind`, however wrong it is.
fn record(from: &mut Records, kind: ContentType, content: &[u8]) -> Vec<u8> {
    let mut out = Buffer::take(Size::Large);
    from.write(kind, content, &mut out).unwrap();
    out.filled().to_vec()
}

fn opened(by: &mut Records, bytes: &[u8]) -> Result<(Vec<u8>, Peer), Refusal> {
    let mut incoming = Buffer::take(Size::Large);
    let mut plain = Buffer::take(Size::Large);
    assert!(incoming.extend(bytes));
    let peer = by.open(&mut incoming, &mut plain)?;
    Ok((plain.filled().to_vec(), peer))
}

/// What `by` says to it, and the alert that it would send.
fn refused(by: &mut Records, bytes: &[u8]) -> (String, Option<AlertDescription>) {
    match opened(by, bytes) {
        Ok(opened) => panic!("taken: {opened:?}"),
        Err(refusal) => (refusal.error.to_string(), refusal.alert),
    }
}

fn data(from: &mut Records, bytes: &[u8]) -> Vec<u8> {
    let mut out = Buffer::take(Size::Large);
    from.seal(bytes, &mut out).unwrap();
    out.filled().to_vec()
}

const TICKET: &[u8] = &[4, 0, 0, 2, 7, 7];
const UPDATE: &[u8] = &[24, 0, 0, 1, 0];
const UPDATE_BOTH: &[u8] = &[24, 0, 0, 1, 1];

/// "Client Application Data" of RFC 8448, 3.
#[test]
fn the_first_record_is_that_of_rfc_8448() {
    let bytes: Vec<u8> = (0..50).collect();
    let expected = "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b4\
                    6b395bd54a9a20441e2b62974e1f5a6292a2977014bd1e3deae63aeebb21694915e4";
    let sealed = data(&mut records(Side::Client), &bytes);
    assert_eq!(hex::encode(&sealed), expected);
    let (plain, peer) = opened(&mut records(Side::Server), &sealed).unwrap();
    assert_eq!((plain, peer), (bytes, Peer::Open));
}

#[test]
fn records_in_any_pieces() {
    let (mut client, mut server) = pair();
    let bytes: Vec<u8> = (0..40_000_u32).map(|i| (i % 251) as u8).collect();
    let sealed = data(&mut client, &bytes);
    assert_eq!(sealed.len(), bytes.len() + 3 * (HEADER + 1 + TAG));
    let mut incoming = Buffer::take(Size::Large);
    let mut plain = Buffer::take(Size::Large);
    for piece in sealed.chunks(977) {
        assert!(incoming.extend(piece));
        assert!(server.open(&mut incoming, &mut plain).is_ok());
    }
    assert_eq!(plain.filled(), bytes);
    assert!(incoming.is_empty());
}

/// RFC 8446, 5.4: zeros follow the type. Here the last of them is what is sealed as
/// the type, and the real type is the last byte of the content.
#[test]
fn padding_is_taken_off() {
    let (mut client, mut server) = pair();
    let padded = b"padded\x17\0\0\0\0";
    let sealed = record(&mut client, ContentType::Unknown(0), padded);
    assert_eq!(opened(&mut server, &sealed).unwrap().0, b"padded");
    let zeros = record(&mut client, ContentType::Unknown(0), &[0; 9]);
    let (_, alert) = refused(&mut server, &zeros);
    assert_eq!(alert, Some(AlertDescription::UnexpectedMessage));
}

#[test]
fn an_empty_record_brings_nothing() {
    let (mut client, mut server) = pair();
    let mut bytes = record(&mut client, ContentType::ApplicationData, b"");
    bytes.extend(data(&mut client, b"and on"));
    assert_eq!(opened(&mut server, &bytes).unwrap().0, b"and on");
}

#[test]
fn what_is_no_record_is_refused_by_its_header() {
    let kinds = [
        (&[22, 3, 3, 0, 5][..], AlertDescription::UnexpectedMessage),
        (&[20, 3, 3, 0, 1, 1], AlertDescription::UnexpectedMessage),
        (b"GET / HTTP/1.1", AlertDescription::UnexpectedMessage),
        (&[23, 3, 3, 0x41, 1], AlertDescription::RecordOverflow),
        (&[23, 3, 3, 0, 0], AlertDescription::BadRecordMac),
        (
            &[
                23, 3, 3, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ],
            AlertDescription::BadRecordMac,
        ),
    ];
    for (bytes, alert) in kinds {
        let (said, told) = refused(&mut records(Side::Server), bytes);
        assert_eq!(told, Some(alert), "{bytes:?}: {said}");
    }
    // The largest that there may be is waited for.
    let mut server = records(Side::Server);
    assert!(opened(&mut server, &[23, 9, 9, 0x41, 0]).is_ok());
}

#[test]
fn too_much_data_in_a_record_is_refused() {
    let (mut client, mut server) = pair();
    let most = record(&mut client, ContentType::ApplicationData, &[1; MOST_DATA]);
    assert_eq!(opened(&mut server, &most).unwrap().0.len(), MOST_DATA);
    let more = record(
        &mut client,
        ContentType::ApplicationData,
        &[1; MOST_DATA + 1],
    );
    let (_, alert) = refused(&mut server, &more);
    assert_eq!(alert, Some(AlertDescription::RecordOverflow));
}

#[test]
fn any_other_bit_is_refused() {
    let sealed = data(&mut records(Side::Client), b"select 1");
    for bit in 0..sealed.len() * 8 {
        let mut changed = sealed.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        match opened(&mut records(Side::Server), &changed) {
            // A length beyond what is there: it is waited for.
            Ok((plain, Peer::Open)) => assert!(plain.is_empty() && (24..40).contains(&bit)),
            Ok(other) => panic!("bit {bit}: {other:?}"),
            Err(refusal) => assert!(refusal.alert.is_some(), "bit {bit}"),
        }
    }
}

#[test]
fn a_record_opens_once_and_in_its_turn() {
    let (mut client, mut server) = pair();
    let [first, second] = [b"1", b"2"].map(|bytes| data(&mut client, bytes));
    let (_, alert) = refused(&mut server, &second);
    assert_eq!(alert, Some(AlertDescription::BadRecordMac));
    let mut server = records(Side::Server);
    assert!(opened(&mut server, &first).is_ok());
    let (said, _) = refused(&mut server, &first);
    assert_eq!(said, "cannot decrypt peer's message");
}

#[test]
fn the_key_changes_with_its_last_record() {
    let (mut client, mut server) = pair();
    client.suite = &FOUR_RECORDS;
    let mut lengths = Vec::new();
    for i in 0..10_u8 {
        let sealed = data(&mut client, &[i]);
        lengths.push(sealed.len());
        assert_eq!(opened(&mut server, &sealed).unwrap().0, [i]);
        assert!(client.sealing.sequence <= 4);
    }
    let (plain, update) = (23, 27 + 23);
    let wanted = [plain, plain, plain, update, plain, plain, update];
    assert_eq!(lengths[..7], wanted);
    assert!(!server.owes_key_update);
}

#[test]
fn a_key_update_that_asks_is_answered_once() {
    let (mut client, mut server) = pair();
    for _ in 0..2 {
        let update = record(&mut client, ContentType::Handshake, UPDATE_BOTH);
        client.sealing.update(client.suite).unwrap();
        assert!(opened(&mut server, &update).is_ok());
    }
    let answer = data(&mut server, b"and back");
    assert_eq!(opened(&mut client, &answer).unwrap().0, b"and back");
    assert!(answer.len() > 27 + 8);
    let second = data(&mut server, b"and back");
    assert_eq!(second.len(), HEADER + 8 + 1 + TAG);
    assert_eq!(opened(&mut client, &second).unwrap().0, b"and back");
}

/// Records that bring no data, by turns of `kinds`, and data after as many as may be.
fn barren(kinds: &[(ContentType, &[u8])]) {
    let (mut client, mut server) = pair();
    let mut turns = kinds.iter().cycle();
    let mut next = |client: &mut Records| {
        let (kind, content) = *turns.next().unwrap();
        let bytes = record(client, kind, content);
        if content == UPDATE {
            client.sealing.update(client.suite).unwrap();
        }
        bytes
    };
    for _ in 0..2 {
        for _ in 0..MOST_BARREN {
            let bytes = next(&mut client);
            assert_eq!(opened(&mut server, &bytes).unwrap().0, b"", "{kinds:?}");
        }
        let between = data(&mut client, b"data");
        assert_eq!(opened(&mut server, &between).unwrap().0, b"data");
    }
    for _ in 0..MOST_BARREN {
        let bytes = next(&mut client);
        assert!(opened(&mut server, &bytes).is_ok());
    }
    let (_, alert) = refused(&mut server, &next(&mut client));
    assert_eq!(
        alert,
        Some(AlertDescription::UnexpectedMessage),
        "{kinds:?}"
    );
}

#[test]
fn records_without_data_in_a_row_have_a_cap() {
    let update = (ContentType::Handshake, UPDATE);
    let empty = (ContentType::ApplicationData, &b""[..]);
    let cancelled = (ContentType::Alert, &[1, 90][..]);
    barren(&[update]);
    barren(&[empty]);
    barren(&[cancelled]);
    barren(&[update, empty, cancelled]);
}

/// What a read brought always fits a buffer of its size once it is sealed, with
/// whatever goes before it.
#[test]
fn a_full_buffer_fits_another_with_a_key_update() {
    for size in [Size::Tiny, Size::Small, Size::Large] {
        let (mut client, mut server) = pair();
        server.owes_key_update = true;
        let mut sealed = Buffer::take(size);
        let bytes = vec![7; size.bytes()];
        server.seal(&bytes, &mut sealed).unwrap();
        let (plain, _) = opened(&mut client, sealed.filled()).unwrap();
        assert!(plain == bytes, "{size:?}");
    }
}

/// The other way: what was sealed fits, padding and all, a buffer like its own.
#[test]
fn a_padded_record_fits_beside_data() {
    let (mut client, mut server) = pair();
    let mut bytes = data(&mut client, &vec![1; MOST_DATA]);
    while bytes.len() + HEADER + MOST_DATA + 1 + TAG <= Size::Large.bytes() {
        let mut padded = vec![0; MOST_DATA];
        padded[..2].copy_from_slice(&[9, ContentType::ApplicationData.into()]);
        bytes.extend(record(&mut client, ContentType::Unknown(0), &padded));
    }
    let (plain, _) = opened(&mut server, &bytes).unwrap();
    assert_eq!(plain.len(), MOST_DATA + bytes.len() / MOST_DATA - 1);
}

#[test]
fn the_key_changes_in_the_middle_of_a_stream() {
    let (mut client, mut server) = pair();
    server.suite = &FOUR_RECORDS;
    server.owes_key_update = true;
    let bytes: Vec<u8> = (0..100_000_u32).map(|i| (i % 251) as u8).collect();
    let sealed = data(&mut server, &bytes);
    // The one that is owed, and one behind each three records.
    let (pieces, updates) = (7, 3);
    let length = bytes.len() + pieces * (HEADER + 1 + TAG) + updates * (HEADER + 5 + 1 + TAG);
    assert_eq!(sealed.len(), length);
    assert!(opened(&mut client, &sealed).unwrap().0 == bytes);
}

#[test]
fn tickets_are_for_clients_and_thrown_away() {
    let (mut client, mut server) = pair();
    let two = [TICKET, TICKET].concat();
    let tickets = record(&mut server, ContentType::Handshake, &two);
    assert_eq!(opened(&mut client, &tickets).unwrap().0, b"");
    let and_update = [TICKET, UPDATE].concat();
    let tickets = record(&mut server, ContentType::Handshake, &and_update);
    server.sealing.update(server.suite).unwrap();
    assert!(opened(&mut client, &tickets).is_ok());
    let bytes = data(&mut server, b"under the new key");
    assert_eq!(opened(&mut client, &bytes).unwrap().0, b"under the new key");
    let ticket = record(&mut client, ContentType::Handshake, TICKET);
    let (_, alert) = refused(&mut server, &ticket);
    assert_eq!(alert, Some(AlertDescription::UnexpectedMessage));
}

#[test]
fn handshake_messages_that_are_none() {
    use AlertDescription as Alert;
    let wrong: [(&[u8], Alert); 9] = [
        (b"", Alert::UnexpectedMessage),
        // In pieces.
        (&[24, 0, 0], Alert::UnexpectedMessage),
        (&[24, 0, 0, 1], Alert::UnexpectedMessage),
        (&[4, 0xff, 0xff, 0xff, 0], Alert::UnexpectedMessage),
        // Not the last of its record.
        (&[24, 0, 0, 1, 0, 4, 0, 0, 0], Alert::UnexpectedMessage),
        (&[24, 0, 0, 1, 2], Alert::IllegalParameter),
        (&[24, 0, 0, 2, 0, 0], Alert::DecodeError),
        (&[24, 0, 0, 0], Alert::DecodeError),
        // CertificateRequest: nobody has offered to answer it.
        (&[13, 0, 0, 0], Alert::UnexpectedMessage),
    ];
    for (content, alert) in wrong {
        let (mut client, mut server) = pair();
        let sealed = record(&mut server, ContentType::Handshake, content);
        let (said, told) = refused(&mut client, &sealed);
        assert_eq!(told, Some(alert), "{content:?}: {said}");
    }
}

#[test]
fn contents_that_are_none_are_refused() {
    for kind in [ContentType::ChangeCipherSpec, ContentType::Heartbeat] {
        let (mut client, mut server) = pair();
        let sealed = record(&mut client, kind, &[1]);
        let (_, alert) = refused(&mut server, &sealed);
        assert_eq!(alert, Some(AlertDescription::UnexpectedMessage));
    }
}

#[test]
fn alerts_end_the_session_but_for_two() {
    let alert = |content: &[u8]| {
        let (mut client, mut server) = pair();
        let sealed = record(&mut client, ContentType::Alert, content);
        opened(&mut server, &sealed).map_err(|refusal| (refusal.error.to_string(), refusal.alert))
    };
    assert_eq!(alert(&[1, 0]), Ok((Vec::new(), Peer::Closed)));
    assert_eq!(alert(&[2, 0]), Ok((Vec::new(), Peer::Closed)));
    assert_eq!(alert(&[1, 90]), Ok((Vec::new(), Peer::Open)));
    // It knows what it has sent.
    let (said, told) = alert(&[2, 48]).unwrap_err();
    assert_eq!(said, "received fatal alert: UnknownCA");
    assert_eq!(told, None);
    // As a warning, and one that nobody knows.
    assert!(alert(&[1, 48]).is_err());
    assert!(alert(&[2, 201]).is_err());
    for broken in [&[1][..], &[1, 0, 0]] {
        let (_, told) = alert(broken).unwrap_err();
        assert_eq!(told, Some(AlertDescription::DecodeError));
    }
    let (_, told) = alert(b"").unwrap_err();
    assert_eq!(told, Some(AlertDescription::UnexpectedMessage));
}

#[test]
fn nothing_is_read_behind_a_close() {
    let (mut client, mut server) = pair();
    let mut bytes = data(&mut client, b"bye");
    let mut out = Buffer::take(Size::Small);
    client.close(&mut out).unwrap();
    bytes.extend_from_slice(out.filled());
    bytes.extend_from_slice(b"whatever this is");
    let (plain, peer) = opened(&mut server, &bytes).unwrap();
    assert_eq!((&plain[..], peer), (&b"bye"[..], Peer::Closed));
}

#[test]
fn without_room_nothing_is_written() {
    let (mut client, mut server) = pair();
    let sealed = data(&mut client, &[1; 4000]);
    let mut incoming = Buffer::take(Size::Large);
    assert!(incoming.extend(&sealed));
    let mut tiny = Buffer::take(Size::Tiny);
    assert!(server.open(&mut incoming, &mut tiny).is_err());
    assert!(tiny.is_empty());
    let sealed = client.seal(&[1; 4000], &mut tiny);
    assert!(matches!(sealed, Err(TlsError::NoRoom)));
    assert!(tiny.is_empty());
}

/// Keys and nonces are told apart by the first byte that they seal differently.
#[test]
fn numbers_enter_the_nonce_from_the_right() {
    let mut client = records(Side::Client);
    let iv = client.sealing.iv;
    client.sealing.sequence = 0x0102_0304_0506_0708;
    let nonce = client.sealing.nonce().unwrap();
    let mut wanted = iv;
    for (byte, number) in wanted[4..].iter_mut().zip(1..) {
        *byte ^= number;
    }
    assert_eq!(nonce.as_ref(), &wanted);
    client.sealing.sequence = u64::MAX;
    assert!(client.sealing.nonce().is_err(), "it may not wrap");
}
