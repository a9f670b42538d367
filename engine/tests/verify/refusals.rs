//! The report is that of the gate: every check is in it, a refused peer's report names the check that
//! refused it, and the verdict and exit code follow.

use std::collections::BTreeSet;

use attest::chain::KmsRoot;
use attest::collateral::Fmspc;
use attest::denial::Fault;
use attest::mock::{
    Behaviour, Binding, Envelope, Event, Fixture, Key, ModuleLevel, Pccs, PccsResponses, Pki,
    PlatformLevel, QeLevel, QuoteFormat, Resource, Revoked, Rtmr3, Validity,
};
use attest::policy::file::{Context, parse};
use attest::policy::{KmsRootPin, Settings};
use attest::tcb::TcbStatuses;
use attest::trace::Check;
use attest::{AttestedPeer, Denial, Policy};
use serde_json::Value;

use crate::command::{Run, first_failed, step, step_names, verify};
use crate::fixture::{CommandFixture, NOW};

const DAY: u64 = 86_400;
const PAST: Validity = Validity {
    from: NOW - 2 * DAY,
    until: NOW - DAY,
};
const FUTURE: Validity = Validity {
    from: NOW + DAY,
    until: NOW + 2 * DAY,
};

/// The codes of [`Denial::CODES`] that no file of the mock's evidence causes.
const UNREACHABLE: [(&str, &str); 5] = [
    (
        "no_certificate",
        "a file without a certificate is exit code 66, and a TLS server has one",
    ),
    (
        "overloaded",
        "the gate's queue is full; the command has none",
    ),
    ("tcb_up_to_date", "every policy accepts it"),
    ("tcb_relaunch_advised", "the mock has no such level"),
    (
        "tcb_relaunch_advised_configuration_needed",
        "the mock has no such level",
    ),
];

/// A peer that is refused for one reason.
struct Refusal {
    code: &'static str,
    /// The check that refuses it.
    check: Check,
    fixture: CommandFixture,
    /// The chain in the file; `None` for the fixture's.
    chain: Option<(String, Vec<Vec<u8>>)>,
    /// The flags that make the fixture's policy.
    flags: Vec<String>,
}

fn refusal(code: &'static str, check: Check, change: impl FnOnce(&mut Fixture)) -> Refusal {
    Refusal {
        code,
        check,
        fixture: CommandFixture::with(change),
        chain: None,
        flags: Vec::new(),
    }
}

impl Refusal {
    /// Replaces the peer's chain by that in `file`.
    fn with_chain(mut self, file: impl AsRef<[u8]>, chain: Vec<Vec<u8>>) -> Self {
        self.chain = Some((self.fixture.write("chain", file), chain));
        self
    }

    /// Sets the policy, both as a flag and as a setting.
    fn with_policy(mut self, flag: &str, value: &str, change: impl FnOnce(&mut Settings)) -> Self {
        self.flags = vec![flag.to_owned(), value.to_owned()];
        set_policy(&mut self.fixture.peer, change);
        self
    }

    fn gate(&self) -> Result<AttestedPeer, Denial> {
        match &self.chain {
            Some((_, chain)) => self.fixture.peer.verify_chain(chain),
            None => self.fixture.peer.verify(),
        }
    }

    fn run(&self) -> Run {
        let path = match &self.chain {
            Some((path, _)) => path.clone(),
            None => self.fixture.pem(),
        };
        let mut flags = vec!["--format", "json"];
        flags.extend(self.flags.iter().map(String::as_str));
        self.fixture.verify_file(&path, &flags)
    }
}

fn set_policy(peer: &mut Fixture, change: impl FnOnce(&mut Settings)) {
    let mut settings = peer.policy.settings().clone();
    change(&mut settings);
    peer.policy = Policy::new(settings);
}

/// Asserts that the report of `run` has the gate's `denial`, and that each check is in it once.
fn assert_refused(run: &Run, denial: &Denial) -> Value {
    let report = run.json();
    assert_eq!(step_names(&report), Check::ALL.map(Check::as_str));
    let failed = first_failed(&report).unwrap();
    let verdict = &report["verdict"];
    for part in [failed, verdict] {
        assert_eq!(part["code"], denial.code(), "{report:#}");
        assert_eq!(part["text"], denial.to_string());
    }
    assert_eq!(verdict["result"], "refused");
    assert_eq!(verdict["valid_until"], Value::Null);
    let exit_code = match denial.fault() {
        Fault::Peer => 1,
        Fault::Ours => 69,
    };
    assert_eq!(run.code, exit_code);
    assert_eq!(verdict["exit_code"], exit_code);
    report
}

fn assert_accepted(fixture: &CommandFixture, flags: &[&str]) {
    let peer = fixture.peer.verify().unwrap();
    let run = fixture.verify(&[flags, &["--format", "json"]].concat());
    let report = run.json();
    assert_eq!(run.code, 0, "{report:#}");
    assert_eq!(step_names(&report), Check::ALL.map(Check::as_str));
    assert_eq!(first_failed(&report), None);
    assert_eq!(report["verdict"]["result"], "accepted");
    assert_eq!(report["verdict"]["valid_until"], peer.valid_until());
}

/// The first refusal of `fixture`, which must be the gate's.
fn code(fixture: &CommandFixture) -> &'static str {
    let denial = fixture.peer.verify().unwrap_err();
    assert_refused(&fixture.verify(&["--format", "json"]), &denial);
    denial.code()
}

/// An envelope whose quote claims another MRTD than the signed one.
fn tampered_envelope() -> Vec<u8> {
    let peer = Fixture::default();
    let (quote, key) = (peer.certificate(), peer.key("peer"));
    let quote = quote.quote().unwrap();
    let mut envelope = peer.evidence.v1(quote, key.report_data()).unwrap();
    let mrtd = envelope.windows(48).position(|bytes| bytes == [0x11; 48]);
    envelope[mrtd.unwrap()] ^= 1;
    envelope
}

fn certificate_refusals() -> Vec<Refusal> {
    let certificate = Fixture::default().certificate();
    let garbage = [&[0x30, 0x82, 0x01, 0x00][..], &[0; 256]].concat();
    let hour = std::time::Duration::from_secs(3600);
    vec![
        refusal("chain_too_long", Check::Certificate, |_| {}).with_chain(
            certificate.pem().repeat(50),
            vec![certificate.der().to_vec(); 50],
        ),
        refusal("malformed_certificate", Check::Certificate, |_| {})
            .with_chain(&garbage, vec![garbage.clone()]),
        refusal("expired", Check::Dates, |peer| peer.leaf.validity = PAST),
        refusal("not_yet_valid", Check::Dates, |peer| {
            peer.leaf.validity = FUTURE
        }),
        refusal("too_old", Check::Dates, |_| {}).with_policy("--max-certificate-age", "1h", |s| {
            s.max_certificate_age = Some(hour)
        }),
    ]
}

fn evidence_refusals() -> Vec<Refusal> {
    let other = Key::derive(&[9; 32], "other").unwrap().report_data();
    let app_id = Event::new("app-id", &[0xb2; 20]);
    vec![
        refusal("no_evidence", Check::Evidence, |peer| {
            peer.evidence.envelope = Envelope::None;
        }),
        refusal("malformed_evidence", Check::Evidence, |peer| {
            peer.leaf.attestation = Some(vec![0x42]);
        }),
        refusal("not_tdx", Check::Evidence, |peer| {
            peer.evidence.report.format = QuoteFormat::SgxV3;
        }),
        refusal("unsupported_quote", Check::Evidence, |peer| {
            peer.evidence.report.certification = 3;
        }),
        refusal("unbound_key", Check::Binding, |peer| {
            peer.evidence.binding = Binding::Bytes(other);
        }),
        refusal("event_log_mismatch", Check::EventLog, |peer| {
            peer.evidence.rtmr3 = Rtmr3::Bytes([3; 48]);
        }),
        // A second app-id event before system-ready.
        refusal("malformed_evidence", Check::EventLog, |peer| {
            peer.evidence.before_ready = vec![app_id];
        }),
    ]
}

fn platform_refusals() -> Vec<Refusal> {
    let module = [6, 0x7f, 9, 9, 9, 9, 9, 9, 0, 0, 0, 0, 0, 0, 0, 0];
    vec![
        refusal("collateral_unavailable", Check::Collateral, |peer| {
            peer.collateral.fmspc = Fmspc([9; 6]);
        }),
        refusal("collateral_expired", Check::Collateral, |peer| {
            peer.collateral.tcb_info = PAST;
        }),
        refusal("collateral_not_yet_valid", Check::Collateral, |peer| {
            peer.collateral.tcb_info = FUTURE;
        }),
        refusal("debug_td", Check::Debug, |peer| {
            peer.evidence.report.debug = true
        }),
        refusal("bad_signature", Check::Signatures, |peer| {
            peer.leaf.attestation = Some(tampered_envelope());
        }),
        refusal("pck_revoked", Check::Signatures, |peer| {
            peer.collateral.revoked = Revoked {
                platform: Some(peer.platform.name),
                ..Revoked::default()
            };
        }),
        refusal("pck_not_valid", Check::Signatures, |peer| {
            peer.platform.validity.until = NOW - DAY;
        }),
        refusal("td_attributes_refused", Check::TdAttributes, |peer| {
            peer.evidence.report.attributes = 1 << 29;
        }),
        refusal("tcb_not_supported", Check::Tcb, |peer| {
            peer.evidence.report.tee_tcb_svn = Some(module);
        }),
        refusal("tcb_out_of_date", Check::Tcb, |peer| {
            peer.platform.module = ModuleLevel::Unknown;
        }),
        refusal("tcb_out_of_date", Check::Tcb, |peer| {
            peer.platform.qe = QeLevel::Unknown
        }),
    ]
}

fn tcb_refusals() -> Vec<Refusal> {
    let level = |code, level| refusal(code, Check::Tcb, |peer| peer.platform.level = level);
    let unless_up_to_date = |code, status| {
        level(code, status).with_policy("--accepted-tcb-status", "UpToDate", |settings| {
            settings.tcb_statuses = TcbStatuses::new([]);
        })
    };
    vec![
        level("tcb_out_of_date", PlatformLevel::OutOfDate),
        level("tcb_out_of_date", PlatformLevel::Unknown),
        level("tcb_revoked", PlatformLevel::Revoked),
        level(
            "tcb_out_of_date_configuration_needed",
            PlatformLevel::OutOfDateConfigurationNeeded,
        ),
        unless_up_to_date("tcb_sw_hardening_needed", PlatformLevel::SwHardeningNeeded),
        unless_up_to_date(
            "tcb_configuration_needed",
            PlatformLevel::ConfigurationNeeded,
        ),
        unless_up_to_date(
            "tcb_configuration_and_sw_hardening_needed",
            PlatformLevel::ConfigurationAndSwHardeningNeeded,
        ),
        refusal("advisory_refused", Check::Advisories, |peer| {
            peer.platform.level = PlatformLevel::SwHardeningNeeded;
        })
        .with_policy("--refused-advisories", "INTEL-SA-00615", |settings| {
            settings.refused_advisories = vec!["INTEL-SA-00615".parse().unwrap()];
        }),
    ]
}

fn allow_list_refusals() -> Vec<Refusal> {
    let (mrtd, rtmr) = ("12".repeat(48), "12".repeat(48));
    let (app_id, hash) = ("12".repeat(20), "12".repeat(32));
    let default = |code, check| refusal(code, check, |_| {});
    let mut refusals = vec![
        default("mrtd_not_allowed", Check::Mrtd).with_policy("--allowed-mrtd", &mrtd, |s| {
            s.mrtd = vec![mrtd.parse().unwrap()];
        }),
        default("app_not_allowed", Check::AppId).with_policy("--allowed-app-id", &app_id, |s| {
            s.app_id = vec![app_id.parse().unwrap()];
        }),
        default("compose_hash_not_allowed", Check::ComposeHash).with_policy(
            "--allowed-compose-hash",
            &hash,
            |s| s.compose_hash = vec![hash.parse().unwrap()],
        ),
        default("os_image_hash_not_allowed", Check::OsImageHash).with_policy(
            "--allowed-os-image-hash",
            &hash,
            |s| s.os_image_hash = vec![hash.parse().unwrap()],
        ),
        default("instance_not_allowed", Check::InstanceId).with_policy(
            "--allowed-instance-id",
            &app_id,
            |s| s.instance_id = vec![app_id.parse().unwrap()],
        ),
    ];
    let registers = [Check::Rtmr0, Check::Rtmr1, Check::Rtmr2, Check::Rtmr3];
    refusals.extend(registers.into_iter().enumerate().map(|(index, check)| {
        let flag = format!("--allowed-rtmr{index}");
        default("rtmr_not_allowed", check).with_policy(&flag, &rtmr, |s| {
            s.rtmr[index] = vec![rtmr.parse().unwrap()];
        })
    }));
    // The root of the platform's certificates is not the issuer of the leaf.
    let kms_root = default("kms_root_mismatch", Check::KmsRoot);
    let file = kms_root.fixture.root_pem();
    let root = KmsRoot::from_der(kms_root.fixture.peer.pki.root_der()).unwrap();
    refusals.push(kms_root.with_policy("--kms-root", &file, |s| {
        s.kms_root = KmsRootPin::Roots(vec![root])
    }));
    refusals
}

/// The default peer under a policy file whose `[[os]]` and `[[peer]]` have one more key each, or none.
fn policy_file_refusal(code: &'static str, check: Check, os: &str, peer: &str) -> Refusal {
    let refusal = refusal(code, check, |_| {});
    let text = format!(
        "[[os]]\nname = \"mock\"\nmrtd = \"{}\"\nrtmr1 = \"{}\"\nrtmr2 = \"{}\"\n{os}\n\
         [[peer]]\nname = \"any\"\napp_id = \"any\"\nos = \"mock\"\n{peer}\n",
        "11".repeat(48),
        "21".repeat(48),
        "22".repeat(48)
    );
    let context = Context {
        roles: &["teesql_read", "teesql_readwrite"],
        default_roles: &["teesql_read", "teesql_readwrite"],
        default_kms_root: KmsRootPin::Any,
        read_roots: &|_| Ok(Vec::new()),
    };
    let peers = parse(&text, &context).unwrap();
    let file = refusal.fixture.write("policy.toml", text);
    refusal.with_policy("--policy-file", &file, |settings| settings.peers = peers)
}

fn pin_refusals() -> Vec<Refusal> {
    let pinned = |key: &str, bytes: usize| format!("{key} = \"{}\"", "12".repeat(bytes));
    let mut refusals = vec![
        refusal("tcb_evaluation_too_old", Check::Collateral, |_| {}).with_policy(
            "--min-tcb-evaluation-data-number",
            "18",
            |settings| settings.min_tcb_evaluation = Some(18),
        ),
    ];
    for (code, key) in [
        ("xfam_not_allowed", "xfam"),
        ("td_attributes_not_allowed", "td_attributes"),
    ] {
        let os = pinned(key, 8);
        refusals.push(policy_file_refusal(code, Check::Configuration, &os, ""));
    }
    for (code, key, bytes, check) in [
        (
            "mr_config_id_not_allowed",
            "mr_config_id",
            48,
            Check::Configuration,
        ),
        ("mr_owner_not_allowed", "mr_owner", 48, Check::Configuration),
        (
            "mr_owner_config_not_allowed",
            "mr_owner_config",
            48,
            Check::Configuration,
        ),
        ("mr_seam_not_allowed", "mr_seam", 48, Check::Platform),
        ("piid_not_allowed", "piid", 16, Check::Platform),
    ] {
        refusals.push(policy_file_refusal(code, check, "", &pinned(key, bytes)));
    }
    for (code, key) in [
        ("smt_not_allowed", "smt"),
        ("dynamic_platform_not_allowed", "dynamic_platform"),
        ("cached_keys_not_allowed", "cached_keys"),
    ] {
        let peer = format!("{key} = false");
        refusals.push(policy_file_refusal(code, Check::Platform, "", &peer));
    }
    refusals
}

fn refusals() -> Vec<Refusal> {
    let mut all = certificate_refusals();
    all.extend(evidence_refusals());
    all.extend(platform_refusals());
    all.extend(tcb_refusals());
    all.extend(allow_list_refusals());
    all.extend(pin_refusals());
    all
}

#[test]
fn names_the_check_that_refuses_with_the_code_of_the_gate() {
    for refusal in refusals() {
        let denial = refusal.gate().unwrap_err();
        assert_eq!(denial.code(), refusal.code, "{}", refusal.check);
        let report = assert_refused(&refusal.run(), &denial);
        let failed = first_failed(&report).unwrap();
        assert_eq!(failed["step"], refusal.check.as_str(), "{}", refusal.code);
    }
}

#[test]
fn covers_every_denial_code_and_every_check() {
    let refusals = refusals();
    let unreachable = UNREACHABLE.iter().map(|(code, _)| *code);
    let codes: BTreeSet<_> = refusals.iter().map(|refusal| refusal.code).collect();
    for code in unreachable.clone() {
        assert!(!codes.contains(code), "{code} is reachable");
    }
    let codes: BTreeSet<_> = codes.into_iter().chain(unreachable).collect();
    assert_eq!(codes, Denial::CODES.into_iter().collect());
    let checks: BTreeSet<_> = refusals.iter().map(|refusal| refusal.check).collect();
    // The quote in a certificate is parsed as a part of the evidence.
    let quote = BTreeSet::from([Check::Quote]);
    let all: BTreeSet<_> = Check::ALL.into_iter().collect();
    assert_eq!(&checks | &quote, all);
}

/// The report of every kind of input has every check once, in the order of the gate.
#[test]
fn reports_every_check_of_every_kind_of_input() {
    let fixture = CommandFixture::default();
    let certificate = fixture.peer.certificate();
    let (quote, key) = (certificate.quote().unwrap(), certificate.key());
    let envelope = (fixture.peer.evidence)
        .v1(quote, key.report_data())
        .unwrap();
    let not_quote = [&[4, 0, 2, 0, 0x81, 0, 0, 0][..], &[0; 64]].concat();
    for (name, bytes, kind, code) in [
        ("quote", quote, "quote", 2),
        ("envelope", &envelope, "attestation", 2),
        ("short quote", &not_quote, "quote", 1),
        (
            "short envelope",
            &envelope[..envelope.len() - 1],
            "attestation",
            1,
        ),
    ] {
        let path = fixture.write(name, bytes);
        let run = fixture.verify_file(&path, &["--format", "json"]);
        let report = run.json();
        assert_eq!(run.code, code, "{report:#}");
        assert_eq!(report["input"]["kind"], kind, "{name}");
        assert_eq!(step_names(&report), Check::ALL.map(Check::as_str), "{name}");
        assert_eq!(first_failed(&report).is_none(), code == 2, "{name}");
    }
    let run = fixture.verify_file("127.0.0.1:0", &["--format", "json"]);
    assert_eq!(
        run.code, 66,
        "no such file, and no server has port 0: {run:?}"
    );
    let run = fixture.verify_file("no-such-host.invalid:1", &["--format", "json"]);
    let mut steps = vec!["server"];
    steps.extend(Check::ALL.map(Check::as_str));
    assert_eq!(step_names(&run.json()), steps);
}

#[test]
fn every_envelope_and_format_is_accepted() {
    for envelope in [Envelope::V0, Envelope::V1, Envelope::Legacy, Envelope::Both] {
        let fixture = CommandFixture::with(|peer| peer.evidence.envelope = envelope);
        assert_accepted(&fixture, &[]);
    }
    let format = QuoteFormat::V5Td15;
    let fixture = CommandFixture::with(|peer| peer.evidence.report.format = format);
    assert_accepted(&fixture, &[]);
}

#[test]
fn peers_on_the_allow_lists_are_accepted() {
    let fixture = CommandFixture::default();
    let kms_root = fixture.write("kms.pem", fixture.peer.pki.kms_pem());
    let kms_der = fixture.peer.pki.kms_der().to_vec();
    let (app_id, mrtd) = ("a1".repeat(20), "11".repeat(48));
    let mut listed = fixture;
    set_policy(&mut listed.peer, |settings| {
        settings.app_id = vec![app_id.parse().unwrap()];
        settings.mrtd = vec![mrtd.parse().unwrap()];
        let root = KmsRoot::from_der(&kms_der).unwrap();
        settings.kms_root = KmsRootPin::Roots(vec![root]);
    });
    let flags = ["--allowed-app-id", &app_id, "--allowed-mrtd", &mrtd];
    assert_accepted(&listed, &[&flags[..], &["--kms-root", &kms_root]].concat());
    let weak = CommandFixture::with(|peer| peer.platform.level = PlatformLevel::SwHardeningNeeded);
    assert_accepted(&weak, &[]);
}

/// If several checks refuse, the first in the order of the gate gives the verdict.
#[test]
fn verdict_is_the_first_refusal() {
    for (is_stale, expected) in [(false, "debug_td"), (true, "collateral_expired")] {
        let fixture = CommandFixture::with(|peer| {
            peer.evidence.report.debug = true;
            peer.collateral.fmspc = Fmspc([9; 6]);
            if is_stale {
                peer.collateral.tcb_info = PAST;
            }
        });
        assert_eq!(code(&fixture), expected);
    }
}

/// A TD in debug mode is refused, and its signatures are verified nevertheless.
#[test]
fn checks_after_a_refusal_are_reported() {
    let report = CommandFixture::with(|peer| peer.evidence.report.debug = true)
        .verify(&["--format", "json"])
        .json();
    assert_eq!(step(&report, "debug")["code"], "debug_td");
    assert_eq!(step(&report, "signatures")["state"], "ok");
    assert_eq!(step(&report, "tcb")["facts"]["status"], "UpToDate");
    assert_eq!(step(&report, "event_log")["state"], "ok");

    let list = "12".repeat(48);
    let report = CommandFixture::with(|peer| peer.leaf.validity.until = NOW - DAY)
        .verify(&["--format", "json", "--allowed-mrtd", &list])
        .json();
    assert_eq!(step(&report, "dates")["code"], "expired");
    assert_eq!(step(&report, "binding")["state"], "ok");
    assert_eq!(step(&report, "mrtd")["code"], "mrtd_not_allowed");
    assert_eq!(report["verdict"]["code"], "expired");
}

/// The values of a quote that is not verified are shown, and not compared with the policy.
#[test]
fn claims_of_an_unverified_quote_are_not_checked() {
    let list = "12".repeat(48);
    let run = CommandFixture::with(|peer| peer.leaf.attestation = Some(tampered_envelope()))
        .verify(&["--format", "json", "--allowed-mrtd", &list]);
    let report = run.json();
    assert_eq!(report["verdict"]["code"], "bad_signature");
    let mrtd = step(&report, "mrtd");
    assert_eq!(mrtd["state"], "not_checked");
    assert_eq!(mrtd["text"], "the quote is not verified");
    assert_eq!(mrtd["facts"]["value"], format!("10{}", "11".repeat(47)));
}

/// Invalid collateral is not the peer's fault.
#[test]
fn collateral_that_is_not_genuine() {
    let fixture = CommandFixture::default();
    let forged = Pki::new(&[8; 32])
        .unwrap()
        .parsed_collateral(&fixture.peer.collateral)
        .unwrap();
    let forged = fixture.write("forged.json", forged.to_json().unwrap());
    let mut arguments = vec![fixture.pem(), "--format".into(), "json".into()];
    arguments.extend(fixture.flags_without_collateral());
    arguments.extend(["--collateral".into(), forged]);
    let run = verify(arguments);
    assert_eq!(run.code, 69, "{run:?}");
    let report = run.json();
    assert_eq!(report["verdict"]["code"], "collateral_unavailable");
    let text = step(&report, "collateral")["text"].as_str().unwrap();
    assert!(
        text.contains("does not verify against the trusted root"),
        "{text}"
    );
}

fn verify_with_pccs(fixture: &CommandFixture, pccs: &Pccs, is_trusted: bool) -> Run {
    let mut arguments = vec![fixture.pem(), "--format".into(), "json".into()];
    arguments.extend(["--pccs".into(), pccs.url()]);
    match is_trusted {
        true => arguments.extend(fixture.flags_without_collateral()),
        false => arguments.extend(["--at".into(), NOW.to_string()]),
    }
    verify(arguments)
}

#[test]
fn collateral_from_a_pccs() {
    let fixture = CommandFixture::default();
    let peer = &fixture.peer;
    let collateral = peer.pki.collateral(&peer.collateral).unwrap();
    let key = peer.issue_platform().collateral_key();
    let pccs = Pccs::start(PccsResponses::empty().with(key, collateral)).unwrap();

    let untrusted = verify_with_pccs(&fixture, &pccs, false);
    assert_eq!(untrusted.code, 1, "{untrusted:?}");
    let report = untrusted.json();
    let failed = first_failed(&report).unwrap();
    assert_eq!(failed["code"], "bad_signature");
    assert_eq!(report["verdict"]["code"], "bad_signature");
    let requests = pccs.requests(Resource::TcbInfo);
    assert_eq!(requests, 0, "no request for a platform under another root");

    let run = verify_with_pccs(&fixture, &pccs, true);
    assert_eq!(run.code, 0, "{run:?}");
    let report = run.json();
    let source = step(&report, "collateral")["facts"]["source"].as_str();
    assert_eq!(source.unwrap(), pccs.url().trim_end_matches('/'));
    assert_eq!(pccs.requests(Resource::TcbInfo), 1);

    pccs.set_behaviour(Behaviour::Status(503));
    let down = verify_with_pccs(&fixture, &pccs, true);
    assert_eq!(down.code, 69, "{down:?}");
    let report = down.json();
    assert_eq!(report["verdict"]["code"], "collateral_unavailable");
    let collateral = step(&report, "collateral");
    let text = collateral["text"].as_str().unwrap();
    assert!(text.contains("503"), "{text}");
    assert_eq!(collateral["facts"]["source"], source_of(&pccs));
}

fn source_of(pccs: &Pccs) -> String {
    pccs.url().trim_end_matches('/').to_owned()
}
