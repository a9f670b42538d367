//! Servers that do not prove themselves: the driver is told why, stderr has it
//! first, and not one byte of the driver's has left.

use std::sync::Arc;
use std::time::SystemTime;

use attest::mock::{
    Binding, Certificate, Envelope, Evidence, Key, Pki, Platform, PlatformLevel, PlatformOptions,
    Resource,
};
use rustls::pki_types::CertificateDer;

use super::lab::{Lab, SEED};
use super::recorder::{self, Recorder};
use super::run::{Forwarder, Settings};
use super::through::{READER, Way};
use crate::client::Wire;
use crate::fake::Nobody;
use crate::message::{self, PROTOCOL_3_0};
use crate::stage::READ_SECRET;
use crate::suite::{Suite, World};

pub(crate) fn add(suite: &mut Suite) {
    suite.add("forward::every_envelope", every_envelope);
    suite.add("forward::refused_certificates", certificates);
    suite.add("forward::refused_servers", servers);
    suite.add("forward::a_server_that_changes_its_certificate", changed);
    suite.add("forward::the_log_has_it_first", log_first);
    suite.add("forward::the_sidecar_refuses_us", denied_by_the_sidecar);
    suite.add("forward::silent_pccs", silent_pccs);
    suite.add("forward::a_crowd_shares_one_verification", crowd);
    if suite.plays_the_rest() {
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

fn every_envelope(world: &World) {
    let lab = Lab::new();
    for envelope in [Envelope::V0, Envelope::V1, Envelope::Legacy, Envelope::Both] {
        let evidence = changed_report(|evidence| evidence.envelope = envelope);
        let certificate = lab.issue(&format!("{envelope:?}"), &evidence);
        let config = recorder::config(&certificate);
        let server = Recorder::tls(move |_| Arc::clone(&config));
        let forwarder = Forwarder::start(&lab.settings_to(world, server.address()));
        let mut driver = Wire::connect(forwarder.address());
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
fn bad(lab: &Lab) -> Vec<(&'static str, &'static str, Certificate)> {
    let victim = Key::derive(&SEED, "victim").expect("a key");
    let report_data = victim.report_data();
    let replayed = changed_report(|e| e.binding = Binding::Bytes(report_data));
    let debug = changed_report(|e| e.report.debug = true);
    let other = changed_report(|e| e.report.mrtd = [0x12; 48]);
    let old = PlatformOptions::with_level(PlatformLevel::OutOfDate);
    let old = Platform::new(&lab.pki, &old).expect("an old platform");
    let forger = Pki::new(&[0xf1; 32]).expect("another PKI");
    let forged = Platform::new(&forger, &PlatformOptions::default()).expect("a platform");
    let good = Evidence::default();
    vec![
        (
            "no_evidence",
            "upstream cert has no TDX attestation extension; set allow_simulator: true for non-TEE targets",
            lab.issue("plain", &changed_report(|e| e.envelope = Envelope::None)),
        ),
        (
            "unbound_key",
            "the quote's report data is not bound to this certificate's key",
            lab.issue("replayer", &replayed),
        ),
        (
            "debug_td",
            "TDX TD is in debug mode — connection refused. Debug TDs have no confidentiality guarantees.",
            lab.issue("debug", &debug),
        ),
        (
            "tcb_out_of_date",
            "Unacceptable TCB status: \"OutOfDate\". Acceptable statuses: OK, SWHardeningNeeded, ConfigurationNeeded, ConfigurationAndSWHardeningNeeded.",
            lab.issue_on(&lab.pki, &old, "old", &good),
        ),
        (
            "mrtd_not_allowed",
            "MRTD \"1212121212…1212\" is not in the allowlist.",
            lab.issue("other", &other),
        ),
        (
            "kms_root_mismatch",
            "cert chain verification failed",
            lab.issue_on(&forger, &lab.platform, "other root", &good),
        ),
        (
            "bad_signature",
            "the quote's signature does not verify under the trusted root",
            lab.issue_on(&lab.pki, &forged, "forged", &good),
        ),
    ]
}

/// Production settings with lists.
fn strict(lab: &Lab, world: &World, target: impl ToString) -> Settings {
    lab.settings_to(world, target)
        .set("EXPECTED_MRTD", &"11".repeat(48))
        .set("TEESQL_KMS_ROOT", &lab.path("kms.pem"))
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

fn certificates(world: &World) {
    let lab = Lab::new();
    for (code, text, certificate) in bad(&lab) {
        let config = recorder::config(&certificate);
        let server = Recorder::tls(move |_| Arc::clone(&config));
        let forwarder = Forwarder::start(&strict(&lab, world, server.address()));
        assert_refused(&forwarder, &server, code, text);
        assert_eq!(server.handshakes(), 1, "{code}: it was its certificate");
        // Nor a CancelRequest, whose key is as good as a secret.
        let mut cancel = Wire::connect(forwarder.address());
        cancel.send(&message::cancel(1, &[1, 2, 3, 4]));
        assert_eq!(cancel.last_message().error().severity, "FATAL");
        server.assert_untold(code, &OWN);
    }
}

fn servers(world: &World) {
    let lab = Lab::new();
    let quick = |server: &Recorder| strict(&lab, world, server.address());

    // A real Postgres takes the ClientHello for a startup packet of no length.
    let plain = Recorder::before(world.cluster().address());
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

    let nobody = Nobody::listens();
    let forwarder = Forwarder::start(&strict(&lab, world, nobody.address()));
    let text = format!("cannot connect to {}: ", nobody.address());
    let said = forwarder.ask(READER);
    assert!(said.contains(&format!("FATAL:  {text}")), "{said}");
    forwarder.await_reason("server_unreachable");
}

/// The second connection is judged by what it shows, not by what the first did.
fn changed(world: &World) {
    let lab = Lab::new();
    let debug = changed_report(|evidence| evidence.report.debug = true);
    let good = recorder::config(&lab.issue("good", &Evidence::default()));
    let bad = recorder::config(&lab.issue("bad", &debug));
    let server = Recorder::tls(move |nth| Arc::clone(if nth == 0 { &good } else { &bad }));
    let forwarder = Forwarder::start(&lab.settings_to(world, server.address()));
    let mut first = Wire::connect(forwarder.address());
    let startup = message::startup(PROTOCOL_3_0, &[("user", "first")]);
    first.send(&startup);
    first.expect_prefix(b"R");
    let mut second = Wire::connect(forwarder.address());
    second.send(&message::startup(PROTOCOL_3_0, &[("user", "second")]));
    let error = second.last_message().error();
    assert_eq!(error.code, "28000", "{error}");
    assert!(error.message.contains("debug mode"), "{error}");
    assert_eq!(server.inside(), startup, "only the first was passed on");
}

/// The line in the log is older than what the driver reads.
fn log_first(world: &World) {
    let lab = Lab::new();
    let certificate = lab.issue("plain", &changed_report(|e| e.envelope = Envelope::None));
    let config = recorder::config(&certificate);
    let server = Recorder::tls(move |_| Arc::clone(&config));
    let forwarder = Forwarder::start(&lab.settings_to(world, server.address()));
    let mut driver = Wire::connect(forwarder.address());
    driver.send(&message::startup(PROTOCOL_3_0, &[("user", "u")]));
    driver.expect_prefix(b"E");
    let read = SystemTime::now();
    let line = forwarder.await_reason("no_evidence");
    let written = line["timestamp"].as_str().expect("a time");
    let written = humantime::parse_rfc3339(written).expect("RFC 3339");
    assert!(written <= read, "{line}");
}

fn denied_by_the_sidecar(world: &World) {
    // By the gate: its words pass through.
    let lab = Lab::new();
    let sidecar = lab.sidecar(world);
    let evidence = changed_report(|evidence| evidence.report.debug = true);
    let (cert, key) = lab.files("debug client", &lab.issue("debug client", &evidence));
    let settings = lab
        .settings_to(world, sidecar.address())
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
    let config = recorder::refusing(&lab.issue("server", &Evidence::default()), &root);
    let server = Recorder::tls(move |_| Arc::clone(&config));
    let forwarder = Forwarder::start(&lab.settings_to(world, server.address()));
    let said = forwarder.ask(READER);
    assert!(
        said.contains("FATAL:  the server refused the client certificate"),
        "{said}"
    );
    forwarder.await_reason("tls_alert_received");
    assert_eq!(server.handshakes(), 0);
}

fn silent_pccs(world: &World) {
    let lab = Lab::new();
    lab.pccs.set_behaviour(attest::mock::Behaviour::Stall);
    let config = recorder::config(&lab.issue("server", &Evidence::default()));
    let server = Recorder::tls(move |_| Arc::clone(&config));
    let settings = lab
        .settings_to(world, server.address())
        .set("TEESQL_LOGIN_TIMEOUT", "1s");
    let forwarder = Forwarder::start(&settings);
    let text = "the server did not prove itself within the login timeout";
    assert_refused(&forwarder, &server, "server_timeout", text);

    lab.pccs.set_behaviour(attest::mock::Behaviour::Close);
    let forwarder = Forwarder::start(&settings.set("TEESQL_LOGIN_TIMEOUT", "60s"));
    let text = "no collateral for the peer's platform is available";
    assert_refused(&forwarder, &server, "collateral_unavailable", text);
}

fn crowd(world: &World) {
    let way = Way::open(
        world,
        &[
            ("TEESQL_SHARDS", "2"),
            ("TEESQL_ADMIN_LISTEN", "127.0.0.1:0"),
        ],
    );
    let before = way.lab.pccs.requests(Resource::TcbInfo);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| assert_eq!(way.forwarder.ask(READER), "1\n"));
        }
    });
    // One for us, at most one for the sidecar.
    let fetched = way.lab.pccs.requests(Resource::TcbInfo) - before;
    assert!((1..=2).contains(&fetched), "{fetched} fetches");
}

fn allow_simulator(world: &World) {
    let lab = Lab::new();
    let plain = lab.issue("plain", &changed_report(|e| e.envelope = Envelope::None));
    let debug = lab.issue("debug", &changed_report(|e| e.report.debug = true));
    let (plain, debug) = (recorder::config(&plain), recorder::config(&debug));
    let server = Recorder::tls(move |nth| Arc::clone(if nth == 0 { &plain } else { &debug }));
    let settings = lab
        .settings_to(world, server.address())
        .without("TEESQL_CLIENT_CERT")
        .without("TEESQL_CLIENT_KEY")
        .set("TEESQL_GUEST_AGENT", &lab.path("nobody.sock"))
        .set("TEESQL_ALLOW_SIMULATOR", "true");
    let forwarder = Forwarder::start(&settings);
    forwarder.await_line("a warning", |line| {
        let text = line["message"].as_str().unwrap_or_default();
        line["level"] == "WARN" && text.contains("without any TDX evidence is accepted")
    });
    let startup = message::startup(PROTOCOL_3_0, &[("user", "u")]);
    let mut first = Wire::connect(forwarder.address());
    first.send(&startup);
    first.expect_prefix(b"R");
    // Who has evidence is still held to it.
    let mut second = Wire::connect(forwarder.address());
    second.send(&startup);
    assert!(second.last_message().error().message.contains("debug mode"));

    let nobody = settings.clone().set("TEESQL_VERIFIER", "none");
    let forwarder = Forwarder::start(&nobody);
    let mut third = Wire::connect(forwarder.address());
    third.send(&startup);
    third.expect_prefix(b"R");
    let refused = nobody.without("TEESQL_ALLOW_SIMULATOR");
    let output = crate::process::run(refused.command(&[]), crate::process::PATIENCE);
    assert_eq!(output.status.code(), Some(64));
    let said = crate::process::lossy(&output.stderr);
    assert!(said.contains("confirm with --allow-simulator"), "{said}");
}
