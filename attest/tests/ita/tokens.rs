//! Tokens that must not be believed, one wrong thing at a time.

use attest::ita::ItaError;
use attest::mock::{Behaviour, TokenVariant, TrustAuthority};
use serde_json::{Value, json};

use crate::{ItaFixture, LIFETIME, NOW};

#[test]
fn only_intels_algorithms() {
    let fixture = ItaFixture::default();
    for verdict in [TokenVariant::AlgorithmNone, TokenVariant::Hs256] {
        assert_eq!(fixture.refused(verdict), ItaError::Algorithm);
    }
    // It was the header that was refused: no key was needed.
    assert_eq!(fixture.authority.key_fetches(), 0);
}

#[test]
fn only_intels_keys() {
    let fixture = ItaFixture::default();
    for (verdict, error) in [
        (TokenVariant::WrongKey, ItaError::BadSignature),
        (TokenVariant::BadSignature, ItaError::BadSignature),
        (TokenVariant::UnknownKey, ItaError::UnknownKey),
        (TokenVariant::ShortKey, ItaError::WeakKey),
    ] {
        assert_eq!(fixture.refused(verdict.clone()), error, "{verdict:?}");
    }
}

/// A token that brings its own key: what it names is not even asked.
#[test]
fn keys_elsewhere_are_not_fetched() {
    let fixture = ItaFixture::default();
    let forger = TrustAuthority::start(&fixture.peer.pki, NOW).unwrap();
    let port = |url: &str| url.rsplit(':').next().unwrap().to_owned();
    for jku in [
        format!("{}/certs", forger.url()),
        format!("{}/certs", forger.url().replace("127.0.0.1", "localhost")),
        format!("http://localhost:{}/certs", port(&fixture.authority.url())),
        format!("https://127.0.0.1:{}/certs", port(&fixture.authority.url())),
        format!(
            "{}@127.0.0.1:{}/certs",
            fixture.authority.url(),
            port(&forger.url())
        ),
        format!(
            "http://user@127.0.0.1:{}/certs",
            port(&fixture.authority.url())
        ),
        "https://portal.trustauthority.intel.com/certs".to_owned(),
        "file:///certs".to_owned(),
        String::new(),
    ] {
        let refused = fixture.refused(TokenVariant::OtherJku(jku.clone()));
        assert_eq!(refused, ItaError::JkuElsewhere, "{jku}");
    }
    assert_eq!(
        (forger.key_fetches(), fixture.authority.key_fetches()),
        (0, 0)
    );
}

#[test]
fn dates_are_of_the_given_time() {
    let fixture = ItaFixture::default();
    assert_eq!(fixture.refused(TokenVariant::Expired), ItaError::Expired);
    assert_eq!(
        fixture.refused(TokenVariant::NotYetValid),
        ItaError::NotYetValid
    );
    fixture.authority.set_token(TokenVariant::Valid);
    assert!(fixture.appraise_at(NOW + LIFETIME - 1).is_ok());
    let ended = fixture.appraise_at(NOW + LIFETIME).unwrap_err();
    assert_eq!(ended, ItaError::Expired);
    // A minute of skew, and no more.
    assert!(fixture.appraise_at(NOW - 60).is_ok());
    assert_eq!(
        fixture.appraise_at(NOW - 61).unwrap_err(),
        ItaError::NotYetValid
    );
}

#[test]
fn a_token_must_be_about_this_quote() {
    let fixture = ItaFixture::default();
    let other = |bytes: usize| Value::from("ee".repeat(bytes));
    let refused = fixture.refused(TokenVariant::Claim("tdx_report_data", other(64)));
    assert_eq!(refused, ItaError::ReportDataMismatch);
    for name in [
        "tdx_mrtd",
        "tdx_rtmr0",
        "tdx_rtmr1",
        "tdx_rtmr2",
        "tdx_rtmr3",
    ] {
        for value in [other(48), other(47), "".into(), "11".repeat(49).into()] {
            let refused = fixture.refused(TokenVariant::Claim(name, value));
            assert_eq!(refused, ItaError::MeasurementMismatch(name));
        }
    }
    for name in ["tdx_is_debuggable", "tdx_td_attributes_debug"] {
        let refused = fixture.refused(TokenVariant::Claim(name, true.into()));
        assert_eq!(refused, ItaError::DebugMismatch(name));
    }
}

/// And a token that hides debug mode.
#[test]
fn debug_cannot_be_denied() {
    let mut fixture = ItaFixture::default();
    fixture.peer.evidence.report.debug = true;
    for name in ["tdx_is_debuggable", "tdx_td_attributes_debug"] {
        let refused = fixture.refused(TokenVariant::Claim(name, false.into()));
        assert_eq!(refused, ItaError::DebugMismatch(name));
    }
}

#[test]
fn upper_case_hex_is_the_same() {
    let mut fixture = ItaFixture::default();
    fixture.peer.evidence.report.mrtd = [0xab; 48];
    let upper = Value::from("AB".repeat(48));
    fixture
        .authority
        .set_token(TokenVariant::Claim("tdx_mrtd", upper));
    assert!(fixture.appraise().is_ok());
}

#[test]
fn no_claim_may_be_missing_or_of_another_type() {
    let fixture = ItaFixture::default();
    for name in [
        "attester_tcb_status",
        "tdx_mrtd",
        "tdx_rtmr0",
        "tdx_rtmr1",
        "tdx_rtmr2",
        "tdx_rtmr3",
        "tdx_report_data",
        "tdx_is_debuggable",
        "tdx_td_attributes_debug",
    ] {
        for value in [Value::Null, json!(1), json!([]), json!({})] {
            let refused = fixture.refused(TokenVariant::Claim(name, value));
            assert_eq!(refused.code(), "ita_malformed_token", "{name}");
        }
    }
    // A member beside the claims that says it has them is where they are read.
    let refused = fixture.refused(TokenVariant::Claim("tdx", json!({})));
    assert_eq!(refused.code(), "ita_malformed_token");
}

#[test]
fn keys_are_kept_and_fetched_again_for_a_new_one() {
    let fixture = ItaFixture::default();
    for _ in 0..3 {
        fixture.appraise().unwrap();
    }
    assert_eq!(fixture.authority.key_fetches(), 1);
    fixture.authority.rotate_key();
    fixture.appraise().unwrap();
    assert_eq!(fixture.authority.key_fetches(), 2);
    // A key that does not exist costs one fetch each time, not more.
    assert_eq!(
        fixture.refused(TokenVariant::UnknownKey),
        ItaError::UnknownKey
    );
    assert_eq!(fixture.authority.key_fetches(), 3);
    fixture.authority.set_token(TokenVariant::Valid);
    fixture.appraise().unwrap();
    assert_eq!(fixture.authority.key_fetches(), 3);
    // After an hour they are old: a key may have been withdrawn.
    fixture.authority.set_now(NOW + 3600);
    fixture.appraise_at(NOW + 3600).unwrap();
    assert_eq!(fixture.authority.key_fetches(), 4);
}

#[test]
fn keys_that_cannot_be_fetched() {
    let fixture = ItaFixture::default();
    for (manner, error) in [
        (Behaviour::Close, ItaError::Unreachable),
        (Behaviour::Status(500), ItaError::Status(500)),
        (Behaviour::Redirect, ItaError::Status(302)),
        (Behaviour::Html, ItaError::MalformedKeys),
        (Behaviour::TruncatedBody, ItaError::BrokenOff),
        (
            Behaviour::Oversized,
            ItaError::TooLarge { limit: 256 << 10 },
        ),
        (
            Behaviour::OversizedChunked,
            ItaError::TooLarge { limit: 256 << 10 },
        ),
    ] {
        fixture.authority.set_key_behaviour(manner);
        assert_eq!(fixture.appraise().unwrap_err(), error, "{manner:?}");
    }
    fixture.authority.set_key_behaviour(Behaviour::Normal);
    fixture.appraise().unwrap();
    // What is held goes on without it.
    fixture.authority.set_key_behaviour(Behaviour::Close);
    fixture.appraise().unwrap();
}
