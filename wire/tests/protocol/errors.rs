//! Tests of the code, text and response of each error.

use std::collections::BTreeSet;

use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::Message;
use wire::error::{
    AUTHENTICATION_FAILED, BackendError, ErrorResponse, FrontendError, MAX_ERROR_TEXT,
    OpeningError, ScramError, SqlState,
};
use wire::startup::ProtocolVersion;

const OPENING: [OpeningError; 10] = [
    OpeningError::Garbage,
    OpeningError::NotTls,
    OpeningError::EarlyBytes,
    OpeningError::RepeatedRequest,
    OpeningError::PlaintextStartup,
    OpeningError::PlaintextCancel,
    OpeningError::ProxyNotAllowed,
    OpeningError::ProxyMisplaced,
    OpeningError::ProxyMalformed,
    OpeningError::ProxyTooLong,
];

const FRONTEND: [FrontendError; 18] = [
    FrontendError::InvalidStartupLength { length: 7 },
    FrontendError::EncryptionRequestInTls,
    FrontendError::UnsupportedProtocol(ProtocolVersion { major: 9, minor: 9 }),
    FrontendError::MalformedStartup,
    FrontendError::MissingUser,
    FrontendError::RepeatedUser,
    FrontendError::UserNotUtf8,
    FrontendError::MalformedCancel,
    FrontendError::UnexpectedMessage { tag: b'Q' },
    FrontendError::PasswordTooLong { length: 1 << 30 },
    FrontendError::MalformedPassword,
    FrontendError::PasswordInsteadOfScram,
    FrontendError::Scram(ScramError::Mechanism),
    FrontendError::Scram(ScramError::Malformed("no nonce")),
    FrontendError::Scram(ScramError::BindingType),
    FrontendError::Scram(ScramError::Downgrade),
    FrontendError::Scram(ScramError::BindingMismatch),
    FrontendError::Scram(ScramError::NonceMismatch),
];

fn backend() -> Vec<BackendError> {
    let refused = |sqlstate: &[u8], message: &str| BackendError::Refused {
        sqlstate: SqlState::new(sqlstate).unwrap(),
        message: message.to_owned(),
    };
    let method = |code| BackendError::UnsupportedAuthMethod { code };
    let mut errors = vec![
        BackendError::EarlyEof,
        BackendError::NoRandomness,
        BackendError::Overloaded,
        BackendError::WrongListener { uid: Some(1_000) },
        refused(b"28000", "role \"teesql_read\" does not exist"),
        refused(
            b"28P01",
            "password authentication failed for user \"teesql_read\"",
        ),
        refused(b"53300", "sorry, too many clients already"),
        BackendError::NegotiatedDown,
        BackendError::NotScram {
            method: "a password in cleartext",
        },
        BackendError::PasswordMissing,
        BackendError::UnexpectedMessage { tag: b'D' },
        BackendError::MessageTooLong {
            tag: b'R',
            length: u32::MAX,
        },
        BackendError::Malformed("ErrorResponse"),
        BackendError::TooManyNotices,
        BackendError::ScramIterationsTooMany {
            iterations: 600_001,
        },
        BackendError::ScramIterationsTooFew { iterations: 4_095 },
        BackendError::ScramNonceMismatch,
        BackendError::ScramServerSignatureMismatch,
        BackendError::AuthOkWithoutServerProof,
    ];
    errors.extend([1, 2, 4, 6, 7, 8, 9, 10, 13].map(method));
    errors
}

#[test]
fn codes_and_responses() {
    let describe = |response: Option<ErrorResponse<'static>>| match response {
        None => "no response".to_owned(),
        Some(response) => {
            let hint = response.hint.map(|hint| format!(" ({hint})"));
            format!(
                "{} {}{}",
                response.sqlstate,
                response.message,
                hint.unwrap_or_default()
            )
        }
    };
    let mut table = String::new();
    for error in OPENING {
        let response = describe(error.response());
        table += &format!("{:<27} | {error} | {response}\n", error.code());
    }
    table += "\n";
    for error in FRONTEND {
        let response = describe(error.response());
        table += &format!("{:<27} | {error} | {response}\n", error.code());
    }
    table += "\n";
    for error in backend() {
        let response = describe(Some(error.response()));
        table += &format!("{:<27} | {error} | {response}\n", error.code());
    }
    insta::assert_snapshot!(table);
}

#[test]
fn codes_are_unique() {
    let mut codes = BTreeSet::new();
    let mut new = |code: &'static str| {
        assert!(
            code.bytes()
                .all(|c| c == b'_' || c.is_ascii_lowercase() || c.is_ascii_digit())
        );
        codes.insert(code)
    };
    assert!(OPENING.iter().all(|error| new(error.code())));
    assert!(FRONTEND.iter().all(|error| new(error.code())));
    // The examples contain three refusals and nine methods, each group with one code.
    let distinct = backend().iter().filter(|error| new(error.code())).count();
    assert_eq!(distinct, backend().len() - 2 - 8);
    assert_eq!(BackendError::EarlyEof.to_string(), "early eof");
}

/// The fields, as parsed by another implementation.
fn fields(response: &ErrorResponse<'_>) -> Vec<(char, String)> {
    let mut out = Vec::new();
    response.encode(&mut out);
    let mut bytes = out.as_slice().into();
    let message = Message::parse(&mut bytes).unwrap();
    assert!(bytes.is_empty());
    let Some(Message::ErrorResponse(body)) = message else {
        panic!("no ErrorResponse");
    };
    let text = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap();
    let fields = body
        .fields()
        .map(|field| Ok((field.type_().into(), text(field.value_bytes()))));
    fields.collect().unwrap()
}

#[test]
fn another_implementation_decodes_our_error_responses() {
    let field = |code: char, text: &str| (code, text.to_owned());
    assert_eq!(
        fields(&AUTHENTICATION_FAILED),
        [
            field('S', "FATAL"),
            field('V', "FATAL"),
            field('C', "28P01"),
            field('M', "authentication_failed: password authentication failed"),
        ]
    );
    let response = OpeningError::PlaintextStartup.response().unwrap();
    let hint = fields(&response).pop();
    assert_eq!(
        hint,
        Some(field('H', "Connect with sslmode=require or stronger."))
    );
}

#[test]
fn texts_are_truncated_and_hold_no_nul() {
    let text = format!("a\0b{}", "é".repeat(MAX_ERROR_TEXT));
    let response = ErrorResponse::fatal(SqlState::INTERNAL_ERROR, &text).with_hint(Some("\0"));
    let fields = fields(&response);
    let (_, message) = &fields[3];
    assert!(message.starts_with("a?bé") && message.len() <= MAX_ERROR_TEXT);
    assert_eq!(fields[4].1, "?");
}

#[test]
fn sqlstate_parsing_and_formatting() {
    assert_eq!(SqlState::new(b"28P01"), Some(SqlState::INVALID_PASSWORD));
    assert_eq!(
        format!("{0} {0:?}", SqlState::PROTOCOL_VIOLATION),
        "08P01 08P01"
    );
    for wrong in [
        &b""[..],
        b"28P0",
        b"28P011",
        b"28p01",
        b"28P\x0001",
        b"28 01",
    ] {
        assert_eq!(SqlState::new(wrong), None);
    }
}
