//! Test harness: runs the state machines over bytes with every split that a network could produce,
//! and checks the invariants that hold for any input. Shared with the fuzz targets, so it depends
//! on `wire` only.

use wire::backend::{
    AuthMethods, AwaitReady, BackendError, BackendLogin, BackendStep, FirstResponse,
    MAX_LOGIN_MESSAGE, ReadyStep,
};
use wire::frontend::scram::{
    AwaitScramFinal, AwaitScramFirst, ScramFinalStep, ScramFirstStep, ScramProof, request_scram,
};
use wire::frontend::{
    AwaitPassword, AwaitStartup, FrontendError, MAX_PASSWORD_MESSAGE, PasswordStep, StartupStep,
    request_password,
};
use wire::opening::{MAX_OPENING, Opening, OpeningError, OpeningPolicy, OpeningStep};
use wire::scram::Keys;
use wire::scram::server::{Challenge, ChannelBinding};
use wire::secret::Password;
use wire::startup::{MAX_STARTUP_PACKET, ProtocolVersion, Startup};

/// The nonce and password of the recorded and the synthetic logins.
pub(crate) const NONCE: [u8; 18] = *b"eighteen byte nonc";
pub(crate) const PASSWORD: &str = "pencil";

/// Cap on SCRAM iterations. The tests' servers request no more, and higher counts from the fuzzer
/// would only slow it down.
const MAX_ITERATIONS: u32 = 4_096;

// ---- opening

/// The state after `history`, of which each item was consumed by one step.
pub(crate) fn opening_after(policy: OpeningPolicy, history: &[Vec<u8>]) -> Opening {
    history.iter().fold(Opening::new(policy), |state, chunk| {
        match state.advance(chunk) {
            OpeningStep::Reply { next, .. } | OpeningStep::Proxied { next, .. } => next,
            other => panic!("not an intermediate step: {other:?}"),
        }
    })
}

/// Checks every split of `bytes`, and continues where a client would wait for a reply.
///
/// Returns all steps, including the last one.
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

/// Checks that the decision on each prefix equals the decision on all bytes, and is made within the
/// documented buffer size.
fn check_opening_prefixes(policy: OpeningPolicy, history: &[Vec<u8>], bytes: &[u8]) {
    let whole = opening_after(policy, history).advance(bytes);
    for split in 0..=bytes.len().min(MAX_OPENING) {
        match opening_after(policy, history).advance(&bytes[..split]) {
            OpeningStep::Read(same) => {
                assert_eq!(same, opening_after(policy, history));
                assert!(split < MAX_OPENING, "undecided after {split} bytes");
            }
            // The only decision that more bytes change, because they are illegal there.
            OpeningStep::Reply { consumed, .. } => {
                assert_eq!((consumed, split), (8, 8));
                if bytes.len() > split {
                    assert_eq!(whole, OpeningStep::Refuse(OpeningError::EarlyBytes));
                }
            }
            decided => assert_eq!(decided, whole, "split at {split} of {}", bytes.len()),
        }
    }
}

// ---- frontend

/// Checks every split of a first packet. Returns the owned form and the length of a StartupMessage.
pub(crate) fn check_startup(bytes: &[u8]) -> Option<(Startup, usize)> {
    let whole = AwaitStartup::new().advance(bytes);
    for split in 0..=bytes.len().min(MAX_STARTUP_PACKET) {
        match AwaitStartup::new().advance(&bytes[..split]) {
            StartupStep::Read(_) => assert!(split < MAX_STARTUP_PACKET),
            decided => assert_eq!(decided, whole, "split at {split} of {}", bytes.len()),
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

/// The request for the password, the state after it, and the negotiated version.
pub(crate) fn request_client_password(
    startup: &Startup,
    newest: ProtocolVersion,
) -> (Vec<u8>, AwaitPassword, ProtocolVersion) {
    let mut out = Vec::new();
    let (next, version) = request_password(startup, newest, &mut out);
    assert!(version <= newest && version <= startup.version());
    (out, next, version)
}

/// Checks every split of a password message.
pub(crate) fn check_password(startup: &Startup, bytes: &[u8]) {
    let state = || request_client_password(startup, ProtocolVersion::V3_2).1;
    let whole = state().advance(bytes);
    for split in 0..=bytes.len().min(MAX_PASSWORD_MESSAGE + 1) {
        match state().advance(&bytes[..split]) {
            PasswordStep::Read(_) => assert!(split <= MAX_PASSWORD_MESSAGE),
            decided => assert!(decided == whole, "split at {split}"),
        }
    }
    if let PasswordStep::Password { password, consumed } = whole {
        assert!(consumed <= bytes.len());
        assert_eq!(password.len() + 6, consumed);
        assert!(!password.contains(&0));
    }
}

/// The server's part of a SCRAM exchange; SCRAM-SHA-256-PLUS is offered if `binding` is set.
pub(crate) fn scram_challenge(binding: bool) -> Challenge {
    let hash = ChannelBinding::new(&[0xcb; 32]);
    Challenge {
        nonce: NONCE,
        salt: *b"sixteen byte sal",
        binding: hash.filter(|_| binding),
    }
}

/// The request for SCRAM, and the state after it.
pub(crate) fn request_client_scram(binding: bool) -> (Vec<u8>, AwaitScramFirst) {
    let mut out = Vec::new();
    let challenge = scram_challenge(binding);
    let (next, _) = request_scram(&startup("me"), ProtocolVersion::V3_0, challenge, &mut out);
    (out, next)
}

/// The reply to SASLInitialResponse, the next state and the length of the message.
pub(crate) type ScramChallenged = (Vec<u8>, AwaitScramFinal, usize);

/// Checks every split of SASLInitialResponse up to the first decision. Returns `None` if the message is incomplete.
pub(crate) fn check_scram_first(
    binding: bool,
    bytes: &[u8],
) -> Option<Result<ScramChallenged, FrontendError>> {
    let advance = |bytes: &[u8]| {
        let mut out = Vec::new();
        let step = request_client_scram(binding).1.advance(bytes, &mut out);
        (step, out)
    };
    let whole = advance(bytes);
    for split in 0..=bytes.len().min(MAX_PASSWORD_MESSAGE + 1) {
        match advance(&bytes[..split]) {
            (ScramFirstStep::Read(_), out) => {
                assert!(split <= MAX_PASSWORD_MESSAGE && out.is_empty());
            }
            decided => {
                assert_eq!(decided, whole, "split at {split} of {}", bytes.len());
                break;
            }
        }
    }
    match whole {
        (ScramFirstStep::Read(_), _) => None,
        (ScramFirstStep::Refuse(error), out) => {
            assert!(out.is_empty());
            Some(Err(error))
        }
        (ScramFirstStep::Challenged { consumed, next }, out) => {
            assert!(consumed <= bytes.len() && out.starts_with(b"R"));
            Some(Ok((out, next, consumed)))
        }
    }
}

/// Checks every split of SASLResponse up to the first decision, where `state` makes the state before it.
pub(crate) fn check_scram_final(
    state: impl Fn() -> AwaitScramFinal,
    bytes: &[u8],
) -> Option<Result<(ScramProof, usize), FrontendError>> {
    let whole = state().advance(bytes);
    for split in 0..=bytes.len().min(MAX_PASSWORD_MESSAGE + 1) {
        match state().advance(&bytes[..split]) {
            ScramFinalStep::Read(_) => assert!(split <= MAX_PASSWORD_MESSAGE),
            decided => {
                assert_eq!(decided, whole, "split at {split} of {}", bytes.len());
                break;
            }
        }
    }
    match whole {
        ScramFinalStep::Read(_) => None,
        ScramFinalStep::Refuse(error) => Some(Err(error)),
        ScramFinalStep::Proof { consumed, proof } => {
            assert!(consumed <= bytes.len());
            Some(Ok((proof, consumed)))
        }
    }
}

/// Checks both messages of a client, one after the other.
pub(crate) fn check_scram(
    binding: bool,
    bytes: &[u8],
) -> Option<Result<ScramProof, FrontendError>> {
    let (_, _, consumed) = match check_scram_first(binding, bytes)? {
        Ok(challenged) => challenged,
        Err(error) => return Some(Err(error)),
    };
    let (first, last) = bytes.split_at(consumed);
    let state = || match request_client_scram(binding)
        .1
        .advance(first, &mut Vec::new())
    {
        ScramFirstStep::Challenged { next, .. } => next,
        other => panic!("{other:?}"),
    };
    let proof = check_scram_final(state, last)?;
    Some(proof.map(|(proof, _)| proof))
}

/// Checks that the StartupMessage for Postgres equals the client's without its protocol options.
pub(crate) fn check_forwarded(startup: &Startup) {
    let mut out = Vec::new();
    let _ = BackendLogin::start(startup, ProtocolVersion::V3_0, NONCE, &mut out);
    let (forwarded, consumed) = check_startup(&out).expect("our own StartupMessage is valid");
    assert_eq!(consumed, out.len());
    assert_eq!(forwarded.version(), ProtocolVersion::V3_0);
    let kept = startup
        .parameters()
        .filter(|(name, _)| !name.starts_with(b"_pq_."));
    assert!(forwarded.parameters().eq(kept));
}

/// Checks that an added parameter comes after those of the client, which are unchanged, and that the packet
/// for Postgres stays valid.
pub(crate) fn check_added(startup: &Startup) {
    let mut added = startup.clone();
    let fits = added.add_parameter("a_setting", "its value");
    check_forwarded(&added);
    let before = startup.parameters().count();
    assert!(startup.parameters().eq(added.parameters().take(before)));
    let new: Vec<_> = added.parameters().skip(before).collect();
    let expected: &[(&[u8], &[u8])] = &[(b"a_setting", b"its value")];
    assert_eq!(new, if fits { expected } else { &[] });
    for (name, value) in [("", "x"), ("a\0b", "x"), ("a", "x\0y")] {
        assert!(!added.add_parameter(name, value));
    }
    assert!(startup.setting_names().len() >= before - count_options(startup));
}

/// The number of `options` among the parameters.
fn count_options(startup: &Startup) -> usize {
    let options = startup.parameters().filter(|(name, _)| *name == b"options");
    options.count()
}

// ---- backend

/// The outcome of a login.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LoginOutcome {
    /// All bytes were read, and the login is not complete.
    Incomplete,
    Refused(BackendError),
    /// `forwarded` went to the client; `rest` belongs to the session.
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

/// A client's StartupMessage for `role`.
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

/// Runs a login against the bytes of a server, split into `parts`. Any method is allowed.
pub(crate) fn run_login<'a>(role: &str, parts: impl IntoIterator<Item = &'a [u8]>) -> LoginOutcome {
    run_login_with(AuthMethods::Any, role, parts)
}

/// Runs a login with only `methods` allowed.
pub(crate) fn run_login_with<'a>(
    methods: AuthMethods,
    role: &str,
    parts: impl IntoIterator<Item = &'a [u8]>,
) -> LoginOutcome {
    let mut sent = Vec::new();
    let mut parts = parts.into_iter();
    let login = BackendLogin::start(&startup(role), ProtocolVersion::V3_0, NONCE, &mut sent);
    let mut login = login.with_methods(methods);
    let password = Password::new(PASSWORD);
    let mut buffer = Vec::new();
    loop {
        match login.advance(&buffer, &password, &mut sent) {
            BackendStep::Read { consumed, next } => {
                buffer.drain(..consumed);
                assert!(
                    buffer.len() <= MAX_LOGIN_MESSAGE,
                    "no decision within the buffer"
                );
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
                let keys = Keys::derive(&password, &salt, iterations.min(MAX_ITERATIONS));
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
                assert!(
                    buffer.len() <= MAX_LOGIN_MESSAGE,
                    "no decision within the buffer"
                );
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

/// Checks that the outcome does not depend on how the server's bytes are split.
pub(crate) fn check_login(role: &str, bytes: &[u8], chunk: usize) -> LoginOutcome {
    let whole = run_login(role, [bytes]);
    assert_eq!(whole, run_login(role, bytes.chunks(chunk.max(1))));
    whole
}

/// Checks that a login with fewer methods allowed has the outcome `any` of one with all of them, or
/// is refused for its method or its iterations, as the check for other implementations decides.
pub(crate) fn check_methods(role: &str, bytes: &[u8], any: &LoginOutcome) {
    for methods in [AuthMethods::Scram, AuthMethods::ScramOrNone] {
        let outcome = run_login_with(methods, role, [bytes]);
        let checked = methods.check_first_response(bytes).and_then(|first| {
            let Some(FirstResponse::Scram { len }) = first else {
                return Ok(());
            };
            methods.check_challenge(&bytes[len..]).map(drop)
        });
        match &outcome {
            LoginOutcome::Refused(
                error
                @ (BackendError::NotScram { .. } | BackendError::ScramIterationsTooFew { .. }),
            ) => {
                assert_eq!(checked.as_ref(), Err(error));
            }
            outcome => {
                assert_eq!(outcome, any);
                assert!(!matches!(checked, Err(BackendError::NotScram { .. })));
            }
        }
    }
}
