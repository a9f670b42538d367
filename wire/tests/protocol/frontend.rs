//! Tests of the client's start-up inside TLS.

use bytes::BytesMut;
use postgres_protocol::message::frontend as oracle;
use wire::frontend::{
    AwaitStartup, FrontendError, MAX_PASSWORD_MESSAGE, PasswordStep, StartupStep,
};
use wire::message::Frame;
use wire::startup::{MAX_STARTUP_PACKET, ProtocolVersion};

use crate::harness::{
    check_forwarded, check_password, check_startup, request_client_password, startup,
};
use crate::packets::{GSSENC_REQUEST, SSL_REQUEST, cancel, claimed, message, packet};

const V3_0: u32 = 0x0003_0000;

fn first_packets() -> Vec<(&'static str, Vec<u8>)> {
    let header = |length: u32| [&length.to_be_bytes()[..], &V3_0.to_be_bytes()].concat();
    let many = [&b"user\0me\0"[..], &b"a\0b\0".repeat(2_495), b"\0"].concat();
    vec![
        ("nothing", vec![]),
        ("3.0", packet(V3_0, b"user\0me\0\0")),
        ("3.2", packet(0x0003_0002, b"user\0me\0\0")),
        ("3.9999", packet(0x0003_270f, b"user\0me\0\0")),
        ("user last", packet(V3_0, b"database\0d\0user\0me\0\0")),
        ("empty value", packet(V3_0, b"user\0me\0options\0\0\0")),
        (
            "value not UTF-8",
            packet(V3_0, b"user\0me\0application_name\0\xff\0\0"),
        ),
        (
            "password in the same read",
            [packet(V3_0, b"user\0me\0\0"), message(b'p', b"x\0")].concat(),
        ),
        ("longest", packet(V3_0, &many)),
        ("0.0", packet(0, b"")),
        ("2.0", packet(0x0002_0000, &[0; 288])),
        ("4.0", packet(0x0004_0000, b"user\0me\0\0")),
        ("9.9", packet(0x0009_0009, b"user\0me\0\0")),
        ("SSLRequest", SSL_REQUEST.to_vec()),
        ("GSSENCRequest", GSSENC_REQUEST.to_vec()),
        ("CancelRequest, key of 4", cancel(&[9; 4])),
        ("CancelRequest, key of 32", cancel(&[9; 32])),
        ("CancelRequest, key of 256", cancel(&[9; 256])),
        ("CancelRequest, key of 3", cancel(&[9; 3])),
        ("CancelRequest, key of 257", cancel(&[9; 257])),
        ("ClientHello in TLS", b"\x16\x03\x01\x02\x00\x01".to_vec()),
        ("length 0", header(0)),
        ("length 7", header(7)),
        ("length 10,000, incomplete", header(10_000)),
        ("length 10,001", header(10_001)),
        ("length 2^31", header(1 << 31)),
        ("length 2^32-1", header(u32::MAX)),
        ("no user", packet(V3_0, b"database\0d\0\0")),
        ("empty user", packet(V3_0, b"user\0\0\0")),
        ("two users", packet(V3_0, b"user\0me\0user\0postgres\0\0")),
        (
            "the same user twice",
            packet(V3_0, b"user\0me\0user\0me\0\0"),
        ),
        ("user not UTF-8", packet(V3_0, b"user\0\xff\0\0")),
        ("no list", packet(V3_0, b"")),
        ("empty list", packet(V3_0, b"\0")),
        ("no terminator", packet(V3_0, b"user\0me\0")),
        ("two terminators", packet(V3_0, b"user\0me\0\0\0")),
        ("name without NUL", packet(V3_0, b"user\0me\0x")),
        ("name without value", packet(V3_0, b"user\0me\0x\0")),
        ("value without NUL", packet(V3_0, b"user\0me\0x\0y")),
        ("NUL inside the user", packet(V3_0, b"user\0m\0e\0\0")),
        (
            "bytes after the terminator",
            packet(V3_0, b"user\0me\0\0options\0-c x\0\0"),
        ),
    ]
}

fn describe_refusal(error: FrontendError) -> String {
    match error.response() {
        Some(response) => format!(
            "Refuse {}, respond {} {:?}",
            error.code(),
            response.sqlstate,
            response.message
        ),
        None => format!("Refuse {}, no response", error.code()),
    }
}

#[test]
fn startup_table() {
    let mut table = String::new();
    for (input, bytes) in first_packets() {
        let outcome = match AwaitStartup::new().advance(&bytes) {
            StartupStep::Read(_) => "Read".to_owned(),
            StartupStep::Startup { message, consumed } => format!(
                "Startup {} {}, {consumed} bytes, {} parameters",
                message.version(),
                message.user(),
                message.parameters().count(),
            ),
            StartupStep::Cancel(request) => format!("{request:?}"),
            StartupStep::Refuse(error) => describe_refusal(error),
        };
        table += &format!("{input:<26} | {outcome}\n");
    }
    insta::assert_snapshot!(table);
}

#[test]
fn every_first_packet_split_at_every_byte() {
    for (_, bytes) in first_packets() {
        if let Some((startup, _)) = check_startup(&bytes) {
            check_forwarded(&startup);
        }
    }
}

#[test]
fn a_first_packet_is_refused_as_soon_as_its_header_is_complete() {
    let error = |bytes: &[u8]| match AwaitStartup::new().advance(bytes) {
        StartupStep::Refuse(error) => error,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        error(b"\x7f\xff\xff\xff"),
        FrontendError::InvalidStartupLength {
            length: 0x7fff_ffff
        }
    );
    let version = ProtocolVersion { major: 9, minor: 9 };
    assert_eq!(
        error(b"\0\0\x27\x10\0\x09\0\x09"),
        FrontendError::UnsupportedProtocol(version)
    );
    assert_eq!(
        error(&SSL_REQUEST[..8]),
        FrontendError::EncryptionRequestInTls
    );
    assert_eq!(
        error(&cancel(&[0; 257])[..8]),
        FrontendError::MalformedCancel
    );
}

#[test]
fn a_startup_message_keeps_its_parameters() {
    let bytes = packet(V3_0, b"database\0d\0user\0me\0b\0\xff\0a\0\0b\0last\0\0");
    let StartupStep::Startup { message, consumed } = AwaitStartup::new().advance(&bytes) else {
        panic!("not a StartupMessage");
    };
    assert_eq!(consumed, bytes.len());
    assert_eq!(message.user(), "me");
    assert_eq!(message.parameter("database"), Some(&b"d"[..]));
    assert_eq!(message.parameter("a"), Some(&b""[..]));
    // Postgres uses the last one.
    assert_eq!(message.parameter("b"), Some(&b"last"[..]));
    assert_eq!(message.parameter("c"), None);
    let pairs: Vec<_> = message
        .to_owned()
        .parameters()
        .map(|(n, v)| (n.to_vec(), v.to_vec()))
        .collect();
    let expected: [(&[u8], &[u8]); 5] = [
        (b"database", b"d"),
        (b"user", b"me"),
        (b"b", b"\xff"),
        (b"a", b""),
        (b"b", b"last"),
    ];
    assert!(pairs.iter().map(|(n, v)| (&n[..], &v[..])).eq(expected));
}

#[test]
fn parses_packets_of_another_implementation() {
    let mut bytes = BytesMut::new();
    let parameters = [
        ("user", "me"),
        ("database", "d"),
        ("client_encoding", "UTF8"),
    ];
    oracle::startup_message(parameters, &mut bytes).unwrap();
    let (startup, consumed) = check_startup(&bytes).unwrap();
    assert_eq!((startup.role(), consumed), ("me", bytes.len()));
    let expected = parameters.map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    assert!(startup.parameters().eq(expected));

    let mut bytes = BytesMut::new();
    oracle::cancel_request(4711, 815, &mut bytes);
    match AwaitStartup::new().advance(&bytes) {
        StartupStep::Cancel(request) => assert_eq!(request.as_bytes(), &bytes[..]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn debug_output_shows_only_the_role_of_a_client() {
    let bytes = packet(V3_0, b"user\0me\0database\0hidden\0options\0hidden\0\0");
    let StartupStep::Startup { message, .. } = AwaitStartup::new().advance(&bytes) else {
        panic!("not a StartupMessage");
    };
    for printed in [format!("{message:?}"), format!("{:?}", message.to_owned())] {
        assert!(printed.contains("\"me\""), "{printed}");
        assert!(!printed.contains("hidden"), "{printed}");
    }

    let bytes = password_message(b"hidden");
    let frame = Frame::read(&bytes, 100).unwrap().unwrap();
    assert_eq!(format!("{frame:?}"), "Frame { tag: 'p', body_len: 7 }");

    let bytes = cancel(b"hidden");
    let printed = format!("{:?}", AwaitStartup::new().advance(&bytes));
    assert_eq!(printed, "Cancel(CancelRequest(18 bytes))");

    let bytes = password_message(b"hidden");
    let printed = format!("{:?}", await_password().advance(&bytes));
    assert_eq!(printed, "Password(redacted)");
}

fn await_password() -> wire::frontend::AwaitPassword {
    request_client_password(&startup("me"), ProtocolVersion::V3_0).1
}

fn password_message(password: &[u8]) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    oracle::password_message(password, &mut bytes).unwrap();
    bytes.to_vec()
}

fn passwords() -> Vec<(&'static str, Vec<u8>)> {
    let longest = vec![b'x'; MAX_PASSWORD_MESSAGE - 5];
    vec![
        ("nothing", vec![]),
        ("password", password_message(b"secret")),
        ("empty password", password_message(b"")),
        (
            "trailing bytes",
            [&password_message(b"secret")[..], b"Q"].concat(),
        ),
        ("longest", password_message(&longest)),
        (
            "1 byte longer",
            password_message(&[&longest[..], b"x"].concat()),
        ),
        ("no NUL", message(b'p', b"secret")),
        ("two NULs", message(b'p', b"secret\0\0")),
        ("NUL inside", message(b'p', b"sec\0ret\0")),
        ("no body", message(b'p', b"")),
        ("length 3", claimed(b'p', 3, b"x\0")),
        ("length 0", claimed(b'p', 0, b"")),
        ("length 1 GB", claimed(b'p', 1 << 30, b"secret\0")),
        ("length 2^31", claimed(b'p', 1 << 31, b"secret\0")),
        ("length 2^32-1", claimed(b'p', u32::MAX, b"secret\0")),
        ("Query", message(b'Q', b"SELECT 1\0")),
        ("Terminate", message(b'X', b"")),
        ("Query of 1 GB", claimed(b'Q', 1 << 30, b"")),
        (
            "SASLInitialResponse",
            message(b'p', b"SCRAM-SHA-256\0\0\0\0\x05n,,n="),
        ),
        ("SSLRequest", SSL_REQUEST.to_vec()),
    ]
}

#[test]
fn password_table() {
    let mut table = String::new();
    for (input, bytes) in passwords() {
        let outcome = match await_password().advance(&bytes) {
            PasswordStep::Read(_) => "Read".to_owned(),
            PasswordStep::Password { password, consumed } => {
                format!("Password of {}, {consumed} bytes", password.len())
            }
            PasswordStep::Refuse(error) => describe_refusal(error),
        };
        table += &format!("{input:<20} | {outcome}\n");
    }
    insta::assert_snapshot!(table);
}

#[test]
fn every_password_split_at_every_byte() {
    for (_, bytes) in passwords() {
        check_password(&startup("me"), &bytes);
    }
}

#[test]
fn a_password_is_returned_unchanged() {
    let bytes = password_message("pässword \u{1f511}".as_bytes());
    match await_password().advance(&bytes) {
        PasswordStep::Password { password, consumed } => {
            assert_eq!(password, "pässword \u{1f511}".as_bytes());
            assert_eq!(consumed, bytes.len());
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_oversized_password_is_refused_after_five_bytes() {
    let refused = await_password().advance(b"p\x40\0\0\0");
    let error = FrontendError::PasswordTooLong { length: 1 << 30 };
    assert!(refused == PasswordStep::Refuse(error));
}

#[test]
fn the_longest_startup_packet_is_accepted() {
    let (name, bytes) = first_packets().remove(8);
    assert_eq!((name, bytes.len() <= MAX_STARTUP_PACKET), ("longest", true));
    assert!(bytes.len() > MAX_STARTUP_PACKET - 8);
    assert!(check_startup(&bytes).is_some());
}
