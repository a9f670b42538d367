//! Runs the machines over bytes in every way in which a network could cut them, and checks what must
//! hold for any bytes at all. Shared with the fuzz targets, so it uses nothing but `wire`.

use wire::backend::{
    AwaitReady, BackendError, BackendLogin, BackendStep, MAX_LOGIN_MESSAGE, ReadyStep,
};
use wire::frontend::{
    AwaitPassword, AwaitStartup, MAX_PASSWORD_MESSAGE, PasswordStep, StartupStep, request_password,
};
use wire::opening::{MAX_OPENING, Opening, OpeningError, OpeningPolicy, OpeningStep};
use wire::scram::Keys;
use wire::secret::Password;
use wire::startup::{MAX_STARTUP_PACKET, ProtocolVersion, Startup};

/// The nonce, role and password with which the recorded and the made-up logins go.
pub(crate) const NONCE: [u8; 18] = *b"eighteen byte nonc";
pub(crate) const PASSWORD: &str = "pencil";

/// More rounds than the tests' own servers ask for would only make fuzzing slow.
const MAX_ROUNDS: u32 = 4_096;

// ---- opening

/// A machine that has been through `history`: each item is what one step consumed.
pub(crate) fn opening_after(policy: OpeningPolicy, history: &[Vec<u8>]) -> Opening {
    history.iter().fold(Opening::new(policy), |state, chunk| {
        match state.advance(chunk) {
            OpeningStep::Reply { next, .. } | OpeningStep::Proxied { next, .. } => next,
            other => panic!("no step that goes on: {other:?}"),
        }
    })
}

/// Checks every cut of `bytes`, and goes on where a client would wait for an answer.
///
/// Returns the steps taken, the last one included.
pub(crate) fn check_opening(policy: OpeningPolicy, bytes: &[u8]) -> Vec<String> {
    let (mut history, mut steps) = (Vec::new(), Vec::new());
    let mut rest = bytes;
    loop {
        check_opening_prefixes(policy, &history, rest);
        let consumed = match opening_after(policy, &history).advance(rest) {
            OpeningStep::Reply { consumed, byte, .. } => {
                steps.push(format!("Reply {:?}", char::from(byte)));
                consumed
            }
            OpeningStep::Proxied {
                consumed, source, ..
            } => {
                steps.push(format!("Proxied {source:?}"));
                consumed
            }
            OpeningStep::Refuse(OpeningError::EarlyBytes) => {
                steps.push("EarlyBytes".to_owned());
                8
            }
            last => {
                steps.push(format!("{last:?}"));
                return steps;
            }
        };
        assert!(0 < consumed && consumed <= rest.len());
        history.push(rest[..consumed].to_vec());
        rest = &rest[consumed..];
    }
}

/// What is decided on a part is what is decided on the whole, and it is decided in time.
fn check_opening_prefixes(policy: OpeningPolicy, history: &[Vec<u8>], bytes: &[u8]) {
    let whole = opening_after(policy, history).advance(bytes);
    for cut in 0..=bytes.len().min(MAX_OPENING) {
        match opening_after(policy, history).advance(&bytes[..cut]) {
            OpeningStep::Read(same) => {
                assert_eq!(same, opening_after(policy, history));
                assert!(cut < MAX_OPENING, "undecided after {cut} bytes");
            }
            // The one decision that more bytes change: they had no right to be there.
            OpeningStep::Reply { consumed, .. } => {
                assert_eq!((consumed, cut), (8, 8));
                if bytes.len() > cut {
                    assert_eq!(whole, OpeningStep::Refuse(OpeningError::EarlyBytes));
                }
            }
            decided => assert_eq!(decided, whole, "cut at {cut} of {}", bytes.len()),
        }
    }
}

// ---- frontend

/// Checks every cut of a first packet; the owned form, if it is a StartupMessage, and its length.
pub(crate) fn check_startup(bytes: &[u8]) -> Option<(Startup, usize)> {
    let whole = AwaitStartup::new().advance(bytes);
    for cut in 0..=bytes.len().min(MAX_STARTUP_PACKET) {
        match AwaitStartup::new().advance(&bytes[..cut]) {
            StartupStep::Read(_) => assert!(cut < MAX_STARTUP_PACKET),
            decided => assert_eq!(decided, whole, "cut at {cut} of {}", bytes.len()),
        }
    }
    match whole {
        StartupStep::Startup { message, consumed } => {
            assert!(consumed <= bytes.len());
            let startup = message.to_owned();
            assert_eq!(startup.role(), message.user());
            assert!(message.parameters().eq(startup.parameters()));
            Some((startup, consumed))
        }
        StartupStep::Cancel(request) => {
            assert!(bytes.starts_with(request.as_bytes()));
            None
        }
        StartupStep::Read(_) | StartupStep::Refuse(_) => None,
    }
}

/// What a client is asked, its password machine, and the version that was agreed on.
pub(crate) fn request_client_password(
    startup: &Startup,
    newest: ProtocolVersion,
) -> (Vec<u8>, AwaitPassword, ProtocolVersion) {
    let mut out = Vec::new();
    let (next, version) = request_password(startup, newest, &mut out);
    assert!(version <= newest && version <= startup.version());
    (out, next, version)
}

/// Checks every cut of a password message.
pub(crate) fn check_password(startup: &Startup, bytes: &[u8]) {
    let state = || request_client_password(startup, ProtocolVersion::V3_2).1;
    let whole = state().advance(bytes);
    for cut in 0..=bytes.len().min(MAX_PASSWORD_MESSAGE + 1) {
        match state().advance(&bytes[..cut]) {
            PasswordStep::Read(_) => assert!(cut <= MAX_PASSWORD_MESSAGE),
            decided => assert!(decided == whole, "cut at {cut}"),
        }
    }
    if let PasswordStep::Password { password, consumed } = whole {
        assert!(consumed <= bytes.len());
        assert_eq!(password.len() + 6, consumed);
        assert!(!password.contains(&0));
    }
}

/// What Postgres is sent says what the client said, without its protocol options.
pub(crate) fn check_forwarded(startup: &Startup) {
    let mut out = Vec::new();
    let _ = BackendLogin::start(startup, ProtocolVersion::V3_0, NONCE, &mut out);
    let (forwarded, consumed) = check_startup(&out).expect("what we send we can read");
    assert_eq!(consumed, out.len());
    assert_eq!(forwarded.version(), ProtocolVersion::V3_0);
    let kept = startup
        .parameters()
        .filter(|(name, _)| !name.starts_with(b"_pq_."));
    assert!(forwarded.parameters().eq(kept));
}

// ---- backend

/// How a login ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LoginOutcome {
    /// All bytes were read, and the login is not over.
    Incomplete,
    Refused(BackendError),
    /// `passed` went to the client, `rest` is the session's.
    Ready {
        sent: Vec<u8>,
        forwarded: Vec<u8>,
        rest: Vec<u8>,
        server_version: Option<String>,
    },
    Failed {
        sent: Vec<u8>,
        forwarded: Vec<u8>,
        sqlstate: String,
    },
}

/// A StartupMessage of `role`, as a client sends it.
pub(crate) fn startup(role: &str) -> Startup {
    let parameters = [
        ("user", role),
        ("database", "postgres"),
        ("application_name", "recorded"),
    ];
    let packet = startup_packet(ProtocolVersion::V3_0, &parameters);
    check_startup(&packet).unwrap().0
}

pub(crate) fn startup_packet(version: ProtocolVersion, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = version.to_u32().to_be_bytes().to_vec();
    for text in parameters.iter().flat_map(|(name, value)| [name, value]) {
        body.extend_from_slice(text.as_bytes());
        body.push(0);
    }
    body.push(0);
    let length = u32::try_from(body.len() + 4).unwrap();
    [&length.to_be_bytes()[..], &body].concat()
}

/// Feeds a login what Postgres says, cut into `parts`.
pub(crate) fn run_login<'a>(role: &str, parts: impl IntoIterator<Item = &'a [u8]>) -> LoginOutcome {
    let mut sent = Vec::new();
    let mut parts = parts.into_iter();
    let mut login = BackendLogin::start(&startup(role), ProtocolVersion::V3_0, NONCE, &mut sent);
    let password = Password::new(PASSWORD);
    let mut buffer = Vec::new();
    loop {
        match login.advance(&buffer, &password, &mut sent) {
            BackendStep::Read { consumed, next } => {
                buffer.drain(..consumed);
                assert!(buffer.len() <= MAX_LOGIN_MESSAGE, "undecided");
                login = next;
                let Some(part) = parts.next() else {
                    return LoginOutcome::Incomplete;
                };
                buffer.extend_from_slice(part);
            }
            BackendStep::DeriveKeys {
                salt,
                iterations,
                consumed,
                next,
            } => {
                buffer.drain(..consumed);
                let keys = Keys::derive(&password, &salt, iterations.min(MAX_ROUNDS));
                login = next.resume(&keys, &mut sent);
            }
            BackendStep::Authenticated { consumed, next } => {
                buffer.drain(..consumed);
                return forward_until_ready(next, buffer, parts, sent);
            }
            BackendStep::Refuse(error) => return LoginOutcome::Refused(error),
        }
    }
}

fn forward_until_ready<'a>(
    mut state: AwaitReady,
    mut buffer: Vec<u8>,
    mut parts: impl Iterator<Item = &'a [u8]>,
    sent: Vec<u8>,
) -> LoginOutcome {
    let mut forwarded = Vec::new();
    loop {
        match state.advance(&buffer) {
            ReadyStep::Forward { forward_len, next } => {
                forwarded.extend(buffer.drain(..forward_len));
                assert!(buffer.len() <= MAX_LOGIN_MESSAGE, "undecided");
                state = next;
                let Some(part) = parts.next() else {
                    return LoginOutcome::Incomplete;
                };
                buffer.extend_from_slice(part);
            }
            ReadyStep::Ready {
                forward_len,
                server_version,
            } => {
                forwarded.extend(buffer.drain(..forward_len));
                buffer.extend(parts.flatten());
                return LoginOutcome::Ready {
                    sent,
                    forwarded,
                    rest: buffer,
                    server_version,
                };
            }
            ReadyStep::Failed {
                forward_len,
                sqlstate,
            } => {
                forwarded.extend(buffer.drain(..forward_len));
                return LoginOutcome::Failed {
                    sent,
                    forwarded,
                    sqlstate: sqlstate.to_string(),
                };
            }
            ReadyStep::Refuse(error) => return LoginOutcome::Refused(error),
        }
    }
}

/// What a server says leads to one end, however it is cut.
pub(crate) fn check_login(role: &str, bytes: &[u8], chunk: usize) -> LoginOutcome {
    let whole = run_login(role, [bytes]);
    assert_eq!(whole, run_login(role, bytes.chunks(chunk.max(1))));
    whole
}
