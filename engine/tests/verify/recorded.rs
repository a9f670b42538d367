//! The shared fixtures: evidence that this project did not make.

use std::fs;
use std::path::PathBuf;

use crate::command::{Run, first_failed, step, verify};

/// Inside the window of the mock collateral (2026-11-19 … 2026-12-20).
const MOCK_NOW: &str = "1796000000";
/// Inside 2025-06-19 … 2025-07-19.
const HARDWARE_NOW: &str = "1750400000";
/// Inside 2026-02-18 … 2026-03-20.
const OUTDATED_NOW: &str = "1772500000";

const APP_ID: &str = "5bb4ff9a3837357f19dc176407a5709c62eb6c56";

/// A fixture's path, or `None` with a printed reason.
fn fixture(name: &str) -> Option<String> {
    let folder = std::env::var_os("TEESQL_FIXTURES").map_or_else(
        || {
            PathBuf::from(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../../shared/fixtures"
            ))
        },
        PathBuf::from,
    );
    let path = folder.join(name);
    if !path.exists() {
        println!(
            "skipped: {} is not there (TEESQL_FIXTURES names the folder)",
            path.display()
        );
        return None;
    }
    Some(path.to_str().expect("UTF-8").to_owned())
}

/// The chain of `GetTlsKey` as a PEM file.
fn leaf(folder: &tempfile::TempDir, name: &str) -> Option<String> {
    let json = fs::read(fixture(&format!("{name}/GetTlsKey.response.json"))?).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let chain = json["certificate_chain"].as_array().unwrap();
    let pem: String = chain.iter().map(|pem| pem.as_str().unwrap()).collect();
    let path = folder.path().join(format!("{name}.pem"));
    fs::write(&path, pem).unwrap();
    Some(path.to_str().unwrap().to_owned())
}

fn judged(subject: &str, collateral: &str, at: &str, more: &[&str]) -> Run {
    let fixed = [subject, "--collateral", collateral, "--at", at];
    verify(fixed.iter().chain(more))
}

#[test]
fn a_hardware_quote_is_genuine_and_nobodys() {
    let (Some(quote), Some(collateral)) = (
        fixture("tdx-hardware/tdx_quote"),
        fixture("tdx-hardware/tdx_quote_collateral.json"),
    ) else {
        return;
    };
    let run = judged(&quote, &collateral, HARDWARE_NOW, &[]);
    assert_eq!(run.code, 2, "{run:?}");
    assert!(run.last_line().starts_with("ACCEPTED, NOT BOUND: "));
    let report = judged(&quote, &collateral, HARDWARE_NOW, &["--format", "json"]).json();
    assert_eq!(report["verdict"]["result"], "accepted_not_bound");
    assert_eq!(report["dangerous_root"], false);
    assert_eq!(step(&report, "tcb")["facts"]["status"], "UpToDate");
    assert_eq!(step(&report, "signatures")["state"], "ok");
    assert_eq!(step(&report, "binding")["state"], "not_checked");
    // What it cannot prove is not allowed by a list.
    let listed = judged(
        &quote,
        &collateral,
        HARDWARE_NOW,
        &["--allowed-app-id", APP_ID],
    );
    assert_eq!(listed.code, 1);
    assert!(listed.last_line().starts_with("REFUSED: app_not_allowed: "));
}

#[test]
fn the_same_quote_in_hex() {
    let (Some(quote), Some(collateral)) = (
        fixture("tdx-hardware/tdx_quote"),
        fixture("tdx-hardware/tdx_quote_collateral.json"),
    ) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("quote.hex");
    let digits: String = fs::read(quote)
        .unwrap()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    fs::write(&path, format!("0x{digits}\n")).unwrap();
    let run = judged(path.to_str().unwrap(), &collateral, HARDWARE_NOW, &[]);
    assert_eq!(run.code, 2, "{run:?}");
}

#[test]
fn hardware_outside_its_window_and_out_of_date() {
    let (Some(quote), Some(collateral), Some(outdated), Some(its)) = (
        fixture("tdx-hardware/tdx_quote"),
        fixture("tdx-hardware/tdx_quote_collateral.json"),
        fixture("tdx-hardware/tdx_quote_outdated"),
        fixture("tdx-hardware/tdx_quote_outdated_collateral.json"),
    ) else {
        return;
    };
    let late = judged(&quote, &collateral, MOCK_NOW, &["--format", "json"]);
    assert_eq!(late.code, 69, "our collateral, not the peer's fault");
    let report = late.json();
    assert_eq!(report["verdict"]["code"], "collateral_expired");
    assert_eq!(first_failed(&report), Some("collateral_expired"));

    let run = judged(&outdated, &its, OUTDATED_NOW, &[]);
    assert_eq!(run.code, 1);
    assert!(run.last_line().starts_with("REFUSED: tcb_out_of_date: "));
    // Below every level that Intel lists: no list of statuses lets it in.
    let wide = ["--accepted-tcb-status", "OutOfDate"];
    let run = judged(&outdated, &its, OUTDATED_NOW, &wide);
    assert_eq!(run.code, 1);
    assert!(run.last_line().contains("below every level"));
}

#[test]
fn sgx_is_not_tdx() {
    let Some(quote) = fixture("tdx-hardware/sgx_quote") else {
        return;
    };
    let run = verify([&quote, "--pccs", "off", "--format", "json"]);
    assert_eq!(run.code, 1, "{run:?}");
    let report = run.json();
    assert_eq!(report["verdict"]["code"], "not_tdx");
    assert_eq!(step(&report, "quote")["facts"]["tee"], "SGX");
    assert_eq!(step(&report, "quote")["facts"]["version"], 3);
}

#[test]
fn an_attestation_without_collateral_is_not_judged() {
    let Some(envelope) = fixture("tdx-hardware/dstack_attestation_v0.bin") else {
        return;
    };
    let run = verify([
        &envelope,
        "--pccs",
        "off",
        "--at",
        OUTDATED_NOW,
        "--format",
        "json",
    ]);
    assert_eq!(run.code, 69, "{run:?}");
    let report = run.json();
    assert_eq!(report["input"]["kind"], "attestation");
    assert_eq!(report["verdict"]["code"], "collateral_unavailable");
    assert_eq!(step(&report, "event_log")["state"], "ok");
    assert_eq!(step(&report, "app_id")["state"], "not_checked");
    assert_eq!(step(&report, "app_id")["facts"]["value"], APP_ID);
}

#[test]
fn mock_leaves_under_their_root() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["dstack-mock-v0", "dstack-mock-v1"] {
        let (Some(leaf), Some(collateral), Some(root)) = (
            leaf(&folder, name),
            fixture(&format!("{name}/collateral.json")),
            fixture(&format!("{name}/tdx-root-ca.pem")),
        ) else {
            return;
        };
        let under_root = ["--dangerous-tdx-root-ca", &root, "--allowed-app-id", APP_ID];
        let run = judged(&leaf, &collateral, MOCK_NOW, &under_root);
        assert_eq!((run.code, run.last_line()), (0, "ACCEPTED"), "{run:?}");
        assert!(run.stdout.contains("DANGEROUS root"));
        let intel = judged(&leaf, &collateral, MOCK_NOW, &[]);
        assert_eq!(intel.code, 1);
        assert!(intel.last_line().starts_with("REFUSED: bad_signature: "));
    }
}

/// A hardware quote whose report data was patched: bound, but not signed.
#[test]
fn plain_v0_has_a_bad_signature() {
    let folder = tempfile::tempdir().unwrap();
    let (Some(leaf), Some(mock), Some(root), Some(hardware)) = (
        leaf(&folder, "dstack-plain-v0"),
        fixture("dstack-mock-v0/collateral.json"),
        fixture("dstack-mock-v0/tdx-root-ca.pem"),
        fixture("tdx-hardware/tdx_quote_outdated_collateral.json"),
    ) else {
        return;
    };
    for run in [
        judged(
            &leaf,
            &mock,
            MOCK_NOW,
            &["--dangerous-tdx-root-ca", &root, "--format", "json"],
        ),
        judged(&leaf, &hardware, OUTDATED_NOW, &["--format", "json"]),
    ] {
        assert_eq!(run.code, 1, "{run:?}");
        let report = run.json();
        assert_eq!(step(&report, "binding")["state"], "ok");
        assert_eq!(step(&report, "signatures")["code"], "bad_signature");
        assert_eq!(report["verdict"]["code"], "bad_signature");
        assert_eq!(step(&report, "mrtd")["state"], "not_checked");
    }
}
