//! Verification of a chain up to pinned KMS roots.

use attest::Denial;
use attest::chain::{Chain, KmsRoot, KmsRootError, MAX_CHAIN_LEN, MAX_ISSUERS_LEN};
use attest::mock::{Fixture, Pki, PkiOptions, Validity};
use attest::policy::KmsRootPin;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use crate::NOW;
use crate::policy_with;

fn pinned(root: &[u8], fixture: &mut Fixture) {
    let root = KmsRoot::from_der(root).unwrap();
    fixture.policy = policy_with(|settings| settings.kms_root = KmsRootPin::Roots(vec![root]));
}

#[test]
fn only_the_pinned_root_is_accepted() {
    let right = Fixture::with(|f| pinned(f.pki.kms_der().to_vec().as_slice(), f));
    assert_eq!(right.outcome(), "admitted");
    let leaf_only = [right.certificate().der().to_vec()];
    assert!(
        right.verify_chain(&leaf_only).is_ok(),
        "the root may be missing from the chain"
    );
    let other = Pki::new(&[8; 32]).unwrap();
    let wrong = Fixture::with(|f| pinned(other.kms_der(), f));
    let denial = wrong.verify().unwrap_err();
    assert_eq!(denial.to_string(), "cert chain verification failed");
}

#[test]
fn root_must_be_within_its_validity() {
    for validity in [
        Validity {
            from: NOW + 86_400,
            until: NOW + 2 * 86_400,
        },
        Validity {
            from: NOW - 2 * 86_400,
            until: NOW - 86_400,
        },
    ] {
        let options = PkiOptions {
            kms: validity,
            ..PkiOptions::default()
        };
        let fixture = Fixture::with(|f| {
            f.pki = Pki::with_options(&[7; 32], &options).unwrap();
            pinned(f.pki.kms_der().to_vec().as_slice(), f);
        });
        assert_eq!(fixture.outcome(), "kms_root_mismatch");
    }
    let ends_soon = Validity {
        from: NOW - 86_400,
        until: NOW + 60,
    };
    let options = PkiOptions {
        kms: ends_soon,
        ..PkiOptions::default()
    };
    let fixture = Fixture::with(|f| {
        f.pki = Pki::with_options(&[7; 32], &options).unwrap();
        pinned(f.pki.kms_der().to_vec().as_slice(), f);
    });
    assert_eq!(
        fixture.verify().unwrap().valid_until(),
        NOW + 60,
        "a verdict ends with the root's validity"
    );
}

/// A CA, or a certificate that is used like one.
struct Ca {
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
}

fn ca(name: &str, is_ca: IsCa, usage: &[KeyUsagePurpose], parent: Option<&Ca>) -> Ca {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = is_ca;
    params.key_usages = usage.to_vec();
    let certificate = match parent {
        Some(parent) => params.signed_by(&key, &parent.issuer),
        None => params.self_signed(&key),
    };
    let der = certificate.unwrap().der().to_vec();
    Ca {
        issuer: Issuer::new(params, key),
        der,
    }
}

const UNLIMITED: IsCa = IsCa::Ca(BasicConstraints::Unconstrained);
const SIGN: [KeyUsagePurpose; 1] = [KeyUsagePurpose::KeyCertSign];

/// Verifies a leaf with `intermediates`, from the leaf up. The root is pinned and not in the chain.
fn verify(root: &Ca, intermediates: &[&Ca]) -> Result<u64, Denial> {
    let last = intermediates.first().copied().unwrap_or(root);
    let leaf = ca("leaf", IsCa::NoCa, &[], Some(last));
    let mut chain = vec![leaf.der];
    chain.extend(intermediates.iter().map(|ca| ca.der.clone()));
    let root = KmsRoot::from_der(&root.der).unwrap();
    Chain::copy(&chain).unwrap().verify_up_to(&[root], NOW)
}

#[test]
fn intermediates_are_followed_in_order() {
    let root = ca("root", UNLIMITED, &SIGN, None);
    let upper = ca("upper", UNLIMITED, &SIGN, Some(&root));
    let lower = ca("lower", UNLIMITED, &SIGN, Some(&upper));
    assert!(verify(&root, &[]).is_ok());
    assert!(verify(&root, &[&upper]).is_ok());
    assert!(verify(&root, &[&lower, &upper]).is_ok());
    assert_eq!(
        verify(&root, &[&lower]),
        Err(Denial::KmsRootMismatch),
        "a missing intermediate"
    );
    assert_eq!(
        verify(&root, &[&upper, &lower]).ok(),
        verify(&root, &[&upper]).ok()
    );
}

#[test]
fn path_length_constraints_are_enforced() {
    for (len, one, two) in [(0, false, false), (1, true, false), (2, true, true)] {
        let root = ca(
            "root",
            IsCa::Ca(BasicConstraints::Constrained(len)),
            &SIGN,
            None,
        );
        let upper = ca("upper", UNLIMITED, &SIGN, Some(&root));
        let lower = ca("lower", UNLIMITED, &SIGN, Some(&upper));
        assert!(verify(&root, &[]).is_ok(), "pathlen {len}");
        assert_eq!(verify(&root, &[&upper]).is_ok(), one, "pathlen {len}");
        assert_eq!(
            verify(&root, &[&lower, &upper]).is_ok(),
            two,
            "pathlen {len}"
        );
    }
}

#[test]
fn only_cas_may_issue() {
    let root = ca("root", UNLIMITED, &SIGN, None);
    for (is_ca, usage, admitted) in [
        (UNLIMITED, &SIGN[..], true),
        (UNLIMITED, &[], true),
        (UNLIMITED, &[KeyUsagePurpose::DigitalSignature], false),
        (IsCa::NoCa, &SIGN, false),
        (IsCa::ExplicitNoCa, &SIGN, false),
    ] {
        let middle = ca("middle", is_ca, usage, Some(&root));
        assert_eq!(
            verify(&root, &[&middle]).is_ok(),
            admitted,
            "{is_ca:?} {usage:?}"
        );
    }
    let leaf = ca("leaf", IsCa::NoCa, &[], None);
    assert_eq!(KmsRoot::from_der(&leaf.der), Err(KmsRootError::NotCa));
}

#[test]
fn root_of_the_same_name_and_another_key_is_refused() {
    let root = ca("root", UNLIMITED, &SIGN, None);
    let impostor = ca("root", UNLIMITED, &SIGN, None);
    let leaf = ca("leaf", IsCa::NoCa, &[], Some(&impostor));
    let root = KmsRoot::from_der(&root.der).unwrap();
    let chain = Chain::copy(&[leaf.der, impostor.der]).unwrap();
    assert_eq!(
        chain.verify_up_to(std::slice::from_ref(&root), NOW),
        Err(Denial::KmsRootMismatch)
    );
    let two = [root, KmsRoot::from_der(&chain.certificates()[1]).unwrap()];
    assert!(
        chain.verify_up_to(&two, NOW).is_ok(),
        "one of several roots"
    );
}

#[test]
fn roots_are_read_from_pem() {
    let fixture = Fixture::default();
    let pem = fixture.pki.kms_pem();
    let roots = KmsRoot::from_pem(format!("{pem}\n{pem}").as_bytes()).unwrap();
    assert_eq!(roots.len(), 2);
    assert_eq!(roots[0].der(), fixture.pki.kms_der());
    let policy = policy_with(|s| s.kms_root = KmsRootPin::Roots(roots.clone()));
    let once = KmsRootPin::Roots(vec![roots[0].clone()]);
    assert_eq!(policy.settings().kms_root, once);
    assert_eq!(KmsRoot::from_pem(b""), Err(KmsRootError::NoPem));
    assert_eq!(KmsRoot::from_pem(b"nonsense"), Err(KmsRootError::NoPem));
    let key = pem.replace("CERTIFICATE", "PRIVATE KEY");
    assert_eq!(KmsRoot::from_pem(key.as_bytes()), Err(KmsRootError::NoPem));
    assert_eq!(
        KmsRoot::from_pem(&vec![b' '; 1 << 20]),
        Err(KmsRootError::TooLarge)
    );
    let cut = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    assert_eq!(
        KmsRoot::from_pem(cut.as_bytes()),
        Err(KmsRootError::Malformed)
    );
}

#[test]
fn long_chains_and_large_certificates_are_refused() {
    let der = Fixture::default().certificate().der().to_vec();
    let chain = |issuers: usize, len: usize| {
        let mut chain = vec![der.clone()];
        chain.resize(1 + issuers, vec![0; len]);
        Chain::copy(&chain).map(drop)
    };
    let issuers = MAX_CHAIN_LEN - 1;
    assert_eq!(chain(issuers, MAX_ISSUERS_LEN / issuers), Ok(()));
    assert_eq!(
        chain(issuers, MAX_ISSUERS_LEN / issuers + 1),
        Err(Denial::MalformedCertificate("its issuers are too large"))
    );
    assert_eq!(chain(issuers + 1, 0), Err(Denial::ChainTooLong));
    let large = [vec![0; attest::certificate::MAX_CERTIFICATE_LEN], der];
    assert_eq!(
        Chain::copy(&large).unwrap_err().code(),
        "malformed_certificate"
    );
}
