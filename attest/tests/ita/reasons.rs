//! The closed list of errors: codes and texts.

use attest::Denial;
use attest::ita::{BaseError, ItaError};

fn all() -> Vec<ItaError> {
    vec![
        ItaError::MissingKey,
        ItaError::BadKey,
        ItaError::Base(BaseError::Scheme),
        ItaError::Client("no roots".into()),
        ItaError::Unreachable,
        ItaError::Timeout,
        ItaError::Unauthorized,
        ItaError::QuoteRefused,
        ItaError::Status(500),
        ItaError::TooLarge { limit: 65_536 },
        ItaError::Truncated,
        ItaError::MalformedAnswer,
        ItaError::MalformedToken("its header cannot be read"),
        ItaError::Algorithm,
        ItaError::UntrustedJku,
        ItaError::MalformedKeys,
        ItaError::UnknownKey,
        ItaError::WeakKey,
        ItaError::BadSignature,
        ItaError::Expired,
        ItaError::NotYetValid,
        ItaError::ReportDataMismatch,
        ItaError::MeasurementMismatch("tdx_mrtd"),
        ItaError::DebugMismatch("tdx_is_debuggable"),
        ItaError::UnknownTcbStatus,
    ]
}

#[test]
fn every_error_has_its_own_code() {
    let codes: Vec<_> = all().iter().map(ItaError::code).collect();
    assert_eq!(codes, ItaError::CODES);
    assert!(codes.iter().all(|code| !Denial::CODES.contains(code)));
}

#[test]
fn error_texts() {
    let denied = ItaError::Denied(Denial::DebugTd);
    let line = |error: &ItaError| format!("{} ({:?}): {error}\n", error.code(), error.fault());
    insta::assert_snapshot!(all().iter().chain([&denied]).map(line).collect::<String>());
}
