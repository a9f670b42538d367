//! Property tests: invariants for any bytes and any split of them.

use proptest::collection::vec;
use proptest::prelude::*;
use wire::error::{BackendError, ErrorResponse, SqlState};
use wire::message::{Frame, FrameError, HEADER_LEN};
use wire::opening::OpeningPolicy;
use wire::scram::Keys;
use wire::secret::{ClusterSecret, Password};
use wire::startup::ProtocolVersion;
use wire::version_probe::{ProbeStep, parse_probe_response};

use crate::harness::{
    LoginOutcome, check_added, check_forwarded, check_login, check_methods, check_opening,
    check_password, check_scram, check_startup, startup, startup_packet,
};
use crate::packets::{
    CLIENT_HELLO, GSSENC_REQUEST, IPV4, PROXY_V1, SSL_REQUEST, ScramServer, authentication, cancel,
    claimed, error, message, packet, proxy_v2,
};

/// Input that gets further than random bytes: protocol messages in any order, some of them
/// corrupted.
fn pieces(pieces: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let piece = proptest::sample::select(pieces);
    let corrupted = (piece, any::<prop::sample::Index>(), any::<u8>(), 0..10_u8).prop_map(
        |(mut piece, position, byte, chance)| {
            if chance == 0 && !piece.is_empty() {
                let position = position.index(piece.len());
                piece[position] = byte;
            }
            piece
        },
    );
    vec(corrupted, 0..8).prop_map(|pieces| pieces.concat())
}

fn opening_pieces() -> Vec<Vec<u8>> {
    vec![
        SSL_REQUEST.to_vec(),
        GSSENC_REQUEST.to_vec(),
        CLIENT_HELLO.to_vec(),
        PROXY_V1.to_vec(),
        proxy_v2(0x21, 0x11, IPV4),
        proxy_v2(0x20, 0, b""),
        cancel(&[1; 4]),
        packet(0x0003_0000, b"user\0me\0\0"),
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"\r\n".to_vec(),
    ]
}

fn frontend_pieces() -> Vec<Vec<u8>> {
    vec![
        packet(0x0003_0000, b"user\0me\0database\0d\0\0"),
        packet(0x0003_270f, b"_pq_.x\0y\0user\0me\0_pq_.z\0\0\0"),
        cancel(&[1; 32]),
        message(b'p', b"secret\0"),
        b"\0\0\0\x20\0\x03\0\0".to_vec(),
        b"user\0me\0".to_vec(),
        b"\0".to_vec(),
    ]
}

fn scram_pieces() -> Vec<Vec<u8>> {
    let initial = |mechanism: &[u8], data: &[u8]| {
        let length = u32::try_from(data.len()).unwrap().to_be_bytes();
        message(b'p', &[mechanism, b"\0", &length, data].concat())
    };
    let last = b"c=biws,r=aZWlnaHRlZW4gYnl0ZSBub25j,p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    vec![
        initial(b"SCRAM-SHA-256", b"n,,n=,r=a"),
        initial(b"SCRAM-SHA-256", b"y,,n=me,r=a,x=1"),
        initial(b"SCRAM-SHA-256-PLUS", b"p=tls-server-end-point,,n=,r=a"),
        message(b'p', last),
        message(b'p', b"secret\0"),
        claimed(b'p', 500, b"SCRAM-SHA-256\0"),
    ]
}

fn backend_pieces() -> Vec<Vec<u8>> {
    let server = ScramServer::new(b"salt", 2);
    vec![
        authentication(0, b""),
        authentication(3, b""),
        authentication(5, b"salt"),
        authentication(10, b"SCRAM-SHA-256\0\0"),
        authentication(11, server.first.as_bytes()),
        authentication(12, server.last.as_bytes()),
        server.conversation(),
        error("28P01", "no"),
        message(b'N', b"SNOTICE\0\0"),
        message(b'v', b"\0\x03\0\0\0\0\0\0"),
        message(b'S', b"server_version\x0018.4\0"),
        message(b'K', &[0; 8]),
        message(b'Z', b"I"),
        claimed(b'S', 1_000, b""),
    ]
}

proptest! {
    #[test]
    fn opening_invariants_hold_for_any_bytes(
        bytes in prop_oneof![vec(any::<u8>(), 0..64), pieces(opening_pieces())],
        plaintext_cancel: bool,
        proxy_protocol: bool,
    ) {
        check_opening(OpeningPolicy { plaintext_cancel, proxy_protocol }, &bytes);
    }

    #[test]
    fn startup_invariants_hold_for_any_bytes(
        bytes in prop_oneof![vec(any::<u8>(), 0..64), pieces(frontend_pieces())],
    ) {
        if let Some((startup, consumed)) = check_startup(&bytes) {
            check_forwarded(&startup);
        check_added(&startup);
            check_password(&startup, &bytes[consumed..]);
        }
    }

    #[test]
    fn password_invariants_hold_for_any_bytes(mut bytes in vec(any::<u8>(), 0..64), likely: bool) {
        if likely && bytes.len() > 5 {
            let length = u8::try_from(bytes.len() - 1).unwrap();
            bytes[..5].copy_from_slice(&[b'p', 0, 0, 0, length]);
        }
        check_password(&startup("me"), &bytes);
    }

    #[test]
    fn scram_invariants_hold_for_any_bytes(
        bytes in prop_oneof![vec(any::<u8>(), 0..64), pieces(scram_pieces())],
        binding: bool,
    ) {
        check_scram(binding, &bytes);
    }

    #[test]
    fn login_invariants_hold_for_any_bytes(
        bytes in prop_oneof![vec(any::<u8>(), 0..64), pieces(backend_pieces())],
        chunk in 1..64_usize,
    ) {
        let outcome = check_login("me", &bytes, chunk);
        check_methods("me", &bytes, &outcome);
    }

    #[test]
    fn probe_invariants_hold_for_any_bytes(
        bytes in prop_oneof![vec(any::<u8>(), 0..64), pieces(backend_pieces())],
    ) {
        let whole = parse_probe_response(&bytes);
        for split in 0..bytes.len() {
            let part = parse_probe_response(&bytes[..split]);
            prop_assert!(part == ProbeStep::Read || part == whole);
        }
    }

    #[test]
    fn startup_message_round_trip(
        minor: u16,
        role in "[^\0]{1,40}",
        others in vec(("[^\0]{1,20}", "[^\0]{0,20}"), 0..10),
    ) {
        let version = ProtocolVersion { major: 3, minor };
        let mut parameters = vec![("user", role.as_str())];
        let others = others.iter().filter(|(name, _)| name != "user");
        parameters.extend(others.map(|(name, value)| (name.as_str(), value.as_str())));
        let packet = startup_packet(version, &parameters);

        let (startup, consumed) = check_startup(&packet).unwrap();
        prop_assert_eq!(consumed, packet.len());
        prop_assert_eq!((startup.version(), startup.role()), (version, role.as_str()));
        let expected = parameters.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        prop_assert!(startup.parameters().eq(expected));
        check_forwarded(&startup);
        check_added(&startup);
    }

    #[test]
    fn error_response_round_trip(
        text in "[^\0\\p{Cc}]{0,100}",
        code in "[0-9A-Z]{5}",
    ) {
        let sqlstate = SqlState::new(code.as_bytes()).unwrap();
        let mut bytes = Vec::new();
        ErrorResponse::fatal(sqlstate, &text).encode(&mut bytes);
        let refused = BackendError::Refused { sqlstate, message: text };
        prop_assert_eq!(check_login("me", &bytes, 9), LoginOutcome::Refused(refused));
    }

    #[test]
    fn frame_round_trip(
        tag: u8,
        body in vec(any::<u8>(), 0..100),
        more in vec(any::<u8>(), 0..9),
    ) {
        let bytes = [message(tag, &body), more].concat();
        let frame = Frame::read(&bytes, body.len() + 4).unwrap().unwrap();
        prop_assert_eq!((frame.tag(), frame.body()), (tag, &body[..]));
        prop_assert_eq!(frame.wire_len(), HEADER_LEN + body.len());
        let length = u32::try_from(body.len() + 4).unwrap();
        let too_long = Err(FrameError::TooLong { tag, length });
        prop_assert_eq!(Frame::read(&bytes, body.len() + 3), too_long);
    }

    #[test]
    fn frame_length_is_capped(tag: u8, length: u32, cap in 4..40_000_usize) {
        let bytes = claimed(tag, length, b"");
        match Frame::read(&bytes, cap) {
            Ok(None) => prop_assert!(length > 4 && length as usize <= cap),
            Ok(Some(frame)) => prop_assert!(length == 4 && frame.body().is_empty()),
            Err(FrameError::TooShort { .. }) => prop_assert!(length < 4),
            Err(FrameError::TooLong { .. }) => prop_assert!(length as usize > cap),
        }
    }

    #[test]
    fn a_secret_matches_only_itself(
        secret: [u8; 32],
        other: [u8; 32],
        text in vec(any::<u8>(), 0..70),
    ) {
        let hex = |bytes: [u8; 32]| bytes.map(|byte| format!("{byte:02x}")).concat();
        let parsed: ClusterSecret = hex(secret).parse().unwrap();
        prop_assert!(bool::from(parsed.matches(hex(secret).as_bytes())));
        prop_assert_eq!(bool::from(parsed.matches(hex(other).as_bytes())), secret == other);
        prop_assert!(!bool::from(parsed.matches(&text)));
    }

    #[test]
    fn keys_derive_from_any_password_and_salt(
        password in vec(any::<u8>(), 0..40),
        salt in vec(any::<u8>(), 0..40),
    ) {
        let _ = Keys::derive(&Password::new(password), &salt, 2);
    }
}
