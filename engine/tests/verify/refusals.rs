//! One wrong thing at a time: the command's verdict is the gate's, the first failed
//! step is the verdict, and the exit code follows.

use attest::denial::Fault;
use attest::mock::{
    Behaviour, Binding, Envelope, Event, Key, ModuleLevel, Pccs, PccsResponses, PlatformLevel,
    QeLevel, QuoteFormat, Resource, Revoked, Rtmr3, Validity,
};
use attest::policy::Settings;
use attest::{Denial, Policy, TrustedRoot, Verifier, examine};

use crate::command::{Run, first_failed, step, verify};
use crate::fixture::{Case, NOW, case};

const DAY: u64 = 86_400;

/// What the gate says, with the collateral at hand.
fn gate(case: &Case, settings: Settings) -> Result<(), Denial> {
    let policy = Policy::new(settings);
    let evidence = examine(&case.certificate().chain_der(), NOW, &policy)?;
    let collateral = case.pki.parsed_collateral(&case.collateral).unwrap();
    Verifier::new(TrustedRoot::dangerous(case.pki.root_der()).unwrap())
        .verify(&evidence, &collateral, &policy, NOW)
        .map(drop)
}

/// Checks the command against the gate; gives the code.
fn same_as_gate(case: &Case, settings: Settings, flags: &[&str]) -> String {
    let run = case.verify(&[flags, &["--format", "json"]].concat());
    let report = run.json();
    let verdict = &report["verdict"];
    let (code, exit) = match gate(case, settings) {
        Ok(()) => ("accepted", 0),
        Err(denial) => {
            assert_eq!(first_failed(&report), Some(denial.code()), "{report:#}");
            assert_eq!(verdict["code"], denial.code());
            assert_eq!(verdict["text"], denial.to_string());
            (
                denial.code(),
                if denial.fault() == Fault::Peer { 1 } else { 69 },
            )
        }
    };
    assert_eq!(run.code, exit, "{report:#}");
    assert_eq!(verdict["exit_code"], exit);
    if exit == 0 {
        assert_eq!(first_failed(&report), None);
        assert_eq!(verdict["result"], "accepted");
    }
    code.to_owned()
}

fn code(change: impl FnOnce(&mut Case)) -> String {
    same_as_gate(&case(change), Settings::default(), &[])
}

#[test]
fn every_envelope_is_accepted() {
    for envelope in [Envelope::V0, Envelope::V1, Envelope::Legacy, Envelope::Both] {
        assert_eq!(code(|case| case.evidence.envelope = envelope), "accepted");
    }
    let format = QuoteFormat::V5Td15;
    assert_eq!(
        code(|case| case.evidence.report.format = format),
        "accepted"
    );
}

#[test]
fn what_the_certificate_is_refused_for() {
    let other = Key::derive(&[9; 32], "other").unwrap().report_data();
    let dates = |from, until| move |case: &mut Case| case.leaf.validity = Validity { from, until };
    assert_eq!(code(dates(NOW - 2 * DAY, NOW - DAY)), "expired");
    assert_eq!(code(dates(NOW + DAY, NOW + 2 * DAY)), "not_yet_valid");
    assert_eq!(
        code(|case| case.evidence.envelope = Envelope::None),
        "no_evidence"
    );
    assert_eq!(
        code(|case| case.leaf.attestation = Some(vec![0x42])),
        "malformed_evidence"
    );
    assert_eq!(
        code(|case| case.evidence.report.format = QuoteFormat::SgxV3),
        "not_tdx"
    );
    assert_eq!(
        code(|case| case.evidence.binding = Binding::Bytes(other)),
        "unbound_key"
    );
}

#[test]
fn what_the_platform_is_refused_for() {
    let revoked = Revoked {
        platform: Some(Case::default().platform.name),
        ..Revoked::default()
    };
    assert_eq!(code(|case| case.evidence.report.debug = true), "debug_td");
    assert_eq!(
        code(|case| case.evidence.report.attributes = 1 << 29),
        "td_attributes_refused"
    );
    assert_eq!(
        code(|case| case.platform.level = PlatformLevel::OutOfDate),
        "tcb_out_of_date"
    );
    assert_eq!(
        code(|case| case.platform.level = PlatformLevel::Revoked),
        "tcb_revoked"
    );
    assert_eq!(
        code(|case| case.platform.level = PlatformLevel::Unknown),
        "tcb_out_of_date"
    );
    assert_eq!(
        code(|case| case.platform.module = ModuleLevel::Unknown),
        "tcb_out_of_date"
    );
    assert_eq!(
        code(|case| case.platform.qe = QeLevel::Unknown),
        "tcb_out_of_date"
    );
    assert_eq!(
        code(|case| case.collateral.revoked = revoked),
        "pck_revoked"
    );
    assert_eq!(
        code(|case| case.platform.validity.until = NOW - DAY),
        "pck_not_valid"
    );
}

/// Where several things are wrong, the first in the gate's order counts.
#[test]
fn of_several_the_first() {
    let other = attest::collateral::Fmspc([9; 6]);
    assert_eq!(
        code(|case| case.collateral.fmspc = other),
        "collateral_unavailable"
    );
    let stale = Validity {
        from: NOW - 2 * DAY,
        until: NOW - DAY,
    };
    for (stale_too, expected) in [(false, "debug_td"), (true, "collateral_expired")] {
        let both = |case: &mut Case| {
            case.evidence.report.debug = true;
            case.collateral.fmspc = other;
            if stale_too {
                case.collateral.tcb_info = stale;
            }
        };
        assert_eq!(code(both), expected);
    }
}

#[test]
fn what_the_log_is_refused_for() {
    assert_eq!(
        code(|case| case.evidence.rtmr3 = Rtmr3::Bytes([3; 48])),
        "event_log_mismatch"
    );
    let twice = Event::new("app-id", &[0xb2; 20]);
    assert_eq!(
        code(|case| case.evidence.before_ready = vec![twice]),
        "malformed_evidence"
    );
}

#[test]
fn what_the_policy_refuses() {
    let hex = |byte: &str, len| byte.repeat(len);
    type Change = fn(&mut Settings);
    let cases: [(&str, String, Change, &str); 8] = [
        (
            "--allowed-mrtd",
            hex("12", 48),
            |s| s.mrtd = vec!["12".repeat(48).parse().unwrap()],
            "mrtd_not_allowed",
        ),
        (
            "--allowed-rtmr2",
            hex("12", 48),
            |s| s.rtmr[2] = vec!["12".repeat(48).parse().unwrap()],
            "rtmr_not_allowed",
        ),
        (
            "--allowed-app-id",
            hex("12", 20),
            |s| s.app_id = vec!["12".repeat(20).parse().unwrap()],
            "app_not_allowed",
        ),
        (
            "--allowed-compose-hash",
            hex("12", 32),
            |s| s.compose_hash = vec!["12".repeat(32).parse().unwrap()],
            "compose_hash_not_allowed",
        ),
        (
            "--allowed-os-image-hash",
            hex("12", 32),
            |s| s.os_image_hash = vec!["12".repeat(32).parse().unwrap()],
            "os_image_hash_not_allowed",
        ),
        (
            "--max-certificate-age",
            "1h".to_owned(),
            |s| s.max_certificate_age = Some(std::time::Duration::from_secs(3600)),
            "too_old",
        ),
        (
            "--allowed-app-id",
            hex("a1", 20),
            |s| s.app_id = vec!["a1".repeat(20).parse().unwrap()],
            "accepted",
        ),
        (
            "--allowed-mrtd",
            hex("11", 48),
            |s| s.mrtd = vec!["11".repeat(48).parse().unwrap()],
            "accepted",
        ),
    ];
    for (flag, value, change, expected) in cases {
        let mut settings = Settings::default();
        change(&mut settings);
        let code = same_as_gate(&Case::default(), settings, &[flag, &value]);
        assert_eq!(code, expected, "{flag}");
    }
}

#[test]
fn advisories_and_kms_roots() {
    let weak = case(|case| case.platform.level = PlatformLevel::SwHardeningNeeded);
    assert_eq!(same_as_gate(&weak, Settings::default(), &[]), "accepted");
    let refusing = Settings {
        refused_advisories: vec!["INTEL-SA-00615".parse().unwrap()],
        ..Settings::default()
    };
    let flags = ["--refused-advisories", "INTEL-SA-00615"];
    assert_eq!(same_as_gate(&weak, refusing, &flags), "advisory_refused");

    let ours = Case::default();
    for (pem, der, expected) in [
        (ours.pki.kms_pem(), ours.pki.kms_der(), "accepted"),
        (
            ours.pki.root_pem(),
            ours.pki.root_der(),
            "kms_root_mismatch",
        ),
    ] {
        let pinned = Settings {
            kms_roots: vec![attest::chain::KmsRoot::from_der(der).unwrap()],
            ..Settings::default()
        };
        let file = ours.write("kms.pem", pem);
        assert_eq!(
            same_as_gate(&ours, pinned, &["--kms-root", &file]),
            expected
        );
    }
}

/// A TD under debug is refused for that, and yet its signatures are told.
#[test]
fn later_steps_are_told_after_a_refusal() {
    let report = case(|case| case.evidence.report.debug = true)
        .verify(&["--format", "json"])
        .json();
    assert_eq!(step(&report, "debug")["code"], "debug_td");
    assert_eq!(step(&report, "signatures")["state"], "ok");
    assert_eq!(step(&report, "tcb")["facts"]["status"], "UpToDate");
    assert_eq!(step(&report, "event_log")["state"], "ok");

    let list = "12".repeat(48);
    let flags = ["--format", "json", "--allowed-mrtd", &list];
    let report = case(|case| case.leaf.validity.until = NOW - DAY)
        .verify(&flags)
        .json();
    assert_eq!(step(&report, "dates")["code"], "expired");
    assert_eq!(step(&report, "binding")["state"], "ok");
    assert_eq!(step(&report, "mrtd")["code"], "mrtd_not_allowed");
    assert_eq!(report["verdict"]["code"], "expired");
}

/// Collateral that we broke is no proof against the peer.
#[test]
fn collateral_that_is_not_genuine() {
    let case = Case::default();
    let other = attest::mock::Pki::new(&[8; 32]).unwrap();
    let forged = other.parsed_collateral(&case.collateral).unwrap();
    let forged = case.write("forged.json", forged.to_json().unwrap());
    let root = case.write("root.pem", case.pki.root_pem());
    let mut arguments = vec![case.pem(), "--format".into(), "json".into()];
    arguments.extend(case.flags_without_collateral(&root));
    arguments.extend(["--collateral".into(), forged]);
    let run = verify(arguments);
    assert_eq!(run.code, 69, "{run:?}");
    let report = run.json();
    assert_eq!(report["verdict"]["code"], "collateral_unavailable");
    let why = step(&report, "collateral")["text"].as_str().unwrap();
    assert!(
        why.contains("does not verify against the trusted root"),
        "{why}"
    );
}

fn with_pccs(case: &Case, pccs: &Pccs, root: Option<&str>) -> Run {
    let mut arguments = vec![case.pem(), "--format".into(), "json".into()];
    arguments.extend(["--pccs".into(), pccs.url()]);
    match root {
        Some(root) => arguments.extend(case.flags_without_collateral(root)),
        None => arguments.extend(["--at".into(), NOW.to_string()]),
    }
    verify(arguments)
}

#[test]
fn collateral_from_a_pccs() {
    let case = Case::default();
    let collateral = case.pki.collateral(&case.collateral).unwrap();
    let answers = PccsResponses::empty().with(case.platform().collateral_key(), collateral);
    let pccs = Pccs::start(answers).unwrap();
    let root = case.write("root.pem", case.pki.root_pem());

    let stranger = with_pccs(&case, &pccs, None);
    assert_eq!(stranger.code, 1, "{stranger:?}");
    assert_eq!(first_failed(&stranger.json()), Some("bad_signature"));
    assert_eq!(stranger.json()["verdict"]["code"], "bad_signature");
    assert_eq!(
        pccs.requests(Resource::TcbInfo),
        0,
        "not asked for strangers"
    );

    let run = with_pccs(&case, &pccs, Some(&root));
    assert_eq!(run.code, 0, "{run:?}");
    let report = run.json();
    let source = step(&report, "collateral")["facts"]["source"]
        .as_str()
        .unwrap();
    assert_eq!(source, pccs.url().trim_end_matches('/'));
    assert_eq!(pccs.requests(Resource::TcbInfo), 1);

    pccs.set_behaviour(Behaviour::Status(503));
    let down = with_pccs(&case, &pccs, Some(&root));
    assert_eq!(down.code, 69, "{down:?}");
    let report = down.json();
    assert_eq!(report["verdict"]["code"], "collateral_unavailable");
    let why = step(&report, "collateral")["text"].as_str().unwrap();
    assert!(why.contains("503"), "{why}");
}
