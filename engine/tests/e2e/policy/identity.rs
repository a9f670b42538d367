//! A guest's identity is believed only from an operating system that is pinned, or that got its certificate from a pinned KMS.

use std::fs;

use attest::mock::{Certificate, Evidence, LeafOptions, Pki, Validity};

use super::{app, mock_os, peer, refused_by_forwarder, refused_by_sidecar, write_policy};
use crate::attestation_gate::{ADMITTED, refusal};
use crate::harness::READER;
use crate::harness::fixture::Fixture;
use crate::harness::forwarder::Forwarder;
use crate::harness::process::{TIMEOUT, lossy, run, run_successfully};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::{TdxFixture, now};

pub(super) fn add(suite: &mut Suite) {
    suite.add("policy::forged_identity_is_refused", forged_identity);
    suite.add("policy::re_wrapped_certificate_is_refused", re_wrapped);
    suite.add("policy::firmware_alone_is_no_server", firmware_alone);
    suite.add("policy::app_id_alone_is_safe_in_dstack", app_id_alone);
    suite.add("policy::printed_policy_is_valid_and_strict", printed_policy);
    suite.add("policy::all_mistakes_are_reported", all_mistakes);
}

/// The certificate of a TD whose evidence differs in one thing from the mock's default.
fn changed(tdx: &TdxFixture, name: &str, change: impl FnOnce(&mut Evidence)) -> Certificate {
    let mut evidence = Evidence::default();
    change(&mut evidence);
    tdx.issue(name, &evidence)
}

/// A TD with the same firmware, another kernel and copied events; and other changes of the operating system.
fn forged_identity(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let settings = tdx.production_settings(fixture);
    // These lists admitted it before.
    let lists = settings
        .clone()
        .set("TEESQL_ALLOWED_APP_ID", &"a1".repeat(20))
        .set("TEESQL_ALLOWED_COMPOSE_HASH", &"c0".repeat(32))
        .set("TEESQL_ALLOWED_OS_IMAGE_HASH", &"05".repeat(32))
        .set("TEESQL_ALLOWED_MRTD", &"11".repeat(48));
    let text = refused_by_sidecar(&lists);
    for part in [
        "any TD can claim",
        "kms_root",
        "allowed_rtmr1",
        "allow_unpinned_os",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }

    let policy = write_policy(&tdx, &[peer("orders api", "a1", "")]);
    let sidecar = Sidecar::start(&settings.set("TEESQL_POLICY_FILE", &policy));
    let select_1 = |certificate| tdx.psql_select_1(fixture, &sidecar, Some(&certificate));
    assert_eq!(select_1(tdx.issue("good", &Evidence::default())), ADMITTED);
    let forged = |code: &str, certificate| {
        let output = select_1(certificate);
        assert!(output.contains(&refusal("not_allowed")), "{code}: {output}");
        let line = sidecar.await_log(code, |line| line["reason"] == code);
        let detail = line["detail"].as_str().unwrap_or_default();
        assert!(
            detail.contains("peer \"orders api\", os \"mock\""),
            "{line}"
        );
    };
    forged(
        "rtmr_not_allowed",
        changed(&tdx, "kernel", |e| e.report.rtmr[1] = [0x66; 48]),
    );
    forged(
        "mrtd_not_allowed",
        changed(&tdx, "firmware", |e| e.report.mrtd = [0x66; 48]),
    );
    forged(
        "os_image_hash_not_allowed",
        changed(&tdx, "image", |e| e.os_image_hash = vec![0x66; 32]),
    );
    forged("app_not_allowed", tdx.issue("app", &app(0xbb)));
}

/// The dates of a certificate that its owner has issued to itself prove nothing.
fn re_wrapped(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let settings = tdx
        .production_settings(fixture)
        .set("TEESQL_MAX_CERTIFICATE_AGE", "1h");
    let text = refused_by_sidecar(&settings);
    assert!(text.contains("max_certificate_age"), "{text}");
    assert!(text.contains("set kms_root too"), "{text}");

    let settings = settings.set("TEESQL_KMS_ROOT", &tdx.path("kms.pem"));
    let sidecar = Sidecar::start(&settings);
    let fresh = LeafOptions {
        validity: Validity {
            from: now() - 60,
            until: now() + 3600,
        },
        ..LeafOptions::default()
    };
    let (old, good) = (Evidence::default(), Evidence::default());
    let select_1 = |certificate| tdx.psql_select_1(fixture, &sidecar, Some(&certificate));
    assert_eq!(select_1(tdx.issue_with("peer", &good, &fresh)), ADMITTED);
    let output = select_1(tdx.issue("old", &old));
    assert!(output.contains(&refusal("too_old")), "{output}");
    // The same key and quote, in a certificate of the owner's making with new dates.
    let own_ca = Pki::new(&[0x33; 32]).expect("a PKI");
    let key = attest::mock::Key::derive(&crate::harness::tdx_fixture::SEED, "old").expect("a key");
    let wrapped = Certificate::issue(&own_ca, &tdx.platform, &key, &old, &fresh).expect("a leaf");
    let output = select_1(wrapped);
    assert!(output.contains(&refusal("not_allowed")), "{output}");
    sidecar.await_reason("kms_root_mismatch");
}

/// `teesql-forward --mrtd …` gave the cluster secret to every TD with that firmware.
fn firmware_alone(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let sidecar = tdx.start_attested_sidecar(fixture);
    let settings = tdx
        .forwarder_settings_to(fixture, sidecar.address())
        .without("TEESQL_ALLOW_ANY_SERVER");
    let mrtd = "11".repeat(48);
    let text = refused_by_forwarder(&settings, &["--mrtd", &mrtd]);
    assert!(
        text.contains("which application the server must be"),
        "{text}"
    );
    assert!(text.contains("--allow-any-server"), "{text}");
    let text = refused_by_forwarder(&settings, &["--allowed-app-id", &"a1".repeat(20)]);
    assert!(text.contains("any TD can claim"), "{text}");

    // Pinned by a policy file, and by flat settings.
    let policy = write_policy(&tdx, &[peer("cluster", "a1", "")]);
    let forwarder = Forwarder::start(&settings.clone().set("TEESQL_POLICY_FILE", &policy));
    forwarder.assert_reader_connects();
    let flat = settings
        .clone()
        .set("TEESQL_ALLOWED_APP_ID", &"a1".repeat(20))
        .set("TEESQL_KMS_ROOT", &tdx.path("kms.pem"));
    Forwarder::start(&flat).assert_reader_connects();

    let other = write_policy(&tdx, &[peer("cluster", "a2", "")]);
    let forwarder = Forwarder::start(&settings.set("TEESQL_POLICY_FILE", &other));
    let output = forwarder.psql_select_1(READER);
    let text = "is not in the allowlist. (closest entry: peer \"cluster\", os \"mock\")";
    assert!(output.contains(text), "{output}");
    forwarder.await_reason("app_not_allowed");
}

/// With a guest agent, `allowed_app_id` alone requires the KMS of this machine.
fn app_id_alone(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let _agent = tdx.start_agent();
    let app_id = "a1".repeat(20);
    let settings = tdx
        .agent_settings(fixture)
        .set("TEESQL_ALLOWED_APP_ID", &app_id);
    let sidecar = Sidecar::start(&settings);
    sidecar.await_message("the KMS root of this machine's guest agent is required of peers");
    let good = tdx.issue("good", &Evidence::default());
    let select_1 = |certificate: Certificate| {
        let (cert, key) = tdx.write_pem("leaf", &certificate);
        let mut psql = tdx.psql(&sidecar, READER, "select 1");
        psql.env("PGSSLCERT", cert).env("PGSSLKEY", key);
        let output = run(psql, TIMEOUT);
        lossy(&output.stdout) + &lossy(&output.stderr)
    };
    assert_eq!(select_1(good), ADMITTED);
    let other_kms = Pki::new(&[0x34; 32]).expect("a PKI");
    let forged = tdx.issue_on(&other_kms, &tdx.platform, "forged", &Evidence::default());
    let output = select_1(forged);
    assert!(output.contains(&refusal("not_allowed")), "{output}");
    sidecar.await_reason("kms_root_mismatch");

    // A simulator's CA has a key that everybody knows.
    let simulator = settings
        .set("DSTACK_SIMULATOR_ENDPOINT", &tdx.path("dstack.sock"))
        .without("TEESQL_GUEST_AGENT");
    let text = refused_by_sidecar(&simulator);
    assert!(text.contains("any TD can claim"), "{text}");
    let own = simulator.set("TEESQL_KMS_ROOT", "own");
    let text = refused_by_sidecar(&own);
    assert!(text.contains("key of a simulator's CA is public"), "{text}");
}

/// `verify … --print-policy` of a running sidecar, used by a forwarder.
fn printed_policy(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let sidecar = tdx.start_attested_sidecar(fixture);
    let settings = tdx
        .forwarder_settings_to(fixture, sidecar.address())
        .without("TEESQL_ALLOW_ANY_SERVER");
    let address = sidecar.address().to_string();
    let root = settings.get("TEESQL_DANGEROUS_TDX_ROOT_CA");
    let pccs = settings.get("TEESQL_PCCS");
    let environment = [
        ("TEESQL_DANGEROUS_TDX_ROOT_CA", root.as_str()),
        ("TEESQL_PCCS", pccs.as_str()),
        // The policy of the command does not matter.
        ("TEESQL_ALLOWED_MRTD", &"77".repeat(48)),
    ];
    let arguments = ["verify", address.as_str(), "--print-policy"];
    let command = crate::harness::settings::sidecar_command(&arguments, &environment);
    let printed = run_successfully(command, TIMEOUT);
    assert!(
        printed.contains("[[os]]") && printed.contains("[[peer]]"),
        "{printed}"
    );
    fs::write(tdx.path("printed.toml"), &printed).expect("printed.toml");
    let settings = settings.set("TEESQL_POLICY_FILE", &tdx.path("printed.toml"));
    Forwarder::start(&settings).assert_reader_connects();

    let other = tdx.issue("sidecar 2", &app(0xa2));
    let (cert, key) = tdx.write_pem("sidecar 2", &other);
    let other = tdx
        .production_settings(fixture)
        .set("TEESQL_TLS_CERT", &cert)
        .set("TEESQL_TLS_KEY", &key);
    let other = Sidecar::start(&other);
    let forwarder = Forwarder::start(&settings.set("TEESQL_TARGET", &other.address().to_string()));
    forwarder.psql_select_1(READER);
    forwarder.await_reason("app_not_allowed");
}

/// Mistakes of the policy file and of the settings are reported together.
fn all_mistakes(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let text = mock_os() + &peer("a", "a1", "os_name = \"x\"") + &peer("a", "zz", "");
    fs::write(tdx.path("policy.toml"), text).expect("policy.toml");
    let path = tdx.path("policy.toml");
    let settings = tdx
        .production_settings(fixture)
        .set("TEESQL_POLICY_FILE", &path)
        .set("TEESQL_ALLOWED_APP_ID", &"a1".repeat(20))
        .set("TEESQL_SHARDS", "many");
    let text = refused_by_sidecar(&settings);
    for part in [
        &format!("{path}:12: peer \"a\": os_name: unknown key"),
        &format!("{path}:13: peer \"a\": line 8 has an entry of this name"),
        &format!("{path}:15: peer \"a\": app_id: an app id takes 40 hex digits"),
        "allowed_app_id is set, and so is policy_file",
        "shards = \"many\"",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let empty = settings
        .without("TEESQL_POLICY_FILE")
        .without("TEESQL_SHARDS")
        .set("TEESQL_ALLOWED_APP_ID", "");
    let text = refused_by_sidecar(&empty);
    assert!(text.contains("write any to allow every value"), "{text}");
}
