//! What must hold when the record layer opens arbitrary bytes: for the fuzz target
//! `open_records`, and a property test.
//!
//! Half of the inputs are bytes from the network. The other half are sealed, as if by a peer
//! with the keys, since otherwise nothing would get past the authentication.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "for tests and fuzz targets, which fail by panicking"
)]

use rustls::KeyLog;

use super::*;
use crate::io::buffer::Size;
use crate::tls::schedule::{self, SecretCapture};

/// Opens what the bytes stand for. The first byte is the suite, the side, and the half.
///
/// # Panics
/// If the record layer releases data that was not authenticated, or continues after an error,
/// or sends more than one alert.
pub(in crate::tls) fn open(bytes: &[u8]) {
    let (choice, bytes) = bytes.split_first().unwrap_or((&0, &[]));
    let (suite, hash_len) = suite(choice / 4);
    let side = [Side::Client, Side::Server][usize::from(choice / 2 % 2)];
    let records = |side| Records::new(suite, side, secrets(hash_len)).unwrap();
    match choice % 2 {
        0 => open_unauthenticated(records(side), bytes),
        _ => open_sealed(records(side), records(opposite(side)), bytes),
    }
}

fn suite(choice: u8) -> (&'static Suite, usize) {
    let suites = rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES;
    let mut suites = suites.iter().filter_map(|suite| Suite::of(*suite));
    let suite = suites.nth(usize::from(choice % 3)).unwrap();
    (suite, suite.hash_len())
}

fn opposite(side: Side) -> Side {
    match side {
        Side::Client => Side::Server,
        Side::Server => Side::Client,
    }
}

/// The same two secrets for both sides.
fn secrets(length: usize) -> TrafficSecrets {
    let capture = || {
        for (label, byte) in [
            ("CLIENT_TRAFFIC_SECRET_0", 1_u8),
            ("SERVER_TRAFFIC_SECRET_0", 2),
        ] {
            SecretCapture.log(label, &[], &vec![byte; length]);
        }
    };
    schedule::capture(capture).1.unwrap()
}

/// The first byte is the size of the reads. Nothing may be released, whatever arrives.
fn open_unauthenticated(mut records: Records, bytes: &[u8]) {
    let (read, bytes) = bytes.split_first().unwrap_or((&0, &[]));
    let mut incoming = Buffer::take(Size::Large);
    for piece in bytes.chunks(1 + usize::from(*read)) {
        if !incoming.extend(piece) {
            panic!("waits for more than a record");
        }
        let mut plain = Buffer::take(Size::Large);
        let opened = records.open(&mut incoming, &mut plain);
        assert!(plain.is_empty());
        match opened {
            Ok(peer) => assert_eq!(peer, PeerState::Open),
            Err(failure) => return assert!(failure.alert.is_some()),
        }
        assert_eq!(records.opening.sequence, 0);
        incoming = incoming.make_room();
        assert!(incoming.len() < HEADER_LEN + MAX_CIPHERTEXT);
    }
}

/// The bytes are inner plaintexts, with a byte of length before each.
fn open_sealed(mut records: Records, mut peer: Records, mut bytes: &[u8]) {
    while let Some((length, rest)) = bytes.split_first() {
        let (inner, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        bytes = rest;
        // The content type is the last byte that is sealed.
        let Some((last, content)) = inner.split_last() else {
            continue;
        };
        let mut incoming = Buffer::take(Size::Small);
        peer.write(ContentType::from(*last), content, &mut incoming)
            .unwrap();
        let mut plain = Buffer::take(Size::Small);
        let opened = records.open(&mut incoming, &mut plain);
        let data = match inner.iter().rposition(|byte| *byte != 0) {
            Some(end) if inner[end] == 23 => &inner[..end],
            _ => &[],
        };
        match opened {
            Ok(PeerState::Open) => assert_eq!(plain.filled(), data),
            Ok(PeerState::Closed) => return assert!(plain.is_empty()),
            Err(failure) => {
                assert!(plain.is_empty());
                let received = matches!(failure.error, TlsError::Rustls(Error::AlertReceived(_)));
                // An alert is not answered with an alert, and everything else is.
                return assert_eq!(failure.alert.is_none(), received);
            }
        }
        assert!(incoming.is_empty());
        // The sequence number begins again with a new key.
        if records.opening.sequence == 0 {
            peer.sealing.update(peer.suite).unwrap();
        }
        assert_eq!(records.opening.sequence, peer.sealing.sequence);
        assert!(records.allowance <= MAX_NON_DATA * BYTES_PER_NON_DATA);
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn opens_nothing_that_is_not_authenticated(bytes in vec(any::<u8>(), 0..400)) {
            super::open(&bytes);
        }

        /// Short inner plaintexts of the types that exist.
        #[test]
        fn releases_only_data(
            choice in any::<u8>(),
            records in vec((vec(0..3_u8, 0..6), 20..25_u8, 0..3_usize), 0..40),
        ) {
            let mut bytes = vec![choice | 1];
            for (content, kind, padding) in records {
                let inner = [&content[..], &[kind], &vec![0; padding]].concat();
                bytes.push(u8::try_from(inner.len()).unwrap());
                bytes.extend(inner);
            }
            super::open(&bytes);
        }
    }
}
