//! Tokens that must not be believed, one wrong thing at a time.

use attest::ita::ItaError;
use attest::mock::{Behaviour, TrustAuthority, Verdict};
use serde_json::{Value, json};

use crate::{LIFETIME, NOW, pki, world};

#[test]
fn only_intels_algorithms() {
    let world = world();
    for verdict in [Verdict::AlgorithmNone, Verdict::Hs256] {
        assert_eq!(world.refused(verdict), ItaError::Algorithm);
    }
    // It was the header that was refused: no key was needed.
    assert_eq!(world.authority.key_fetches(), 0);
}

#[test]
fn only_intels_keys() {
    let world = world();
    for (verdict, error) in [
        (Verdict::ForeignKey, ItaError::BadSignature),
        (Verdict::BadSignature, ItaError::BadSignature),
        (Verdict::UnknownKey, ItaError::UnknownKey),
        (Verdict::ShortKey, ItaError::WeakKey),
    ] {
        assert_eq!(world.refused(verdict.clone()), error, "{verdict:?}");
    }
}

/// A token that brings its own key: what it names is not even asked.
#[test]
fn keys_elsewhere_are_not_fetched() {
    let world = world();
    let forger = TrustAuthority::start(&pki(), NOW).unwrap();
    let port = |url: &str| url.rsplit(':').next().unwrap().to_owned();
    for jku in [
        format!("{}/certs", forger.url()),
        format!("{}/certs", forger.url().replace("127.0.0.1", "localhost")),
        format!("http://localhost:{}/certs", port(&world.authority.url())),
        format!("https://127.0.0.1:{}/certs", port(&world.authority.url())),
        format!(
            "{}@127.0.0.1:{}/certs",
            world.authority.url(),
            port(&forger.url())
        ),
        format!(
            "http://user@127.0.0.1:{}/certs",
            port(&world.authority.url())
        ),
        "https://portal.trustauthority.intel.com/certs".to_owned(),
        "file:///certs".to_owned(),
        String::new(),
    ] {
        let refused = world.refused(Verdict::KeysElsewhere(jku.clone()));
        assert_eq!(refused, ItaError::UntrustedJku, "{jku}");
    }
    assert_eq!(
        (forger.key_fetches(), world.authority.key_fetches()),
        (0, 0)
    );
}

#[test]
fn dates_are_of_the_given_time() {
    let world = world();
    assert_eq!(world.refused(Verdict::Expired), ItaError::Expired);
    assert_eq!(world.refused(Verdict::NotYetValid), ItaError::NotYetValid);
    world.authority.say(Verdict::Honest);
    assert!(world.appraise_at(NOW + LIFETIME - 1).is_ok());
    let ended = world.appraise_at(NOW + LIFETIME).unwrap_err();
    assert_eq!(ended, ItaError::Expired);
    // A minute of skew, and no more.
    assert!(world.appraise_at(NOW - 60).is_ok());
    assert_eq!(
        world.appraise_at(NOW - 61).unwrap_err(),
        ItaError::NotYetValid
    );
}

#[test]
fn a_token_must_be_about_this_quote() {
    let world = world();
    let other = |bytes: usize| Value::from("ee".repeat(bytes));
    let refused = world.refused(Verdict::Claim("tdx_report_data", other(64)));
    assert_eq!(refused, ItaError::ReportDataMismatch);
    for name in [
        "tdx_mrtd",
        "tdx_rtmr0",
        "tdx_rtmr1",
        "tdx_rtmr2",
        "tdx_rtmr3",
    ] {
        for value in [other(48), other(47), "".into(), "11".repeat(49).into()] {
            let refused = world.refused(Verdict::Claim(name, value));
            assert_eq!(refused, ItaError::MeasurementMismatch(name));
        }
    }
    for name in ["tdx_is_debuggable", "tdx_td_attributes_debug"] {
        let refused = world.refused(Verdict::Claim(name, true.into()));
        assert_eq!(refused, ItaError::DebugMismatch(name));
    }
}

/// And a token that hides debug mode.
#[test]
fn debug_cannot_be_denied() {
    let mut world = world();
    world.evidence.report.debug = true;
    for name in ["tdx_is_debuggable", "tdx_td_attributes_debug"] {
        let refused = world.refused(Verdict::Claim(name, false.into()));
        assert_eq!(refused, ItaError::DebugMismatch(name));
    }
}

#[test]
fn upper_case_hex_is_the_same() {
    let mut world = world();
    world.evidence.report.mrtd = [0xab; 48];
    let upper = Value::from("AB".repeat(48));
    world.authority.say(Verdict::Claim("tdx_mrtd", upper));
    assert!(world.appraise().is_ok());
}

#[test]
fn no_claim_may_be_missing_or_of_another_type() {
    let world = world();
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
            let refused = world.refused(Verdict::Claim(name, value));
            assert_eq!(refused.code(), "ita_malformed_token", "{name}");
        }
    }
    // A member beside the claims that says it has them is where they are read.
    let refused = world.refused(Verdict::Claim("tdx", json!({})));
    assert_eq!(refused.code(), "ita_malformed_token");
}

#[test]
fn keys_are_kept_and_fetched_again_for_a_new_one() {
    let world = world();
    for _ in 0..3 {
        world.appraise().unwrap();
    }
    assert_eq!(world.authority.key_fetches(), 1);
    world.authority.rotate();
    world.appraise().unwrap();
    assert_eq!(world.authority.key_fetches(), 2);
    // A key that does not exist costs one fetch each time, not more.
    assert_eq!(world.refused(Verdict::UnknownKey), ItaError::UnknownKey);
    assert_eq!(world.authority.key_fetches(), 3);
    world.authority.say(Verdict::Honest);
    world.appraise().unwrap();
    assert_eq!(world.authority.key_fetches(), 3);
    // After an hour they are old: a key may have been withdrawn.
    world.authority.set_now(NOW + 3600);
    world.appraise_at(NOW + 3600).unwrap();
    assert_eq!(world.authority.key_fetches(), 4);
}

#[test]
fn keys_that_cannot_be_fetched() {
    let world = world();
    for (manner, error) in [
        (Behaviour::Down, ItaError::Unreachable),
        (Behaviour::Status(500), ItaError::Status(500)),
        (Behaviour::Redirect, ItaError::Status(302)),
        (Behaviour::Html, ItaError::MalformedKeys),
        (Behaviour::HalfBody, ItaError::Truncated),
        (Behaviour::Huge, ItaError::TooLarge { limit: 256 << 10 }),
        (
            Behaviour::HugeChunked,
            ItaError::TooLarge { limit: 256 << 10 },
        ),
    ] {
        world.authority.behave_for_keys(manner);
        assert_eq!(world.appraise().unwrap_err(), error, "{manner:?}");
    }
    world.authority.behave_for_keys(Behaviour::Honest);
    world.appraise().unwrap();
    // What is held goes on without it.
    world.authority.behave_for_keys(Behaviour::Down);
    world.appraise().unwrap();
}
