//! dcap-qvl accepts the mock's quotes, and reports the requested status and measurements.

use attest::collateral::{CaType, CollateralKey, Fmspc};
use attest::mock::{
    CollateralOptions, Key, ModuleLevel, Pki, Platform, PlatformLevel, PlatformOptions, QeLevel,
    QuoteFormat, TdReport, Tee,
};
use sha2::{Digest, Sha256};

use super::{NOW, SEED, fresh, pki, platform, verify};

#[test]
fn every_td_format_verifies_with_its_measurements() {
    let pki = pki();
    for format in [QuoteFormat::V4, QuoteFormat::V5Td10, QuoteFormat::V5Td15] {
        let report = TdReport {
            format,
            mrtd: [1; 48],
            rtmr: [[2; 48], [3; 48], [4; 48]],
            rtmr3: [5; 48],
            report_data: [6; 64],
            ..TdReport::default()
        };
        let quote = platform(&pki).quote(&report).unwrap();
        let verified = verify(&pki, &quote, &fresh(&pki), NOW).unwrap();
        assert_eq!(verified.status, "UpToDate", "{format:?}");
        assert!(verified.advisory_ids.is_empty());
        let td = verified.report.as_td10().unwrap();
        assert_eq!(td.mr_td, [1; 48]);
        assert_eq!(
            [td.rt_mr0, td.rt_mr1, td.rt_mr2, td.rt_mr3],
            [[2; 48], [3; 48], [4; 48], [5; 48]]
        );
        assert_eq!(td.report_data, [6; 64]);
        assert_eq!(
            verified.report.as_td15().is_some(),
            format == QuoteFormat::V5Td15
        );
    }
}

#[test]
fn quote_names_its_collateral() {
    let pki = pki();
    for ca in [CaType::Platform, CaType::Processor] {
        let key = CollateralKey {
            fmspc: Fmspc([1, 2, 3, 4, 5, 6]),
            ca,
        };
        let options = PlatformOptions {
            fmspc: key.fmspc,
            ca,
            ..PlatformOptions::default()
        };
        let platform = Platform::new(&pki, &options).unwrap();
        assert_eq!(platform.collateral_key(), key);
        let quote = platform.quote(&TdReport::default()).unwrap();
        let parsed = dcap_qvl::quote::Quote::parse(&quote).unwrap();
        assert_eq!(dcap_qvl::intel::quote_fmspc(&parsed).unwrap(), key.fmspc.0);
        assert_eq!(
            CaType::from(dcap_qvl::intel::quote_ca(&parsed).unwrap()),
            ca
        );
        let collateral = pki
            .collateral(&CollateralOptions::at(NOW).for_key(key))
            .unwrap();
        assert_eq!(
            verify(&pki, &quote, &collateral, NOW).unwrap().status,
            "UpToDate"
        );
    }
}

#[test]
fn platform_has_the_status_and_advisories_of_its_level() {
    let pki = pki();
    for level in [
        PlatformLevel::UpToDate,
        PlatformLevel::SwHardeningNeeded,
        PlatformLevel::ConfigurationNeeded,
        PlatformLevel::ConfigurationAndSwHardeningNeeded,
        PlatformLevel::OutOfDate,
        PlatformLevel::OutOfDateConfigurationNeeded,
    ] {
        let platform = Platform::new(&pki, &PlatformOptions::with_level(level)).unwrap();
        let quote = platform.quote(&TdReport::default()).unwrap();
        let verified = verify(&pki, &quote, &fresh(&pki), NOW).unwrap();
        assert_eq!(Some(verified.status.as_str()), level.status());
        assert_eq!(verified.advisory_ids, level.advisories());
    }
}

#[test]
fn revoked_and_unknown_levels_are_refused() {
    let pki = pki();
    for (level, error) in [
        (PlatformLevel::Revoked, "TCB status is invalid: Revoked"),
        (PlatformLevel::Unknown, "No matching TCB level found"),
    ] {
        let platform = Platform::new(&pki, &PlatformOptions::with_level(level)).unwrap();
        let quote = platform.quote(&TdReport::default()).unwrap();
        assert_eq!(verify(&pki, &quote, &fresh(&pki), NOW).unwrap_err(), error);
    }
}

#[test]
fn module_and_qe_levels_are_rated() {
    let pki = pki();
    let status = |options: PlatformOptions| {
        let quote = Platform::new(&pki, &options)
            .unwrap()
            .quote(&TdReport::default())
            .unwrap();
        verify(&pki, &quote, &fresh(&pki), NOW).map(|verified| verified.status)
    };
    let module = |module| PlatformOptions {
        module,
        ..PlatformOptions::default()
    };
    assert_eq!(status(module(ModuleLevel::OutOfDate)).unwrap(), "OutOfDate");
    assert!(
        status(module(ModuleLevel::Revoked))
            .unwrap_err()
            .contains("Revoked")
    );
    assert!(
        status(module(ModuleLevel::Unknown))
            .unwrap_err()
            .contains("below minimum")
    );
    let qe = |qe| PlatformOptions {
        qe,
        ..PlatformOptions::default()
    };
    assert_eq!(status(qe(QeLevel::OutOfDate)).unwrap(), "OutOfDate");
    assert!(
        status(qe(QeLevel::Revoked))
            .unwrap_err()
            .contains("Revoked")
    );
    assert!(status(qe(QeLevel::Unknown)).is_err());
}

#[test]
fn relaunch_is_advised_after_a_module_update_below_a_running_guest() {
    let pki = pki();
    let mut svn = [0; 16];
    svn[..3].copy_from_slice(&[4, 3, 3]);
    let mut svn2 = svn;
    svn2[0] = 6;
    let report = TdReport {
        format: QuoteFormat::V5Td15,
        tee_tcb_svn: Some(svn),
        tee_tcb_svn2: Some(svn2),
        ..TdReport::default()
    };
    let quote = platform(&pki).quote(&report).unwrap();
    assert_eq!(
        verify(&pki, &quote, &fresh(&pki), NOW).unwrap().status,
        "TDRelaunchAdvised"
    );
}

#[test]
fn tcb_recovery_makes_up_to_date_platforms_out_of_date() {
    let pki = pki();
    let quote = platform(&pki).quote(&TdReport::default()).unwrap();
    let options = CollateralOptions {
        recovery: true,
        ..CollateralOptions::at(NOW)
    };
    let collateral = pki.collateral(&options).unwrap();
    assert_eq!(
        verify(&pki, &quote, &collateral, NOW).unwrap().status,
        "OutOfDate"
    );
}

#[test]
fn debug_and_reserved_attributes_are_refused() {
    let pki = pki();
    for (report, error) in [
        (
            TdReport {
                debug: true,
                ..TdReport::default()
            },
            "Debug mode is enabled",
        ),
        (
            TdReport {
                attributes: 1 << 5,
                ..TdReport::default()
            },
            "TD profiling is enabled",
        ),
        (
            TdReport {
                attributes: 1 << 29,
                ..TdReport::default()
            },
            "TD migration is enabled",
        ),
        (
            TdReport {
                attributes: 2,
                ..TdReport::default()
            },
            "Reserved bits in TD attributes are set",
        ),
    ] {
        let quote = platform(&pki).quote(&report).unwrap();
        assert_eq!(verify(&pki, &quote, &fresh(&pki), NOW).unwrap_err(), error);
    }
    let report = TdReport {
        format: QuoteFormat::V5Td15,
        mr_service_td: [1; 48],
        ..TdReport::default()
    };
    let quote = platform(&pki).quote(&report).unwrap();
    assert_eq!(
        verify(&pki, &quote, &fresh(&pki), NOW).unwrap_err(),
        "Invalid MR service TD"
    );
}

#[test]
fn sgx_quote_is_genuine_but_not_a_td() {
    let pki = pki();
    let report = TdReport {
        format: QuoteFormat::SgxV3,
        ..TdReport::default()
    };
    let quote = platform(&pki).quote(&report).unwrap();
    let error = verify(&pki, &quote, &fresh(&pki), NOW).unwrap_err();
    assert!(error.contains("Unsupported QE Identity id"), "{error}");
    let options = CollateralOptions {
        tee: Tee::Sgx,
        ..CollateralOptions::at(NOW)
    };
    let verified = verify(&pki, &quote, &pki.collateral(&options).unwrap(), NOW).unwrap();
    assert!(verified.report.is_sgx());
}

#[test]
fn same_seed_gives_the_same_bytes() {
    let hash = |seed: [u8; 32]| {
        let pki = Pki::new(&seed).unwrap();
        let collateral = pki.collateral(&CollateralOptions::at(NOW)).unwrap();
        let quote = platform(&pki).quote(&TdReport::default()).unwrap();
        let mut hash = Sha256::new();
        hash.update(pki.root_der());
        hash.update(pki.kms_der());
        hash.update(serde_json::to_vec(&collateral).unwrap());
        hash.update(quote);
        hash.update(
            Key::derive(&seed, "client 1")
                .unwrap()
                .to_pkcs8_der()
                .unwrap(),
        );
        hex::encode(hash.finalize())
    };
    assert_eq!(hash(SEED), hash(SEED));
    assert_ne!(hash(SEED), hash([8; 32]));
    // If this changes, everything derived from a seed changes.
    let golden = "83c079b59090842a34a8935a3668eb33213e19821aecfbde144ea786ae919f3f";
    assert_eq!(hash(SEED), golden);
}
