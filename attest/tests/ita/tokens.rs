//! Forged and invalid tokens: one thing is wrong in each case.

use attest::ita::ItaError;
use attest::mock::{Behaviour, TokenVariant, TrustAuthority};
use serde_json::{Value, json};

use crate::{ItaFixture, LIFETIME, NOW};

#[test]
fn only_intels_algorithms_are_accepted() {
    let fixture = ItaFixture::default();
    for variant in [TokenVariant::AlgorithmNone, TokenVariant::Hs256] {
        assert_eq!(fixture.refused(variant), ItaError::Algorithm);
    }
    // The header was refused before the key set was fetched.
    assert_eq!(fixture.authority.key_fetches(), 0);
}

#[test]
fn only_keys_of_the_key_set_are_accepted() {
    let fixture = ItaFixture::default();
    for (variant, error) in [
        (TokenVariant::WrongKey, ItaError::BadSignature),
        (TokenVariant::BadSignature, ItaError::BadSignature),
        (TokenVariant::UnknownKey, ItaError::UnknownKey),
        (TokenVariant::ShortKey, ItaError::WeakKey),
    ] {
        assert_eq!(fixture.refused(variant.clone()), error, "{variant:?}");
    }
}

#[test]
fn key_sets_of_other_urls_are_not_fetched() {
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
        assert_eq!(refused, ItaError::UntrustedJku, "{jku}");
    }
    assert_eq!(
        (forger.key_fetches(), fixture.authority.key_fetches()),
        (0, 0)
    );
}

#[test]
fn token_dates_are_enforced() {
    let fixture = ItaFixture::default();
    assert_eq!(fixture.refused(TokenVariant::Expired), ItaError::Expired);
    assert_eq!(
        fixture.refused(TokenVariant::NotYetValid),
        ItaError::NotYetValid
    );
    fixture.authority.set_token(TokenVariant::Valid);
    assert!(fixture.appraise_at(NOW + LIFETIME - 1).is_ok());
    let expired = fixture.appraise_at(NOW + LIFETIME).unwrap_err();
    assert_eq!(expired, ItaError::Expired);
    // The maximum clock skew is one minute.
    assert!(fixture.appraise_at(NOW - 60).is_ok());
    assert_eq!(
        fixture.appraise_at(NOW - 61).unwrap_err(),
        ItaError::NotYetValid
    );
}

#[test]
fn token_must_match_the_quote() {
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

#[test]
fn token_cannot_hide_debug_mode() {
    let mut fixture = ItaFixture::default();
    fixture.peer.evidence.report.debug = true;
    for name in ["tdx_is_debuggable", "tdx_td_attributes_debug"] {
        let refused = fixture.refused(TokenVariant::Claim(name, false.into()));
        assert_eq!(refused, ItaError::DebugMismatch(name));
    }
}

#[test]
fn upper_case_hex_is_accepted() {
    let mut fixture = ItaFixture::default();
    fixture.peer.evidence.report.mrtd = [0xab; 48];
    let upper = Value::from("AB".repeat(48));
    fixture
        .authority
        .set_token(TokenVariant::Claim("tdx_mrtd", upper));
    assert!(fixture.appraise().is_ok());
}

#[test]
fn missing_and_mistyped_claims_are_refused() {
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
    // Claims are read from the member `tdx` if there is one.
    let refused = fixture.refused(TokenVariant::Claim("tdx", json!({})));
    assert_eq!(refused.code(), "ita_malformed_token");
}

#[test]
fn key_set_is_cached_and_refetched_for_an_unknown_key() {
    let fixture = ItaFixture::default();
    for _ in 0..3 {
        fixture.appraise().unwrap();
    }
    assert_eq!(fixture.authority.key_fetches(), 1);
    fixture.authority.rotate_key();
    fixture.appraise().unwrap();
    assert_eq!(fixture.authority.key_fetches(), 2);
    // Each token with an unknown key causes one fetch.
    assert_eq!(
        fixture.refused(TokenVariant::UnknownKey),
        ItaError::UnknownKey
    );
    assert_eq!(fixture.authority.key_fetches(), 3);
    fixture.authority.set_token(TokenVariant::Valid);
    fixture.appraise().unwrap();
    assert_eq!(fixture.authority.key_fetches(), 3);
    // After an hour the key set is fetched again: a key may have been revoked.
    fixture.authority.set_now(NOW + 3600);
    fixture.appraise_at(NOW + 3600).unwrap();
    assert_eq!(fixture.authority.key_fetches(), 4);
}

#[test]
fn failed_key_fetches_have_their_errors() {
    let fixture = ItaFixture::default();
    for (behaviour, error) in [
        (Behaviour::Close, ItaError::Unreachable),
        (Behaviour::Status(500), ItaError::Status(500)),
        (Behaviour::Redirect, ItaError::Status(302)),
        (Behaviour::Html, ItaError::MalformedKeys),
        (Behaviour::TruncatedBody, ItaError::Truncated),
        (
            Behaviour::Oversized,
            ItaError::TooLarge { limit: 256 << 10 },
        ),
        (
            Behaviour::OversizedChunked,
            ItaError::TooLarge { limit: 256 << 10 },
        ),
    ] {
        fixture.authority.set_key_behaviour(behaviour);
        assert_eq!(fixture.appraise().unwrap_err(), error, "{behaviour:?}");
    }
    fixture.authority.set_key_behaviour(Behaviour::Normal);
    fixture.appraise().unwrap();
    // The cached key set is used without a fetch.
    fixture.authority.set_key_behaviour(Behaviour::Close);
    fixture.appraise().unwrap();
}
