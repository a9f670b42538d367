//! Peers are admitted by one entry in whole.

use std::sync::Arc;

use attest::Denial;
use attest::chain::KmsRoot;
use attest::mock::{Envelope, Fixture, PlatformOptions, QuoteFormat};
use attest::policy::{
    Grants, KmsRootPin, OsEntry, PeerEntry, PlatformPins, Policy, Settings, Warning,
};
use attest::values::{AppId, ComposeHash, InstanceId, Mrtd, OsImageHash, Rtmr};

use crate::{NOW, policy_with};

/// The fixture's operating system.
fn os(name: &str) -> OsEntry {
    OsEntry {
        name: Some(name.into()),
        os_image_hash: vec![OsImageHash([0x05; 32])],
        mrtd: vec![Mrtd([0x11; 48])],
        rtmr: [
            vec![Rtmr([0x20; 48])],
            vec![Rtmr([0x21; 48])],
            vec![Rtmr([0x22; 48])],
        ],
        ..OsEntry::default()
    }
}

fn other_os(name: &str) -> OsEntry {
    OsEntry {
        name: Some(name.into()),
        os_image_hash: vec![OsImageHash([0x06; 32])],
        mrtd: vec![Mrtd([0x12; 48])],
        rtmr: [
            vec![Rtmr([0x30; 48])],
            vec![Rtmr([0x31; 48])],
            vec![Rtmr([0x32; 48])],
        ],
        ..OsEntry::default()
    }
}

/// The fixture's application.
fn peer(name: &str, systems: &[OsEntry]) -> PeerEntry {
    PeerEntry {
        name: Some(name.into()),
        app_id: vec![AppId([0xa1; 20])],
        compose_hash: vec![ComposeHash([0xc0; 32])],
        os: systems.iter().cloned().map(Arc::new).collect(),
        ..PeerEntry::default()
    }
}

fn policy(peers: Vec<PeerEntry>) -> Policy {
    policy_with(|settings| settings.peers = peers)
}

fn verify(peers: Vec<PeerEntry>) -> Result<Arc<PeerEntry>, Denial> {
    let peer = Fixture::with(|f| f.policy = policy(peers)).verify()?;
    Ok(Arc::clone(peer.entry()))
}

#[test]
fn one_entry_has_to_match_in_whole() {
    let admitted = verify(vec![
        peer("elsewhere", &[other_os("b")]),
        peer("here", &[other_os("b"), os("a")]),
    ]);
    assert_eq!(admitted.unwrap().name.as_deref(), Some("here"));

    // Each value is in the policy, but not in one entry.
    let mut other_app = peer("other app", &[os("a")]);
    other_app.app_id = vec![AppId([0xa2; 20])];
    let denial = verify(vec![other_app, peer("this app", &[other_os("b")])]).unwrap_err();
    assert_eq!(denial.code(), "mrtd_not_allowed");
    let text = denial.to_string();
    assert!(
        text.ends_with("(closest entry: peer \"this app\", os \"b\")"),
        "{text}"
    );
}

#[test]
fn values_of_two_systems_do_not_mix() {
    let mixed = |change: fn(&mut OsEntry)| {
        let mut first = os("a");
        change(&mut first);
        let mut second = other_os("b");
        second.rtmr[1] = vec![Rtmr([0x21; 48])];
        verify(vec![peer("p", &[first, second])]).map(drop)
    };
    assert_eq!(mixed(|_| {}), Ok(()));
    for (change, code) in [
        (
            (|os| os.mrtd = vec![Mrtd([0; 48])]) as fn(&mut OsEntry),
            "mrtd_not_allowed",
        ),
        (|os| os.rtmr[0] = vec![Rtmr([0; 48])], "rtmr_not_allowed"),
        (|os| os.rtmr[1] = vec![Rtmr([0; 48])], "rtmr_not_allowed"),
        (|os| os.rtmr[2] = vec![Rtmr([0; 48])], "rtmr_not_allowed"),
        (
            |os| os.os_image_hash = vec![OsImageHash([0; 32])],
            "os_image_hash_not_allowed",
        ),
        (
            |os| os.xfam = vec!["00".repeat(8).parse().unwrap()],
            "xfam_not_allowed",
        ),
        (
            |os| os.td_attributes = vec!["00".repeat(8).parse().unwrap()],
            "td_attributes_not_allowed",
        ),
    ] {
        let denial = mixed(change).unwrap_err();
        assert_eq!(denial.code(), code);
        assert!(matches!(denial, Denial::Entry { os: Some(os), .. } if *os == *"a"));
    }
}

#[test]
fn first_entry_that_matches_decides_the_grants() {
    let mut first = peer("first", &[os("a")]);
    first.grants.max_sessions = Some(1);
    let second = peer("second", &[os("a")]);
    let entry = verify(vec![first, second]).unwrap();
    assert_eq!(entry.name.as_deref(), Some("first"));
    assert_eq!(entry.grants.max_sessions, Some(1));
}

#[test]
fn kms_roots_are_of_an_entry() {
    let fixture = Fixture::default();
    let kms = KmsRoot::from_der(fixture.pki.kms_der()).unwrap();
    let other = KmsRoot::from_der(fixture.pki.root_der()).unwrap();
    let with_root = |name, pin| PeerEntry {
        kms_root: pin,
        ..peer(name, &[])
    };
    let wrong = || with_root("wrong", KmsRootPin::Roots(vec![other.clone()]));
    let right = || with_root("right", KmsRootPin::Roots(vec![kms.clone()]));
    let admitted = verify(vec![wrong(), right()]).unwrap();
    assert_eq!(admitted.name.as_deref(), Some("right"));
    let denial = verify(vec![wrong(), wrong()]).unwrap_err();
    assert_eq!(denial.without_entry(), &Denial::KmsRootMismatch);

    // Own admits no peer until the root is known.
    let own = policy(vec![with_root("own", KmsRootPin::Own)]);
    assert!(own.needs_own_root());
    let outcome = |policy: Policy| Fixture::with(|f| f.policy = policy).outcome();
    assert_eq!(outcome(own.clone()), "kms_root_mismatch");
    assert_eq!(
        outcome(own.clone().with_own_root(Some(other))),
        "kms_root_mismatch"
    );
    let other_policy = policy(vec![right()]);
    let epoch = other_policy.epoch();
    let unchanged = other_policy.with_own_root(Some(kms.clone()));
    assert_eq!(unchanged.epoch(), epoch, "no entry needs it");
    let resolved = own.clone().with_own_root(Some(kms));
    assert_ne!(own.epoch(), resolved.epoch());
    assert_eq!(outcome(resolved), "admitted");
}

#[test]
fn denial_names_the_entry_whose_identity_matches() {
    let mut without_app = peer("any app", &[other_os("b")]);
    without_app.app_id.clear();
    without_app.compose_hash = vec![ComposeHash([1; 32])];
    let denial = verify(vec![without_app, peer("this app", &[other_os("b")])]).unwrap_err();
    assert!(denial.to_string().contains("\"this app\""), "{denial}");
    let none = Fixture::with(|f| {
        f.evidence.ready = false;
        f.policy = policy(vec![peer("p", &[os("a")])]);
    });
    assert_eq!(none.outcome(), "app_not_allowed");
}

#[test]
fn peers_are_pinned_by_configuration_and_platform() {
    type Change = fn(&mut PeerEntry);
    let pinned = |change: Change| {
        let mut entry = peer("p", &[]);
        change(&mut entry);
        verify(vec![entry]).map_or_else(|denial| denial.code(), |_| "admitted")
    };
    let cases: [(Change, Change, &str); 9] = [
        (
            |p| p.mr_config_id = vec!["00".repeat(48).parse().unwrap()],
            |p| p.mr_config_id = vec!["01".repeat(48).parse().unwrap()],
            "mr_config_id_not_allowed",
        ),
        (
            |p| p.mr_owner = vec!["00".repeat(48).parse().unwrap()],
            |p| p.mr_owner = vec!["01".repeat(48).parse().unwrap()],
            "mr_owner_not_allowed",
        ),
        (
            |p| p.mr_owner_config = vec!["00".repeat(48).parse().unwrap()],
            |p| p.mr_owner_config = vec!["01".repeat(48).parse().unwrap()],
            "mr_owner_config_not_allowed",
        ),
        (
            |p| p.platform.mr_seam = vec!["5e".repeat(48).parse().unwrap()],
            |p| p.platform.mr_seam = vec!["5f".repeat(48).parse().unwrap()],
            "mr_seam_not_allowed",
        ),
        (
            |p| p.platform.smt = Some(true),
            |p| p.platform.smt = Some(false),
            "smt_not_allowed",
        ),
        (
            |p| p.platform.dynamic_platform = Some(true),
            |p| p.platform.dynamic_platform = Some(false),
            "dynamic_platform_not_allowed",
        ),
        (
            |p| p.platform.cached_keys = Some(true),
            |p| p.platform.cached_keys = Some(false),
            "cached_keys_not_allowed",
        ),
        (
            |p| p.instance_id = vec![InstanceId([0x1d; 20])],
            |p| p.instance_id = vec![InstanceId([0x1e; 20])],
            "instance_not_allowed",
        ),
        (
            |p| p.platform.piid.clear(),
            |p| p.platform.piid = vec!["00".repeat(16).parse().unwrap()],
            "piid_not_allowed",
        ),
    ];
    for (right, wrong, code) in cases {
        assert_eq!(pinned(right), "admitted", "{code}");
        assert_eq!(pinned(wrong), code);
    }
}

/// The processor CA's certificates do not say whether SMT is on.
#[test]
fn platform_that_does_not_show_a_pinned_property_is_refused() {
    let pinned = |ca| {
        Fixture::with(|f| {
            f.platform = PlatformOptions {
                ca,
                ..PlatformOptions::default()
            };
            f.collateral.ca = ca;
            f.policy = policy(vec![PeerEntry {
                platform: PlatformPins {
                    smt: Some(true),
                    ..PlatformPins::default()
                },
                ..peer("p", &[])
            }]);
        })
        .outcome()
    };
    assert_eq!(pinned(attest::collateral::CaType::Platform), "admitted");
    assert_eq!(
        pinned(attest::collateral::CaType::Processor),
        "smt_not_allowed"
    );
}

#[test]
fn collateral_of_an_old_evaluation_is_not_used() {
    let verify = |minimum| {
        Fixture::with(|f| f.policy = policy_with(|s| s.min_tcb_evaluation = Some(minimum))).verify()
    };
    assert!(verify(17).is_ok());
    let denial = verify(18).unwrap_err();
    let expected = Denial::TcbEvaluationTooOld {
        found: 17,
        minimum: 18,
    };
    assert_eq!(denial, expected);
    assert_eq!(denial.fault(), attest::denial::Fault::Ours);
}

#[test]
fn identity_needs_a_known_operating_system() {
    let unpinned = |change: fn(&mut Settings)| policy_with(change).unpinned().len();
    assert_eq!(unpinned(|_| {}), 0, "nothing is compared");
    assert_eq!(unpinned(|s| s.mrtd = vec![Mrtd([1; 48])]), 0);
    let identities: [fn(&mut Settings); 5] = [
        |s| s.app_id = vec![AppId([1; 20])],
        |s| s.compose_hash = vec![ComposeHash([1; 32])],
        |s| s.instance_id = vec![InstanceId([1; 20])],
        |s| s.os_image_hash = vec![OsImageHash([1; 32])],
        |s| s.rtmr[3] = vec![Rtmr([1; 48])],
    ];
    for identity in identities {
        let with = |pin: fn(&mut Settings)| {
            policy_with(|settings| {
                identity(settings);
                pin(settings);
            })
        };
        let os = |s: &mut Settings| {
            s.mrtd = vec![Mrtd([1; 48])];
            s.rtmr[1] = vec![Rtmr([1; 48])];
            s.rtmr[2] = vec![Rtmr([1; 48])];
        };
        assert_eq!(with(|_| {}).unpinned().len(), 1);
        assert_eq!(with(|s| s.mrtd = vec![Mrtd([1; 48])]).unpinned().len(), 1);
        assert_eq!(with(os).unpinned(), []);
        assert_eq!(with(|s| s.kms_root = KmsRootPin::Own).unpinned(), []);
        let allowed = with(|s| s.allow_unpinned_os = true);
        assert_eq!(allowed.unpinned(), []);
        assert!(allowed.warnings().contains(&Warning::UnpinnedOsAllowed));
        for missing in [0, 1, 2] {
            let mut settings = with(os).settings().clone();
            match missing {
                0 => settings.mrtd.clear(),
                register => settings.rtmr[register].clear(),
            }
            assert_eq!(Policy::new(settings).unpinned().len(), 1, "{missing}");
        }
    }
}

#[test]
fn an_os_image_hash_does_not_say_which_application() {
    let says = |change: fn(&mut Settings)| policy_with(change).says_which_applications();
    assert!(!says(|_| {}));
    assert!(!says(|s| s.os_image_hash = vec![OsImageHash([1; 32])]));
    assert!(!says(|s| s.mrtd = vec![Mrtd([1; 48])]));
    assert!(says(|s| s.app_id = vec![AppId([1; 20])]));
    assert!(says(|s| s.rtmr[3] = vec![Rtmr([1; 48])]));
    let open = PeerEntry {
        app_id: Vec::new(),
        compose_hash: Vec::new(),
        ..peer("any", &[os("a")])
    };
    let policy = policy(vec![peer("p", &[os("a")]), open]);
    assert!(!policy.says_which_applications(), "every entry must");
}

#[test]
fn unsigned_dates_are_not_believed() {
    let age = Some(std::time::Duration::from_secs(60));
    assert!(policy_with(|s| s.max_certificate_age = age).believes_unsigned_dates());
    let signed = policy_with(|s| {
        s.max_certificate_age = age;
        s.kms_root = KmsRootPin::Own;
    });
    assert!(!signed.believes_unsigned_dates());
}

/// A TD with the right firmware, another kernel, and the copied events of an application.
#[test]
fn copied_events_on_another_kernel_are_refused() {
    for envelope in [Envelope::V0, Envelope::V1, Envelope::Legacy] {
        let forged = |policy: Policy| {
            Fixture::with(|f| {
                f.evidence.envelope = envelope;
                f.evidence.report.format = QuoteFormat::V4;
                f.evidence.report.rtmr[1] = [0x66; 48];
                f.policy = policy;
            })
            .verify()
        };
        let denial = forged(policy(vec![peer("p", &[os("a")])])).unwrap_err();
        let expected = Denial::RtmrNotAllowed {
            index: 1,
            value: Rtmr([0x66; 48]),
        };
        assert_eq!(denial.without_entry(), &expected);
        assert_eq!(denial.peer_code(), "not_allowed");
        // The lists alone admit it.
        let lists = policy_with(|s| {
            s.app_id = vec![AppId([0xa1; 20])];
            s.compose_hash = vec![ComposeHash([0xc0; 32])];
            s.os_image_hash = vec![OsImageHash([0x05; 32])];
            s.mrtd = vec![Mrtd([0x11; 48])];
        });
        assert_eq!(lists.unpinned().len(), 1);
        assert!(forged(lists).is_ok());
    }
}

#[test]
fn epoch_depends_on_entries_and_grants() {
    type Change = fn(&mut PeerEntry);
    let changes: [Change; 14] = [
        |_| {},
        |p| p.name = Some("q".into()),
        |p| p.app_id.clear(),
        |p| p.instance_id = vec![InstanceId([1; 20])],
        |p| p.os.clear(),
        |p| p.os = vec![Arc::new(os("b"))],
        |p| p.kms_root = KmsRootPin::Own,
        |p| p.platform.smt = Some(false),
        |p| p.platform.cached_keys = Some(false),
        |p| p.grants.max_sessions = Some(1),
        |p| p.grants.roles = Some(vec!["teesql_read".into()]),
        |p| p.grants.databases = Some(vec!["teesql_read".into()]),
        |p| p.mr_owner = vec!["01".repeat(48).parse().unwrap()],
        |p| p.mr_config_id = vec!["01".repeat(48).parse().unwrap()],
    ];
    let epoch = |change: Change| {
        let mut entry = peer("p", &[os("a")]);
        change(&mut entry);
        policy(vec![entry]).epoch().full()
    };
    let mut epochs: Vec<_> = changes.into_iter().map(epoch).collect();
    epochs.sort_unstable();
    epochs.dedup();
    assert_eq!(epochs.len(), changes.len());
    assert_eq!(epochs[0].len(), 64);
    let _ = (NOW, Grants::default());
}

/// A change of a fixture.
type Change = fn(&mut Fixture);

/// The verdict of the policy for members on a fixture that was changed.
fn as_member(clients: &Policy, own: &Fixture, change: Change) -> &'static str {
    let own = own.verify().unwrap().measurements();
    let (members, admits) = clients.of_members(own.as_ref());
    assert!(admits || own.is_none());
    Fixture::with(|f| {
        f.policy = members;
        change(f);
    })
    .outcome()
}

#[test]
fn members_prove_the_same_as_this_process() {
    let own = Fixture::default();
    // The policy for clients admits another application only.
    let clients = policy(vec![PeerEntry {
        app_id: vec![AppId([0xa2; 20])],
        ..peer("client", &[os("a")])
    }]);
    let verdict = |change: Change| as_member(&clients, &own, change);
    assert_eq!(verdict(|_| {}), "admitted");
    // The size of the VM may differ, and so may the instance.
    assert_eq!(verdict(|f| f.evidence.report.rtmr[0] = [1; 48]), "admitted");
    assert_eq!(
        verdict(|f| f.evidence.instance_id = vec![1; 20]),
        "admitted"
    );
    let changes: [(Change, &str); 6] = [
        (|f| f.evidence.report.mrtd = [1; 48], "mrtd_not_allowed"),
        (|f| f.evidence.report.rtmr[1] = [1; 48], "rtmr_not_allowed"),
        (|f| f.evidence.report.rtmr[2] = [1; 48], "rtmr_not_allowed"),
        (|f| f.evidence.app_id = vec![0xa2; 20], "app_not_allowed"),
        (
            |f| f.evidence.compose_hash = vec![1; 32],
            "compose_hash_not_allowed",
        ),
        // What holds for every peer holds for members.
        (|f| f.evidence.report.debug = true, "debug_td"),
    ];
    for (change, code) in changes {
        assert_eq!(verdict(change), code);
    }
}

#[test]
fn without_measurements_and_entries_nobody_is_a_member() {
    let clients = policy(vec![peer("client", &[os("a")])]);
    let (members, admits) = clients.of_members(None);
    assert!(!admits);
    let outcome = Fixture::with(|f| f.policy = members).outcome();
    assert_eq!(outcome, "kms_root_mismatch");
    // A process that proves no application does not make all applications members.
    let anonymous = Fixture::with(|f| f.evidence.ready = false);
    assert_eq!(anonymous.verify().unwrap().measurements(), None);
    let everybody = Policy::default();
    assert!(!everybody.of_members(None).1);
}

#[test]
fn entries_widen_the_members() {
    let own = Fixture::default();
    let next = PeerEntry {
        app_id: vec![AppId([0xa2; 20])],
        member: true,
        ..peer("next version", &[os("a")])
    };
    let clients = policy(vec![peer("client", &[os("a")]), next.clone()]);
    let verdict = |change: Change| as_member(&clients, &own, change);
    assert_eq!(verdict(|_| {}), "admitted");
    assert_eq!(verdict(|f| f.evidence.app_id = vec![0xa2; 20]), "admitted");
    let other = verdict(|f| f.evidence.app_id = vec![0xa3; 20]);
    assert_eq!(other, "app_not_allowed");
    let (members, admits) = policy(vec![next.clone()]).of_members(None);
    assert!(admits);
    assert_eq!(members.entries().count(), 1);
    // Whether an entry is a member's is part of the policy.
    let client = PeerEntry {
        member: false,
        ..next.clone()
    };
    assert_ne!(policy(vec![next]).epoch(), policy(vec![client]).epoch());
}
