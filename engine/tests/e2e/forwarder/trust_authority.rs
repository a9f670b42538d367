//! Tests of `--verifier ita`, with a mock of Intel Trust Authority that injects faults.

use attest::mock::{Behaviour, Evidence, TokenVariant, TrustAuthority};

use crate::harness::READER;
use crate::harness::fixture::Fixture;
use crate::harness::forwarder::Forwarder;
use crate::harness::recording_server::RecordingServer;
use crate::harness::settings::Settings;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::{TdxFixture, now};

pub(crate) fn add(suite: &mut Suite) {
    suite.add(
        "forwarder::trust_authority::accepts_valid_tokens",
        accepts_valid_tokens,
    );
    suite.add(
        "forwarder::trust_authority::reports_failures",
        reports_failures,
    );
    suite.add(
        "forwarder::trust_authority::concurrent_connections_share_one_appraisal",
        shared_appraisal,
    );
}

fn settings(
    tdx: &TdxFixture,
    fixture: &Fixture,
    authority: &TrustAuthority,
    target: impl ToString,
) -> Settings {
    tdx.forwarder_settings_to(fixture, target)
        .set("TEESQL_VERIFIER", "ita")
        .set("TEESQL_TRUST_AUTHORITY", &authority.url())
        .set("INTEL_TRUST_AUTHORITY_API_KEY", TrustAuthority::API_KEY)
        // The Trust Authority verifies the quote, so that neither PCCS nor root is needed.
        .set("TEESQL_PCCS", "off")
        .without("TEESQL_DANGEROUS_TDX_ROOT_CA")
}

fn accepts_valid_tokens(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let authority = TrustAuthority::start(&tdx.pki, now()).expect("an authority");
    let sidecar = tdx.start_attested_sidecar(fixture);
    for token in [
        TokenVariant::Valid,
        TokenVariant::Nested,
        TokenVariant::Rs256,
    ] {
        authority.set_token(token);
        let forwarder = Forwarder::start(&settings(&tdx, fixture, &authority, sidecar.address()));
        let before = authority.appraisals();
        forwarder.assert_reader_connects();
        forwarder.assert_reader_connects();
        assert_eq!(authority.appraisals() - before, 1, "the verdict is cached");
    }
}

/// A fault of the authority, the token that it sends, the reason code, and the start of the text.
type Failure = (Behaviour, TokenVariant, &'static str, &'static str);

/// Tokens that the forwarder must refuse.
fn token_failures() -> [Failure; 10] {
    let elsewhere = TokenVariant::OtherJku("https://keys.example/certs".to_owned());
    let debug = TokenVariant::Claim("tdx_is_debuggable", true.into());
    let mrtd = TokenVariant::Claim("tdx_mrtd", "22".repeat(48).into());
    let failures = [
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
    failures.map(|(token, code, text)| (Behaviour::Normal, token, code, text))
}

/// Faults of the authority itself.
fn service_failures() -> [Failure; 6] {
    let failures = [
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
        // This takes the deadline of 10 s.
        (
            Behaviour::Stall,
            "ita_timeout",
            "Intel Trust Authority did not answer in time",
        ),
    ];
    failures.map(|(behaviour, code, text)| (behaviour, TokenVariant::Valid, code, text))
}

/// Each failure with its code and its text. A valid token is accepted afterwards by the same
/// forwarder, because none of the failures was the server's.
fn reports_failures(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let authority = TrustAuthority::start(&tdx.pki, now()).expect("an authority");
    let server = RecordingServer::with_certificate(&tdx.issue("server", &Evidence::default()));
    let forwarder = Forwarder::start(&settings(&tdx, fixture, &authority, server.address()));
    for (behaviour, token, code, text) in token_failures().into_iter().chain(service_failures()) {
        authority.set_behaviour(behaviour);
        authority.set_token(token);
        let output = forwarder.psql_select_1(READER);
        assert!(
            output.contains(&format!("FATAL:  {text}")),
            "{code}: {output}"
        );
        forwarder.await_reason(code);
        server.assert_nothing_leaked(code, &[READER.0, READER.1]);
    }
    authority.set_behaviour(Behaviour::Normal);
    authority.set_token(TokenVariant::Valid);
    let mut driver = forwarder.open("u");
    driver.expect_prefix(b"R");
}

fn shared_appraisal(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let authority = TrustAuthority::start(&tdx.pki, now()).expect("an authority");
    let server = RecordingServer::with_certificate(&tdx.issue("server", &Evidence::default()));
    let settings = settings(&tdx, fixture, &authority, server.address()).set("TEESQL_SHARDS", "2");
    let connect_24 = |forwarder: &Forwarder, tag: u8| {
        std::thread::scope(|scope| {
            for _ in 0..24 {
                scope.spawn(|| {
                    let mut driver = forwarder.open("u");
                    driver.expect_prefix(&[tag]);
                });
            }
        });
    };
    connect_24(&Forwarder::start(&settings), b'R');
    assert_eq!(authority.appraisals(), 1);
    // Concurrent connections do not wait in sequence for an authority that does not answer.
    authority.set_behaviour(Behaviour::Stall);
    let start = std::time::Instant::now();
    connect_24(&Forwarder::start(&settings), b'E');
    let took = start.elapsed();
    assert!(took < std::time::Duration::from_secs(45), "{took:?}");
    let appraisals = authority.appraisals() - 1;
    assert!((1..=3).contains(&appraisals), "{appraisals} appraisals");
}
