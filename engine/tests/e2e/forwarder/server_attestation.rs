//! Servers that do not prove themselves: the driver is told why, stderr has it
//! first, and not one byte of the driver's has left.

use std::sync::Arc;
use std::time::SystemTime;

use attest::mock::{
    Binding, Certificate, Envelope, Evidence, Key, Machine, MachineOptions, Pki, PlatformLevel,
    Resource,
};
use rustls::pki_types::CertificateDer;

use super::drivers::{READER, Way};
use crate::harness::READ_SECRET;
use crate::harness::client::TcpClient;
use crate::harness::fake_server::ClosedPort;
use crate::harness::forwarder::{Forwarder, Settings};
use crate::harness::message::{self, PROTOCOL_3_0};
use crate::harness::recording_server::{self as recorder, Recorder};
use crate::harness::suite::{Fixture, Suite};
use crate::harness::tdx_fixture::{SEED, TdxFixture};

pub(crate) fn add(suite: &mut Suite) {
    suite.add("forward::every_envelope", every_envelope);
    suite.add("forward::refused_certificates", certificates);
    suite.add("forward::refused_servers", servers);
    suite.add("forward::a_server_that_changes_its_certificate", changed);
    suite.add("forward::the_log_has_it_first", log_first);
    suite.add("forward::the_sidecar_refuses_us", denied_by_the_sidecar);
    suite.add("forward::silent_pccs", silent_pccs);
    suite.add("forward::a_crowd_shares_one_verification", crowd);
    if suite.is_last_driver() {
        suite.add("forward::allow_simulator", allow_simulator);
    }
}

/// What a driver sends on its own account.
const OWN: [&str; 3] = ["teesql_read", READ_SECRET, "via_scram"];

fn changed_report(change: impl FnOnce(&mut Evidence)) -> Evidence {
    let mut evidence = Evidence::default();
    change(&mut evidence);
    evidence
}

fn every_envelope(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    for envelope in [Envelope::V0, Envelope::V1, Envelope::Legacy, Envelope::Both] {
        let evidence = changed_report(|evidence| evidence.envelope = envelope);
        let certificate = tdx.issue(&format!("{envelope:?}"), &evidence);
        let config = recorder::config(&certificate);
        let server = Recorder::tls(move |_| Arc::clone(&config));
        let forwarder = Forwarder::start(&tdx.settings_to(fixture, server.address()));
        let mut driver = TcpClient::connect(forwarder.address());
        let startup = message::startup(PROTOCOL_3_0, &[("user", "u")]);
        driver.send(&startup);
        driver.expect_prefix(b"R");
        assert_eq!(
            server.inside(),
            startup,
            "{envelope:?}: passed on unchanged"
        );
        // An IP address is no SNI, and there is no ALPN.
        assert_eq!(server.names(), [(None, false)]);
        assert_eq!(server.outside()[..2], [0x16, 3], "a raw ClientHello");
    }
}

/// Each with its text, and the code in the log.
fn bad(tdx: &TdxFixture) -> Vec<(&'static str, &'static str, Certificate)> {
    let victim = Key::derive(&SEED, "victim").expect("a key");
    let report_data = victim.report_data();
    let replayed = changed_report(|e| e.binding = Binding::Bytes(report_data));
    let debug = changed_report(|e| e.report.debug = true);
    let other = changed_report(|e| e.report.mrtd = [0x12; 48]);
    let old = MachineOptions::at(PlatformLevel::OutOfDate);
    let old = Machine::new(&tdx.pki, &old).expect("an old machine");
    let forger = Pki::new(&[0xf1; 32]).expect("another PKI");
    let forged = Machine::new(&forger, &MachineOptions::default()).expect("a machine");
    let good = Evidence::default();
    vec![
        (
            "no_evidence",
            "upstream cert has no TDX attestation extension; set allow_simulator: true for non-TEE targets",
            tdx.issue("plain", &changed_report(|e| e.envelope = Envelope::None)),
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
            tdx.issue_on(&forger, &tdx.machine, "other root", &good),
        ),
        (
            "bad_signature",
            "the quote's signature does not verify under the trusted root",
            tdx.issue_on(&tdx.pki, &forged, "forged", &good),
        ),
    ]
}

/// Production settings with lists.
fn strict(tdx: &TdxFixture, fixture: &Fixture, target: impl ToString) -> Settings {
    tdx.settings_to(fixture, target)
        .set("EXPECTED_MRTD", &"11".repeat(48))
        .set("TEESQL_KMS_ROOT", &tdx.path("kms.pem"))
}

/// One refusal: what psql says, what the log says, and what the server has seen.
fn assert_refused(forwarder: &Forwarder, server: &Recorder, code: &str, text: &str) {
    let said = forwarder.ask(READER);
    assert!(said.contains(&format!("FATAL:  {text}")), "{code}: {said}");
    let line = forwarder.await_reason(code);
    assert_eq!(line["level"], "WARN", "{line}");
    let detail = line["detail"].as_str().expect("a detail");
    assert!(detail.starts_with(text), "{line}");
    server.assert_untold(code, &OWN);
}

fn certificates(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    for (code, text, certificate) in bad(&tdx) {
        let config = recorder::config(&certificate);
        let server = Recorder::tls(move |_| Arc::clone(&config));
        let forwarder = Forwarder::start(&strict(&tdx, fixture, server.address()));
        assert_refused(&forwarder, &server, code, text);
        assert_eq!(server.handshakes(), 1, "{code}: it was its certificate");
        // Nor a CancelRequest, whose key is as good as a secret.
        let mut cancel = TcpClient::connect(forwarder.address());
        cancel.send(&message::cancel(1, &[1, 2, 3, 4]));
        assert_eq!(cancel.read_final_message().error().severity, "FATAL");
        server.assert_untold(code, &OWN);
    }
}

fn servers(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let quick = |server: &Recorder| strict(&tdx, fixture, server.address());

    // A real Postgres takes the ClientHello for a startup packet of no length.
    let plain = Recorder::before(fixture.cluster().address());
    let forwarder = Forwarder::start(&quick(&plain));
    let text = "the server closed the connection during the TLS handshake";
    assert_refused(&forwarder, &plain, "server_hung_up", text);

    let errors = Recorder::plain(recorder::says_error);
    let forwarder = Forwarder::start(&quick(&errors));
    let text = "the server does not speak TLS: is the target a TeeSQL sidecar?";
    assert_refused(&forwarder, &errors, "tls_invalid_message", text);

    let silent = Recorder::plain(recorder::silent);
    let settings = quick(&silent).set("TEESQL_CONNECT_TIMEOUT", "300ms");
    let forwarder = Forwarder::start(&settings);
    let text = "upstream TLS handshake timed out after 300ms";
    assert_refused(&forwarder, &silent, "handshake_timeout", text);

    let closes = Recorder::plain(recorder::closes);
    let forwarder = Forwarder::start(&quick(&closes));
    let text = "the server closed the connection during the TLS handshake";
    assert_refused(&forwarder, &closes, "server_hung_up", text);

    let nobody = ClosedPort::reserve();
    let forwarder = Forwarder::start(&strict(&tdx, fixture, nobody.address()));
    let text = format!("cannot connect to {}: ", nobody.address());
    let said = forwarder.ask(READER);
    assert!(said.contains(&format!("FATAL:  {text}")), "{said}");
    forwarder.await_reason("server_unreachable");
}

/// The second connection is judged by what it shows, not by what the first did.
fn changed(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let debug = changed_report(|evidence| evidence.report.debug = true);
    let good = recorder::config(&tdx.issue("good", &Evidence::default()));
    let bad = recorder::config(&tdx.issue("bad", &debug));
    let server = Recorder::tls(move |nth| Arc::clone(if nth == 0 { &good } else { &bad }));
    let forwarder = Forwarder::start(&tdx.settings_to(fixture, server.address()));
    let mut first = TcpClient::connect(forwarder.address());
    let startup = message::startup(PROTOCOL_3_0, &[("user", "first")]);
    first.send(&startup);
    first.expect_prefix(b"R");
    let mut second = TcpClient::connect(forwarder.address());
    second.send(&message::startup(PROTOCOL_3_0, &[("user", "second")]));
    let error = second.read_final_message().error();
    assert_eq!(error.code, "28000", "{error}");
    assert!(error.message.contains("debug mode"), "{error}");
    assert_eq!(server.inside(), startup, "only the first was passed on");
}

/// The line in the log is older than what the driver reads.
fn log_first(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let certificate = tdx.issue("plain", &changed_report(|e| e.envelope = Envelope::None));
    let config = recorder::config(&certificate);
    let server = Recorder::tls(move |_| Arc::clone(&config));
    let forwarder = Forwarder::start(&tdx.settings_to(fixture, server.address()));
    let mut driver = TcpClient::connect(forwarder.address());
    driver.send(&message::startup(PROTOCOL_3_0, &[("user", "u")]));
    driver.expect_prefix(b"E");
    let read = SystemTime::now();
    let line = forwarder.await_reason("no_evidence");
    let written = line["timestamp"].as_str().expect("a time");
    let written = humantime::parse_rfc3339(written).expect("RFC 3339");
    assert!(written <= read, "{line}");
}

fn denied_by_the_sidecar(fixture: &Fixture) {
    // By the gate: its words pass through.
    let tdx = TdxFixture::new();
    let sidecar = tdx.sidecar(fixture);
    let evidence = changed_report(|evidence| evidence.report.debug = true);
    let (cert, key) = tdx.files("debug client", &tdx.issue("debug client", &evidence));
    let settings = tdx
        .settings_to(fixture, sidecar.address())
        .set("TEESQL_CLIENT_CERT", &cert)
        .set("TEESQL_CLIENT_KEY", &key);
    let forwarder = Forwarder::start(&settings);
    let said = forwarder.ask(READER);
    assert!(
        said.contains("FATAL:  client attestation rejected: debug_td"),
        "{said}"
    );

    // By TLS itself: with TLS 1.3 the client hears of it after its handshake.
    let stranger = Pki::new(&[0xf2; 32]).expect("a PKI");
    let root = CertificateDer::from(stranger.kms_der().to_vec());
    let config = recorder::refusing(&tdx.issue("server", &Evidence::default()), &root);
    let server = Recorder::tls(move |_| Arc::clone(&config));
    let forwarder = Forwarder::start(&tdx.settings_to(fixture, server.address()));
    let said = forwarder.ask(READER);
    assert!(
        said.contains("FATAL:  the server refused the client certificate"),
        "{said}"
    );
    forwarder.await_reason("tls_alert_received");
    assert_eq!(server.handshakes(), 0);
}

fn silent_pccs(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    tdx.pccs.behave(attest::mock::Behaviour::Silent);
    let config = recorder::config(&tdx.issue("server", &Evidence::default()));
    let server = Recorder::tls(move |_| Arc::clone(&config));
    let settings = tdx
        .settings_to(fixture, server.address())
        .set("TEESQL_LOGIN_TIMEOUT", "1s");
    let forwarder = Forwarder::start(&settings);
    let text = "the server did not prove itself within the login timeout";
    assert_refused(&forwarder, &server, "server_timeout", text);

    tdx.pccs.behave(attest::mock::Behaviour::Down);
    let forwarder = Forwarder::start(&settings.set("TEESQL_LOGIN_TIMEOUT", "60s"));
    let text = "no collateral for the peer's platform is available";
    assert_refused(&forwarder, &server, "collateral_unavailable", text);
}

fn crowd(fixture: &Fixture) {
    let way = Way::open(
        fixture,
        &[
            ("TEESQL_SHARDS", "2"),
            ("TEESQL_ADMIN_LISTEN", "127.0.0.1:0"),
        ],
    );
    let before = way.tdx.pccs.requests(Resource::TcbInfo);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| assert_eq!(way.forwarder.ask(READER), "1\n"));
        }
    });
    // One for us, at most one for the sidecar.
    let fetched = way.tdx.pccs.requests(Resource::TcbInfo) - before;
    assert!((1..=2).contains(&fetched), "{fetched} fetches");
}

fn allow_simulator(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let plain = tdx.issue("plain", &changed_report(|e| e.envelope = Envelope::None));
    let debug = tdx.issue("debug", &changed_report(|e| e.report.debug = true));
    let (plain, debug) = (recorder::config(&plain), recorder::config(&debug));
    let server = Recorder::tls(move |nth| Arc::clone(if nth == 0 { &plain } else { &debug }));
    let settings = tdx
        .settings_to(fixture, server.address())
        .without("TEESQL_CLIENT_CERT")
        .without("TEESQL_CLIENT_KEY")
        .set("TEESQL_GUEST_AGENT", &tdx.path("nobody.sock"))
        .set("TEESQL_ALLOW_SIMULATOR", "true");
    let forwarder = Forwarder::start(&settings);
    forwarder.await_log("a warning", |line| {
        let text = line["message"].as_str().unwrap_or_default();
        line["level"] == "WARN" && text.contains("without any TDX evidence is accepted")
    });
    let startup = message::startup(PROTOCOL_3_0, &[("user", "u")]);
    let mut first = TcpClient::connect(forwarder.address());
    first.send(&startup);
    first.expect_prefix(b"R");
    // Who has evidence is still held to it.
    let mut second = TcpClient::connect(forwarder.address());
    second.send(&startup);
    assert!(
        second
            .read_final_message()
            .error()
            .message
            .contains("debug mode")
    );

    let nobody = settings.clone().set("TEESQL_VERIFIER", "none");
    let forwarder = Forwarder::start(&nobody);
    let mut third = TcpClient::connect(forwarder.address());
    third.send(&startup);
    third.expect_prefix(b"R");
    let refused = nobody.without("TEESQL_ALLOW_SIMULATOR");
    let output =
        crate::harness::process::run(refused.command(&[]), crate::harness::process::TIMEOUT);
    assert_eq!(output.status.code(), Some(64));
    let said = crate::harness::process::lossy(&output.stderr);
    assert!(said.contains("confirm with --allow-simulator"), "{said}");
}
