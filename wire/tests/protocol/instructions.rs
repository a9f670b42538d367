//! Benchmarks for scripts/instructions: each runs an operation 100 times inside `measured`, and
//! valgrind counts the instructions there.

use wire::backend::{BackendLogin, BackendStep};
use wire::frontend::{AwaitStartup, PasswordStep, StartupStep, request_password};
use wire::opening::{Opening, OpeningPolicy, OpeningStep};
use wire::scram::{Keys, Password};
use wire::secret::ClusterSecret;
use wire::startup::{ProtocolVersion, Startup};

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
const SECRET: &str = "5ead0000a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c";
const POLICY: OpeningPolicy = OpeningPolicy {
    plaintext_cancel: false,
    proxy_protocol: false,
};
const ITERATIONS: u32 = 4_096;
const SALT: &[u8] = b"0123456789abcdef";

#[inline(never)]
fn measured(work: impl FnOnce()) {
    work();
}

fn packet() -> Vec<u8> {
    let body = b"\0\x03\0\0user\0teesql_read\0database\0postgres\0application_name\0psql\0\0";
    let length = u32::try_from(body.len() + 4).unwrap();
    [&length.to_be_bytes()[..], body].concat()
}

fn startup() -> Startup {
    match AwaitStartup::new().advance(&packet()) {
        StartupStep::Startup { message, .. } => message.to_owned(),
        other => panic!("{other:?}"),
    }
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[tag][..], &length.to_be_bytes(), body].concat()
}

/// From the SSLRequest to the comparison of the secret.
#[test]
#[ignore = "for scripts/instructions"]
fn wire_client_login() {
    let (packet, password) = (packet(), message(b'p', format!("{SECRET}\0").as_bytes()));
    let secret: ClusterSecret = SECRET.parse().unwrap();
    measured(|| {
        for _ in 0..100 {
            let OpeningStep::Reply { next, .. } = Opening::new(POLICY).advance(&SSL_REQUEST) else {
                panic!("no reply");
            };
            assert!(matches!(next.advance(&[0x16, 3, 1]), OpeningStep::Tls));
            let StartupStep::Startup { message, .. } = AwaitStartup::new().advance(&packet) else {
                panic!("not a StartupMessage");
            };
            let mut request = Vec::new();
            let (await_password, _) =
                request_password(&message.to_owned(), ProtocolVersion::V3_2, &mut request);
            let PasswordStep::Password { password, .. } = await_password.advance(&password) else {
                panic!("not a password");
            };
            assert!(bool::from(secret.matches(password)));
        }
    });
}

/// The injected SCRAM login with cached keys.
#[test]
#[ignore = "for scripts/instructions"]
fn wire_scram_login() {
    let (startup, password) = (startup(), Password::new("pencil"));
    let keys = Keys::derive(&password, SALT, ITERATIONS);
    let sasl = message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0");
    measured(|| {
        for _ in 0..100 {
            let mut out = Vec::new();
            let nonce = *b"eighteen byte nonc";
            let backend = BackendLogin::start(&startup, ProtocolVersion::V3_0, nonce, &mut out);
            let BackendStep::Read { next, .. } = backend.advance(&sasl, &password, &mut out) else {
                panic!("SCRAM was not started");
            };
            let first = String::from_utf8_lossy(&out).into_owned();
            let client_nonce = first.rsplit("r=").next().unwrap();
            let salt = "MDEyMzQ1Njc4OWFiY2RlZg==";
            let challenge = format!("\0\0\0\x0br={client_nonce}server,s={salt},i={ITERATIONS}");
            let challenge = message(b'R', challenge.as_bytes());
            match next.advance(&challenge, &password, &mut out) {
                BackendStep::DeriveKeys { next, .. } => drop(next.resume(&keys, &mut out)),
                _ => panic!("no keys requested"),
            }
        }
    });
}
