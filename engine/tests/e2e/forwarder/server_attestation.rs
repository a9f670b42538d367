//! Tests of servers that fail attestation: the reason is logged and then sent to the driver, and no
//! byte of the driver is sent to the server.

use std::sync::Arc;
use std::time::SystemTime;

use attest::mock::{
    Behaviour, Binding, Certificate, Envelope, Evidence, Key, Pki, Platform, PlatformLevel,
    PlatformOptions, Resource,
};
use rustls::pki_types::CertificateDer;

use super::drivers::ForwarderAndSidecar;
use crate::harness::client::TcpClient;
use crate::harness::fake_server::ClosedPort;
use crate::harness::fixture::Fixture;
use crate::harness::forwarder::Forwarder;
use crate::harness::message::{self, PROTOCOL_3_0};
use crate::harness::process::{TIMEOUT, lossy, run};
use crate::harness::recording_server::{self, RecordingServer};
use crate::harness::settings::Settings;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::{SEED, TdxFixture};
use crate::harness::{READ_SECRET, READER};

pub(crate) fn add(suite: &mut Suite) {
    suite.add(
        "forwarder::server_attestation::accepts_every_envelope",
        every_envelope,
    );
    suite.add(
        "forwarder::server_attestation::refuses_bad_certificates",
        refuses_bad_certificates,
    );
    suite.add(
        "forwarder::server_attestation::refuses_servers_without_tls",
        refuses_servers_without_tls,
    );
    suite.add(
        "forwarder::server_attestation::verifies_each_connection",
        changed_certificate,
    );
    suite.add(
        "forwarder::server_attestation::logs_before_answering",
        logs_before_answering,
    );
    suite.add(
        "forwarder::server_attestation::reports_refusal_by_the_server",
        refused_by_the_server,
    );
    suite.add(
        "forwarder::server_attestation::login_timeout_applies_while_the_pccs_is_silent",
        silent_pccs,
    );
    suite.add(
        "forwarder::server_attestation::concurrent_connections_share_one_verification",
        shared_verification,
    );
    if suite.adds_driver_independent() {
        suite.add(
            "forwarder::server_attestation::allow_simulator_accepts_servers_without_evidence",
            allow_simulator,
        );
    }
}

/// What a driver sends.
const DRIVER_DATA: [&str; 3] = ["teesql_read", READ_SECRET, "via_scram"];

fn evidence_with(change: impl FnOnce(&mut Evidence)) -> Evidence {
    let mut evidence = Evidence::default();
    change(&mut evidence);
    evidence
}

fn every_envelope(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    for envelope in [Envelope::V0, Envelope::V1, Envelope::Legacy, Envelope::Both] {
        let evidence = evidence_with(|evidence| evidence.envelope = envelope);
        let certificate = tdx.issue(&format!("{envelope:?}"), &evidence);
        let server = RecordingServer::with_certificate(&certificate);
        let forwarder = Forwarder::start(&tdx.forwarder_settings_to(fixture, server.address()));
        let mut driver = TcpClient::connect(forwarder.address());
        let startup = message::startup(PROTOCOL_3_0, &[("user", "u")]);
        driver.send(&startup);
        driver.expect_prefix(b"R");
        assert_eq!(
            server.decrypted(),
            startup,
            "{envelope:?}: forwarded unchanged"
        );
        // There is no SNI for an IP address, and no ALPN.
        assert_eq!(server.server_names(), [(None, false)]);
        assert_eq!(server.received()[..2], [0x16, 3], "a raw ClientHello");
    }
}

/// Certificates that must be refused, each with its reason code and its text.
fn bad_certificates(tdx: &TdxFixture) -> Vec<(&'static str, &'static str, Certificate)> {
    let victim = Key::derive(&SEED, "victim").expect("a key");
    let report_data = victim.report_data();
    let replayed = evidence_with(|e| e.binding = Binding::Bytes(report_data));
    let debug = evidence_with(|e| e.report.debug = true);
    let other = evidence_with(|e| e.report.mrtd = [0x12; 48]);
    let old = PlatformOptions::with_level(PlatformLevel::OutOfDate);
    let old = Platform::new(&tdx.pki, &old).expect("an outdated platform");
    let forger = Pki::new(&[0xf1; 32]).expect("another PKI");
    let forged = Platform::new(&forger, &PlatformOptions::default()).expect("a platform");
    let good = Evidence::default();
    vec![
        (
            "no_evidence",
            "upstream cert has no TDX attestation extension; set allow_simulator: true for non-TEE targets",
            tdx.issue("plain", &evidence_with(|e| e.envelope = Envelope::None)),
        ),
        (
            "unbound_key",
            "the quote's report data is not bound to this certificate's key",
            tdx.issue("replayer", &replayed),
        ),
        (
            "debug_td",
            "TDX TD is in debug mode — connection refused. Debug TDs have no confidentiality guarantees.",
            tdx.issue("debug", &debug),
        ),
        (
            "tcb_out_of_date",
            "Unacceptable TCB status: \"OutOfDate\". Acceptable statuses: OK, SWHardeningNeeded, ConfigurationNeeded, ConfigurationAndSWHardeningNeeded.",
            tdx.issue_on(&tdx.pki, &old, "old", &good),
        ),
        (
            "mrtd_not_allowed",
            "MRTD \"1212121212…1212\" is not in the allowlist.",
            tdx.issue("other", &other),
        ),
        (
            "kms_root_mismatch",
            "cert chain verification failed",
            tdx.issue_on(&forger, &tdx.platform, "other root", &good),
        ),
        (
            "bad_signature",
            "the quote's signature does not verify under the trusted root",
            tdx.issue_on(&tdx.pki, &forged, "forged", &good),
        ),
    ]
}

/// Settings with an MRTD allow-list and a KMS root.
fn strict_settings(tdx: &TdxFixture, fixture: &Fixture, target: impl ToString) -> Settings {
    tdx.forwarder_settings_to(fixture, target)
        .set("EXPECTED_MRTD", &"11".repeat(48))
        .set("TEESQL_KMS_ROOT", &tdx.path("kms.pem"))
}

/// Checks the error in psql, the line in the log, and that the server has received nothing.
fn assert_refused(forwarder: &Forwarder, server: &RecordingServer, code: &str, text: &str) {
    let output = forwarder.psql_select_1(READER);
    assert!(
        output.contains(&format!("FATAL:  {text}")),
        "{code}: {output}"
    );
    let line = forwarder.await_reason(code);
    assert_eq!(line["level"], "WARN", "{line}");
    let detail = line["detail"].as_str().expect("a detail");
    assert!(detail.starts_with(text), "{line}");
    server.assert_nothing_leaked(code, &DRIVER_DATA);
}

fn refuses_bad_certificates(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    for (code, text, certificate) in bad_certificates(&tdx) {
        let server = RecordingServer::with_certificate(&certificate);
        let forwarder = Forwarder::start(&strict_settings(&tdx, fixture, server.address()));
        assert_refused(&forwarder, &server, code, text);
        assert_eq!(
            server.handshakes(),
            1,
            "{code}: refused because of the certificate"
        );
        // Nor is a CancelRequest sent, whose key is a secret too.
        let mut cancel = TcpClient::connect(forwarder.address());
        cancel.send(&message::cancel(1, &[1, 2, 3, 4]));
        assert_eq!(cancel.read_final_message().error().severity, "FATAL");
        server.assert_nothing_leaked(code, &DRIVER_DATA);
    }
}

fn refuses_servers_without_tls(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let settings_to = |server: &RecordingServer| strict_settings(&tdx, fixture, server.address());

    // A real Postgres reads the ClientHello as a startup packet of an invalid length.
    let plain = RecordingServer::proxy_to(fixture.cluster().address());
    let forwarder = Forwarder::start(&settings_to(&plain));
    let text = "the server closed the connection during the TLS handshake";
    assert_refused(&forwarder, &plain, "server_hung_up", text);

    let responding = RecordingServer::plain(recording_server::respond_with_error);
    let forwarder = Forwarder::start(&settings_to(&responding));
    let text = "the server does not speak TLS: is the target a TeeSQL sidecar?";
    assert_refused(&forwarder, &responding, "tls_invalid_message", text);

    let silent = RecordingServer::plain(recording_server::never_respond);
    let settings = settings_to(&silent).set("TEESQL_CONNECT_TIMEOUT", "300ms");
    let forwarder = Forwarder::start(&settings);
    let text = "upstream TLS handshake timed out after 300ms";
    assert_refused(&forwarder, &silent, "handshake_timeout", text);

    let closing = RecordingServer::plain(recording_server::close_after_read);
    let forwarder = Forwarder::start(&settings_to(&closing));
    let text = "the server closed the connection during the TLS handshake";
    assert_refused(&forwarder, &closing, "server_hung_up", text);

    let closed = ClosedPort::reserve();
    let forwarder = Forwarder::start(&strict_settings(&tdx, fixture, closed.address()));
    let text = format!("cannot connect to {}: ", closed.address());
    let output = forwarder.psql_select_1(READER);
    assert!(output.contains(&format!("FATAL:  {text}")), "{output}");
    forwarder.await_reason("server_unreachable");
}

/// Each connection is verified by its own certificate.
fn changed_certificate(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let debug = evidence_with(|evidence| evidence.report.debug = true);
    let good = recording_server::config(&tdx.issue("good", &Evidence::default()));
    let bad = recording_server::config(&tdx.issue("bad", &debug));
    let server = RecordingServer::tls(move |nth| Arc::clone(if nth == 0 { &good } else { &bad }));
    let forwarder = Forwarder::start(&tdx.forwarder_settings_to(fixture, server.address()));
    let mut first = TcpClient::connect(forwarder.address());
    let startup = message::startup(PROTOCOL_3_0, &[("user", "first")]);
    first.send(&startup);
    first.expect_prefix(b"R");
    let mut second = forwarder.open("second");
    let error = second.read_final_message().error();
    assert_eq!(error.code, "28000", "{error}");
    assert!(error.message.contains("debug mode"), "{error}");
    assert_eq!(server.decrypted(), startup, "only the first was forwarded");
}

/// The log line is written before the driver reads the error.
fn logs_before_answering(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let certificate = tdx.issue("plain", &evidence_with(|e| e.envelope = Envelope::None));
    let server = RecordingServer::with_certificate(&certificate);
    let forwarder = Forwarder::start(&tdx.forwarder_settings_to(fixture, server.address()));
    let mut driver = forwarder.open("u");
    driver.expect_prefix(b"E");
    let read = SystemTime::now();
    let line = forwarder.await_reason("no_evidence");
    let written = line["timestamp"].as_str().expect("a time");
    let written = humantime::parse_rfc3339(written).expect("RFC 3339");
    assert!(written <= read, "{line}");
}

fn refused_by_the_server(fixture: &Fixture) {
    // By the gate of the sidecar: the driver reads its error.
    let tdx = TdxFixture::new();
    let sidecar = tdx.start_attested_sidecar(fixture);
    let evidence = evidence_with(|evidence| evidence.report.debug = true);
    let (cert, key) = tdx.write_pem("debug client", &tdx.issue("debug client", &evidence));
    let settings = tdx
        .forwarder_settings_to(fixture, sidecar.address())
        .set("TEESQL_CLIENT_CERT", &cert)
        .set("TEESQL_CLIENT_KEY", &key);
    let forwarder = Forwarder::start(&settings);
    let output = forwarder.psql_select_1(READER);
    assert!(
        output.contains("FATAL:  client attestation rejected: debug_td"),
        "{output}"
    );

    // By TLS: with TLS 1.3 the client learns of it after its handshake.
    let other_pki = Pki::new(&[0xf2; 32]).expect("a PKI");
    let root = CertificateDer::from(other_pki.kms_der().to_vec());
    let config = recording_server::config_with_client_root(
        &tdx.issue("server", &Evidence::default()),
        &root,
    );
    let server = RecordingServer::tls(move |_| Arc::clone(&config));
    let forwarder = Forwarder::start(&tdx.forwarder_settings_to(fixture, server.address()));
    let output = forwarder.psql_select_1(READER);
    assert!(
        output.contains("FATAL:  the server refused the client certificate"),
        "{output}"
    );
    forwarder.await_reason("tls_alert_received");
    assert_eq!(server.handshakes(), 0);
}

fn silent_pccs(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    tdx.pccs.set_behaviour(Behaviour::Stall);
    let server = RecordingServer::with_certificate(&tdx.issue("server", &Evidence::default()));
    let settings = tdx
        .forwarder_settings_to(fixture, server.address())
        .set("TEESQL_LOGIN_TIMEOUT", "5s");
    let forwarder = Forwarder::start(&settings);
    let text = "the server was not verified within the login timeout";
    assert_refused(&forwarder, &server, "server_timeout", text);

    tdx.pccs.set_behaviour(Behaviour::Close);
    let forwarder = Forwarder::start(&settings.set("TEESQL_LOGIN_TIMEOUT", "60s"));
    let text = "no collateral for the peer's platform is available";
    assert_refused(&forwarder, &server, "collateral_unavailable", text);
}

fn shared_verification(fixture: &Fixture) {
    let pair = ForwarderAndSidecar::start(
        fixture,
        &[
            ("TEESQL_SHARDS", "2"),
            ("TEESQL_ADMIN_LISTEN", "127.0.0.1:0"),
        ],
    );
    let before = pair.tdx.pccs.requests(Resource::TcbInfo);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| pair.forwarder.assert_reader_connects());
        }
    });
    // One fetch by the forwarder, at most one by the sidecar.
    let fetched = pair.tdx.pccs.requests(Resource::TcbInfo) - before;
    assert!((1..=2).contains(&fetched), "{fetched} fetches");
}

fn allow_simulator(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let plain = tdx.issue("plain", &evidence_with(|e| e.envelope = Envelope::None));
    let debug = tdx.issue("debug", &evidence_with(|e| e.report.debug = true));
    let (plain, debug) = (
        recording_server::config(&plain),
        recording_server::config(&debug),
    );
    let server =
        RecordingServer::tls(move |nth| Arc::clone(if nth == 0 { &plain } else { &debug }));
    let settings = tdx
        .forwarder_settings_to(fixture, server.address())
        .without("TEESQL_CLIENT_CERT")
        .without("TEESQL_CLIENT_KEY")
        .set("TEESQL_GUEST_AGENT", &tdx.path("missing.sock"))
        .set("TEESQL_ALLOW_SIMULATOR", "true");
    let forwarder = Forwarder::start(&settings);
    forwarder.await_log("a warning", |line| {
        let text = line["message"].as_str().unwrap_or_default();
        line["level"] == "WARN" && text.contains("without TDX evidence is accepted")
    });
    let startup = message::startup(PROTOCOL_3_0, &[("user", "u")]);
    let mut first = TcpClient::connect(forwarder.address());
    first.send(&startup);
    first.expect_prefix(b"R");
    // Evidence that is present is still verified.
    let mut second = TcpClient::connect(forwarder.address());
    second.send(&startup);
    let error = second.read_final_message().error().message;
    assert!(error.contains("debug mode"), "{error}");
    assert!(error.contains("set verifier = none"), "{error}");

    let unverified = settings.clone().set("TEESQL_VERIFIER", "none");
    let forwarder = Forwarder::start(&unverified);
    let mut third = TcpClient::connect(forwarder.address());
    third.send(&startup);
    third.expect_prefix(b"R");
    let refused = unverified.without("TEESQL_ALLOW_SIMULATOR");
    let output = run(refused.forwarder_command(&[]), TIMEOUT);
    assert_eq!(output.status.code(), Some(64));
    let output = lossy(&output.stderr);
    assert!(
        output.contains("confirm with --allow-simulator"),
        "{output}"
    );
}
