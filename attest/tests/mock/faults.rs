//! dcap-qvl refuses each single fault that the mock can inject.

use attest::collateral::{CaType, Fmspc};
use attest::mock::{
    CollateralOptions, Pki, PkiOptions, Platform, PlatformOptions, QuoteFormat, Revoked, TdReport,
    Validity,
};
use dcap_qvl::QuoteCollateralV3;

use super::{NOW, SEED, fresh, pki, platform, verify};

/// The error for a default quote with collateral from `options`.
fn refused(pki: &Pki, options: &CollateralOptions, now: u64) -> String {
    let quote = platform(pki).quote(&TdReport::default()).unwrap();
    verify(pki, &quote, &pki.collateral(options).unwrap(), now).unwrap_err()
}

#[test]
fn every_date_is_checked() {
    let pki = pki();
    let at = CollateralOptions::at(NOW);
    let past = Validity {
        from: NOW - 7_200,
        until: NOW - 3_600,
    };
    let future = Validity {
        from: NOW + 3_600,
        until: NOW + 7_200,
    };
    for (options, error) in [
        (
            CollateralOptions {
                tcb_info: past,
                ..at.clone()
            },
            "TCBInfo expired",
        ),
        (
            CollateralOptions {
                tcb_info: future,
                ..at.clone()
            },
            "TCBInfo issue date is in the future",
        ),
        (
            CollateralOptions {
                qe_identity: past,
                ..at.clone()
            },
            "QE Identity expired",
        ),
        (
            CollateralOptions {
                qe_identity: future,
                ..at.clone()
            },
            "QE Identity issue date",
        ),
        (
            CollateralOptions {
                root_crl: past,
                ..at.clone()
            },
            "CrlExpired",
        ),
        (
            CollateralOptions {
                pck_crl: past,
                ..at.clone()
            },
            "CrlExpired",
        ),
    ] {
        let found = refused(&pki, &options, NOW);
        assert!(found.contains(error), "{found} is not {error}");
    }
}

#[test]
fn every_certificate_date_is_checked() {
    let past = Validity {
        from: NOW - 7_200,
        until: NOW - 3_600,
    };
    let future = Validity {
        from: NOW + 3_600,
        until: NOW + 7_200,
    };
    let all = PkiOptions::default();
    for (bad, error) in [(past, "CertExpired"), (future, "CertNotValidYet")] {
        for options in [
            PkiOptions { pck_ca: bad, ..all },
            PkiOptions {
                tcb_signer: bad,
                ..all
            },
        ] {
            let pki = Pki::with_options(&SEED, &options).unwrap();
            let found = refused(&pki, &CollateralOptions::at(NOW), NOW);
            assert!(
                found.contains(error),
                "{found} is not {error} with {options:?}"
            );
        }
        let pki = pki();
        let options = PlatformOptions {
            validity: bad,
            ..PlatformOptions::default()
        };
        let quote = Platform::new(&pki, &options)
            .unwrap()
            .quote(&TdReport::default())
            .unwrap();
        let found = verify(&pki, &quote, &fresh(&pki), NOW).unwrap_err();
        assert!(
            found.contains(error),
            "{found} is not {error} for the PCK certificate"
        );
    }
}

#[test]
fn every_revocation_is_checked() {
    let pki = pki();
    let none = Revoked::default();
    for revoked in [
        Revoked {
            platform: Some("machine 1"),
            ..none
        },
        Revoked {
            pck_ca: true,
            ..none
        },
        Revoked {
            tcb_signer: true,
            ..none
        },
        Revoked { root: true, ..none },
    ] {
        let found = refused(
            &pki,
            &CollateralOptions {
                revoked,
                ..CollateralOptions::at(NOW)
            },
            NOW,
        );
        assert!(found.contains("CertRevoked"), "{found} with {revoked:?}");
    }
    let other = Revoked {
        platform: Some("machine 2"),
        ..none
    };
    let options = CollateralOptions {
        revoked: other,
        ..CollateralOptions::at(NOW)
    };
    let quote = platform(&pki).quote(&TdReport::default()).unwrap();
    verify(&pki, &quote, &pki.collateral(&options).unwrap(), NOW).unwrap();
}

#[test]
fn collateral_of_another_platform_or_ca_is_refused() {
    let pki = pki();
    let at = CollateralOptions::at(NOW);
    let other = CollateralOptions {
        fmspc: Fmspc([9; 6]),
        ..at.clone()
    };
    assert_eq!(refused(&pki, &other, NOW), "Fmspc mismatch");
    let other = CollateralOptions {
        ca: CaType::Processor,
        ..at
    };
    let found = refused(&pki, &other, NOW);
    assert!(found.contains("UnknownRevocationStatus"), "{found}");
}

#[test]
fn another_seed_gives_another_root() {
    let (pki, other) = (pki(), Pki::new(&[8; 32]).unwrap());
    let quote = platform(&pki).quote(&TdReport::default()).unwrap();
    assert!(verify(&other, &quote, &fresh(&pki), NOW).is_err());
    assert!(verify(&pki, &quote, &fresh(&other), NOW).is_err());
    let foreign = platform(&other).quote(&TdReport::default()).unwrap();
    assert!(verify(&pki, &foreign, &fresh(&pki), NOW).is_err());
}

/// Each signed part is replaced separately by that of a PKI with another seed, but the same names and
/// dates.
#[test]
fn every_signature_is_checked() {
    let (pki, other) = (pki(), Pki::new(&[8; 32]).unwrap());
    let quote = platform(&pki).quote(&TdReport::default()).unwrap();
    let (good, bad) = (fresh(&pki), fresh(&other));
    type Swap = fn(&mut QuoteCollateralV3, &QuoteCollateralV3);
    let swaps: [(&str, Swap); 7] = [
        ("root CRL", |good, bad| {
            good.root_ca_crl.clone_from(&bad.root_ca_crl)
        }),
        ("PCK CRL", |good, bad| good.pck_crl.clone_from(&bad.pck_crl)),
        ("TCB info signature", |good, bad| {
            good.tcb_info_signature.clone_from(&bad.tcb_info_signature)
        }),
        ("QE signature", |good, bad| {
            good.qe_identity_signature
                .clone_from(&bad.qe_identity_signature)
        }),
        ("TCB info chain", |good, bad| {
            good.tcb_info_issuer_chain
                .clone_from(&bad.tcb_info_issuer_chain)
        }),
        ("QE chain", |good, bad| {
            good.qe_identity_issuer_chain
                .clone_from(&bad.qe_identity_issuer_chain)
        }),
        ("TCB info", |good, _| {
            good.tcb_info = good.tcb_info.replace("\"OutOfDate\"", "\"UpToDate\"")
        }),
    ];
    verify(&pki, &quote, &good, NOW).unwrap();
    for (what, swap) in swaps {
        let mut mixed = good.clone();
        swap(&mut mixed, &bad);
        assert!(verify(&pki, &quote, &mixed, NOW).is_err(), "{what}");
    }
}

/// A flipped bit anywhere in the signed parts or the signatures of a quote is detected.
#[test]
fn every_byte_of_a_quote_is_signed() {
    let pki = pki();
    let collateral = fresh(&pki);
    for format in [QuoteFormat::V4, QuoteFormat::V5Td15] {
        let quote = platform(&pki)
            .quote(&TdReport {
                format,
                ..TdReport::default()
            })
            .unwrap();
        let chain = quote.windows(10).position(|w| w == b"-----BEGIN").unwrap();
        // The type of the outer certification data is not signed, and dcap-qvl does not check it.
        let signed = quote.len() - chain_and_below(&quote, chain);
        let outer_type = signed..signed + 2;
        for at in (0..chain).filter(|at| !outer_type.contains(at)) {
            let mut flipped = quote.clone();
            flipped[at] ^= 1;
            assert!(
                verify(&pki, &flipped, &collateral, NOW).is_err(),
                "{format:?}, byte {at}"
            );
        }
    }
}

/// The number of bytes from the type of the outer certification data to the end.
fn chain_and_below(quote: &[u8], chain: usize) -> usize {
    // Type and length, QE report, its signature, QE authentication data, type and length.
    quote.len() - chain + (2 + 4) + 384 + 64 + (2 + 32) + (2 + 4)
}

#[test]
fn truncated_quotes_are_refused() {
    let pki = pki();
    let collateral = fresh(&pki);
    let quote = platform(&pki).quote(&TdReport::default()).unwrap();
    for length in (0..quote.len()).step_by(7) {
        assert!(
            verify(&pki, &quote[..length], &collateral, NOW).is_err(),
            "{length} bytes"
        );
    }
}
