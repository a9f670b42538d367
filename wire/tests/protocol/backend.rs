//! Tests of the login to Postgres up to AuthenticationOk.

use postgres_protocol::authentication::md5_hash;
use wire::backend::{
    AuthMethods, BackendError, BackendLogin, BackendStep, FirstResponse, MAX_LOGIN_MESSAGE,
    MAX_NOTICES,
};
use wire::error::SqlState;
use wire::scram::{Keys, MAX_ITERATIONS, MIN_ITERATIONS};
use wire::secret::Password;
use wire::startup::ProtocolVersion;

use crate::harness::{
    LoginOutcome, NONCE, PASSWORD, check_login, check_methods, run_login, run_login_with, startup,
};
use crate::packets::{
    CLEARTEXT, MD5, SCRAM, SCRAM_18, SCRAM_WRONG, ScramServer, TRUST, authentication, base64,
    claimed, error, message, recorded,
};
use crate::table;

const ROLE: &str = "scrammer";
const OFFER: &[u8] = b"SCRAM-SHA-256\0\0";

fn server() -> ScramServer {
    ScramServer::new(b"salt of sixteen.", 16)
}

/// The login after `received`, and what it sent in reply to the last part.
fn login_after(received: &[&[u8]]) -> (BackendLogin, Vec<u8>) {
    let (mut out, password) = (Vec::new(), Password::new(PASSWORD));
    let state = BackendLogin::start(&startup(ROLE), ProtocolVersion::V3_0, NONCE, &mut out);
    let mut state = state.with_methods(AuthMethods::Any);
    for bytes in received {
        out.clear();
        state = match state.advance(bytes, &password, &mut out) {
            BackendStep::Read { consumed, next } => {
                assert_eq!(consumed, bytes.len());
                next
            }
            BackendStep::DeriveKeys {
                salt,
                iterations,
                next,
                ..
            } => next.resume(&Keys::derive(&password, &salt, iterations), &mut out),
            other => panic!("{other:?}"),
        };
    }
    (state, out)
}

fn states() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let (offer, server) = (authentication(10, OFFER), server());
    let first = authentication(11, server.first.as_bytes());
    let last = authentication(12, server.last.as_bytes());
    vec![
        ("Started", vec![]),
        ("PasswordSent", vec![authentication(3, b"")]),
        ("ScramFirstSent", vec![offer.clone()]),
        ("ScramProofSent", vec![offer.clone(), first.clone()]),
        ("ScramVerified", vec![offer, first, last]),
    ]
}

fn inputs() -> Vec<(&'static str, Vec<u8>)> {
    let server = server();
    let nonce = base64(&NONCE);
    let first = |text: &str| authentication(11, text.as_bytes());
    vec![
        ("nothing", vec![]),
        ("AuthenticationOk", authentication(0, b"")),
        (
            "AuthenticationOk, next message",
            [authentication(0, b""), vec![b'S']].concat(),
        ),
        (
            "AuthenticationOk, role refused",
            [
                authentication(0, b""),
                error("28000", "role \"me\" does not exist"),
            ]
            .concat(),
        ),
        (
            "AuthenticationOk, session refused",
            [
                authentication(0, b""),
                error("3D000", "database \"x\" does not exist"),
            ]
            .concat(),
        ),
        ("AuthenticationOk, 1 byte more", authentication(0, b"x")),
        ("CleartextPassword", authentication(3, b"")),
        ("MD5Password", authentication(5, b"salt")),
        ("MD5Password, salt of 3", authentication(5, b"sal")),
        ("KerberosV5", authentication(2, b"")),
        ("GSS", authentication(7, b"")),
        ("SSPI", authentication(9, b"")),
        ("SASL", authentication(10, OFFER)),
        (
            "SASL, -PLUS too",
            authentication(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"),
        ),
        (
            "SASL, -PLUS only",
            authentication(10, b"SCRAM-SHA-256-PLUS\0\0"),
        ),
        (
            "SASL, OAUTHBEARER only",
            authentication(10, b"OAUTHBEARER\0\0"),
        ),
        (
            "SASL, list does not end",
            authentication(10, b"SCRAM-SHA-256\0"),
        ),
        (
            "SASL, bytes after the list",
            authentication(10, b"SCRAM-SHA-256\0\0x"),
        ),
        ("SASLContinue", first(&server.first)),
        (
            "SASLContinue, extension last",
            first(&format!("{},x=y", server.first)),
        ),
        (
            "SASLContinue, extension first",
            first(&format!("m=x,{}", server.first)),
        ),
        (
            "SASLContinue, other nonce",
            first("r=other,s=c2FsdA==,i=16"),
        ),
        (
            "SASLContinue, our nonce only",
            first(&format!("r={nonce},s=c2FsdA==,i=16")),
        ),
        (
            "SASLContinue, nonce not ASCII",
            first(&format!("r={nonce}\u{e9},s=c2FsdA==,i=16")),
        ),
        (
            "SASLContinue, no salt",
            first(&format!("r={nonce}x,s=,i=16")),
        ),
        (
            "SASLContinue, salt not Base64",
            first(&format!("r={nonce}x,s=salt!,i=16")),
        ),
        (
            "SASLContinue, i=0",
            first(&format!("r={nonce}x,s=c2FsdA==,i=0")),
        ),
        (
            "SASLContinue, i=-1",
            first(&format!("r={nonce}x,s=c2FsdA==,i=-1")),
        ),
        (
            "SASLContinue, i=",
            first(&format!("r={nonce}x,s=c2FsdA==,i=")),
        ),
        (
            "SASLContinue, i=600000",
            first(&format!("r={nonce}x,s=c2FsdA==,i=600000")),
        ),
        (
            "SASLContinue, i=600001",
            first(&format!("r={nonce}x,s=c2FsdA==,i=600001")),
        ),
        (
            "SASLContinue, i=2^64",
            first(&format!("r={nonce}x,s=c2FsdA==,i=18446744073709551616")),
        ),
        ("SASLContinue, not UTF-8", authentication(11, b"r=\xff")),
        ("SASLFinal", authentication(12, server.last.as_bytes())),
        (
            "SASLFinal, wrong signature",
            authentication(12, b"v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        ),
        ("SASLFinal, empty signature", authentication(12, b"v=")),
        ("SASLFinal, error", authentication(12, b"e=invalid-proof")),
        ("Authentication 13", authentication(13, b"")),
        ("Authentication 2^32-1", authentication(u32::MAX, b"")),
        ("Authentication without code", message(b'R', b"\0\0")),
        (
            "ErrorResponse 28P01",
            error("28P01", "password authentication failed"),
        ),
        (
            "ErrorResponse 53300",
            error("53300", "sorry, too many clients already"),
        ),
        ("ErrorResponse without code", message(b'E', b"Mtext\0\0")),
        (
            "ErrorResponse without end",
            message(b'E', b"C28P01\0Mtext\0"),
        ),
        ("ErrorResponse, empty", message(b'E', b"")),
        ("NoticeResponse", message(b'N', b"SNOTICE\0\0")),
        (
            "NegotiateProtocolVersion",
            message(b'v', b"\0\x03\0\0\0\0\0\0"),
        ),
        ("ParameterStatus", message(b'S', b"a\0b\0")),
        ("BackendKeyData", message(b'K', &[0; 8])),
        ("ReadyForQuery", message(b'Z', b"I")),
        ("SSLRequest reply", b"S".to_vec()),
        ("HTTP", b"HTTP/1.1 400 Bad Request\r\n".to_vec()),
        ("length 3", claimed(b'R', 3, b"")),
        ("Authentication of 2,001", claimed(b'R', 2_001, b"")),
        ("Authentication of 2^31", claimed(b'R', 1 << 31, b"")),
        ("ErrorResponse of 2^32-1", claimed(b'E', u32::MAX, b"")),
        ("ErrorResponse of 30,001", claimed(b'E', 30_001, b"")),
        ("partial ErrorResponse", claimed(b'E', 30_000, b"SFATAL\0")),
    ]
}

fn describe(step: &BackendStep, out: &[u8]) -> String {
    let sent = match out.first() {
        None => String::new(),
        Some(tag) => format!(", send {:?}", char::from(*tag)),
    };
    match step {
        BackendStep::Read { next, .. } => {
            let state = format!("{next:?}");
            let state = state
                .trim_start_matches("BackendLogin(")
                .trim_end_matches(')');
            format!("-> {state}{sent}")
        }
        BackendStep::DeriveKeys { .. } => format!("DeriveKeys{sent}"),
        BackendStep::Authenticated { .. } => format!("Authenticated{sent}"),
        BackendStep::Refuse(error) => error.code().trim_start_matches("postgres_").to_owned(),
    }
}

#[test]
fn transition_table() {
    let states = states();
    let head = states.iter().map(|(name, _)| (*name).to_owned()).collect();
    let rows = inputs().into_iter().map(|(input, bytes)| {
        let step = |history: &[Vec<u8>]| {
            let history: Vec<&[u8]> = history.iter().map(Vec::as_slice).collect();
            let (state, _) = login_after(&history);
            let mut out = Vec::new();
            let step = state.advance(&bytes, &Password::new(PASSWORD), &mut out);
            describe(&step, &out)
        };
        (
            input,
            states.iter().map(|(_, history)| step(history)).collect(),
        )
    });
    insta::assert_snapshot!(table(head, rows));
}

#[test]
fn every_input_split_at_every_byte_in_every_state() {
    for (_, history) in states() {
        for (_, bytes) in inputs() {
            let conversation = [history.concat(), bytes].concat();
            let whole = check_login(ROLE, &conversation, 1);
            check_methods(ROLE, &conversation, &whole);
            for split in 0..=conversation.len() {
                let (one, two) = conversation.split_at(split);
                assert_eq!(run_login(ROLE, [one, two]), whole);
            }
        }
    }
}

/// Replays a recorded login, split at every byte. Returns what was sent after the StartupMessage,
/// and the server's version.
fn replay(role: &str, recording: &str) -> (Vec<u8>, String) {
    let bytes = recorded(recording);
    let whole = check_login(role, &bytes, 1);
    for split in 0..=bytes.len() {
        let (one, two) = bytes.split_at(split);
        assert_eq!(run_login(role, [one, two]), whole, "split at {split}");
    }
    let mut start = Vec::new();
    let _ = BackendLogin::start(&startup(role), ProtocolVersion::V3_0, NONCE, &mut start);
    match whole {
        LoginOutcome::Ready {
            sent,
            forwarded,
            rest,
            server_version,
        } => {
            assert!(forwarded.starts_with(&authentication(0, b"")));
            assert!(bytes.ends_with(&forwarded) && rest.is_empty());
            assert!(sent.starts_with(&start));
            (sent[start.len()..].to_vec(), server_version.unwrap())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn replays_recorded_logins() {
    let debian = "15.18 (Debian 15.18-0+deb12u1)".to_owned();
    assert_eq!(replay("trusty", TRUST), (vec![], debian.clone()));
    assert_eq!(
        replay("clear", CLEARTEXT),
        (message(b'p', b"pencil\0"), debian.clone())
    );
    let salt = recorded(MD5)[9..13].try_into().unwrap();
    let hash = md5_hash(b"md5er", b"pencil", salt) + "\0";
    assert_eq!(
        replay("md5er", MD5),
        (message(b'p', hash.as_bytes()), debian.clone())
    );
    let (sent, version) = replay("scrammer", SCRAM);
    assert!(sent.starts_with(b"p\0\0\x006SCRAM-SHA-256\0\0\0\0 n,,n=,r="));
    assert_eq!(version, debian);
    assert_eq!(replay("scrammer", SCRAM_18).1, "18.4");
}

#[test]
fn replays_a_recorded_login_with_a_wrong_password() {
    let whole = check_login("scrammer", &recorded(SCRAM_WRONG), 1);
    let LoginOutcome::Refused(error) = whole else {
        panic!("{whole:?}");
    };
    assert_eq!(
        error.to_string(),
        "password authentication failed for user \"scrammer\" (SQLSTATE 28P01)"
    );
    // Not of class 28: the client's own secret was right.
    assert_eq!(error.response_sqlstate(), SqlState::CONNECTION_REJECTED);
}

#[test]
fn scram_agrees_with_an_independent_server() {
    let server = server();
    let (offer, first) = (
        authentication(10, OFFER),
        authentication(11, server.first.as_bytes()),
    );
    let (_, sent) = login_after(&[&offer, &first]);
    assert_eq!(sent, message(b'p', server.expected.as_bytes()));
    assert!(matches!(
        check_login(ROLE, &server.conversation(), 7),
        LoginOutcome::Ready { server_version: Some(version), .. } if version == "18.4"
    ));
}

#[test]
fn servers_that_break_scram_are_refused() {
    let refused = |bytes: &[u8]| match check_login(ROLE, bytes, 3) {
        LoginOutcome::Refused(error) => error,
        other => panic!("{other:?}"),
    };
    let (offer, server) = (authentication(10, OFFER), server());
    let first = authentication(11, server.first.as_bytes());
    let (ok, ready) = (authentication(0, b""), message(b'Z', b"I"));

    let at_once = [&offer[..], &ok, &ready].concat();
    assert_eq!(refused(&at_once), BackendError::AuthOkWithoutServerProof);
    let unproved = [&offer[..], &first, &ok, &ready].concat();
    assert_eq!(refused(&unproved), BackendError::AuthOkWithoutServerProof);

    let mut last = server.last.clone().into_bytes();
    last[5] ^= 1;
    let forged = [&offer[..], &first, &authentication(12, &last), &ok].concat();
    assert_eq!(refused(&forged), BackendError::ScramServerSignatureMismatch);

    // With a second method after the first, a server could extract the password.
    let downgrade = [&offer[..], &authentication(3, b"")].concat();
    let out_of_order = BackendError::Malformed("Authentication out of order");
    assert_eq!(refused(&downgrade), out_of_order);
    let twice = authentication(3, b"").repeat(2);
    assert_eq!(refused(&twice), out_of_order);

    let costly = format!("r={}x,s=c2FsdA==,i={}", base64(&NONCE), MAX_ITERATIONS + 1);
    let costly = [&offer[..], &authentication(11, costly.as_bytes())].concat();
    let iterations = MAX_ITERATIONS + 1;
    assert_eq!(
        refused(&costly),
        BackendError::ScramIterationsTooMany { iterations }
    );
}

#[test]
fn only_scram_is_allowed_unless_the_caller_allows_more() {
    assert_eq!(AuthMethods::default(), AuthMethods::Scram);
    let outcome = |methods, recording: &str, role: &str| {
        let bytes = recorded(recording);
        let whole = run_login_with(methods, role, [&bytes[..]]);
        for split in 0..bytes.len() {
            let (one, two) = bytes.split_at(split);
            assert_eq!(run_login_with(methods, role, [one, two]), whole);
            // Another implementation sees no byte before the method is known.
            let early = methods.check_first_response(one);
            assert!(early == Ok(None) || early == methods.check_first_response(&bytes));
        }
        match whole {
            LoginOutcome::Ready { .. } => "ready",
            LoginOutcome::Refused(BackendError::NotScram { method }) => method,
            other => panic!("{other:?}"),
        }
    };
    for (methods, trust, cleartext, md5) in [
        (AuthMethods::Any, "ready", "ready", "ready"),
        (
            AuthMethods::ScramOrNone,
            "ready",
            "a password in cleartext",
            "an MD5 hash",
        ),
        (
            AuthMethods::Scram,
            "no password",
            "a password in cleartext",
            "an MD5 hash",
        ),
    ] {
        assert_eq!(outcome(methods, TRUST, "trusty"), trust);
        assert_eq!(outcome(methods, CLEARTEXT, "clear"), cleartext);
        assert_eq!(outcome(methods, MD5, "md5er"), md5);
        assert_eq!(outcome(methods, SCRAM, "scrammer"), "ready");
    }
}

#[test]
fn nothing_is_sent_to_a_server_that_asks_for_the_password() {
    for request in [authentication(3, b""), authentication(5, b"salt")] {
        let mut start = Vec::new();
        let state = BackendLogin::start(&startup(ROLE), ProtocolVersion::V3_0, NONCE, &mut start);
        let mut out = Vec::new();
        let step = state.advance(&request, &Password::new(PASSWORD), &mut out);
        assert!(matches!(
            step,
            BackendStep::Refuse(BackendError::NotScram { .. })
        ));
        assert!(out.is_empty());
    }
}

#[test]
fn the_first_response_is_checked_for_other_implementations() {
    let check = |bytes: &[u8]| AuthMethods::Scram.check_first_response(bytes);
    let notice = message(b'N', b"SNOTICE\0\0");
    let scram = authentication(10, OFFER);
    let begins = [&notice[..], &scram].concat();
    let len = begins.len();
    let request = Ok(Some(FirstResponse::Scram { len }));
    assert_eq!(check(&begins), request);
    assert_eq!(check(&[&begins[..], b"R\0"].concat()), request);
    assert_eq!(check(&notice), Ok(None));
    assert_eq!(
        check(&error("57P03", "starting up")),
        Ok(Some(FirstResponse::Other))
    );
    let method = "a password in cleartext";
    let refused = Err(BackendError::NotScram { method });
    assert_eq!(
        check(&[&notice[..], &authentication(3, b"")].concat()),
        refused
    );
    let negotiation = message(b'v', b"\0\x03\0\0\0\0\0\0");
    let down = Err(BackendError::NegotiatedDown);
    assert_eq!(
        check(&[&negotiation[..], &authentication(3, b"")].concat()),
        down
    );
    let tag = b'Z';
    let unexpected = Err(BackendError::UnexpectedMessage { tag });
    assert_eq!(check(&message(tag, b"I")), unexpected);
}

/// From a proof with few iterations an impostor can guess the password.
#[test]
fn few_iterations_are_refused_unless_any_method_is_allowed() {
    let scram = authentication(10, OFFER);
    let notice = message(b'N', b"SNOTICE\0\0");
    let outcome = |methods, iterations: u32| {
        let first = ScramServer::new(b"salt", 1).first;
        let first = first.replace("i=1", &format!("i={iterations}"));
        let challenge = [&notice[..], &authentication(11, first.as_bytes())].concat();
        for split in 0..challenge.len() {
            assert_eq!(
                AuthMethods::check_challenge(methods, &challenge[..split]),
                Ok(None)
            );
        }
        let checked = methods.check_challenge(&challenge);
        match run_login_with(methods, ROLE, [&scram[..], &challenge]) {
            LoginOutcome::Incomplete => assert_eq!(checked, Ok(Some(()))),
            LoginOutcome::Refused(error) => assert_eq!(checked, Err(error)),
            other => panic!("{other:?}"),
        }
        checked
    };
    let iterations = MIN_ITERATIONS - 1;
    let refused = Err(BackendError::ScramIterationsTooFew { iterations });
    for methods in [AuthMethods::Scram, AuthMethods::ScramOrNone] {
        assert_eq!(outcome(methods, iterations), refused);
        assert_eq!(outcome(methods, MIN_ITERATIONS), Ok(Some(())));
    }
    assert_eq!(outcome(AuthMethods::Any, 1), Ok(Some(())));
}

#[test]
fn an_empty_password_is_a_missing_password() {
    for (input, bytes) in inputs() {
        let (state, _) = login_after(&[]);
        let mut out = Vec::new();
        let step = state.advance(&bytes, &Password::new(""), &mut out);
        assert!(out.is_empty());
        let requests_password = [
            "CleartextPassword",
            "MD5Password",
            "SASL",
            "SASL, -PLUS too",
        ]
        .contains(&input);
        let missing = matches!(step, BackendStep::Refuse(BackendError::PasswordMissing));
        assert_eq!(requests_password, missing, "{input}: {step:?}");
    }
}

#[test]
fn notices_are_dropped_up_to_the_cap() {
    let notice = message(b'N', b"SWARNING\0C01000\0Mmind\0\0");
    let some = [notice.repeat(usize::from(MAX_NOTICES)), recorded(TRUST)].concat();
    assert!(matches!(
        check_login("trusty", &some, 5),
        LoginOutcome::Ready { .. }
    ));
    let many = notice.repeat(usize::from(MAX_NOTICES) + 1);
    assert_eq!(
        check_login("trusty", &many, 5),
        LoginOutcome::Refused(BackendError::TooManyNotices)
    );
}

#[test]
fn the_text_of_a_refusal_is_truncated_and_sanitized() {
    let text = format!("line\nbell\x07 \u{1b}[31m{}", "é".repeat(1_000));
    let LoginOutcome::Refused(BackendError::Refused { sqlstate, message }) =
        check_login(ROLE, &error("57P03", &text), 100)
    else {
        panic!("not refused");
    };
    assert_eq!(sqlstate, SqlState::CANNOT_CONNECT_NOW);
    assert!(message.starts_with("line bell   [31mé") && message.len() <= 512);
    let error = BackendError::Refused { sqlstate, message };
    assert_eq!(error.response_sqlstate(), SqlState::CANNOT_CONNECT_NOW);

    let longest = "x".repeat(MAX_LOGIN_MESSAGE - 40);
    let outcome = check_login(ROLE, &crate::packets::error("57P03", &longest), 1_000);
    assert!(
        matches!(outcome, LoginOutcome::Refused(BackendError::Refused { .. })),
        "{outcome:?}"
    );
}

#[test]
fn debug_output_of_a_login_holds_no_secret() {
    let server = server();
    let (offer, first) = (
        authentication(10, OFFER),
        authentication(11, server.first.as_bytes()),
    );
    let (state, _) = login_after(&[&offer, &first]);
    assert_eq!(format!("{state:?}"), "BackendLogin(ScramProofSent)");
    let (state, _) = login_after(&[&offer]);
    let mut out = Vec::new();
    let step = state.advance(&first, &Password::new(PASSWORD), &mut out);
    let BackendStep::DeriveKeys { next, .. } = step else {
        panic!("{step:?}");
    };
    assert_eq!(format!("{next:?}"), "AwaitKeys");
    let password = Password::new(PASSWORD);
    let keys = Keys::derive(&password, b"salt", 1);
    assert_eq!(
        format!("{password:?} {keys:?}"),
        "Password(redacted) Keys(redacted)"
    );
}
