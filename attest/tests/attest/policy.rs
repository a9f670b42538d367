//! Policies: parsing, epochs and warnings.

use std::time::Duration;

use attest::Policy;
use attest::policy::{
    Advisory, Settings, TcbStatus, TcbStatusError, TcbStatuses, Warning, parse_list,
};
use attest::values::{AppId, Mrtd, Rtmr};

use crate::policy_with;

#[test]
fn tcb_statuses_are_parsed() {
    assert_eq!("OK".parse(), Ok(TcbStatus::UpToDate));
    assert_eq!("UpToDate".parse(), Ok(TcbStatus::UpToDate));
    assert_eq!("OutOfDate".parse(), Ok(TcbStatus::OutOfDate));
    assert_eq!("Revoked".parse::<TcbStatus>(), Err(TcbStatusError::Revoked));
    assert_eq!(
        "outofdate".parse::<TcbStatus>(),
        Err(TcbStatusError::Unknown)
    );
    for status in TcbStatus::ALL
        .into_iter()
        .filter(|status| *status != TcbStatus::Revoked)
    {
        assert_eq!(status.to_string().parse(), Ok(status));
    }
}

#[test]
fn revoked_is_never_accepted() {
    let default = TcbStatuses::default();
    let accepted = TcbStatus::ALL.map(|status| default.contains(status));
    assert_eq!(
        accepted,
        [true, true, true, true, false, false, false, false, false]
    );
    let strict = TcbStatuses::new([]);
    assert_eq!(strict.to_string(), "OK");
    let all = TcbStatuses::new(TcbStatus::ALL);
    assert!(all.contains(TcbStatus::OutOfDate));
    assert!(!all.contains(TcbStatus::Revoked));
}

#[test]
fn lists_are_parsed() {
    let mrtd = "ab".repeat(48);
    let list: Vec<Mrtd> = parse_list(&format!(" {mrtd},\n{mrtd} ,")).unwrap();
    assert_eq!(list, [Mrtd([0xab; 48]); 2]);
    assert_eq!(parse_list::<Mrtd>("").unwrap(), []);
    assert!(parse_list::<Mrtd>("ab").is_err());
}

#[test]
fn advisories_are_parsed() {
    let advisory: Advisory = "intel-sa-00837".parse().unwrap();
    assert_eq!(advisory.to_string(), "INTEL-SA-00837");
    for wrong in [
        "",
        "INTEL-SA-",
        "INTEL-SA-x",
        "CVE-2023-1",
        "INTEL-SA-é",
        &"INTEL-SA-1".repeat(9),
    ] {
        assert!(wrong.parse::<Advisory>().is_err(), "{wrong}");
    }
}

#[test]
fn epoch_depends_on_every_setting_and_not_on_order() {
    type Change = fn(&mut Settings);
    let changes: [Change; 13] = [
        |_| {},
        |s| s.mrtd = vec![Mrtd([1; 48])],
        |s| s.rtmr[0] = vec![Rtmr([1; 48])],
        |s| s.rtmr[3] = vec![Rtmr([1; 48])],
        |s| s.app_id = vec![AppId([1; 20])],
        |s| s.compose_hash = vec!["11".repeat(32).parse().unwrap()],
        |s| s.os_image_hash = vec!["11".repeat(32).parse().unwrap()],
        |s| s.tcb_statuses = TcbStatuses::new([TcbStatus::OutOfDate]),
        |s| s.refused_advisories = vec!["INTEL-SA-1".parse().unwrap()],
        |s| s.allow_debug_td = true,
        |s| s.max_certificate_age = Some(Duration::ZERO),
        |s| s.max_certificate_age = Some(Duration::from_secs(1)),
        |s| s.mrtd = vec![Mrtd([1; 48]), Mrtd([2; 48])],
    ];
    let mut epochs: Vec<_> = changes
        .iter()
        .map(|change| policy_with(change).epoch().to_string())
        .collect();
    epochs.sort_unstable();
    epochs.dedup();
    assert_eq!(epochs.len(), changes.len());
    let order =
        |first, second| policy_with(|s| s.mrtd = vec![Mrtd([first; 48]), Mrtd([second; 48])]);
    assert_eq!(order(1, 2).epoch(), order(2, 1).epoch());
}

#[test]
fn weak_settings_have_warnings() {
    let open: Vec<_> = Policy::default()
        .warnings()
        .iter()
        .map(|warning| warning.code())
        .collect();
    assert_eq!(
        open,
        [
            "any_mrtd",
            "any_os",
            "any_app",
            "any_compose_hash",
            "any_issuer",
            "any_age"
        ],
    );
    let weak = policy_with(|settings| {
        settings.allow_debug_td = true;
        settings.tcb_statuses = TcbStatuses::new([TcbStatus::OutOfDate]);
        settings.rtmr[1] = vec![Rtmr([0; 48])];
    });
    let lines: Vec<_> = weak.warnings().iter().map(Warning::to_string).collect();
    insta::assert_snapshot!(lines.join("\n"));
}
