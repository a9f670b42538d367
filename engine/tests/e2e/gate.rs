//! Nobody enters unattested: psql and a client of our own with certificates of
//! the mock TDX, against a sidecar in production mode under its root.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use attest::mock::{
    Behaviour, Binding, Certificate, CollateralOptions, Envelope, Event, Evidence, Key,
    LeafOptions, Pccs, PccsResponses, Pki, Platform, PlatformLevel, PlatformOptions, QuoteFormat,
    Rtmr3, Validity,
};
use nix::sys::signal::Signal;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, SignatureScheme};

use crate::client::{Client, Opening};
use crate::process::{PATIENCE, lossy, poll, run, succeed};
use crate::psql::client;
use crate::sidecar::{Settings, Sidecar};
use crate::stage::READ_SECRET;
use crate::suite::{Suite, World};

const READER: (&str, &str) = ("teesql_read", READ_SECRET);
/// In the lab's folder.
const CONFIG: &str = "sidecar.toml";
const SEED: [u8; 32] = [0x5e; 32];

pub(crate) fn add(suite: &mut Suite) {
    suite.add("gate::every_envelope_enters", every_envelope);
    suite.add("gate::refusals", refusals);
    suite.add("gate::allow_lists", allow_lists);
    suite.add("gate::another_key_than_the_certificate's", swapped);
    suite.add("gate::policy_change_ends_sessions", policy_change);
    suite.add("gate::a_policy_mended_in_time_ends_nobody", mended_policy);
    suite.add("gate::tcb_recovery_ends_sessions", recovery);
    suite.add("gate::long_chains", long_chain);
    suite.add("gate::pccs_outage_and_restart", outage);
    suite.add("gate::silent_pccs_meets_the_login_deadline", silent_pccs);
    suite.add("gate::nothing_is_resumed", resumption);
    suite.add("gate::a_crowd_of_strangers_enters", crowd);
}

/// A mock TDX with its PCCS and a folder for certificates.
struct Lab {
    pki: Pki,
    platform: Platform,
    pccs: Pccs,
    folder: tempfile::TempDir,
}

/// Unix seconds: the sidecar's clock is the real one.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("after 1970").as_secs()
}

impl Lab {
    fn new() -> Self {
        let pki = Pki::new(&SEED).expect("a PKI");
        let platform = Platform::new(&pki, &PlatformOptions::default()).expect("a platform");
        let options = CollateralOptions::at(now());
        let collateral = pki.collateral(&options).expect("collateral");
        let answers = PccsResponses::empty().with(platform.collateral_key(), collateral);
        let pccs = Pccs::start(answers).expect("a PCCS on loopback");
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("root.pem"), pki.root_pem()).expect("root.pem");
        Self {
            pki,
            platform,
            pccs,
            folder,
        }
    }

    fn path(&self, name: &str) -> String {
        let path = self.folder.path().join(name);
        path.to_str().expect("UTF-8").to_owned()
    }

    /// A policy with this byte as the only measurement.
    fn allow_mrtd(&self, byte: &str) {
        let text = format!("allowed_mrtd = \"{}\"\n", byte.repeat(48));
        fs::write(self.path(CONFIG), text).expect("sidecar.toml");
    }

    /// A sidecar whose policy lets `certificate` in, and its session.
    fn allowed_at_first(
        &self,
        world: &World,
        grace: &str,
        certificate: &Certificate,
    ) -> (Sidecar, Client) {
        self.allow_mrtd("11");
        let settings = self
            .settings(world)
            .set("TEESQL_CONFIG", &self.path(CONFIG))
            .set("TEESQL_REVOCATION_GRACE", grace);
        let sidecar = Sidecar::start(&settings);
        let mut session = enter(world, &sidecar, certificate);
        session
            .login("teesql_read", "via_scram", READ_SECRET)
            .expect("allowed at first");
        (sidecar, session)
    }

    /// Production mode under the mock root.
    fn settings(&self, world: &World) -> Settings {
        world
            .settings()
            .set("TEESQL_REQUIRE_CLIENT_ATTESTATION", "true")
            .without("TEESQL_ALLOW_UNATTESTED_CLIENTS")
            .set("TEESQL_DANGEROUS_TDX_ROOT_CA", &self.path("root.pem"))
            .set("TEESQL_PCCS", &self.pccs.url())
    }

    fn issue_with(&self, name: &str, evidence: &Evidence, leaf: &LeafOptions) -> Certificate {
        let key = Key::derive(&SEED, name).expect("a key");
        Certificate::issue(&self.pki, &self.platform, &key, evidence, leaf).expect("a leaf")
    }

    fn issue(&self, name: &str, evidence: &Evidence) -> Certificate {
        self.issue_with(name, evidence, &LeafOptions::default())
    }

    /// psql's answer to `select 1` with this certificate.
    fn psql(&self, world: &World, sidecar: &Sidecar, certificate: Option<&Certificate>) -> String {
        let mut psql = self.psql_command(world, sidecar, certificate);
        psql.args(["-X", "-A", "-t", "-c", "select 1"]);
        let output = run(psql, PATIENCE);
        lossy(&output.stdout) + &lossy(&output.stderr)
    }

    fn psql_command(
        &self,
        world: &World,
        sidecar: &Sidecar,
        certificate: Option<&Certificate>,
    ) -> Command {
        let mut psql = client(world, sidecar, "psql", READER, "via_scram");
        if let Some(certificate) = certificate {
            let (cert, key) = self.files(&world.stage.fresh("leaf"), certificate);
            psql.env("PGSSLCERT", cert).env("PGSSLKEY", key);
        }
        psql
    }

    fn files(&self, name: &str, certificate: &Certificate) -> (PathBuf, PathBuf) {
        let cert = self.folder.path().join(format!("{name}.pem"));
        let key = self.folder.path().join(format!("{name}.key"));
        fs::write(&cert, certificate.chain_pem()).expect("the certificate");
        fs::write(&key, certificate.key().to_pkcs8_pem().expect("a key")).expect("the key");
        // libpq refuses a key that others can read.
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("permissions");
        (cert, key)
    }
}

/// What psql says when it got in.
const IN: &str = "1\n";

fn rejected(code: &str) -> String {
    format!("FATAL:  client attestation rejected: {code}\n")
}

fn every_envelope(world: &World) {
    let lab = Lab::new();
    let sidecar = Sidecar::start(&lab.settings(world));
    sidecar.await_line("a warning about the root", |line| {
        let message = line["message"].as_str().unwrap_or_default();
        line["level"] == "WARN" && message.contains("another root than Intel's")
    });
    for envelope in [Envelope::V0, Envelope::V1, Envelope::Legacy, Envelope::Both] {
        let evidence = Evidence {
            envelope,
            ..Evidence::default()
        };
        let certificate = lab.issue(&format!("{envelope:?}"), &evidence);
        let said = lab.psql(world, &sidecar, Some(&certificate));
        assert_eq!(said, IN, "{envelope:?}");
    }
    assert_eq!(
        lab.pccs.requests(attest::mock::Resource::TcbInfo),
        1,
        "one flight for all of them"
    );
}

/// Certificates that must not enter, each with its code.
fn bad_certificates(lab: &Lab) -> Vec<(&'static str, Option<Certificate>)> {
    let good = Evidence::default;
    let report = |change: fn(&mut attest::mock::TdReport)| {
        let mut evidence = good();
        change(&mut evidence.report);
        evidence
    };
    let dated = |from, until| {
        let validity = Validity { from, until };
        let leaf = LeafOptions {
            validity,
            ..LeafOptions::default()
        };
        Some(lab.issue_with("dated", &good(), &leaf))
    };
    let victim = Key::derive(&SEED, "victim").expect("a key");
    let replayed = Evidence {
        binding: Binding::Bytes(victim.report_data()),
        ..good()
    };
    let unproven = Evidence {
        rtmr3: Rtmr3::Bytes([9; 48]),
        ..good()
    };
    let plain = Evidence {
        envelope: Envelope::None,
        ..good()
    };
    let garbage = LeafOptions {
        attestation: Some(vec![0x85; 300]),
        ..LeafOptions::default()
    };
    let forger = Pki::new(&[0xf0; 32]).expect("another PKI");
    let forged = Platform::new(&forger, &PlatformOptions::default()).expect("a platform");
    let old = PlatformOptions::with_level(PlatformLevel::OutOfDate);
    let old = Platform::new(&lab.pki, &old).expect("an old platform");
    let on = |platform: &Platform, name| {
        let key = Key::derive(&SEED, name).expect("a key");
        let leaf = LeafOptions::default();
        Certificate::issue(&lab.pki, platform, &key, &good(), &leaf).expect("a leaf")
    };
    let (day, year) = (86_400, 365 * 86_400);
    vec![
        ("no_certificate", None),
        ("no_evidence", Some(lab.issue("plain", &plain))),
        (
            "malformed_evidence",
            Some(lab.issue_with("garbage", &good(), &garbage)),
        ),
        (
            "not_tdx",
            Some(lab.issue("sgx", &report(|r| r.format = QuoteFormat::SgxV3))),
        ),
        ("unbound_key", Some(lab.issue("replayer", &replayed))),
        ("bad_signature", Some(on(&forged, "forged"))),
        ("tcb_out_of_date", Some(on(&old, "old"))),
        (
            "debug_td",
            Some(lab.issue("debug", &report(|r| r.debug = true))),
        ),
        ("event_log_mismatch", Some(lab.issue("unproven", &unproven))),
        ("expired", dated(now() - year, now() - 2 * day)),
        ("not_yet_valid", dated(now() + 2 * day, now() + year)),
    ]
}

fn refusals(world: &World) {
    let lab = Lab::new();
    let sidecar = Sidecar::start(&lab.settings(world));
    for (code, certificate) in bad_certificates(&lab) {
        let said = lab.psql(world, &sidecar, certificate.as_ref());
        assert!(said.contains(&rejected(code)), "{code}: {said}");
        sidecar.await_line(code, |line| line["reason"] == code);
    }
    // None of them harmed those who may enter.
    let good = lab.issue("good", &Evidence::default());
    assert_eq!(lab.psql(world, &sidecar, Some(&good)), IN);
}

fn allow_lists(world: &World) {
    let lab = Lab::new();
    let settings = lab
        .settings(world)
        .set("EXPECTED_MRTD", &"11".repeat(48))
        .set("TEESQL_ALLOWED_APP_ID", &"a1".repeat(20));
    let sidecar = Sidecar::start(&settings);
    // The application's own events cannot change who it is.
    let impostor = Event::new("app-id", &[0xbb; 20]);
    let noisy = Evidence {
        after_ready: vec![impostor.clone()],
        ..Evidence::default()
    };
    let noisy = lab.issue("noisy", &noisy);
    assert_eq!(lab.psql(world, &sidecar, Some(&noisy)), IN);
    let mut other_app = Evidence {
        app_id: vec![0xbb; 20],
        ..Evidence::default()
    };
    let said = lab.psql(world, &sidecar, Some(&lab.issue("app", &other_app)));
    assert!(said.contains(&rejected("app_not_allowed")), "{said}");
    other_app.report.mrtd = [0x12; 48];
    let said = lab.psql(world, &sidecar, Some(&lab.issue("mrtd", &other_app)));
    assert!(said.contains(&rejected("mrtd_not_allowed")), "{said}");
}

/// Presents one certificate and signs with whatever key it is given.
#[derive(Debug)]
struct Presents(Arc<CertifiedKey>);

impl ResolvesClientCert for Presents {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn presenting(world: &World, certificate: &Certificate, key: &Key) -> ClientConfig {
    presenting_chain(world, &certificate.chain_der(), key)
}

fn presenting_chain(world: &World, chain: &[&[u8]], key: &Key) -> ClientConfig {
    let der = key.to_pkcs8_der().expect("a key");
    let der = PrivateKeyDer::try_from(der).expect("PKCS#8");
    let chain = chain.iter().map(|der| CertificateDer::from(der.to_vec()));
    let chain = chain.collect();
    let signing = any_supported_type(&der).expect("P-256");
    let mut config = world.stage.certificates.client(None);
    config.client_auth_cert_resolver =
        Arc::new(Presents(Arc::new(CertifiedKey::new(chain, signing))));
    config
}

fn enter(world: &World, sidecar: &Sidecar, certificate: &Certificate) -> Client {
    let config = presenting(world, certificate, certificate.key());
    Client::open_with(config, sidecar.address(), Opening::Raw).expect("TLS")
}

/// A captured certificate is of no use without its key.
fn swapped(world: &World) {
    let lab = Lab::new();
    let sidecar = Sidecar::start(&lab.settings(world));
    let certificate = lab.issue("owner", &Evidence::default());
    let thief = Key::derive(&SEED, "thief").expect("a key");
    let config = presenting(world, &certificate, &thief);
    // With TLS 1.3 the client learns of it when it reads.
    let opened = Client::open_with(config, sidecar.address(), Opening::Raw);
    sidecar.await_line("the proof fails", |line| {
        line["message"] == "TLS handshake failed" && line["reason"] == "tls_certificate"
    });
    drop(opened);
    let mut owner = enter(world, &sidecar, &certificate);
    owner
        .login("teesql_read", "via_scram", READ_SECRET)
        .expect("its owner enters");
}

fn policy_change(world: &World) {
    let lab = Lab::new();
    let certificate = lab.issue("client", &Evidence::default());
    let (sidecar, mut session) = lab.allowed_at_first(world, "1s", &certificate);
    let peer = session.peer_name();

    fs::write(lab.path(CONFIG), "allowed_mrtd = \"nonsense\"\n").expect("sidecar.toml");
    sidecar.signal(Signal::SIGHUP);
    sidecar.await_line("a mistake", |line| {
        line["message"] == "configuration not reloaded"
    });
    assert_eq!(
        session.ask("select 1"),
        "1",
        "the old policy stays in force"
    );

    lab.allow_mrtd("12");
    sidecar.signal(Signal::SIGHUP);
    let error = session.expect_refusal();
    assert_eq!(error.code, "57P01", "{error}");
    assert_eq!(
        error.message,
        "client attestation no longer accepted: mrtd_not_allowed"
    );
    assert_eq!(sidecar.await_end(peer)["reason"], "mrtd_not_allowed");
    let mut again = enter(world, &sidecar, &certificate);
    let error = again.expect_refusal();
    assert_eq!(
        error.message,
        "client attestation rejected: mrtd_not_allowed"
    );

    lab.allow_mrtd("11");
    sidecar.signal(Signal::SIGHUP);
    let reloaded = poll(PATIENCE, || {
        let lines = sidecar.lines().join("\n");
        let count = lines.matches("configuration reloaded, new policy").count();
        (count == 2).then_some(())
    });
    reloaded.expect("two new policies");
    let mut again = enter(world, &sidecar, &certificate);
    again
        .login("teesql_read", "via_scram", READ_SECRET)
        .expect("allowed again");
}

/// Who is refused by a policy that is mended within the grace stays.
fn mended_policy(world: &World) {
    let lab = Lab::new();
    let certificate = lab.issue("client", &Evidence::default());
    let (sidecar, mut session) = lab.allowed_at_first(world, "3s", &certificate);

    lab.allow_mrtd("12");
    sidecar.signal(Signal::SIGHUP);
    sidecar.await_line("a refusal", |line| {
        line["message"] == "clients lost their admission"
    });
    lab.allow_mrtd("11");
    sidecar.signal(Signal::SIGHUP);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(4) {
        assert_eq!(session.ask("select 1"), "1");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Collateral that comes later says that the platform is out of date: who runs
/// on it has to go.
fn recovery(world: &World) {
    let lab = Lab::new();
    // So near its end that the sidecar asks for newer within ten seconds.
    let mut options = CollateralOptions::at(now());
    options.tcb_info.until = now() + 40;
    let answer = |options: &CollateralOptions| {
        let collateral = lab.pki.collateral(options).expect("collateral");
        PccsResponses::empty().with(lab.platform.collateral_key(), collateral)
    };
    lab.pccs.set_responses(answer(&options));
    let settings = lab.settings(world).set("TEESQL_REVOCATION_GRACE", "off");
    let sidecar = Sidecar::start(&settings);
    let certificate = lab.issue("client", &Evidence::default());
    let mut session = enter(world, &sidecar, &certificate);
    session
        .login("teesql_read", "via_scram", READ_SECRET)
        .expect("up to date at first");
    lab.pccs.set_responses(answer(&CollateralOptions {
        evaluation_number: options.evaluation_number + 1,
        recovery: true,
        ..CollateralOptions::at(now())
    }));
    let error = session.expect_refusal();
    assert_eq!(error.code, "57P01", "{error}");
    assert_eq!(
        error.message,
        "client attestation no longer accepted: tcb_out_of_date"
    );
}

fn long_chain(world: &World) {
    let lab = Lab::new();
    let sidecar = Sidecar::start(&lab.settings(world));
    let certificate = lab.issue("client", &Evidence::default());
    let [leaf, ca] = certificate.chain_der();
    let mut chain = vec![ca; 50];
    chain.insert(0, leaf);
    let config = presenting_chain(world, &chain, certificate.key());
    let mut client = Client::open_with(config, sidecar.address(), Opening::Raw).expect("TLS");
    let error = client.expect_refusal();
    assert_eq!(error.message, "client attestation rejected: chain_too_long");
}

/// A PCCS that is down stops nobody whose collateral is held, and a restart
/// finds it on disk.
fn outage(world: &World) {
    let lab = Lab::new();
    let kept = lab.path("collateral");
    fs::create_dir(&kept).expect("a folder");
    let settings = lab.settings(world).set("TEESQL_COLLATERAL_DIR", &kept);
    let first = Sidecar::start(&settings);
    let certificate = lab.issue("first", &Evidence::default());
    assert_eq!(lab.psql(world, &first, Some(&certificate)), IN);

    lab.pccs.set_behaviour(Behaviour::Close);
    let stranger = lab.issue("stranger", &Evidence::default());
    assert_eq!(lab.psql(world, &first, Some(&stranger)), IN);
    let other_family = PlatformOptions {
        fmspc: attest::collateral::Fmspc([7; 6]),
        ..PlatformOptions::default()
    };
    let other = Platform::new(&lab.pki, &other_family).expect("a platform");
    let key = Key::derive(&SEED, "family").expect("a key");
    let leaf = LeafOptions::default();
    let evidence = Evidence::default();
    let other = Certificate::issue(&lab.pki, &other, &key, &evidence, &leaf).expect("a leaf");
    let said = lab.psql(world, &first, Some(&other));
    assert!(said.contains(&rejected("collateral_unavailable")), "{said}");
    drop(first);

    let second = Sidecar::start(&settings);
    assert_eq!(lab.psql(world, &second, Some(&stranger)), IN);
}

fn silent_pccs(world: &World) {
    let lab = Lab::new();
    lab.pccs.set_behaviour(Behaviour::Stall);
    let settings = lab.settings(world).set("TEESQL_LOGIN_TIMEOUT", "2s");
    let sidecar = Sidecar::start(&settings);
    let certificate = lab.issue("client", &Evidence::default());
    let begun = Instant::now();
    let mut client = enter(world, &sidecar, &certificate);
    let peer = client.peer_name();
    let error = client.expect_refusal();
    assert_eq!(error.code, "57014", "{error}");
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "it waits for ever"
    );
    assert_eq!(sidecar.await_end(peer)["reason"], "login_timeout");
}

fn resumption(world: &World) {
    let lab = Lab::new();
    let file = lab.path("sidecar.toml");
    fs::write(&file, "").expect("sidecar.toml");
    let settings = lab.settings(world).set("TEESQL_CONFIG", &file);
    let sidecar = Sidecar::start(&settings);
    let certificate = lab.issue("client", &Evidence::default());
    let mut config = presenting(world, &certificate, certificate.key());
    config.resumption = Resumption::in_memory_sessions(16);
    for _ in 0..3 {
        let opened = Client::open_with(config.clone(), sidecar.address(), Opening::Raw);
        let mut client = opened.expect("TLS");
        client
            .login("teesql_read", "via_scram", READ_SECRET)
            .expect("the login succeeds");
        assert_eq!(client.handshake_kind(), Some(rustls::HandshakeKind::Full));
        client.quit();
    }
    // Nor does what the client remembers help against a new policy.
    fs::write(&file, format!("allowed_mrtd = \"{}\"\n", "12".repeat(48))).expect("sidecar.toml");
    sidecar.signal(Signal::SIGHUP);
    sidecar.await_line("the new policy", |line| {
        line["message"] == "configuration reloaded, new policy"
    });
    let opened = Client::open_with(config, sidecar.address(), Opening::Raw);
    let error = opened.expect("TLS").expect_refusal();
    assert_eq!(
        error.message,
        "client attestation rejected: mrtd_not_allowed"
    );
}

/// Certificates that nobody has seen before, all at once: each is verified,
/// and nobody who may enter is refused.
fn crowd(world: &World) {
    let lab = Lab::new();
    let sidecar = Sidecar::start(&lab.settings(world));
    let certificates: Vec<_> = (0..100)
        .map(|i| lab.issue(&format!("stranger {i}"), &Evidence::default()))
        .collect();
    std::thread::scope(|scope| {
        for certificate in &certificates {
            scope.spawn(|| {
                let mut client = enter(world, &sidecar, certificate);
                client
                    .login("teesql_read", "via_scram", READ_SECRET)
                    .expect("nobody is refused");
            });
        }
    });
    let psql = lab.psql_command(world, &sidecar, certificates.first());
    let mut again = psql;
    again.args(["-X", "-A", "-t", "-c", "select 1"]);
    assert_eq!(succeed(again, PATIENCE), IN);
}
