//! The record layer against itself: record format, limits, alerts and key updates.

use rustls::CipherSuite;

use super::*;
use crate::io::buffer::Size;
use crate::tls::schedule::tests::{CLIENT_SECRET, FOUR_RECORDS, secret};

fn suite(of: CipherSuite) -> &'static Suite {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let mut suites = provider.cipher_suites.into_iter();
    Suite::of(suites.find(|suite| suite.suite() == of).unwrap()).unwrap()
}

fn records(side: Side) -> Records {
    let secrets = TrafficSecrets {
        client: secret(CLIENT_SECRET),
        server: secret(&"5a".repeat(32)),
    };
    let suite = suite(CipherSuite::TLS13_AES_128_GCM_SHA256);
    Records::new(suite, side, secrets).unwrap()
}

/// Both sides of one session.
fn pair() -> (Records, Records) {
    (records(Side::Client), records(Side::Server))
}

/// Seals a record of `kind`, valid or not.
fn record(from: &mut Records, kind: ContentType, content: &[u8]) -> Vec<u8> {
    let mut out = Buffer::take(Size::Large);
    from.write(kind, content, &mut out).unwrap();
    out.filled().to_vec()
}

fn opened(by: &mut Records, bytes: &[u8]) -> Result<(Vec<u8>, PeerState), RecordError> {
    let mut incoming = Buffer::take(Size::Large);
    let mut plain = Buffer::take(Size::Large);
    assert!(incoming.extend(bytes));
    let peer = by.open(&mut incoming, &mut plain)?;
    Ok((plain.filled().to_vec(), peer))
}

/// The error with which `by` refuses `bytes`, and its alert.
fn refused(by: &mut Records, bytes: &[u8]) -> (String, Option<AlertDescription>) {
    match opened(by, bytes) {
        Ok(opened) => panic!("accepted: {opened:?}"),
        Err(failure) => (failure.error.to_string(), failure.alert),
    }
}

fn data(from: &mut Records, bytes: &[u8]) -> Vec<u8> {
    let mut out = Buffer::take(Size::Large);
    from.seal(bytes, &mut out).unwrap();
    out.filled().to_vec()
}

const TICKET: &[u8] = &[4, 0, 0, 2, 7, 7];
const UPDATE: &[u8] = &[24, 0, 0, 1, 0];
const UPDATE_REQUESTED: &[u8] = &[24, 0, 0, 1, 1];

/// "Client Application Data" of RFC 8448, 3.
#[test]
fn seals_and_opens_the_first_record_of_rfc_8448() {
    let bytes: Vec<u8> = (0..50).collect();
    let expected = "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b4\
                    6b395bd54a9a20441e2b62974e1f5a6292a2977014bd1e3deae63aeebb21694915e4";
    let sealed = data(&mut records(Side::Client), &bytes);
    assert_eq!(hex::encode(&sealed), expected);
    let (plain, peer) = opened(&mut records(Side::Server), &sealed).unwrap();
    assert_eq!((plain, peer), (bytes, PeerState::Open));
}

#[test]
fn opens_records_that_arrive_in_pieces() {
    let (mut client, mut server) = pair();
    let bytes: Vec<u8> = (0..40_000_u32).map(|i| (i % 251) as u8).collect();
    let sealed = data(&mut client, &bytes);
    assert_eq!(sealed.len(), bytes.len() + 3 * (HEADER_LEN + 1 + TAG_LEN));
    let mut incoming = Buffer::take(Size::Large);
    let mut plain = Buffer::take(Size::Large);
    for piece in sealed.chunks(977) {
        assert!(incoming.extend(piece));
        assert!(server.open(&mut incoming, &mut plain).is_ok());
    }
    assert_eq!(plain.filled(), bytes);
    assert!(incoming.is_empty());
}

/// RFC 8446, 5.4: zeros follow the content type. Here the last zero is sealed in place of the
/// type, and the real type is in the content.
#[test]
fn strips_padding() {
    let (mut client, mut server) = pair();
    let padded = b"padded\x17\0\0\0\0";
    let sealed = record(&mut client, ContentType::Unknown(0), padded);
    assert_eq!(opened(&mut server, &sealed).unwrap().0, b"padded");
    let zeros = record(&mut client, ContentType::Unknown(0), &[0; 9]);
    let (_, alert) = refused(&mut server, &zeros);
    assert_eq!(alert, Some(AlertDescription::UnexpectedMessage));
}

/// RFC 8446, 5.4: a record that was sealed without even a content type.
#[test]
fn refuses_an_authenticated_record_of_nothing_but_a_tag() {
    let (mut client, mut server) = pair();
    let header = [23, 3, 3, 0, 16];
    let nonce = client.sealing.nonce().unwrap();
    let (key, aad) = (&client.sealing.key, Aad::from(header));
    let tag = key.seal_in_place_separate_tag(nonce, aad, &mut []);
    let record = [&header[..], tag.unwrap().as_ref()].concat();
    let (_, alert) = refused(&mut server, &record);
    assert_eq!(alert, Some(AlertDescription::UnexpectedMessage));
}

#[test]
fn accepts_an_empty_data_record() {
    let (mut client, mut server) = pair();
    let mut bytes = record(&mut client, ContentType::ApplicationData, b"");
    bytes.extend(data(&mut client, b"more data"));
    assert_eq!(opened(&mut server, &bytes).unwrap().0, b"more data");
}

#[test]
fn refuses_invalid_headers() {
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
        let (error, sent) = refused(&mut records(Side::Server), bytes);
        assert_eq!(sent, Some(alert), "{bytes:?}: {error}");
    }
    // The largest valid length: the rest is awaited.
    let mut server = records(Side::Server);
    assert!(opened(&mut server, &[23, 9, 9, 0x41, 0]).is_ok());
}

#[test]
fn refuses_more_than_the_maximum_plaintext() {
    let (mut client, mut server) = pair();
    let longest = record(
        &mut client,
        ContentType::ApplicationData,
        &[1; MAX_PLAINTEXT],
    );
    assert_eq!(
        opened(&mut server, &longest).unwrap().0.len(),
        MAX_PLAINTEXT
    );
    let too_long = record(
        &mut client,
        ContentType::ApplicationData,
        &[1; MAX_PLAINTEXT + 1],
    );
    let (_, alert) = refused(&mut server, &too_long);
    assert_eq!(alert, Some(AlertDescription::RecordOverflow));
}

#[test]
fn refuses_every_bit_flip() {
    let sealed = data(&mut records(Side::Client), b"select 1");
    for bit in 0..sealed.len() * 8 {
        let mut changed = sealed.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        match opened(&mut records(Side::Server), &changed) {
            // A larger length: the rest is awaited.
            Ok((plain, PeerState::Open)) => assert!(plain.is_empty() && (24..40).contains(&bit)),
            Ok(other) => panic!("bit {bit}: {other:?}"),
            Err(failure) => assert!(failure.alert.is_some(), "bit {bit}"),
        }
    }
}

#[test]
fn refuses_reordered_and_replayed_records() {
    let (mut client, mut server) = pair();
    let [first, second] = [b"1", b"2"].map(|bytes| data(&mut client, bytes));
    let (_, alert) = refused(&mut server, &second);
    assert_eq!(alert, Some(AlertDescription::BadRecordMac));
    let mut server = records(Side::Server);
    assert!(opened(&mut server, &first).is_ok());
    let (error, _) = refused(&mut server, &first);
    assert_eq!(error, "cannot decrypt peer's message");
}

#[test]
fn updates_the_key_with_its_last_record() {
    let (mut client, mut server) = pair();
    client.suite = &FOUR_RECORDS;
    let mut lengths = Vec::new();
    for i in 0..10_u8 {
        let sealed = data(&mut client, &[i]);
        lengths.push(sealed.len());
        assert_eq!(opened(&mut server, &sealed).unwrap().0, [i]);
        assert!(client.sealing.sequence <= 4);
    }
    let (plain, with_update) = (23, 27 + 23);
    let expected = [plain, plain, plain, with_update, plain, plain, with_update];
    assert_eq!(lengths[..7], expected);
    assert!(!server.key_update_due);
}

#[test]
fn answers_several_key_update_requests_once() {
    let (mut client, mut server) = pair();
    for _ in 0..2 {
        let update = record(&mut client, ContentType::Handshake, UPDATE_REQUESTED);
        client.sealing.update(client.suite).unwrap();
        assert!(opened(&mut server, &update).is_ok());
    }
    let answer = data(&mut server, b"answer");
    assert_eq!(opened(&mut client, &answer).unwrap().0, b"answer");
    assert!(answer.len() > 27 + 6);
    let second = data(&mut server, b"answer");
    assert_eq!(second.len(), HEADER_LEN + 6 + 1 + TAG_LEN);
    assert_eq!(opened(&mut client, &second).unwrap().0, b"answer");
}

/// Sends as many records without data as the limit allows, alternating between `kinds`, then
/// data that allows as many again, twice; then one record without data too many.
fn check_non_data_limit(kinds: &[(ContentType, &[u8])]) {
    let (mut client, mut server) = pair();
    let mut repeated_kinds = kinds.iter().cycle();
    let mut next = |client: &mut Records| {
        let (kind, content) = *repeated_kinds.next().unwrap();
        let bytes = record(client, kind, content);
        if content == UPDATE {
            client.sealing.update(client.suite).unwrap();
        }
        bytes
    };
    for _ in 0..2 {
        for _ in 0..INITIAL_NON_DATA {
            let bytes = next(&mut client);
            assert_eq!(opened(&mut server, &bytes).unwrap().0, b"", "{kinds:?}");
        }
        for _ in 0..2 {
            let bytes = [7; (INITIAL_NON_DATA * BYTES_PER_NON_DATA / 2) as usize];
            let between = data(&mut client, &bytes);
            assert_eq!(opened(&mut server, &between).unwrap().0, bytes);
        }
    }
    for _ in 0..INITIAL_NON_DATA {
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
fn limits_consecutive_records_without_data() {
    let update = (ContentType::Handshake, UPDATE);
    let empty = (ContentType::ApplicationData, &b""[..]);
    let cancelled = (ContentType::Alert, &[1, 90][..]);
    check_non_data_limit(&[update]);
    check_non_data_limit(&[empty]);
    check_non_data_limit(&[cancelled]);
    check_non_data_limit(&[update, empty, cancelled]);
}

/// A KeyUpdate of the client, under its old key.
fn key_update(client: &mut Records) -> Vec<u8> {
    let bytes = record(client, ContentType::Handshake, UPDATE_REQUESTED);
    client.sealing.update(client.suite).unwrap();
    bytes
}

/// A JDK that has reached its key limit sends a KeyUpdate for each record that it receives, until ours
/// arrives: for each that is in flight.
#[test]
fn allows_a_key_update_for_each_record_in_flight() {
    let (mut client, mut server) = pair();
    for flight in [1_000, 500, 1_000] {
        let sealed: Vec<_> = (0..flight).map(|_| data(&mut server, b"row")).collect();
        for row in sealed {
            assert_eq!(opened(&mut client, &row).unwrap().0, b"row");
            let update = key_update(&mut client);
            assert_eq!(opened(&mut server, &update).unwrap().0, b"");
        }
    }
    // Without more data from us there is an end.
    let refusal = (0..=MAX_NON_DATA).find_map(|_| {
        let update = key_update(&mut client);
        opened(&mut server, &update).err()
    });
    assert_eq!(
        refusal.unwrap().alert,
        Some(AlertDescription::UnexpectedMessage)
    );
}

/// A peer cannot buy a KeyUpdate with a byte.
#[test]
fn refuses_key_updates_that_alternate_with_single_bytes() {
    let (mut client, mut server) = pair();
    let mut updates = 0;
    let refusal = loop {
        let bytes = [key_update(&mut client), data(&mut client, b"x")].concat();
        match opened(&mut server, &bytes) {
            Ok(_) => updates += 1,
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(updates, INITIAL_NON_DATA);
    assert_eq!(refusal.alert, Some(AlertDescription::UnexpectedMessage));
}

/// What one call computes is bounded, also for a peer that has saved up its allowance.
#[test]
fn stops_after_a_number_of_key_updates() {
    let (mut client, mut server) = pair();
    server.allow(u32::MAX);
    let mut incoming = Buffer::take(Size::Large);
    let mut plain = Buffer::take(Size::Large);
    for _ in 0..100 {
        assert!(incoming.extend(&key_update(&mut client)));
    }
    assert!(incoming.extend(&data(&mut client, b"the last")));
    let mut calls = 0;
    while !incoming.is_empty() {
        let before = incoming.len();
        server.open(&mut incoming, &mut plain).unwrap();
        let updates = (before - incoming.len()) / 27;
        assert!(updates <= KEY_UPDATES_PER_CALL as usize, "{updates}");
        calls += 1;
        assert_eq!(server.is_interrupted(), calls < 4);
    }
    assert_eq!(plain.filled(), b"the last");
    assert_eq!(
        server.allowance,
        (MAX_NON_DATA - 100) * BYTES_PER_NON_DATA + 8
    );
}

/// A full buffer, once sealed, fits a buffer of the same size, even after a KeyUpdate.
#[test]
fn a_full_buffer_fits_another_with_a_key_update() {
    for size in [Size::Tiny, Size::Small, Size::Large] {
        let (mut client, mut server) = pair();
        server.key_update_due = true;
        let mut sealed = Buffer::take(size);
        let bytes = vec![7; size.bytes()];
        server.seal(&bytes, &mut sealed).unwrap();
        let (plain, _) = opened(&mut client, sealed.filled()).unwrap();
        assert!(plain == bytes, "{size:?}");
    }
}

/// Plaintext with its padding fits a buffer of the size that the records were read into.
#[test]
fn padded_records_fit_a_buffer_of_the_same_size() {
    let (mut client, mut server) = pair();
    let mut bytes = data(&mut client, &vec![1; MAX_PLAINTEXT]);
    while bytes.len() + HEADER_LEN + MAX_PLAINTEXT + 1 + TAG_LEN <= Size::Large.bytes() {
        let mut padded = vec![0; MAX_PLAINTEXT];
        padded[..2].copy_from_slice(&[9, ContentType::ApplicationData.into()]);
        bytes.extend(record(&mut client, ContentType::Unknown(0), &padded));
    }
    let (plain, _) = opened(&mut server, &bytes).unwrap();
    assert_eq!(plain.len(), MAX_PLAINTEXT + bytes.len() / MAX_PLAINTEXT - 1);
}

#[test]
fn updates_the_key_in_the_middle_of_a_write() {
    let (mut client, mut server) = pair();
    server.suite = &FOUR_RECORDS;
    server.key_update_due = true;
    let bytes: Vec<u8> = (0..100_000_u32).map(|i| (i % 251) as u8).collect();
    let sealed = data(&mut server, &bytes);
    // The requested one, and one after every three records.
    let (pieces, updates) = (7, 3);
    let length = bytes.len()
        + pieces * (HEADER_LEN + 1 + TAG_LEN)
        + updates * (HEADER_LEN + 5 + 1 + TAG_LEN);
    assert_eq!(sealed.len(), length);
    assert!(opened(&mut client, &sealed).unwrap().0 == bytes);
}

#[test]
fn only_clients_accept_tickets_and_ignore_them() {
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
fn refuses_invalid_handshake_messages() {
    use AlertDescription as Alert;
    let wrong: [(&[u8], Alert); 9] = [
        (b"", Alert::UnexpectedMessage),
        // Fragmented.
        (&[24, 0, 0], Alert::UnexpectedMessage),
        (&[24, 0, 0, 1], Alert::UnexpectedMessage),
        (&[4, 0xff, 0xff, 0xff, 0], Alert::UnexpectedMessage),
        // Not the last of its record.
        (&[24, 0, 0, 1, 0, 4, 0, 0, 0], Alert::UnexpectedMessage),
        (&[24, 0, 0, 1, 2], Alert::IllegalParameter),
        (&[24, 0, 0, 2, 0, 0], Alert::DecodeError),
        (&[24, 0, 0, 0], Alert::DecodeError),
        // CertificateRequest, without the post_handshake_auth extension.
        (&[13, 0, 0, 0], Alert::UnexpectedMessage),
    ];
    for (content, alert) in wrong {
        let (mut client, mut server) = pair();
        let sealed = record(&mut server, ContentType::Handshake, content);
        let (error, sent) = refused(&mut client, &sealed);
        assert_eq!(sent, Some(alert), "{content:?}: {error}");
    }
}

#[test]
fn refuses_other_content_types() {
    for kind in [ContentType::ChangeCipherSpec, ContentType::Heartbeat] {
        let (mut client, mut server) = pair();
        let sealed = record(&mut client, kind, &[1]);
        let (_, alert) = refused(&mut server, &sealed);
        assert_eq!(alert, Some(AlertDescription::UnexpectedMessage));
    }
}

#[test]
fn every_alert_but_two_is_an_error() {
    let alert = |content: &[u8]| {
        let (mut client, mut server) = pair();
        let sealed = record(&mut client, ContentType::Alert, content);
        opened(&mut server, &sealed).map_err(|failure| (failure.error.to_string(), failure.alert))
    };
    assert_eq!(alert(&[1, 0]), Ok((Vec::new(), PeerState::Closed)));
    assert_eq!(alert(&[2, 0]), Ok((Vec::new(), PeerState::Closed)));
    assert_eq!(alert(&[1, 90]), Ok((Vec::new(), PeerState::Open)));
    // An alert is not answered with an alert.
    let (error, sent) = alert(&[2, 48]).unwrap_err();
    assert_eq!(error, "received fatal alert: UnknownCA");
    assert_eq!(sent, None);
    // With the level of a warning, and an unknown description.
    assert!(alert(&[1, 48]).is_err());
    assert!(alert(&[2, 201]).is_err());
    for broken in [&[1][..], &[1, 0, 0]] {
        let (_, sent) = alert(broken).unwrap_err();
        assert_eq!(sent, Some(AlertDescription::DecodeError));
    }
    let (_, sent) = alert(b"").unwrap_err();
    assert_eq!(sent, Some(AlertDescription::UnexpectedMessage));
}

#[test]
fn ignores_bytes_after_close_notify() {
    let (mut client, mut server) = pair();
    let mut bytes = data(&mut client, b"bye");
    let mut out = Buffer::take(Size::Small);
    client.close(&mut out).unwrap();
    bytes.extend_from_slice(out.filled());
    bytes.extend_from_slice(b"not a record");
    let (plain, peer) = opened(&mut server, &bytes).unwrap();
    assert_eq!((&plain[..], peer), (&b"bye"[..], PeerState::Closed));
}

#[test]
fn writes_nothing_without_room() {
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

/// RFC 8446, 5.3: the sequence number is XORed into the rightmost bytes of the IV.
#[test]
fn the_nonce_is_the_iv_xored_with_the_sequence_number() {
    let mut client = records(Side::Client);
    let iv = client.sealing.iv;
    client.sealing.sequence = 0x0102_0304_0506_0708;
    let nonce = client.sealing.nonce().unwrap();
    let mut expected = iv;
    for (byte, number) in expected[4..].iter_mut().zip(1..) {
        *byte ^= number;
    }
    assert_eq!(nonce.as_ref(), &expected);
    client.sealing.sequence = u64::MAX;
    assert!(client.sealing.nonce().is_err(), "it must not wrap");
}
