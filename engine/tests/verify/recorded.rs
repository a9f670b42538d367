//! Recorded evidence of dstack and of TDX hardware ([`attest::mock::recorded`]).

use std::fs;

use attest::mock::recorded::{self, APP_ID, HARDWARE_NOW, MOCK_NOW, OUTDATED_NOW};

use crate::command::{Run, first_failed, step, verify};

/// The path of a recorded file, or `None` with a printed reason.
fn path(name: &str) -> Option<String> {
    let path = recorded::path(name)?;
    Some(path.to_str().expect("UTF-8").to_owned())
}

/// Writes the chain in the response to `GetTlsKey` to a PEM file.
fn chain(folder: &tempfile::TempDir, name: &str) -> Option<String> {
    let pem = recorded::tls_key(name, "GetTlsKey")?.chain_pem.concat();
    let path = folder.path().join(format!("{name}.pem"));
    fs::write(&path, pem).unwrap();
    Some(path.to_str().unwrap().to_owned())
}

fn verify_at(subject: &str, collateral: &str, at: u64, more: &[&str]) -> Run {
    let at = at.to_string();
    let fixed = [subject, "--collateral", collateral, "--at", &at];
    verify(fixed.iter().chain(more))
}

#[test]
fn hardware_quote_is_accepted_but_not_bound() {
    let (Some(quote), Some(collateral)) = (
        path("tdx-hardware/tdx_quote"),
        path("tdx-hardware/tdx_quote_collateral.json"),
    ) else {
        return;
    };
    let run = verify_at(&quote, &collateral, HARDWARE_NOW, &[]);
    assert_eq!(run.code, 2, "{run:?}");
    assert!(run.last_line().starts_with("ACCEPTED, NOT BOUND: "));
    let report = verify_at(&quote, &collateral, HARDWARE_NOW, &["--format", "json"]).json();
    assert_eq!(report["verdict"]["result"], "accepted_not_bound");
    assert_eq!(report["dangerous_root"], false);
    assert_eq!(step(&report, "tcb")["facts"]["status"], "UpToDate");
    assert_eq!(step(&report, "signatures")["state"], "ok");
    assert_eq!(step(&report, "binding")["state"], "not_checked");
    // A bare quote proves no app id, so an allow-list refuses it.
    let listed = verify_at(
        &quote,
        &collateral,
        HARDWARE_NOW,
        &["--allowed-app-id", APP_ID],
    );
    assert_eq!(listed.code, 1);
    assert!(listed.last_line().starts_with("REFUSED: app_not_allowed: "));
}

#[test]
fn hardware_quote_in_hex() {
    let (Some(quote), Some(collateral)) = (
        path("tdx-hardware/tdx_quote"),
        path("tdx-hardware/tdx_quote_collateral.json"),
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
    let run = verify_at(path.to_str().unwrap(), &collateral, HARDWARE_NOW, &[]);
    assert_eq!(run.code, 2, "{run:?}");
}

#[test]
fn hardware_quote_outside_the_collaterals_validity_and_out_of_date() {
    let (Some(quote), Some(collateral), Some(outdated), Some(its_collateral)) = (
        path("tdx-hardware/tdx_quote"),
        path("tdx-hardware/tdx_quote_collateral.json"),
        path("tdx-hardware/tdx_quote_outdated"),
        path("tdx-hardware/tdx_quote_outdated_collateral.json"),
    ) else {
        return;
    };
    let late = verify_at(&quote, &collateral, MOCK_NOW, &["--format", "json"]);
    assert_eq!(late.code, 69, "the collateral is not the peer's fault");
    let report = late.json();
    assert_eq!(report["verdict"]["code"], "collateral_expired");
    assert_eq!(first_failed(&report).unwrap()["code"], "collateral_expired");

    let run = verify_at(&outdated, &its_collateral, OUTDATED_NOW, &[]);
    assert_eq!(run.code, 1);
    assert!(run.last_line().starts_with("REFUSED: tcb_out_of_date: "));
    // Below every level that Intel lists, which no list of statuses accepts.
    let out_of_date = ["--accepted-tcb-status", "OutOfDate"];
    let run = verify_at(&outdated, &its_collateral, OUTDATED_NOW, &out_of_date);
    assert_eq!(run.code, 1);
    assert!(run.last_line().contains("below every level"));
}

#[test]
fn sgx_quote_is_refused() {
    let Some(quote) = path("tdx-hardware/sgx_quote") else {
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
fn attestation_without_collateral_has_no_verdict() {
    let Some(envelope) = path("tdx-hardware/dstack_attestation_v0.bin") else {
        return;
    };
    let run = verify([
        &envelope,
        "--pccs",
        "off",
        "--at",
        &OUTDATED_NOW.to_string(),
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
fn recorded_mock_certificates_under_their_root() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["dstack-mock-v0", "dstack-mock-v1"] {
        let (Some(leaf), Some(collateral), Some(root)) = (
            chain(&folder, name),
            path(&format!("{name}/collateral.json")),
            path(&format!("{name}/tdx-root-ca.pem")),
        ) else {
            return;
        };
        let under_root = ["--dangerous-tdx-root-ca", &root, "--allowed-app-id", APP_ID];
        let run = verify_at(&leaf, &collateral, MOCK_NOW, &under_root);
        assert_eq!((run.code, run.last_line()), (0, "ACCEPTED"), "{run:?}");
        assert!(run.stdout.contains("DANGEROUS root"));
        let intel = verify_at(&leaf, &collateral, MOCK_NOW, &[]);
        assert_eq!(intel.code, 1);
        assert!(intel.last_line().starts_with("REFUSED: bad_signature: "));
    }
}

/// A hardware quote whose report data was changed: it is bound, but its signature is wrong.
#[test]
fn simulated_quote_has_a_bad_signature() {
    let folder = tempfile::tempdir().unwrap();
    let (Some(leaf), Some(mock), Some(root), Some(hardware)) = (
        chain(&folder, "dstack-plain-v0"),
        path("dstack-mock-v0/collateral.json"),
        path("dstack-mock-v0/tdx-root-ca.pem"),
        path("tdx-hardware/tdx_quote_outdated_collateral.json"),
    ) else {
        return;
    };
    for run in [
        verify_at(
            &leaf,
            &mock,
            MOCK_NOW,
            &["--dangerous-tdx-root-ca", &root, "--format", "json"],
        ),
        verify_at(&leaf, &hardware, OUTDATED_NOW, &["--format", "json"]),
    ] {
        assert_eq!(run.code, 1, "{run:?}");
        let report = run.json();
        assert_eq!(step(&report, "binding")["state"], "ok");
        assert_eq!(step(&report, "signatures")["code"], "bad_signature");
        assert_eq!(report["verdict"]["code"], "bad_signature");
        assert_eq!(step(&report, "mrtd")["state"], "not_checked");
    }
}
