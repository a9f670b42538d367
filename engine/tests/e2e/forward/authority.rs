//! `--verifier ita`, with a Trust Authority that can be told to misbehave.

use std::sync::Arc;

use attest::mock::{Behaviour, Evidence, TokenVariant, TrustAuthority};

use super::lab::{Lab, now};
use super::recorder::{self, Recorder};
use super::run::{Forwarder, Settings};
use super::through::READER;
use crate::client::Wire;
use crate::message::{self, PROTOCOL_3_0};
use crate::suite::{Suite, World};

pub(crate) fn add(suite: &mut Suite) {
    suite.add("forward::ita::happy", happy);
    suite.add("forward::ita::refused", refused);
    suite.add("forward::ita::a_crowd_shares_one_appraisal", crowd);
}

fn settings(
    lab: &Lab,
    world: &World,
    authority: &TrustAuthority,
    target: impl ToString,
) -> Settings {
    lab.settings_to(world, target)
        .set("TEESQL_VERIFIER", "ita")
        .set("TEESQL_TRUST_AUTHORITY", &authority.url())
        .set("INTEL_TRUST_AUTHORITY_API_KEY", TrustAuthority::API_KEY)
        // Nothing of Intel's is verified here.
        .set("TEESQL_PCCS", "off")
        .without("TEESQL_DANGEROUS_TDX_ROOT_CA")
}

fn happy(world: &World) {
    let lab = Lab::new();
    let authority = TrustAuthority::start(&lab.pki, now()).expect("an authority");
    let sidecar = lab.sidecar(world);
    for verdict in [
        TokenVariant::Valid,
        TokenVariant::Nested,
        TokenVariant::Rs256,
    ] {
        authority.set_token(verdict);
        let forwarder = Forwarder::start(&settings(&lab, world, &authority, sidecar.address()));
        let before = authority.appraisals();
        assert_eq!(forwarder.ask(READER), "1\n");
        assert_eq!(forwarder.ask(READER), "1\n");
        assert_eq!(
            authority.appraisals() - before,
            1,
            "the verdict is remembered"
        );
    }
}

/// Each way to fail, with its text and its code; then the same forwarder lets
/// the honest answer pass, since none of it was the server's fault.
fn refused(world: &World) {
    let lab = Lab::new();
    let authority = TrustAuthority::start(&lab.pki, now()).expect("an authority");
    let elsewhere = TokenVariant::OtherJku("https://keys.example/certs".to_owned());
    let debug = TokenVariant::Claim("tdx_is_debuggable", true.into());
    let mrtd = TokenVariant::Claim("tdx_mrtd", "22".repeat(48).into());
    let verdicts = [
        (
            TokenVariant::WrongKey,
            "ita_bad_signature",
            "the attestation token's signature does not verify",
        ),
        (
            TokenVariant::BadSignature,
            "ita_bad_signature",
            "the attestation token's signature does not verify",
        ),
        (
            TokenVariant::AlgorithmNone,
            "ita_algorithm",
            "the attestation token is not signed with PS384 or RS256",
        ),
        (
            TokenVariant::Hs256,
            "ita_algorithm",
            "the attestation token is not signed with PS384 or RS256",
        ),
        (
            TokenVariant::Expired,
            "ita_expired",
            "the attestation token has expired",
        ),
        (
            TokenVariant::NotYetValid,
            "ita_not_yet_valid",
            "the attestation token is not valid yet",
        ),
        (
            elsewhere,
            "ita_jku_elsewhere",
            "the attestation token's jku is not on Intel Trust Authority's host",
        ),
        (
            TokenVariant::UnknownKey,
            "ita_unknown_key",
            "the attestation token's key is not one of",
        ),
        (
            debug,
            "ita_debug_mismatch",
            "the attestation token's tdx_is_debuggable is not the quote's",
        ),
        (
            mrtd,
            "ita_measurement_mismatch",
            "the attestation token's tdx_mrtd is not the quote's",
        ),
    ];
    let verdicts = verdicts.map(|(verdict, code, text)| (Behaviour::Normal, verdict, code, text));
    let manners = [
        (
            Behaviour::Close,
            "ita_unreachable",
            "no connection to Intel Trust Authority",
        ),
        (
            Behaviour::Status(401),
            "ita_unauthorized",
            "Intel Trust Authority does not accept the API key (HTTP status 401)",
        ),
        (
            Behaviour::Status(503),
            "ita_status",
            "Intel Trust Authority answered with HTTP status 503",
        ),
        (
            Behaviour::Html,
            "ita_malformed_answer",
            "Intel Trust Authority's response holds no token",
        ),
        (
            Behaviour::TruncatedBody,
            "ita_broken_off",
            "Intel Trust Authority closed the connection before the end of its response",
        ),
        // Its deadline is 10 s: once is enough.
        (
            Behaviour::Stall,
            "ita_timeout",
            "Intel Trust Authority did not answer in time",
        ),
    ];
    let manners = manners.map(|(manner, code, text)| (manner, TokenVariant::Valid, code, text));
    let config = recorder::config(&lab.issue("server", &Evidence::default()));
    let server = Recorder::tls(move |_| Arc::clone(&config));
    let forwarder = Forwarder::start(&settings(&lab, world, &authority, server.address()));
    for (manner, verdict, code, text) in verdicts.into_iter().chain(manners) {
        authority.set_behaviour(manner);
        authority.set_token(verdict);
        let said = forwarder.ask(READER);
        assert!(said.contains(&format!("FATAL:  {text}")), "{code}: {said}");
        forwarder.await_reason(code);
        server.assert_untold(code, &[READER.0, READER.1]);
    }
    authority.set_behaviour(Behaviour::Normal);
    authority.set_token(TokenVariant::Valid);
    let mut driver = Wire::connect(forwarder.address());
    driver.send(&message::startup(PROTOCOL_3_0, &[("user", "u")]));
    driver.expect_prefix(b"R");
}

fn crowd(world: &World) {
    let lab = Lab::new();
    let authority = TrustAuthority::start(&lab.pki, now()).expect("an authority");
    let config = recorder::config(&lab.issue("server", &Evidence::default()));
    let server = Recorder::tls(move |_| Arc::clone(&config));
    let settings = settings(&lab, world, &authority, server.address()).set("TEESQL_SHARDS", "2");
    let crowd = |forwarder: &Forwarder, tag: u8| {
        std::thread::scope(|scope| {
            for _ in 0..24 {
                scope.spawn(|| {
                    let mut driver = Wire::connect(forwarder.address());
                    driver.send(&message::startup(PROTOCOL_3_0, &[("user", "u")]));
                    driver.expect_prefix(&[tag]);
                });
            }
        });
    };
    crowd(&Forwarder::start(&settings), b'R');
    assert_eq!(authority.appraisals(), 1);
    // Nor does a crowd wait in a row for an authority that does not answer.
    authority.set_behaviour(Behaviour::Stall);
    let begun = std::time::Instant::now();
    crowd(&Forwarder::start(&settings), b'E');
    let took = begun.elapsed();
    assert!(took < std::time::Duration::from_secs(45), "{took:?}");
    let asked = authority.appraisals() - 1;
    assert!((1..=3).contains(&asked), "{asked} appraisals");
}
