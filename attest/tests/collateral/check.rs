//! Parsing of collateral, and the check before it is stored.

use attest::collateral::{Collateral, CollateralError, CollateralKey, Part};
use attest::mock::{
    CollateralOptions, Pki, PkiOptions, Platform, PlatformOptions, Revoked, TdReport, Validity,
};

use super::{DAY, NOW, fresh, pki};

#[test]
fn parsed_collateral_has_its_key_and_dates() {
    let collateral = fresh(NOW);
    assert_eq!(collateral.key().to_string(), "F07EE5010000-platform");
    assert_eq!(
        "F07EE5010000-platform".parse::<CollateralKey>().unwrap(),
        collateral.key()
    );
    assert_eq!(collateral.valid_from(), NOW - 3_600);
    assert_eq!(collateral.expires_at(), NOW - 3_600 + 30 * DAY);
    assert!(collateral.is_valid_at(NOW) && !collateral.is_valid_at(collateral.expires_at()));
    let json = collateral.to_json().unwrap();
    assert_eq!(Collateral::from_json(&json).unwrap(), collateral);
    for wrong in [
        "",
        "F07EE5010000",
        "F07EE501-platform",
        "F07EE5010000-x",
        "zz7EE5010000-platform",
    ] {
        assert!(wrong.parse::<CollateralKey>().is_err(), "{wrong}");
    }
}

/// Each part is signed on its own, so that a PCCS can serve an old one together with a new one.
#[test]
fn the_older_part_decides_the_tcb_evaluation() {
    let of = |evaluation_number| {
        let at = CollateralOptions::at(NOW);
        let options = CollateralOptions {
            evaluation_number,
            ..at
        };
        pki().parsed_collateral(&options).unwrap()
    };
    let (old, new) = (of(16), of(18));
    assert_eq!(
        (old.tcb_evaluation_number(), new.tcb_evaluation_number()),
        (16, 18)
    );
    for (tcb_info, qe_identity) in [(&old, &new), (&new, &old)] {
        let mut mixed = tcb_info.as_qvl().clone();
        mixed.qe_identity = qe_identity.as_qvl().qe_identity.clone();
        let mixed = Collateral::parse(mixed).unwrap();
        assert_eq!(mixed.tcb_evaluation_number(), 16);
    }
}

#[test]
fn collateral_expires_with_its_first_part() {
    let early = Validity {
        from: NOW - 10,
        until: NOW + 10,
    };
    let at = CollateralOptions::at(NOW);
    for options in [
        CollateralOptions {
            tcb_info: early,
            ..at.clone()
        },
        CollateralOptions {
            qe_identity: early,
            ..at.clone()
        },
        CollateralOptions {
            root_crl: early,
            ..at.clone()
        },
        CollateralOptions {
            pck_crl: early,
            ..at.clone()
        },
    ] {
        let collateral = pki().parsed_collateral(&options).unwrap();
        assert_eq!(
            (collateral.valid_from(), collateral.expires_at()),
            (NOW - 10, NOW + 10)
        );
        collateral.check(pki().root_der(), NOW + 9).unwrap();
        let error = collateral.check(pki().root_der(), NOW + 10).unwrap_err();
        assert_eq!(error.code(), "expired");
    }
    // A certificate is valid through its last second.
    for options in [
        PkiOptions {
            pck_ca: early,
            ..PkiOptions::default()
        },
        PkiOptions {
            tcb_signer: early,
            ..PkiOptions::default()
        },
    ] {
        let pki = Pki::with_options(&[7; 32], &options).unwrap();
        let collateral = pki.parsed_collateral(&at).unwrap();
        assert_eq!(
            (collateral.valid_from(), collateral.expires_at()),
            (NOW - 10, NOW + 11)
        );
    }
}

#[test]
fn check_names_the_wrong_part() {
    use CollateralError::{BadSignature, Expired, NotYetValid, Revoked as IsRevoked};
    let (pki, other) = (pki(), Pki::new(&[8; 32]).unwrap());
    let at = CollateralOptions::at(NOW);
    let check = |options: &CollateralOptions| {
        pki.parsed_collateral(options)
            .unwrap()
            .check(pki.root_der(), NOW)
            .unwrap_err()
    };
    let past = Validity {
        from: NOW - 20,
        until: NOW - 10,
    };
    let future = Validity {
        from: NOW + 10,
        until: NOW + 20,
    };
    let with = |part, validity| match part {
        Part::TcbInfo => CollateralOptions {
            tcb_info: validity,
            ..at.clone()
        },
        Part::QeIdentity => CollateralOptions {
            qe_identity: validity,
            ..at.clone()
        },
        Part::RootCrl => CollateralOptions {
            root_crl: validity,
            ..at.clone()
        },
        _ => CollateralOptions {
            pck_crl: validity,
            ..at.clone()
        },
    };
    for part in [Part::TcbInfo, Part::QeIdentity, Part::RootCrl, Part::PckCrl] {
        assert_eq!(check(&with(part, past)), Expired { part, at: NOW - 10 });
        assert_eq!(
            check(&with(part, future)),
            NotYetValid {
                part,
                from: NOW + 10
            }
        );
    }
    let none = Revoked::default();
    for (revoked, part) in [
        (Revoked { root: true, ..none }, Part::Root),
        (
            Revoked {
                tcb_signer: true,
                ..none
            },
            Part::TcbInfoSigner,
        ),
        (
            Revoked {
                pck_ca: true,
                ..none
            },
            Part::PckCa,
        ),
    ] {
        assert_eq!(
            check(&CollateralOptions {
                revoked,
                ..at.clone()
            }),
            IsRevoked { part }
        );
    }
    let (good, bad) = (pki.collateral(&at).unwrap(), other.collateral(&at).unwrap());
    type Swap = fn(&mut dcap_qvl::QuoteCollateralV3, &dcap_qvl::QuoteCollateralV3);
    let swaps: [(Part, Swap); 8] = [
        (Part::RootCrl, |g, b| {
            g.root_ca_crl.clone_from(&b.root_ca_crl)
        }),
        (Part::PckCrl, |g, b| g.pck_crl.clone_from(&b.pck_crl)),
        (Part::TcbInfo, |g, b| {
            g.tcb_info_signature.clone_from(&b.tcb_info_signature)
        }),
        (Part::TcbInfo, |g, _| {
            g.tcb_info = g.tcb_info.replace("\"OutOfDate\"", "\"UpToDate\"")
        }),
        (Part::QeIdentity, |g, b| {
            g.qe_identity_signature.clone_from(&b.qe_identity_signature)
        }),
        (Part::TcbInfoSigner, |g, b| {
            g.tcb_info_issuer_chain.clone_from(&b.tcb_info_issuer_chain)
        }),
        (Part::QeIdentitySigner, |g, b| {
            g.qe_identity_issuer_chain
                .clone_from(&b.qe_identity_issuer_chain);
        }),
        (Part::PckCa, |g, b| {
            g.pck_crl_issuer_chain.clone_from(&b.pck_crl_issuer_chain)
        }),
    ];
    Collateral::parse(good.clone())
        .unwrap()
        .check(pki.root_der(), NOW)
        .unwrap();
    for (part, swap) in swaps {
        let mut mixed = good.clone();
        swap(&mut mixed, &bad);
        let error = Collateral::parse(mixed)
            .unwrap()
            .check(pki.root_der(), NOW)
            .unwrap_err();
        assert_eq!(error, BadSignature { part });
    }
    // A PCK CA must not sign TCB info, although the root issued it.
    let mut mixed = good.clone();
    mixed
        .tcb_info_issuer_chain
        .clone_from(&good.pck_crl_issuer_chain);
    let error = Collateral::parse(mixed)
        .unwrap()
        .check(pki.root_der(), NOW)
        .unwrap_err();
    assert_eq!(
        error,
        CollateralError::WrongIssuer {
            part: Part::TcbInfoSigner
        }
    );
    let error = Collateral::parse(good)
        .unwrap()
        .check(other.root_der(), NOW)
        .unwrap_err();
    assert_eq!(
        error,
        BadSignature {
            part: Part::RootCrl
        }
    );
}

#[test]
fn oversized_parts_are_refused_before_parsing() {
    let good = pki().collateral(&CollateralOptions::at(NOW)).unwrap();
    let mut large = good.clone();
    large.tcb_info = " ".repeat(attest::collateral::MAX_COLLATERAL_PART_LEN + 1);
    let error = Collateral::parse(large).unwrap_err();
    assert!(matches!(
        error,
        CollateralError::TooLarge {
            part: Part::TcbInfo,
            ..
        }
    ));
    let mut long = good.clone();
    long.pck_crl_issuer_chain = good.pck_crl_issuer_chain.repeat(40);
    let error = Collateral::parse(long).unwrap_err();
    assert!(
        matches!(
            error,
            CollateralError::TooLarge {
                part: Part::PckCa,
                ..
            }
        ),
        "{error}"
    );
    let error = Collateral::from_json(&vec![b' '; 100 << 20]).unwrap_err();
    assert_eq!(error.code(), "too_large");
    let mut sgx = good;
    sgx.tcb_info = sgx.tcb_info.replace(r#""id":"TDX""#, r#""id":"SGX""#);
    assert_eq!(Collateral::parse(sgx).unwrap_err(), CollateralError::NotTdx);
}

/// A PCCS can append any certificates to a chain: they are not signed.
#[test]
fn extra_certificates_in_an_issuer_chain_are_ignored() {
    let soon = Validity {
        from: NOW - 10,
        until: NOW + 10,
    };
    let options = PkiOptions {
        root: soon,
        pck_ca: soon,
        tcb_signer: soon,
        ..PkiOptions::default()
    };
    let other = Pki::with_options(&[8; 32], &options).unwrap();
    let at = CollateralOptions::at(NOW);
    let extra = other.collateral(&at).unwrap();
    let mut served = pki().collateral(&at).unwrap();
    served.tcb_info_issuer_chain += &extra.tcb_info_issuer_chain;
    served.qe_identity_issuer_chain += "-----BEGIN CERTIFICATE-----\n!\n";
    served.pck_crl_issuer_chain += &extra.pck_crl_issuer_chain;
    let parsed = Collateral::parse(served).unwrap();
    assert_eq!(parsed, fresh(NOW));
    assert_eq!(parsed.expires_at(), fresh(NOW).expires_at());
    parsed.check(pki().root_der(), NOW).unwrap();
}

#[test]
fn parsed_collateral_verifies_a_quote() {
    let pki = pki();
    let platform = Platform::new(&pki, &PlatformOptions::default()).unwrap();
    let quote = platform.quote(&TdReport::default()).unwrap();
    let verified = dcap_qvl::verify::QuoteVerifier::new(pki.root_der().to_vec())
        .verify(&quote, fresh(NOW).as_qvl(), NOW)
        .unwrap();
    assert_eq!(verified.status, "UpToDate");
}
