//! Tests of the login from AuthenticationOk to ReadyForQuery.

use wire::backend::{
    AuthMethods, AwaitReady, BackendError, BackendLogin, BackendStep, MAX_LOGIN_MESSAGE,
    MAX_SERVER_VERSION, ReadyStep,
};
use wire::secret::Password;
use wire::startup::ProtocolVersion;

use crate::harness::{LoginOutcome, NONCE, check_login, run_login, startup};
use crate::packets::{authentication, claimed, error, message};

fn ok() -> Vec<u8> {
    authentication(0, b"")
}

/// The state that the login returns after AuthenticationOk.
fn await_ready() -> AwaitReady {
    let mut out = Vec::new();
    let state = BackendLogin::start(&startup("me"), ProtocolVersion::V3_0, NONCE, &mut out);
    let bytes = [ok(), vec![b'S']].concat();
    let state = state.with_methods(AuthMethods::Any);
    match state.advance(&bytes, &Password::new(""), &mut out) {
        BackendStep::Authenticated { consumed: 0, next } => next,
        other => panic!("{other:?}"),
    }
}

fn inputs() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("nothing", vec![]),
        ("AuthenticationOk", ok()),
        ("CleartextPassword", authentication(3, b"")),
        ("ParameterStatus", message(b'S', b"TimeZone\0UTC\0")),
        ("server_version", message(b'S', b"server_version\x0018.4\0")),
        ("ParameterStatus, no value", message(b'S', b"TimeZone\0")),
        ("ParameterStatus, three texts", message(b'S', b"a\0b\0c\0")),
        ("BackendKeyData, key of 4", message(b'K', &[0; 8])),
        ("BackendKeyData, key of 256", message(b'K', &[0; 260])),
        ("BackendKeyData, key of 3", message(b'K', &[0; 7])),
        ("BackendKeyData, key of 257", message(b'K', &[0; 261])),
        ("NoticeResponse", message(b'N', b"SWARNING\0\0")),
        (
            "ErrorResponse",
            error("3D000", "database \"x\" does not exist"),
        ),
        ("ErrorResponse, empty", message(b'E', b"")),
        ("ReadyForQuery", message(b'Z', b"I")),
        ("ReadyForQuery, in error", message(b'Z', b"E")),
        ("ReadyForQuery, unknown state", message(b'Z', b"x")),
        ("ReadyForQuery, empty", message(b'Z', b"")),
        (
            "ReadyForQuery, trailing bytes",
            [message(b'Z', b"I"), b"D".to_vec()].concat(),
        ),
        ("DataRow", message(b'D', b"\0\0")),
        ("NotificationResponse", message(b'A', &[0; 6])),
        (
            "NegotiateProtocolVersion",
            message(b'v', b"\0\x03\0\0\0\0\0\0"),
        ),
        ("longest", message(b'N', &vec![0; MAX_LOGIN_MESSAGE - 4])),
        ("1 byte longer", claimed(b'N', 30_001, b"")),
        ("length 3", claimed(b'S', 3, b"")),
        ("length 2^31", claimed(b'S', 1 << 31, b"")),
        ("length 2^32-1", claimed(b'K', u32::MAX, b"")),
    ]
}

#[test]
fn transition_table() {
    let mut table = String::new();
    for (state, history) in [("before Ok", vec![]), ("after Ok", ok())] {
        for (input, bytes) in inputs() {
            let bytes = [&history[..], &bytes].concat();
            let outcome = match await_ready().advance(&bytes) {
                ReadyStep::Forward { forward_len, .. } => format!("Forward {forward_len}"),
                ReadyStep::Ready { forward_len, .. } => {
                    format!("Ready {forward_len} of {}", bytes.len())
                }
                ReadyStep::Failed {
                    forward_len,
                    sqlstate,
                } => format!("Failed {forward_len}, {sqlstate}"),
                ReadyStep::Refuse(error) => format!("Refuse {}: {error}", error.code()),
            };
            table += &format!("{state:<9} | {input:<28} | {outcome}\n");
        }
        table += "\n";
    }
    insta::assert_snapshot!(table);
}

#[test]
fn every_input_split_at_every_byte() {
    for (_, bytes) in inputs()
        .into_iter()
        .filter(|(_, bytes)| bytes.len() < 1_000)
    {
        let conversation = [ok(), message(b'S', b"a\0b\0"), bytes].concat();
        let whole = check_login("me", &conversation, 1);
        for split in 0..=conversation.len() {
            let (one, two) = conversation.split_at(split);
            assert_eq!(run_login("me", [one, two]), whole);
        }
    }
}

#[test]
fn messages_are_forwarded_unchanged() {
    let to_client = [
        ok(),
        message(b'N', b"SNOTICE\0\0"),
        message(b'S', b"server_version\x0018.4\0"),
        message(b'K', &[1; 36]),
        message(b'Z', b"I"),
    ]
    .concat();
    let bytes = [&to_client[..], b"the session's"].concat();
    for chunk in 1..bytes.len() {
        match check_login("me", &bytes, chunk) {
            LoginOutcome::Ready {
                forwarded,
                rest,
                server_version,
                ..
            } => {
                assert_eq!(forwarded, to_client);
                assert_eq!(rest, b"the session's");
                assert_eq!(server_version.as_deref(), Some("18.4"));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_error_after_authentication_is_forwarded_completely() {
    let to_client = [ok(), error("53300", "too many connections for role")].concat();
    let bytes = [&to_client[..], b"and more"].concat();
    match check_login("me", &bytes, 4) {
        LoginOutcome::Failed {
            forwarded,
            sqlstate,
            ..
        } => assert_eq!((forwarded, sqlstate.as_str()), (to_client, "53300")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn authentication_ok_is_accepted_only_once_and_first() {
    let twice = [ok(), ok()].concat();
    assert_eq!(
        await_ready().advance(&twice),
        ReadyStep::Refuse(BackendError::UnexpectedMessage { tag: b'R' })
    );
    assert_eq!(
        await_ready().advance(&message(b'Z', b"I")),
        ReadyStep::Refuse(BackendError::UnexpectedMessage { tag: b'Z' })
    );
}

#[test]
fn the_server_version_is_truncated_and_sanitized() {
    let status = |version: &str| message(b'S', format!("server_version\0{version}\0").as_bytes());
    let version = |text: &str| {
        let bytes = [ok(), status(text), message(b'Z', b"I")].concat();
        match await_ready().advance(&bytes) {
            ReadyStep::Ready { server_version, .. } => server_version.unwrap(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(version("18.4\n(x)"), "18.4 (x)");
    assert_eq!(version(&"9".repeat(1_000)).len(), MAX_SERVER_VERSION);
}

#[test]
fn the_key_of_a_session_is_reported_once() {
    let key = b"\0\0\0\x07keys";
    let bytes = [
        ok(),
        message(b'S', b"a\0K\0"),
        message(b'K', key),
        message(b'Z', b"I"),
    ]
    .concat();
    for cut in 0..=bytes.len() {
        let (mut keys, mut start, mut state) = (Vec::new(), 0, await_ready());
        for end in [cut, bytes.len()] {
            let on_key = |body: &[u8]| keys.push(body.to_vec());
            match state.advance_with(&bytes[start..end], on_key) {
                ReadyStep::Forward { forward_len, next } => {
                    start += forward_len;
                    state = next;
                }
                ReadyStep::Ready { forward_len, .. } => {
                    assert_eq!(start + forward_len, bytes.len());
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(keys, [key], "cut at {cut}");
    }
}
